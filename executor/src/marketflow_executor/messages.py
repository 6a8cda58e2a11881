"""Binance's JSON in the order machine's words, and orders in Binance's parameters.

Pure. Must never guess a field that is not there: what cannot be read raises Unreadable, and is then unknown.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from decimal import Decimal, localcontext
from typing import Any, Final, NamedTuple

from marketflow_common.events import OrderIntended
from marketflow_common.numbers import EXACT, ZERO, NotANumber, number

from .books import Fill
from .orders import NotCancelled, NotTried, Refused, Report, Status, Update

__all__ = [
    "ListReport",
    "Named",
    "Replaced",
    "Unreadable",
    "in_place",
    "oco_request",
    "order_request",
    "read_cancelled",
    "read_execution",
    "read_list",
    "read_list_status",
    "read_order",
    "read_replaced",
    "read_trade",
    "replace_request",
]

_STATUSES: Final[dict[str, Status]] = {
    "NEW": "NEW",
    "PENDING_NEW": "NEW",
    "PENDING_CANCEL": "NEW",
    "PARTIALLY_FILLED": "PARTIALLY_FILLED",
    "FILLED": "FILLED",
    "CANCELED": "CANCELED",
    "EXPIRED": "EXPIRED",
    "EXPIRED_IN_MATCH": "EXPIRED",
    "REJECTED": "REJECTED",
}


class Unreadable(ValueError):
    """A message lacks a field or holds a value that cannot be one; the text names it."""


class Named(NamedTuple):
    """A message about one order, by the client id that the order was placed with."""

    symbol: str
    order_id: str
    message: Report | Update


class Replaced(NamedTuple):
    """The answer to cancel-replace: what became of the old order and what of the new one."""

    cancelled: Update | NotCancelled
    placed: Report | Update | Refused | NotTried


class ListReport(NamedTuple):
    """The state of an order list (OCO) and of its legs, as far as the message tells; ``legs`` are client ids."""

    list_id: str
    symbol: str
    done: bool
    rejected: str
    legs: tuple[str, ...]
    reports: tuple[Named, ...]


# --- answers to requests -----------------------------------------------------------------------------


def read_order(body: Mapping[str, Any]) -> Named:
    """An answer to placing or asking for an order: ACK, RESULT, FULL, or a query.

    A Report where the answer holds all fills; an Update where they are to be asked for.
    """
    with _Reading(body) as read:
        made = read.get("transactTime", read.get("time"))
        if made is None:
            raise Unreadable("neither transactTime nor time is in the answer")
        at = int(made) * 1_000
        number_, name = int(read["orderId"]), _text(read["clientOrderId"])
        if "status" not in read and "executedQty" not in read:  # ACK: it is there, and that is all that is said
            return Named(_text(read["symbol"]), name, Update(number_, "NEW", ZERO, at))
        status, executed = _status(read["status"]), _amount(read["executedQty"])
        reason = _text(read.get("expiryReason", ""))
        listed = [_placed_fill(fill, at) for fill in read.get("fills", ())]
        with localcontext(EXACT):
            qty, quote = (sum(amounts, ZERO) for amounts in ((f.qty for f in listed), (f.quote_qty for f in listed)))
        # The exchange's own quote amounts count: where price times quantity is not it, the trades are to be asked for.
        whole = (qty, quote) == (executed, _amount(read["cummulativeQuoteQty"]))
        message: Report | Update = (
            Report(number_, status, executed, tuple(listed), at, reason)
            if whole
            else Update(number_, status, executed, at, None, reason)
        )
        return Named(_text(read["symbol"]), name, message)


def read_cancelled(body: Mapping[str, Any]) -> Named:
    """An answer to a cancellation that took effect; it does not say when the order was made."""
    with _Reading(body) as read:
        update = Update(int(read["orderId"]), _status(read["status"]), _amount(read["executedQty"]), None)
        return Named(_text(read["symbol"]), _text(read["origClientOrderId"]), update)


def read_replaced(body: Mapping[str, Any]) -> Replaced:
    """An answer to cancel-replace, whether all of it succeeded (200) or not (400, 409 with ``data``)."""
    with _Reading(body) as outer, _Reading(outer.get("data", body)) as read:
        old, new = read["cancelResponse"], read["newOrderResponse"]
        cancelled: Update | NotCancelled
        if read["cancelResult"] == "SUCCESS":
            message = read_cancelled(old).message
            assert isinstance(message, Update)
            cancelled = message
        else:
            cancelled = NotCancelled(int(old["code"]), _text(old["msg"]))
        match read["newOrderResult"]:
            case "SUCCESS":
                return Replaced(cancelled, read_order(new).message)
            case "FAILURE":
                return Replaced(cancelled, Refused(int(new["code"]), _text(new["msg"])))
            case "NOT_ATTEMPTED":
                why = cancelled.reason if isinstance(cancelled, NotCancelled) else "not attempted"
                return Replaced(cancelled, NotTried(f"its place was not free: {why}"))
            case other:
                raise Unreadable(f"newOrderResult is {other!r}")


def read_list(body: Mapping[str, Any]) -> ListReport:
    """An answer to placing, cancelling or asking for an order list."""
    with _Reading(body) as read:
        reports = tuple(
            read_cancelled(report) if "origClientOrderId" in report else read_order(report)
            for report in read.get("orderReports", ())
        )
        legs = tuple(_text(order["clientOrderId"]) for order in read["orders"])
        rejected = "REJECT" if read["listOrderStatus"] == "REJECT" else ""
        done = read["listOrderStatus"] == "ALL_DONE"
        return ListReport(_text(read["listClientOrderId"]), _text(read["symbol"]), done, rejected, legs, reports)


def read_trade(body: Mapping[str, Any]) -> tuple[int, Fill]:
    """One entry of myTrades: the exchange's id of its order, and the fill."""
    with _Reading(body) as read:
        return int(read["orderId"]), Fill(
            int(read["id"]),
            _amount(read["price"]),
            _amount(read["qty"]),
            _amount(read["quoteQty"]),
            _amount(read["commission"]),
            _text(read["commissionAsset"]),
            int(read["time"]) * 1_000,
        )


