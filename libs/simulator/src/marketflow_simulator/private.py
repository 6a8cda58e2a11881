"""Signed endpoints that only show: the account, its orders, order lists and trades."""

from typing import Any, Final

from aiohttp import web

from marketflow_simulator.amounts import text8
from marketflow_simulator.books import Books
from marketflow_simulator.errors import ApiError
from marketflow_simulator.gate import Call, Gate
from marketflow_simulator.limits import OrderCount
from marketflow_simulator.market import Market
from marketflow_simulator.params import Params
from marketflow_simulator.records import OrderList
from marketflow_simulator.rest import find_symbol
from marketflow_simulator.security import Security
from marketflow_simulator.trading import Trading, discount_json, which
from marketflow_simulator.views import list_json, order_json, trade_json

_DAY_MS: Final = 86_400_000


class PrivateApi:
    """Handlers of the endpoints that show what belongs to the one account."""

    def __init__(
        self, market: Market, books: Books, gate: Gate, trading: Trading, counts: OrderCount, security: Security
    ) -> None:
        self._market = market
        self._books = books
        self._gate = gate
        self._trading = trading
        self._counts = counts
        self._security = security

    def routes(self) -> list[web.RouteDef]:
        wrap, signed = self._gate.wrap, self._security.signed
        return [
            web.get("/api/v3/account", wrap(signed(self.account), 20)),
            web.get("/api/v3/account/commission", wrap(signed(self.commission), 20)),
            web.get("/api/v3/order", wrap(signed(self.query_order), 4)),
            web.get("/api/v3/openOrders", wrap(signed(self.open_orders), open_weight)),
            web.get("/api/v3/allOrders", wrap(signed(self.all_orders), 20)),
            web.get("/api/v3/orderList", wrap(signed(self.query_list), 4)),
            web.get("/api/v3/openOrderList", wrap(signed(self.open_lists), 6)),
            web.get("/api/v3/allOrderList", wrap(signed(self.all_lists), 20)),
            web.get("/api/v3/myTrades", wrap(signed(self.my_trades), trades_weight)),
            web.get("/api/v3/rateLimit/order", wrap(signed(self.order_count), 40)),
        ]

    # --- the account

    async def account(self, call: Call) -> Any:
        books, rate = self._books, text8(self._books.fee)
        hide_zero = call.params.text("omitZeroBalances") == "true"
        basis_points = self._books.fee // 10_000
        return {
            "makerCommission": basis_points,
            "takerCommission": basis_points,
            "buyerCommission": 0,
            "sellerCommission": 0,
            "commissionRates": {"maker": rate, "taker": rate, "buyer": text8(0), "seller": text8(0)},
            "canTrade": True,
            "canWithdraw": False,
            "canDeposit": False,
            "brokered": False,
            "requireSelfTradePrevention": False,
            "preventSor": False,
            "updateTime": max((order.update_ms for order in books.orders.values()), default=0),
            "accountType": "SPOT",
            "balances": [
                {"asset": asset, "free": text8(free), "locked": text8(books.locked[asset])}
                for asset, free in books.free.items()
                if free or books.locked[asset] or not hide_zero
            ],
            "permissions": ["SPOT"],
            "uid": 1,
        }

    async def commission(self, call: Call) -> Any:
        symbol = find_symbol(self._market, call.params.required("symbol")).symbol
        rate, zero = text8(self._books.fee), text8(0)
        none = {"maker": zero, "taker": zero, "buyer": zero, "seller": zero}
        return {
            "symbol": symbol,
            "standardCommission": {**none, "maker": rate, "taker": rate},
            "specialCommission": none,
            "taxCommission": none,
            "discount": discount_json(self._books),
        }

    async def order_count(self, call: Call) -> Any:
        return self._counts.listing()

    # --- orders

    async def query_order(self, call: Call) -> Any:
        order = self._books.find(*which(self._market, call.params))
        if order is None or self._trading.hidden(order):
            raise ApiError(-2013, "Order does not exist.")
        return order_json(order)

    async def open_orders(self, call: Call) -> Any:
        name = call.params.text("symbol")
        symbol = find_symbol(self._market, name).symbol if name is not None else None
        orders = self._books.open_orders(symbol)
        return [order_json(order) for order in orders if not self._trading.hidden(order)]

    async def all_orders(self, call: Call) -> Any:
        params = call.params
        symbol = find_symbol(self._market, params.required("symbol")).symbol
        limit, from_id = params.limit(), params.integer("orderId")
        start_ms, end_ms = _span_ms(params)
        found = [
            order
            for order in self._books.orders.values()
            if order.symbol == symbol
            and (from_id is None or order.order_id >= from_id)
            and start_ms <= order.time_ms <= end_ms
            and not self._trading.hidden(order)
        ]
        forward = from_id is not None or start_ms > 0
        return [order_json(order) for order in (found[:limit] if forward else found[-limit:])]

    async def query_list(self, call: Call) -> Any:
        list_id, client_id = call.params.integer("orderListId"), call.params.text("origClientOrderId")
        if list_id is None and client_id is None:
            raise ApiError(-1102, "Param 'orderListId' or 'origClientOrderId' must be sent, but both were empty/null!")
        found = self._books.find_list(list_id, client_id)
        if found is None or self._hides(found):
            raise ApiError(-2013, "Order does not exist.")
        return self._shown(found)

    async def open_lists(self, call: Call) -> Any:
        lists = self._books.lists.values()
        return [self._shown(found) for found in lists if not found.done and not self._hides(found)]

    async def all_lists(self, call: Call) -> Any:
        params = call.params
        limit, from_id = params.limit(), params.integer("fromId")
        if from_id is not None and ("startTime" in params or "endTime" in params):
            raise ApiError(-1128, "Combination of optional parameters invalid.")
        start_ms, end_ms = _span_ms(params)
        found = [
            one
            for one in self._books.lists.values()
            if (from_id is None or one.list_id >= from_id)
            and start_ms <= self._books.orders[one.order_ids[0]].time_ms <= end_ms
            and not self._hides(one)
        ]
        forward = from_id is not None or start_ms > 0
        return [self._shown(one) for one in (found[:limit] if forward else found[-limit:])]

    def _hides(self, found: OrderList) -> bool:
        return any(self._trading.hidden(leg) for leg in self._books.legs(found))

    def _shown(self, found: OrderList) -> dict[str, Any]:
        return list_json(found, self._books.legs(found))

    async def my_trades(self, call: Call) -> Any:
        params = call.params
        symbol = find_symbol(self._market, params.required("symbol")).symbol
        limit, from_id, order_id = params.limit(), params.integer("fromId"), params.integer("orderId")
        if from_id is not None and ("startTime" in params or "endTime" in params):
            raise ApiError(-1128, "Combination of optional parameters invalid.")
        start_ms, end_ms = _span_ms(params)
        found = [
            fill
            for fill in self._books.fills
            if fill.symbol == symbol
            and (from_id is None or fill.id >= from_id)
            and (order_id is None or fill.order_id == order_id)
            and start_ms <= fill.time_ms <= end_ms
            and not self._trading.hidden(self._books.orders[fill.order_id])
        ]
        forward = from_id is not None or start_ms > 0
        return [trade_json(fill) for fill in (found[:limit] if forward else found[-limit:])]


def _span_ms(params: Params) -> tuple[int, int]:
    start_us, end_us = params.time_us("startTime"), params.time_us("endTime")
    start_ms = 0 if start_us is None else start_us // 1000
    end_ms = 1 << 62 if end_us is None else end_us // 1000
    if start_us is not None and end_us is not None and end_ms - start_ms > _DAY_MS:
        raise ApiError(-1127, "More than 24 hours between startTime and endTime.")
    return start_ms, end_ms


def open_weight(params: Params) -> int:
    """Request weight of `openOrders`."""
    return 6 if "symbol" in params else 80


def trades_weight(params: Params) -> int:
    """Request weight of `myTrades`."""
    return 5 if "orderId" in params else 20
