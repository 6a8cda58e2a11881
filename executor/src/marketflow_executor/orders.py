"""One order's life: what the exchange's answers mean, and the order as a fold over its events.

Pure. Must never take a missing answer for an outcome: what is not known stays open and is asked for.
"""

from __future__ import annotations

import re
from decimal import Decimal, localcontext
from hashlib import blake2b
from typing import Literal, NamedTuple, TypedDict

import msgspec
from marketflow_common.events import (
    OrderAccepted,
    OrderCanceled,
    OrderEvent,
    OrderExpired,
    OrderFilled,
    OrderIntended,
    OrderRejected,
    OrderUnresolved,
)
from marketflow_common.numbers import EXACT, ZERO, fixed

from .books import Assets, Books, Fill

__all__ = [
    "Answer",
    "Learned",
    "NotThere",
    "Order",
    "Refused",
    "Report",
    "Throttled",
    "TooLate",
    "Unknown",
    "Verdict",
    "expired",
    "learn",
    "order_id",
]

_CLIENT_ID = re.compile(r"[A-Za-z0-9_:./-]{1,36}", re.ASCII)
"""What Binance takes as newClientOrderId."""


def order_id(signal_id: str, attempt: int) -> str:
    """The client order id of an attempt: the same signal and attempt always give the same id."""
    plain = f"mf-{signal_id}-{attempt}"
    if _CLIENT_ID.fullmatch(plain):
        return plain
    return f"mf-{blake2b(signal_id.encode(), digest_size=12).hexdigest()}-{attempt}"


# --- what an exchange can say ------------------------------------------------------------------------


class Report(msgspec.Struct, frozen=True):
    """The exchange has the order, in this state, with all its fills so far. Time in microseconds."""

    exchange_order_id: int
    status: Literal["NEW", "PARTIALLY_FILLED", "FILLED", "CANCELED", "EXPIRED", "REJECTED"]
    executed_qty: Decimal
    fills: tuple[Fill, ...]
    at: int


class Refused(msgspec.Struct, frozen=True):
    """The exchange has refused the order, for certain."""

    code: int
    reason: str


class TooLate(msgspec.Struct, frozen=True):
    """The request was outside of its recvWindow (-1021), or was not sent because it would be: not accepted."""

    reason: str


class NotThere(msgspec.Struct, frozen=True):
    """Asked at the exchange's time ``exchange_ms`` or later, the exchange knew no such order (-2013)."""

    exchange_ms: int


class Throttled(msgspec.Struct, frozen=True):
    """429 or 418: the request was not processed and may be sent again after ``seconds``."""

    seconds: float


class Unknown(msgspec.Struct, frozen=True):
    """No answer, or one that says nothing of the outcome: 5xx, -1006, -1007, timeout, lost connection."""

    reason: str


Answer = Report | Refused | TooLate | NotThere | Throttled | Unknown

# --- the order ---------------------------------------------------------------------------------------


class Order(msgspec.Struct, frozen=True):
    """An intent and what has become known of it."""

    intent: OrderIntended
    exchange_order_id: int | None = None
    fills: frozenset[int] = frozenset()
    unresolved: bool = False
    """order_unresolved has been published (said once only)."""
    ended: bool = False

    def follow(self, event: OrderEvent) -> Order:
        """The order after one of its events."""
        replace = msgspec.structs.replace
        match event:
            case OrderAccepted():
                return replace(self, exchange_order_id=event.exchange_order_id)
            case OrderFilled():
                return replace(self, fills=self.fills | {event.fill_id}, ended=self.ended or event.complete)
            case OrderUnresolved():
                return replace(self, unresolved=True)
            case OrderRejected() | OrderCanceled() | OrderExpired():
                return replace(self, ended=True)
            case _:
                return self

    @property
    def deadline_ms(self) -> int:
        """The exchange's time after which it takes the request no more."""
        return self.intent.timestamp_ms + self.intent.recv_window_ms


Verdict = Literal["ended", "open", "unknown", "never_arrived", "throttled"]


class Learned(NamedTuple):
    """What an answer tells: events to publish, and what is to be done next.

    ``ended``: nothing. ``open``: the exchange has it; ask again. ``unknown``: ask again. ``throttled``: the request
    may be repeated. ``never_arrived``: it provably was not and will not be accepted; ``reason`` says why.
    """

    events: tuple[OrderEvent, ...]
    verdict: Verdict
    reason: str = ""


