"""Signed endpoints that change something: new orders, OCO pairs, cancel and cancel-replace.

Each refuses or accepts as documented; faults decide what of it the client gets to know.
"""

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import Any, Final

from aiohttp import web

from marketflow_simulator.amounts import text8
from marketflow_simulator.books import Books
from marketflow_simulator.errors import ApiError, for_status
from marketflow_simulator.faults import Faults, OrderKind
from marketflow_simulator.filters import Around
from marketflow_simulator.gate import Answer, Call, Gate
from marketflow_simulator.limits import OrderCount
from marketflow_simulator.logs import log
from marketflow_simulator.market import Market, SymbolMarket
from marketflow_simulator.orders import (
    REPLACE_PARAMETERS,
    check_filters,
    client_order_id,
    modern_pair,
    read_order,
    read_pair,
)
from marketflow_simulator.params import Params
from marketflow_simulator.records import Change, Order, OrderRequest
from marketflow_simulator.rest import find_symbol
from marketflow_simulator.security import Security
from marketflow_simulator.views import canceled_json, list_json, placed_json

_UNKNOWN: Final = {
    "code": -1006,
    "msg": "An unexpected response was received from the message bus. Execution status unknown.",
}
_REASONS: Final = {
    -2010: "Account has insufficient balance for requested action.",
    -1013: "Filter failure: LOT_SIZE",
    -1015: "Too many new orders.",
    -1021: "Timestamp for this request is outside of the recvWindow.",
    -2015: "Invalid API-key, IP, or permissions for action.",
}


