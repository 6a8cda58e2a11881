"""What people read: one line for each due event, several lines to a message.

Pure: no Kafka, no network, no clock. Must never round a number, nor cut off the reference that ends each line.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from datetime import UTC, datetime
from decimal import Decimal
from typing import Final, NamedTuple

from marketflow_common.codec import schema_of
from marketflow_common.events import (
    Event,
    OrderCanceled,
    OrderExpired,
    OrderFilled,
    OrderRejected,
    OrderUnresolved,
    Signal,
    TradingStateChanged,
)
from marketflow_common.numbers import EXACT

__all__ = ["KINDS", "MAX_LINE", "Message", "Notice", "first_message", "is_due", "notice", "units"]

KINDS: Final[tuple[str, ...]] = (
    "signal",
    "order_filled",
    "order_rejected",
    "order_expired",
    "order_canceled",
    "order_unresolved",
    "trading_state_changed",
)
"""Names (``type`` on the wire) of the events that people are told of."""

MAX_LINE: Final = 600
"""UTF-16 units of one line: a long reason is cut, so that every line fits the smallest message (Discord, 2000)."""

_PERCENT = Decimal(100)
_STATES = {"ACTIVE": "▶️", "REDUCE_ONLY": "⚠️", "HALTED": "🛑"}


class Notice(NamedTuple):
    """One due record: its line, and a form of it in plain ASCII for a channel that refuses the line."""

    line: str
    short: str


class Message(NamedTuple):
    """One message made of the first ``taken`` notices, in full and in short."""

    text: str
    short: str
    taken: int


def is_due(event: Event, kinds: Collection[str] = KINDS) -> bool:
    """Whether people are told of the event. A HOLD never is."""
    return schema_of(event) in kinds and not (isinstance(event, Signal) and event.signal_type == "HOLD")


def notice(event: Event, reference: str) -> Notice:
    """The lines for a due event; ``reference`` is ``topic/partition@offset``, and ends both."""
    what, why = _words(event)
    room = MAX_LINE - units(what) - units(reference) - 6  # two separators of three
    why = _cut(_clean(why), room)
    line = " · ".join(part for part in (what, why, reference) if part)
    name = getattr(event, "symbol", None) or getattr(event, "account", "")
    side = f" {event.signal_type}" if isinstance(event, Signal) else ""
    short = f"{schema_of(event)}{side} {name} {reference}".encode("ascii", "replace").decode()
    return Notice(line, short)


def first_message(notices: Sequence[Notice], limit: int) -> Message:
    """As many of the first notices as fit into one message of ``limit`` UTF-16 units; at least one."""
    count, length = 0, -1
    for item in notices:
        length += 1 + units(item.line)
        if length > limit and count:
            break
        count += 1
    taken = notices[:count]
    return Message("\n".join(n.line for n in taken), "\n".join(n.short for n in taken), count)


def units(text: str) -> int:
    """Length in UTF-16 units, as Telegram counts; never less than the number of characters."""
    return len(text) + sum(ord(char) > 0xFFFF for char in text)


def _words(event: Event) -> tuple[str, str]:
    """What happened, and why."""
    match event:
        case Signal():
            mark = "🟢" if event.signal_type == "BUY" else "🔴"
            at = datetime.fromtimestamp(event.open_time // 1_000_000, UTC).strftime("%H:%M")
            what = f"{mark} {event.signal_type} {_name(event.symbol)} at {_plain(event.close)}"
            momentum = EXACT.multiply(event.momentum, _PERCENT)
            facts = f"{event.interval} candle of {at} UTC, volume {_plain(event.volume)}, momentum {_signed(momentum)}%"
            return f"{what} · {_cut(_clean(facts), 120)}", ": ".join(
                filter(None, (event.strategy, "; ".join(event.reasons)))
            )
        case OrderFilled():
            return _fill(event), ""
        case OrderRejected():
            return f"⛔ order rejected {_name(event.symbol)}", f"{event.reason} ({event.code}), {event.order_id}"
        case OrderExpired():
            return f"order expired {_name(event.symbol)}", f"{event.reason}, {event.order_id}"
        case OrderCanceled():
            return f"order cancelled {_name(event.symbol)}", f"{event.reason}, {event.order_id}"
        case OrderUnresolved():
            what = f"❓ order outcome unknown, being asked for {_name(event.symbol)}"
            return what, f"{event.reason}, {event.order_id}"
        case TradingStateChanged():
            what = f"{_STATES[event.state]} {_name(event.account)} is {event.state}"
            return what, f"{event.reason} (by {event.changed_by})"
    raise TypeError(f"{type(event).__name__} is not an event that people are told of")


def _fill(event: OrderFilled) -> str:
    verb = "bought" if event.side == "BUY" else "sold"
    part = "" if event.complete else " (part of the order)"
    facts = [
        f"✅ {verb} {_plain(event.qty)} {_name(event.symbol)} at {_plain(event.price)}{part}",
        f"worth {_plain(event.quote_qty)}, fee {_plain(event.commission)} {_name(event.commission_asset)}",
    ]
    if event.profit_pct is not None:
        facts.append(f"PnL {_signed(event.realized_pnl)} ({_signed(event.profit_pct)}%)")
    facts.append(f"position {_plain(event.position_qty)}")
    return " · ".join(facts)


def _plain(value: Decimal) -> str:
    """Fixed point without the zeros that say nothing; every digit that says something."""
    text = format(value, "f")
    text = text.rstrip("0").rstrip(".") if "." in text else text
    return "0" if text in ("", "-0") else text


def _signed(value: Decimal) -> str:
    text = _plain(value)
    return text if text.startswith("-") or text == "0" else f"+{text}"


def _name(text: str) -> str:
    """A symbol, asset or account; bounded, because it comes from outside."""
    return _cut(_clean(text), 32)


def _clean(text: str) -> str:
    """One line of printable characters: a reason from outside must not break the message's lines."""
    return " ".join("".join(char if char.isprintable() else " " for char in text).split())


def _cut(text: str, limit: int) -> str:
    if units(text) <= limit:
        return text
    kept = text[:limit]
    while units(kept) > limit - 1:
        kept = kept[:-1]
    return kept.rstrip() + "…"