def learn(order: Order, answer: Answer, books: Books, assets: Assets, margin_ms: int) -> Learned:
    """What an answer says of an order that has not ended. ``margin_ms`` is how late the exchange may know of it."""
    intent = order.intent
    match answer:
        case Report():
            return _report(order, answer, books, assets)
        case Refused(code, reason):
            return Learned((OrderRejected(**_head(intent), code=code, reason=reason),), "ended", reason)
        case TooLate(reason):
            return Learned((), "never_arrived", reason)
        case NotThere(exchange_ms) if order.exchange_order_id is None and exchange_ms > order.deadline_ms + margin_ms:
            return Learned(
                (),
                "never_arrived",
                f"never reached the exchange: not there at its time {exchange_ms}, and since "
                f"{order.deadline_ms} it would not be taken",
            )
        case NotThere(exchange_ms):
            return _unknown(order, f"not there at the exchange's time {exchange_ms}, but may still arrive")
        case Throttled():
            return Learned((), "throttled")
        case Unknown(reason):
            return _unknown(order, reason)


def expired(intent: OrderIntended, reason: str) -> OrderExpired:
    """The end of an order that never arrived."""
    return OrderExpired(**_head(intent), reason=reason)


def _unknown(order: Order, reason: str) -> Learned:
    said = order.unresolved
    return Learned(() if said else (OrderUnresolved(**_head(order.intent), reason=reason),), "unknown", reason)


def _report(order: Order, report: Report, books: Books, assets: Assets) -> Learned:
    intent = order.intent
    with localcontext(EXACT):
        listed = sum((fill.qty for fill in report.fills), ZERO)
    if listed != report.executed_qty:
        # The list of fills may lag behind the order's state; half of a truth is not recorded.
        return _unknown(order, f"{report.executed_qty:f} is executed, but the fills listed so far make {listed:f}")
    events: list[OrderEvent] = []
    if order.exchange_order_id is None and report.status != "REJECTED":
        events.append(OrderAccepted(**_head(intent), exchange_order_id=report.exchange_order_id, accepted_at=report.at))
    # Judged by quantity, so that whichever report brings the last fill is the one that completes the order.
    filled = report.status == "FILLED" or report.executed_qty == intent.qty
    new = sorted((fill for fill in report.fills if fill.fill_id not in order.fills), key=lambda fill: fill.fill_id)
    for fill in new:
        booked = books.fill(intent.symbol, intent.side, assets, fill)
        books = booked.books
        events.append(
            OrderFilled(
                **_head(intent),
                side=intent.side,
                exchange_order_id=report.exchange_order_id,
                fill_id=fill.fill_id,
                price=fixed(fill.price),
                qty=fixed(fill.qty),
                quote_qty=fixed(fill.quote_qty),
                commission=fixed(fill.commission),
                commission_asset=fill.commission_asset,
                realized_pnl=fixed(booked.realized_pnl),
                profit_pct=booked.profit_pct,
                position_qty=fixed(booked.position.qty),
                position_cost=fixed(booked.position.cost),
                filled_at=fill.filled_at,
                complete=filled and fill is new[-1],
                commission_price=_worth(fill, assets),
            )
        )
    if filled:
        return Learned(tuple(events), "ended")
    match report.status:
        case "CANCELED":
            events.append(OrderCanceled(**_head(intent), reason="cancelled at the exchange"))
        case "EXPIRED":
            events.append(OrderExpired(**_head(intent), reason="expired at the exchange"))
        case "REJECTED":
            events.append(OrderRejected(**_head(intent), code=0, reason="rejected by the exchange's matching"))
        case _:
            return Learned(tuple(events), "open")
    return Learned(tuple(events), "ended")


def _worth(fill: Fill, assets: Assets) -> Decimal | None:
    price = fill.fee_price(assets)
    return None if price is None else fixed(price)


class _Head(TypedDict):
    account: str
    order_id: str
    signal_id: str
    symbol: str


def _head(intent: OrderIntended) -> _Head:
    """The fields that all events of an order begin with."""
    return {
        "account": intent.account,
        "order_id": intent.order_id,
        "signal_id": intent.signal_id,
        "symbol": intent.symbol,
    }
