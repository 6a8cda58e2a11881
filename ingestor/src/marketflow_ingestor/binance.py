"""Binance's messages to events, with every number checked.

Pure. Must never let a number through unchecked, nor decide what is published: that is sequence.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Final

import msgspec
from marketflow_common.events import Kline, Trade
from marketflow_common.intervals import MINUTE
from marketflow_common.numbers import NotANumber, number

__all__ = [
    "SOURCE",
    "Closed",
    "Doubtful",
    "Other",
    "Unreadable",
    "amount",
    "kline_of",
    "micros",
    "read",
    "streams_of",
]

SOURCE: Final = "binance"
_MICROSECONDS_FROM: Final = 100_000_000_000_000
"""Times from here on are microseconds (timeUnit=MICROSECOND): as milliseconds they were after the year 5000."""


class Unreadable(ValueError):
    """A message is not what the exchange documents; the text says why."""


class Closed(msgspec.Struct, frozen=True, gc=False):
    """A minute of a symbol that the exchange has closed."""

    symbol: str
    kline: Kline


class Opened(msgspec.Struct, frozen=True, gc=False):
    """A minute of a symbol that is not closed yet, and the id of its first trade."""

    symbol: str
    open_time: int
    first_trade_id: int


class Doubtful(msgspec.Struct, frozen=True, gc=False):
    """A trade whose time cannot be: it lies ahead of its own event's time, or of the exchange's clock."""

    symbol: str
    trade_id: int
    traded_at: int
    event_at: int


class Other(msgspec.Struct, frozen=True, gc=False):
    """A message that is no trade or minute: an answer, an event of the connection."""

    event: str = ""


class _Trade(msgspec.Struct, tag_field="e", tag="trade", gc=False):
    E: int
    s: str
    t: int
    p: str
    q: str
    T: int
    m: bool


class _K(msgspec.Struct, gc=False):
    t: int
    T: int
    o: str
    h: str
    l: str  # noqa: E741 - the exchange's name
    c: str
    v: str
    q: str
    n: int
    V: str
    Q: str
    f: int
    L: int
    x: bool


class _KlineEvent(msgspec.Struct, tag_field="e", tag="kline", gc=False):
    s: str
    k: _K


class _Message(msgspec.Struct, gc=False):
    data: _Trade | _KlineEvent


class _Envelope(msgspec.Struct):
    data: msgspec.Raw = msgspec.Raw(b"")


class _Event(msgspec.Struct):
    e: str = ""


# Prices and quantities come again and again: looking them up costs a fifth of checking them.
amount: Final = lru_cache(maxsize=1 << 14)(number)
_OTHER: Final = Other()
_message: Final = msgspec.json.Decoder(_Message)
_envelope: Final = msgspec.json.Decoder(_Envelope)
_event: Final = msgspec.json.Decoder(_Event)


def micros(at: int) -> int:
    """A time of the exchange, which sends milliseconds or microseconds, in microseconds."""
    return at if at >= _MICROSECONDS_FROM else at * 1_000


def read(message: bytes, received_at: int, tolerance: int, latest: int) -> Trade | Closed | Opened | Doubtful | Other:
    """One message of a combined stream; all times in microseconds. Raises Unreadable.

    A trade is doubted if its time is more than ``tolerance`` ahead of its event's, or after ``latest``.
    """
    try:
        data = _message.decode(message).data
        if type(data) is _Trade:
            at = micros(data.T)
            if at > latest or at > micros(data.E) + tolerance:
                return Doubtful(data.s, data.t, at, micros(data.E))
            return Trade(SOURCE, data.s, data.t, amount(data.p), amount(data.q), data.m, at, received_at)
        assert type(data) is _KlineEvent
        k = data.k
        if not k.x:
            return Opened(data.s, micros(k.t), k.f)
        texts = (k.o, k.h, k.l, k.c, k.v, k.q)
        return Closed(data.s, kline_of(k.t, k.T, texts, k.n, (k.V, k.Q), (k.f, k.L)))
    except (msgspec.MsgspecError, NotANumber, UnicodeDecodeError) as error:
        return _other(message, error)


def _other(message: bytes, error: Exception) -> Other:
    """An answer to a request or an event without interest; whatever claims to be a trade or kline is an error."""
    try:
        data = _envelope.decode(message).data
        event = _event.decode(data if bytes(data) else message).e
    except (msgspec.MsgspecError, UnicodeDecodeError):
        raise Unreadable(str(error)) from error
    if event in ("trade", "kline"):
        raise Unreadable(str(error)) from error
    return Other(event)


def kline_of(
    opened: int, closed: int, texts: Sequence[str], count: int, taker: Sequence[str], ids: tuple[int, int]
) -> Kline:
    """A minute, of times as sent; texts: open, high, low, close, volume, quote volume; taker: volume, quote volume.

    Raises Unreadable or NotANumber."""
    open_time, last = micros(opened), closed if closed >= _MICROSECONDS_FROM else closed * 1_000 + 999
    if open_time % MINUTE or last != open_time + MINUTE - 1:
        raise Unreadable(f"a kline from {opened} to {closed} is not a whole minute")
    o, h, l, c, v, q = map(number, texts)  # noqa: E741 - the exchange's names
    return Kline(open_time, last, o, h, l, c, v, q, count, number(taker[0]), number(taker[1]), *ids)


# --- streams -----------------------------------------------------------------------------------------


def streams_of(symbols: Sequence[str]) -> list[str]:
    """Names of the streams of symbols."""
    return [f"{symbol.lower()}@{kind}" for symbol in symbols for kind in ("trade", "kline_1m")]
