"""One order's life: what the exchange's messages mean, and the order as a fold over its events.

Pure. Must never take a missing answer for an outcome: what is not known stays open and is asked for. Messages may come
in any order and any number of times (answers, the user-data stream, questions): the events are the same, because a fill
is booked only where the one before it ends, and an end only once all that was executed is booked.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from decimal import Decimal, localcontext
from hashlib import blake2b
from typing import Final, Literal, NamedTuple, TypedDict

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

from .books import Assets, Booked, Books, Fill

__all__ = [
    "Answer",
    "Evidence",
    "Learned",
    "NotCancelled",
    "NotThere",
    "NotTried",
    "Order",
    "Refused",
    "Report",
    "Status",
    "Throttled",
    "TooLate",
    "Unknown",
    "Update",
    "Verdict",
    "expired",
    "learn",
    "order_id",
]

_CLIENT_ID = re.compile(r"[A-Za-z0-9_:./-]{1,36}", re.ASCII)
"""What Binance takes as newClientOrderId."""


def order_id(signal_id: str, attempt: int, leg: Literal["", "s", "t"] = "") -> str:
    """The client order id of an attempt: the same signal and attempt always give the same id.

    ``leg`` tells the orders of one attempt apart: "s" the stop-loss, "t" the take-profit.
    """
    plain = f"mf-{signal_id}-{attempt}{leg}"
    if _CLIENT_ID.fullmatch(plain):
        return plain
    return f"mf-{blake2b(signal_id.encode(), digest_size=12).hexdigest()}-{attempt}{leg}"


# --- what an exchange can say ------------------------------------------------------------------------


Status = Literal["NEW", "PARTIALLY_FILLED", "FILLED", "CANCELED", "EXPIRED", "REJECTED"]
_ENDS: Final = frozenset({"FILLED", "CANCELED", "EXPIRED", "REJECTED"})


class Report(msgspec.Struct, frozen=True):
    """The exchange has the order, in this state, with all its fills so far.

    ``at`` is when it was made, in microseconds; ``reason`` why it expired or was rejected, where the exchange says so.
    """

    exchange_order_id: int
    status: Status
    executed_qty: Decimal
    fills: tuple[Fill, ...]
    at: int
    reason: str = ""


class Update(msgspec.Struct, frozen=True):
    """The exchange has the order, in this state; one fill, or none, is told with it, and others may be missing.

    An execution report, or an answer without fills. ``executed_qty`` includes ``fill``. ``at`` is when the order was
    made; None where the message does not say.
    """

    exchange_order_id: int
    status: Status
    executed_qty: Decimal
    at: int | None
    fill: Fill | None = None
    reason: str = ""


class Refused(msgspec.Struct, frozen=True):
    """The exchange has refused the order, for certain."""

    code: int
    reason: str


class TooLate(msgspec.Struct, frozen=True):
    """The request was outside of its recvWindow (-1021), or was not sent because it would be: not accepted."""

    reason: str


class NotTried(msgspec.Struct, frozen=True):
    """The exchange has not tried to place the order, for certain: what it was to replace could not be cancelled."""

    reason: str


class NotCancelled(msgspec.Struct, frozen=True):
    """A cancellation was refused (-2011): the order has ended, or was never there; which, is to be asked."""

    code: int
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


Answer = Report | Update | Refused | TooLate | NotTried | NotCancelled | NotThere | Throttled | Unknown

# --- the order ---------------------------------------------------------------------------------------


class Order(msgspec.Struct, frozen=True):
    """An intent and what has become known of it."""

    intent: OrderIntended
    exchange_order_id: int | None = None
    fills: frozenset[int] = frozenset()
    filled: Decimal = ZERO
    """What the fills add up to."""
    unresolved: bool = False
    """order_unresolved has been published (said once only)."""
    ended: bool = False
    began_ms: int = 0
    """When the first of the orders was made that this one has taken the place of; 0: it has taken no place."""
    latest: int = 0
    """The highest attempt of an order that was to take its place."""

    def follow(self, event: OrderEvent) -> Order:
        """The order after one of its events."""
        replace = msgspec.structs.replace
        match event:
            case OrderAccepted():
                return replace(self, exchange_order_id=event.exchange_order_id)
            case OrderFilled():
                return replace(
                    self,
                    fills=self.fills | {event.fill_id},
                    filled=EXACT.add(self.filled, event.qty),
                    ended=self.ended or event.complete,
                )
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

    @property
    def since_ms(self) -> int:
        """Since when its signal has had an order."""
        return self.began_ms or self.intent.timestamp_ms

    @property
    def remaining(self) -> Decimal:
        """Base that is not filled yet; 0 once it has ended."""
        return ZERO if self.ended else EXACT.subtract(self.intent.qty or ZERO, self.filled)


class Evidence(msgspec.Struct, frozen=True):
    """What has been heard of an order that has not ended and could not be booked yet. It may be lost: then it is asked.

    ``waiting`` are fills by the executed quantity before them; ``executed`` the most that was heard of; ``end`` how the
    order has ended, with its executed quantity and the reason.
    """

    waiting: Mapping[Decimal, Fill] = {}
    executed: Decimal = ZERO
    end: tuple[Status, Decimal, str] | None = None


Verdict = Literal["ended", "open", "unknown", "never_arrived", "throttled"]


class Learned(NamedTuple):
    """What an answer tells: events to publish, and what is to be done next.

    ``ended``: nothing. ``open``: the exchange has it; ask again. ``unknown``: ask again. ``throttled``: the request
    may be repeated. ``never_arrived``: it provably was not and will not be accepted; ``reason`` says why.
    ``evidence`` is to be handed in with the next answer.
    """

    events: tuple[OrderEvent, ...]
    verdict: Verdict
    reason: str = ""
    evidence: Evidence = Evidence()


def learn(
    order: Order, answer: Answer, books: Books, assets: Assets, margin_ms: int, evidence: Evidence | None = None
) -> Learned:
    """What an answer says of an order. ``margin_ms`` is how late the exchange may know of it."""
    evidence = evidence or Evidence()
    learned = _learn(order, answer, books, assets, margin_ms, evidence)
    return learned if isinstance(answer, Report | Update) else learned._replace(evidence=evidence)


def _learn(order: Order, answer: Answer, books: Books, assets: Assets, margin_ms: int, evidence: Evidence) -> Learned:
    intent = order.intent
    if order.ended:
        return Learned((), "ended")
    match answer:
        case Report() | Update() if order.exchange_order_id not in (None, answer.exchange_order_id):
            reason = f"order {answer.exchange_order_id} of the exchange has the same client id, and is another"
            return Learned((), "open", reason, evidence)
        case Report():
            return _report(order, answer, books, assets, evidence)
        case Update():
            return _update(order, answer, books, assets, evidence)
        case Refused(code, reason) | NotCancelled(code, reason) if order.exchange_order_id is not None:
            # The exchange has it: what was refused is another request, or a copy of the first one.
            return Learned((), "open", f"{code} {reason}")
        case NotCancelled(code, reason):
            return _unknown(order, f"not cancelled: {code} {reason}")
        case Refused(code, reason):
            return Learned((OrderRejected(**_head(intent), code=code, reason=reason),), "ended", reason)
        case TooLate(reason) | NotTried(reason) if order.exchange_order_id is None:
            return Learned((), "never_arrived", reason)
        case NotThere(exchange_ms) if order.exchange_order_id is None and exchange_ms > order.deadline_ms + margin_ms:
            return Learned(
                (),
                "never_arrived",
                f"never reached the exchange: not there at its time {exchange_ms}, and since "
                f"{order.deadline_ms} it would not be taken",
            )
        case NotThere(exchange_ms) if exchange_ms > order.deadline_ms + margin_ms:
            # No end that anybody has stated: it stays open, and the comparison of the books says so.
            return Learned((), "open", "the exchange had accepted it, and does not know it any more")
        case NotThere(exchange_ms):
            return _unknown(order, f"not there at the exchange's time {exchange_ms}, but may still arrive")
        case TooLate(reason) | NotTried(reason):
            return Learned((), "open", reason)
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


def _report(order: Order, report: Report, books: Books, assets: Assets, evidence: Evidence) -> Learned:
    with localcontext(EXACT):
        listed, waiting = ZERO, dict(evidence.waiting)
        for fill in sorted(report.fills, key=lambda fill: fill.fill_id):
            waiting[listed] = fill
            listed += fill.qty
    if listed != report.executed_qty:
        # The list of fills may lag behind the order's state; half of a truth is not recorded.
        lag = f"{report.executed_qty:f} is executed, but the fills listed so far make {listed:f}"
        return _unknown(order, lag)._replace(evidence=_heard(evidence, report))
    evidence = msgspec.structs.replace(_heard(evidence, report), waiting=waiting)
    return _advance(order, report.exchange_order_id, report.at, books, assets, evidence)


def _update(order: Order, update: Update, books: Books, assets: Assets, evidence: Evidence) -> Learned:
    evidence = _heard(evidence, update)
    if update.fill is not None:
        before = EXACT.subtract(update.executed_qty, update.fill.qty)
        evidence = msgspec.structs.replace(evidence, waiting={**evidence.waiting, before: update.fill})
    if order.exchange_order_id is None and update.at is None:
        # The answer to a cancellation does not say when the order was made: all of it is asked for.
        return _unknown(order, "known from its cancellation only")._replace(evidence=evidence)
    return _advance(order, update.exchange_order_id, update.at or 0, books, assets, evidence)


def _heard(evidence: Evidence, message: Report | Update) -> Evidence:
    """With the order's state in a message; an older message takes nothing back."""
    executed = max(evidence.executed, message.executed_qty)
    end = evidence.end
    if end is None and message.status in _ENDS:
        end = (message.status, message.executed_qty, message.reason)
    return msgspec.structs.replace(evidence, executed=executed, end=end)