# --- the user-data stream ----------------------------------------------------------------------------


def read_execution(event: Mapping[str, Any]) -> Named:
    """An executionReport. One that tells a fill carries it; the others tell the order's state."""
    with _Reading(event) as read:
        if read["e"] != "executionReport":
            raise Unreadable(f"{read['e']!r} is no executionReport")
        kind, fill = _text(read["x"]), None
        # A cancellation comes under its own client id and names the order's own as the original one.
        name = _text(read["C"]) if kind == "CANCELED" and read.get("C") else _text(read["c"])
        if kind == "TRADE":
            fill = Fill(
                int(read["t"]),
                _amount(read["L"]),
                _amount(read["l"]),
                _amount(read["Y"]),
                _amount(read["n"]),
                _text(read["N"] or ""),
                int(read["T"]) * 1_000,
            )
        said = _text(read.get("eR", "")) or _text(read.get("r", "NONE"))
        return Named(
            _text(read["s"]),
            name,
            Update(
                int(read["i"]),
                _status(read["X"]),
                _amount(read["z"]),
                int(read["O"]) * 1_000,
                fill,
                "" if said == "NONE" else said,
            ),
        )


def read_list_status(event: Mapping[str, Any]) -> ListReport:
    """A listStatus: the state of an order list; that of its legs comes by their own reports."""
    with _Reading(event) as read:
        if read["e"] != "listStatus":
            raise Unreadable(f"{read['e']!r} is no listStatus")
        rejected = "" if read["r"] == "NONE" else _text(read["r"])
        legs = tuple(_text(order["c"]) for order in read["O"])
        return ListReport(_text(read["C"]), _text(read["s"]), read["L"] == "ALL_DONE", rejected, legs, ())


# --- requests ----------------------------------------------------------------------------------------


