"""Bytes to events and back: JSON, with the schema's name and version as record headers.

Must never let a number through that is not finite or does not fit, nor write one in exponent form.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from decimal import Decimal
from functools import cache
from typing import Any, Final

import msgspec

from . import events, topics
from .intervals import INTERVALS
from .numbers import NotANumber, check

__all__ = [
    "SCHEMA_VERSION",
    "TOPIC_EVENTS",
    "Unreadable",
    "decode",
    "decode_wire",
    "encode",
    "headers_of",
    "key_of",
    "schema_of",
]

SCHEMA_VERSION: Final = "1"
TOPIC_EVENTS: Final[dict[str, Any]] = {
    topics.OHLCV_RAW: events.RawEvent,
    topics.OHLCV_AGG: events.Candle,
    topics.TRADING_SIGNALS: events.SignalEvent,
    topics.ORDER_EVENTS: events.OrderEvent,
}

_WIRE: Final = msgspec.json.Decoder(events.WireTrade | events.Bar | events.Watermark | events.Gap)
_PLAIN: Final = re.compile(r"(?:[0-9]{1,20}+(?:\.[0-9]{1,18}+)?+,)*+", re.ASCII)
_ON_A_GRID: Final = frozenset((events.Candle, events.Signal))
_encoder = msgspec.json.Encoder()
# str(Decimal("0E-8")) is exponent form, and msgspec writes str(); such a token is written out again.
_EXPONENT = re.compile(rb'"(-?[0-9]+(?:\.[0-9]+)?E[+-][0-9]+)"')


class Unreadable(ValueError):
    """A record's bytes are not an event of its topic; the text says why."""


def encode(event: events.Event) -> bytes:
    """The event as JSON, numbers as strings in fixed point."""
    data = _encoder.encode(event)
    if b"E-" in data or b"E+" in data:
        data = _EXPONENT.sub(lambda m: b'"%s"' % format(Decimal(m[1].decode()), "f").encode(), data)
    return data


def decode(topic: str, value: bytes | None) -> Any:
    """The event in a record of ``topic`` (its plain name, without prefix). Raises Unreadable."""
    if value is None:
        raise Unreadable("the record has no value (a tombstone); no topic of MarketFlow holds those")
    try:
        event = _decoder(topic).decode(value)
        _check(event)
    except (msgspec.MsgspecError, NotANumber, UnicodeDecodeError) as error:
        raise Unreadable(str(error)) from error
    return event


def decode_wire(values: Sequence[bytes | None]) -> list[Any] | None:
    """The events in records of ohlcv_raw, trades as WireTrade; None if any is not plain: ``decode`` tells what it is.

    Plain are numbers in fixed point, not negative, of at most 20 and 18 digits: what ``decode`` would let through.
    """
    try:
        found = list(map(_WIRE.decode, values))  # type: ignore[arg-type]
        trades = [event for event in found if type(event) is events.WireTrade]
        if len(trades) < len(found):
            for event in found:
                if type(event) is not events.WireTrade:
                    _check(event)
    except (msgspec.MsgspecError, NotANumber, Unreadable, UnicodeDecodeError, TypeError):
        return None
    # One call of C for all numbers of a batch; that there are no more commas than joints keeps each a number by itself.
    for numbers in ([trade.price for trade in trades], [trade.qty for trade in trades]):
        text = ",".join([*numbers, ""])
        if _PLAIN.fullmatch(text) is None or text.count(",") != len(numbers):
            return None
    return found


@cache
def _decoder(topic: str) -> msgspec.json.Decoder[Any]:
    return msgspec.json.Decoder(TOPIC_EVENTS[topic])


@cache
def _decimal_fields(kind: type) -> tuple[str, ...]:
    return tuple(f.name for f in msgspec.structs.fields(kind) if f.type is Decimal or "Decimal" in str(f.type))


def _check(event: Any) -> None:
    """What the types alone do not tell."""
    _check_numbers(event)
    if type(event) in _ON_A_GRID and event.interval not in INTERVALS:
        raise Unreadable(f"interval {event.interval!r} is none of {', '.join(INTERVALS)}")


def _check_numbers(struct: Any) -> None:
    kind: type = type(struct)
    for name in _decimal_fields(kind):
        value = getattr(struct, name)
        if type(value) is Decimal:
            check(value)
        elif isinstance(value, dict):
            for member in value.values():
                check(member)
    if kind is events.Watermark:
        _check_numbers(struct.kline)


def schema_of(event: events.Event | type[events.Event]) -> str:
    """Name of the event's schema, for example ``trade``."""
    kind = event if isinstance(event, type) else type(event)
    return str(kind.__struct_config__.tag)


@cache
def _headers(kind: type[events.Event]) -> list[tuple[str, str | bytes | None]]:
    return [("schema", schema_of(kind).encode()), ("schema-version", SCHEMA_VERSION.encode())]


def headers_of(event: events.Event) -> list[tuple[str, str | bytes | None]]:
    """Record headers of the event."""
    return _headers(type(event))


def key_of(event: events.Event) -> str:
    """Record key: the symbol, or the account for what concerns a whole account."""
    symbol = getattr(event, "symbol", None)
    return str(symbol if symbol is not None else event.account)  # type: ignore[attr-defined]