class Trading:
    """Handlers of the endpoints that trade for the one account."""

    def __init__(
        self, market: Market, books: Books, gate: Gate, faults: Faults, counts: OrderCount, security: Security
    ) -> None:
        self._market = market
        self._books = books
        self._gate = gate
        self._faults = faults
        self._counts = counts
        self._security = security
        self._hidden: dict[int, float] = {}
        books.listeners.append(self._count_fills)
        books.split = self._split

    def routes(self) -> list[web.RouteDef]:
        wrap, signed = self._gate.wrap, self._security.signed
        return [
            web.post("/api/v3/order", wrap(signed(self.new_order), 1)),
            web.post("/api/v3/order/test", wrap(signed(self.test_order), test_weight)),
            web.delete("/api/v3/order", wrap(signed(self.cancel_order), 1)),
            web.post("/api/v3/order/cancelReplace", wrap(signed(self.cancel_replace), 1)),
            web.post("/api/v3/order/oco", wrap(signed(self.old_pair), 1)),
            web.post("/api/v3/orderList/oco", wrap(signed(self.new_pair), 1)),
            web.delete("/api/v3/orderList", wrap(signed(self.cancel_list), 1)),
            web.delete("/api/v3/openOrders", wrap(signed(self.cancel_open_orders), 1)),
        ]

    def hidden(self, order: Order) -> bool:
        """Whether no query finds the order yet (fault `not_found`)."""
        until = self._hidden.get(order.order_id)
        if until is not None and time.monotonic() >= until:
            del self._hidden[order.order_id]
            return False
        return until is not None

    # --- new orders

    async def new_order(self, call: Call) -> Any:
        symbol = find_symbol(self._market, call.params.required("symbol"))
        if self._faults.take("order_lost_request", symbol.symbol) is not None:
            return Answer(None, 0)
        request, response = read_order(call.params, symbol.spec)
        late = self._faults.take("order_late", symbol.symbol)
        if late is not None:
            self._later(late.seconds, call.params, lambda: self._place(symbol, request, call))
            return Answer(_error(for_status(504)), late.status)
        order = self._place(symbol, request, call)
        return self._lose(placed_json(order, self._books.fills_of(order), response), symbol, "order_lost_answer")

    def _place(self, symbol: SymbolMarket, request: OrderRequest, call: Call) -> Order:
        self._refuse(symbol)
        request = check_filters(request, symbol.filters, self._around(symbol))
        call.headers |= self._counts.add(1)
        return self._enter(symbol, request)

    def _enter(self, symbol: SymbolMarket, request: OrderRequest) -> Order:
        try:
            order = self._books.place(request, symbol)
        except ApiError:
            self._counts.take_back()
            raise
        self._hide(symbol, [order])
        return order

    def _later(self, seconds: float, params: Params, place: Callable[[], Any]) -> None:
        """Do it only then, if its recvWindow still lets it in ("forward request to Matching Engine")."""

        def do() -> None:
            try:
                self._security.check_time(params)
                place()
            except ApiError as error:
                log("late_order_refused", level="warning", code=error.code, reason=error.message)

        asyncio.get_running_loop().call_later(seconds, do)

    async def test_order(self, call: Call) -> Any:
        symbol = find_symbol(self._market, call.params.required("symbol"))
        request, _ = read_order(call.params, symbol.spec)
        check_filters(request, symbol.filters, self._around(symbol))
        if call.params.text("computeCommissionRates") != "true":
            return {}
        rate, zero = text8(self._books.fee), text8(0)
        return {
            "standardCommissionForOrder": {"maker": rate, "taker": rate},
            "specialCommissionForOrder": {"maker": zero, "taker": zero},
            "taxCommissionForOrder": {"maker": zero, "taker": zero},
            "discount": discount_json(self._books),
        }

    async def new_pair(self, call: Call) -> Any:
        return self._pair(call, call.params)

    async def old_pair(self, call: Call) -> Any:
        return self._pair(call, modern_pair(call.params))

    def _pair(self, call: Call, params: Params) -> Any:
        symbol = find_symbol(self._market, params.required("symbol"))
        if self._faults.take("order_lost_request", symbol.symbol) is not None:
            return Answer(None, 0)
        above, below, client_id, response = read_pair(params, symbol.spec)
        self._refuse(symbol)
        around = self._around(symbol)
        for leg in (above, below):
            check_filters(leg, symbol.filters, around, (above.type, below.type), 1)
        call.headers |= self._counts.add(2)
        try:
            found, orders = self._books.place_list(above, below, client_id, symbol)
        except ApiError:
            self._counts.take_back(2)
            raise
        self._hide(symbol, orders)
        reports = [placed_json(order, [], response) for order in orders]
        return self._lose({**list_json(found, orders), "orderReports": reports}, symbol, "order_lost_answer")

    def _around(self, symbol: SymbolMarket) -> Around:
        market, books, last = self._market, self._books, symbol.last
        if last is None or not symbol.trades_at(market.time_us):
            raise ApiError(-2010, "Market is closed.")
        base = symbol.spec.base

        def average(minutes: int) -> int:
            return (market.average_price(symbol, minutes) if minutes else None) or last.price

        return Around(
            last=last.price,
            average=average,
            resting=books.open_orders(symbol.symbol),
            held=books.free[base] + books.locked[base],
            open_lists=sum(not one.done and one.symbol == symbol.symbol for one in books.lists.values()),
        )

    # --- canceling

    async def cancel_order(self, call: Call) -> Any:
        symbol, order_id, client_id = which(self._market, call.params)
        cancel_id, restrictions = self._cancel_parameters(call.params, "newClientOrderId")
        order = self._books.cancel(symbol, order_id, client_id, cancel_id, restrictions)
        return self._lose(self._canceled(order, cancel_id), self._market.symbols[symbol], "cancel_lost_answer")

    async def cancel_list(self, call: Call) -> Any:
        symbol = find_symbol(self._market, call.params.required("symbol"))
        list_id, client_id = call.params.integer("orderListId"), call.params.text("listClientOrderId")
        if list_id is None and client_id is None:
            raise ApiError(-1102, "Param 'orderListId' or 'listClientOrderId' must be sent, but both were empty/null!")
        cancel_id, _ = self._cancel_parameters(call.params, "newClientOrderId")
        found = self._books.find_list(list_id, client_id)
        if found is None or found.done or found.symbol != symbol.symbol:
            raise ApiError(-2011, "Unknown order sent.")
        leg = next(leg for leg in self._books.legs(found) if leg.is_open)
        order = self._books.cancel(symbol.symbol, leg.order_id, None, cancel_id)
        return self._lose(self._canceled(order, cancel_id), symbol, "cancel_lost_answer")

    async def cancel_open_orders(self, call: Call) -> Any:
        symbol = find_symbol(self._market, call.params.required("symbol"))
        resting = self._books.open_orders(symbol.symbol)
        if not resting:
            raise ApiError(-2011, "Unknown order sent.")
        answers = []
        for order in resting:
            if order.is_open:  # its list may have been canceled with another leg
                cancel_id, _ = self._cancel_parameters(call.params, "newClientOrderId")
                self._books.cancel(symbol.symbol, order.order_id, None, cancel_id)
                answers.append(self._canceled(order, cancel_id))
        return self._lose(answers, symbol, "cancel_lost_answer")

    def _cancel_parameters(self, params: Params, name: str) -> tuple[str, str | None]:
        restrictions = params.text("cancelRestrictions")
        if restrictions not in (None, "ONLY_NEW", "ONLY_PARTIALLY_FILLED"):
            raise ApiError(-1145, "Invalid cancelRestrictions")
        return client_order_id(params, name), restrictions

    def _canceled(self, order: Order, cancel_id: str) -> dict[str, Any]:
        """The answer to a cancel: the order's, or that of the whole list that went with it."""
        found = self._books.lists.get(order.list_id)
        if found is None:
            return canceled_json(order, cancel_id)
        legs = self._books.legs(found)
        return {**list_json(found, legs), "orderReports": [canceled_json(leg, cancel_id) for leg in legs]}

    # --- both in one

    async def cancel_replace(self, call: Call) -> Any:
        params = call.params
        symbol = find_symbol(self._market, params.required("symbol"))
        if self._faults.take("order_lost_request", symbol.symbol) is not None:
            return Answer(None, 0)
        request, response = read_order(params, symbol.spec, REPLACE_PARAMETERS)
        mode = params.required("cancelReplaceMode")
        exceeded = params.text("orderRateLimitExceededMode") or "DO_NOTHING"
        for name, value, legal in (
            ("cancelReplaceMode", mode, ("STOP_ON_FAILURE", "ALLOW_FAILURE")),
            ("orderRateLimitExceededMode", exceeded, ("DO_NOTHING", "CANCEL_ONLY")),
        ):
            if value not in legal:
                raise ApiError(-1130, f"Data sent for parameter '{name}' is not valid.")
        order_id, client_id = params.integer("cancelOrderId"), params.text("cancelOrigClientOrderId")
        if order_id is None and client_id is None:
            both = "Param 'cancelOrigClientOrderId' or 'cancelOrderId' must be sent, but both were empty/null!"
            raise ApiError(-1102, both)
        cancel_id, restrictions = self._cancel_parameters(params, "cancelNewClientOrderId")
        request = check_filters(request, symbol.filters, self._around(symbol))
        full: ApiError | None = None
        try:
            call.headers |= self._counts.add(1)
        except ApiError as error:
            if exceeded == "DO_NOTHING":
                raise
            full = error
        canceled: dict[str, Any]
        placed: dict[str, Any] | None = None
        try:
            order = self._books.cancel(symbol.symbol, order_id, client_id, cancel_id, restrictions)
            canceled, cancel_result = self._canceled(order, cancel_id), "SUCCESS"
        except ApiError as error:
            canceled, cancel_result = _error((error.code, error.message)), "FAILURE"
        new_result = "NOT_ATTEMPTED"
        if cancel_result == "SUCCESS" or mode == "ALLOW_FAILURE":
            try:
                if full is not None:
                    raise full
                self._refuse(symbol)
                new = self._enter(symbol, request)
                placed, new_result = placed_json(new, self._books.fills_of(new), response), "SUCCESS"
            except ApiError as error:
                placed, new_result = _error((error.code, error.message)), "FAILURE"
        data = {
            "cancelResult": cancel_result,
            "newOrderResult": new_result,
            "cancelResponse": canceled,
            "newOrderResponse": placed,
        }
        if cancel_result == new_result == "SUCCESS":
            return self._lose(data, symbol, "order_lost_answer")
        partly = "SUCCESS" in (cancel_result, new_result)
        status = 409 if partly else 400
        if full is not None and mode == "STOP_ON_FAILURE":
            status = 429
        text = (-2021, "Order cancel-replace partially failed.") if partly else (-2022, "Order cancel-replace failed.")
        return self._lose(Answer({**_error(text), "data": data}, status), symbol, "order_lost_answer")

    # --- faults

    def _refuse(self, symbol: SymbolMarket) -> None:
        if (fault := self._faults.take("order_429", symbol.symbol)) is not None:
            raise ApiError(-1015, _REASONS[-1015], 429, fault.retry_after or 1)
        if (fault := self._faults.take("reject", symbol.symbol)) is not None:
            code = fault.code or -2010
            message = fault.message or _REASONS.get(code) or "An unknown error occurred while processing the request."
            raise ApiError(code, message, 400)

    def _lose(self, payload: Any, symbol: SymbolMarket, kind: OrderKind) -> Any:
        """The answer, or what a client gets in place of it."""
        lost = self._faults.take(kind, symbol.symbol)
        return payload if lost is None else Answer(_UNKNOWN, lost.status)

    def _hide(self, symbol: SymbolMarket, orders: list[Order]) -> None:
        fault = self._faults.take("not_found", symbol.symbol)
        if fault is not None:
            self._hidden |= {order.order_id: time.monotonic() + fault.seconds for order in orders}

    def _split(self, symbol: str) -> tuple[int, bool]:
        fault = self._faults.take("partial_fill", symbol)
        return (1, False) if fault is None else (fault.parts, fault.expire)

    def _count_fills(self, changes: Sequence[Change]) -> None:
        for change in changes:
            if change.fill is not None and change.order is not None and len(change.order.fills) == 1:
                self._counts.take_back()


def which(market: Market, params: Params) -> tuple[str, int | None, str | None]:
    """The order that a request means: its symbol, and its id or its client id or both."""
    symbol = find_symbol(market, params.required("symbol")).symbol
    order_id, client_id = params.integer("orderId"), params.text("origClientOrderId")
    if order_id is None and client_id is None:
        raise ApiError(-1102, "Param 'origClientOrderId' or 'orderId' must be sent, but both were empty/null!")
    return symbol, order_id, client_id


def discount_json(books: Books) -> dict[str, Any]:
    """Whether commission is paid in BNB, as documented."""
    discount = books.commission.discount
    return {
        "enabledForAccount": discount > 0,
        "enabledForSymbol": discount > 0,
        "discountAsset": "BNB",
        "discount": text8(discount),
    }


def _error(error: tuple[int, str]) -> dict[str, Any]:
    return {"code": error[0], "msg": error[1]}


def test_weight(params: Params) -> int:
    """Request weight of `order/test`."""
    return 20 if "computeCommissionRates" in params else 1