def _advance(
    order: Order, exchange_order_id: int, made_at: int, books: Books, assets: Assets, evidence: Evidence
) -> Learned:
    """Record what the evidence proves: acceptance, then fill after fill without a hole, then the end."""
    intent, events, booked = order.intent, list[OrderEvent](), order.filled
    status, final, reason = evidence.end or ("NEW", ZERO, "")
    if order.exchange_order_id is None and status != "REJECTED":
        events.append(OrderAccepted(**_head(intent), exchange_order_id=exchange_order_id, accepted_at=made_at))
    while (fill := evidence.waiting.get(booked)) is not None and fill.qty > 0 and fill.fill_id not in order.fills:
        result = books.fill(intent.symbol, intent.side, assets, fill)
        books, booked = result.books, EXACT.add(booked, fill.qty)
        # Judged by quantity, so that whichever message brings the last fill is the one that completes the order.
        complete = booked == intent.qty or (status == "FILLED" and booked == final)
        events.append(_filled(intent, exchange_order_id, fill, result, assets, complete))
    waiting = {before: fill for before, fill in evidence.waiting.items() if before >= booked}
    evidence = msgspec.structs.replace(evidence, waiting=waiting)
    if booked == intent.qty:
        return Learned(tuple(events), "ended")
    if evidence.end is not None and booked == final:
        events += _end(intent, status, reason)
        return Learned(tuple(events), "ended")
    missing = f"{evidence.executed:f} is executed, {booked:f} is booked" if booked < evidence.executed else ""
    return Learned(tuple(events), "open", missing, evidence)


def _filled(
    intent: OrderIntended, exchange_order_id: int, fill: Fill, booked: Booked, assets: Assets, complete: bool
) -> OrderFilled:
    return OrderFilled(
        **_head(intent),
        side=intent.side,
        exchange_order_id=exchange_order_id,
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
        complete=complete,
        commission_price=_worth(fill, assets),
    )


def _end(intent: OrderIntended, status: Status, reason: str) -> list[OrderEvent]:
    said = f": {reason}" if reason else ""
    match status:
        case "CANCELED":
            return [OrderCanceled(**_head(intent), reason=f"cancelled at the exchange{said}")]
        case "EXPIRED":
            return [OrderExpired(**_head(intent), reason=f"expired at the exchange{said}")]
        case "REJECTED":
            return [OrderRejected(**_head(intent), code=0, reason=f"rejected by the exchange's matching{said}")]
        case _:
            return []


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