def order_request(intent: OrderIntended) -> dict[str, str | int]:
    """The parameters of POST order for an intent, all that is signed but the signature."""
    return {
        "symbol": intent.symbol,
        "side": intent.side,
        "type": intent.exchange_type or intent.order_type,
        **_terms(intent),
        "quantity": _quantity(intent),
        "newClientOrderId": intent.order_id,
        "newOrderRespType": "FULL",
        "recvWindow": intent.recv_window_ms,
        "timestamp": intent.timestamp_ms,
    }


def replace_request(intent: OrderIntended) -> dict[str, str | int]:
    """The parameters of POST order/cancelReplace: the new order only where the old one could be cancelled."""
    return {
        **order_request(intent),
        "cancelReplaceMode": "STOP_ON_FAILURE",
        "cancelOrigClientOrderId": intent.replaces,
    }


def oco_request(above: OrderIntended, below: OrderIntended) -> dict[str, str | int]:
    """The parameters of POST orderList/oco for two legs with one ``list_id``; ``above`` is the higher in price."""
    same = ("symbol", "side", "qty", "list_id", "recv_window_ms", "timestamp_ms")
    if different := [name for name in same if getattr(above, name) != getattr(below, name)]:
        raise ValueError(f"the legs {above.order_id} and {below.order_id} differ in {', '.join(different)}")
    request: dict[str, str | int] = {
        "symbol": above.symbol,
        "listClientOrderId": above.list_id,
        "side": above.side,
        "quantity": _quantity(above),
    }
    for place, leg in (("above", above), ("below", below)):
        request[f"{place}Type"] = leg.exchange_type or leg.order_type
        request[f"{place}ClientOrderId"] = leg.order_id
        for name, value in _terms(leg).items():
            request[place + name[0].upper() + name[1:]] = value
    return {
        **request,
        "newOrderRespType": "FULL",
        "recvWindow": above.recv_window_ms,
        "timestamp": above.timestamp_ms,
    }


def _quantity(intent: OrderIntended) -> str:
    if intent.qty is None:
        raise ValueError(f"{intent.order_id} has no quantity in base")
    return f"{intent.qty:f}"


def _terms(intent: OrderIntended) -> dict[str, str]:
    terms: dict[str, str] = {}
    if intent.time_in_force is not None:
        terms["timeInForce"] = intent.time_in_force
    if intent.price is not None:
        terms["price"] = f"{intent.price:f}"
    if intent.stop_price is not None:
        terms["stopPrice"] = f"{intent.stop_price:f}"
    return terms


# --- reading -----------------------------------------------------------------------------------------


class _Reading:
    """A mapping whose every flaw is Unreadable."""

    def __init__(self, body: Any) -> None:
        self._body = body

    def __enter__(self) -> Mapping[str, Any]:
        if not isinstance(self._body, Mapping):
            raise Unreadable(f"{str(self._body)[:100]!r} is no object")
        return self._body

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, KeyError):
            raise Unreadable(f"{error.args[0]} is missing") from error
        if isinstance(error, NotANumber | TypeError | AttributeError) or (
            isinstance(error, ValueError) and not isinstance(error, Unreadable)
        ):
            raise Unreadable(str(error)) from error


def _amount(value: Any) -> Decimal:
    return number(value)


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise Unreadable(f"{value!r} is no text")
    return value


def _status(value: Any) -> Status:
    found = _STATUSES.get(_text(value))
    if found is None:
        raise Unreadable(f"{value!r} is no status of an order")
    return found


def _placed_fill(body: Any, at: int) -> Fill:
    with _Reading(body) as read:
        price, qty = _amount(read["price"]), _amount(read["qty"])
        return Fill(
            int(read["tradeId"]),
            price,
            qty,
            EXACT.multiply(price, qty),
            _amount(read["commission"]),
            _text(read["commissionAsset"]),
            at,
        )


def in_place(legs: Sequence[OrderIntended]) -> tuple[OrderIntended, OrderIntended]:
    """Two legs as (above, below): by the price at which each begins to work."""
    first, second = legs

    def at(leg: OrderIntended) -> Decimal:
        price = leg.stop_price if leg.stop_price is not None else leg.price
        if price is None:
            raise ValueError(f"{leg.order_id} has no price")
        return price

    return (first, second) if at(first) > at(second) else (second, first)
