"""Signed endpoints: the account, its orders and its trades, with the security that Binance documents."""

import hashlib
import hmac
import time
from collections import deque
from typing import Any, Final

from aiohttp import web

from marketflow_simulator.amounts import text8
from marketflow_simulator.books import Books, Fill, Order, order_json, trade_json
from marketflow_simulator.errors import ApiError, missing
from marketflow_simulator.faults import Faults
from marketflow_simulator.gate import Answer, Call, Gate, Handler
from marketflow_simulator.market import Market, SymbolMarket
from marketflow_simulator.orders import check_filters, read_order
from marketflow_simulator.params import Params
from marketflow_simulator.rest import PublicApi, find_symbol

_DAY_MS: Final = 86_400_000
_MICROSECONDS_FROM: Final = 100_000_000_000_000
_ORDER_LIMITS: Final = ((10, 100, "10S"), (86_400, 200_000, "1D"))


def signature(secret: bytes, query: str, body: str) -> str:
    """HMAC-SHA256 over query string and form body, one after the other, as sent but for the signature itself."""
    parts = ("&".join(p for p in text.split("&") if not p.startswith("signature=")) for text in (query, body))
    return hmac.new(secret, "".join(parts).encode(), hashlib.sha256).hexdigest()


class PrivateApi:
    """Handlers of the endpoints that belong to the one account."""

    def __init__(
        self,
        market: Market,
        books: Books,
        public: PublicApi,
        gate: Gate,
        faults: Faults,
        api_key: str,
        api_secret: str,
        limited: bool = True,
    ) -> None:
        self._market = market
        self._books = books
        self._public = public
        self._gate = gate
        self._faults = faults
        self._key = api_key
        self._secret = api_secret.encode()
        self._limited = limited
        self._placed: deque[float] = deque()

    def routes(self) -> list[web.RouteDef]:
        wrap, signed = self._gate.wrap, self._signed
        return [
            web.get("/api/v3/account", wrap(signed(self.account), 20)),
            web.post("/api/v3/order", wrap(signed(self.new_order), 1)),
            web.post("/api/v3/order/test", wrap(signed(self.test_order), _test_weight)),
            web.get("/api/v3/order", wrap(signed(self.query_order), 4)),
            web.delete("/api/v3/order", wrap(signed(self.cancel_order), 1)),
            web.get("/api/v3/openOrders", wrap(signed(self.open_orders), _open_weight)),
            web.delete("/api/v3/openOrders", wrap(signed(self.cancel_open_orders), 1)),
            web.get("/api/v3/allOrders", wrap(signed(self.all_orders), 20)),
            web.get("/api/v3/myTrades", wrap(signed(self.my_trades), _trades_weight)),
        ]

    # --- security

    def _signed(self, handler: Handler) -> Handler:
        async def check(call: Call) -> Any:
            key = call.request.headers.get("X-MBX-APIKEY")
            if not key:
                raise ApiError(-2014, "API-key format invalid.", 401)
            if not hmac.compare_digest(key.encode("utf-8", "replace"), self._key.encode()):
                raise ApiError(-2015, "Invalid API-key, IP, or permissions for action.", 401)
            self._check_signature(call)
            self._check_time(call.params)
            return await handler(call)

        return check

    def _check_signature(self, call: Call) -> None:
        given = call.params.required("signature")
        expected = signature(self._secret, call.query, call.body)
        if not hmac.compare_digest(given.lower().encode(), expected.encode()):
            raise ApiError(-1022, "Signature for this request is not valid.")

    def _check_time(self, params: Params) -> None:
        stamp = params.integer("timestamp")
        if stamp is None:
            raise missing("timestamp")
        sent_ms = stamp / 1000 if stamp >= _MICROSECONDS_FROM else stamp
        window = params.decimal("recvWindow")
        if window is not None and window > 60_000:
            raise ApiError(-1131, "recvWindow must be less than 60000.")
        now_ms = self._public.now_ms()
        if sent_ms >= now_ms + 1000:
            raise ApiError(-1021, "Timestamp for this request was 1000ms ahead of the server's time.")
        if now_ms - sent_ms > (5000 if window is None else window):
            raise ApiError(-1021, "Timestamp for this request is outside of the recvWindow.")

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

    # --- orders

    async def new_order(self, call: Call) -> Any:
        symbol = find_symbol(self._market, call.params.required("symbol"))
        if self._faults.take("order_lost_request", symbol.symbol) is not None:
            return Answer(None, 0)
        request, response = read_order(call.params, symbol.spec)
        self._count_order(call)
        last, average, resting = self._prices(symbol)
        request = check_filters(request, symbol.spec, last, average, resting)
        order = self._books.place(request, symbol)
        lost = self._faults.take("order_lost_answer", symbol.symbol)
        if lost is not None:
            unknown = {
                "code": -1006,
                "msg": "An unexpected response was received from the message bus. Execution status unknown.",
            }
            return Answer(unknown, lost.status)
        return _placed(order, self._books.fills_of(order), response)

    async def test_order(self, call: Call) -> Any:
        symbol = find_symbol(self._market, call.params.required("symbol"))
        request, _ = read_order(call.params, symbol.spec)
        last, average, resting = self._prices(symbol)
        check_filters(request, symbol.spec, last, average, resting)
        if call.params.text("computeCommissionRates") != "true":
            return {}
        rate, zero = text8(self._books.fee), text8(0)
        return {
            "standardCommissionForOrder": {"maker": rate, "taker": rate},
            "specialCommissionForOrder": {"maker": zero, "taker": zero},
            "taxCommissionForOrder": {"maker": zero, "taker": zero},
            "discount": {
                "enabledForAccount": False,
                "enabledForSymbol": False,
                "discountAsset": "BNB",
                "discount": zero,
            },
        }

    def _prices(self, symbol: SymbolMarket) -> tuple[int, int, int]:
        average = self._market.average_price(symbol)
        if symbol.last is None or average is None or not symbol.trades_at(self._market.time_us):
            raise ApiError(-2010, "Market is closed.")
        return symbol.last.price, average, len(self._books.open_orders(symbol.symbol))

    def _count_order(self, call: Call) -> None:
        """Count the order against the limits of ten seconds and a day; ApiError if it is one too many."""
        now, placed = time.monotonic(), self._placed
        while placed and placed[0] <= now - 86_400:
            placed.popleft()
        for seconds, limit, name in _ORDER_LIMITS:
            recent = 0
            for at in reversed(placed):
                if at <= now - seconds or recent == limit:
                    break
                recent += 1
            if recent >= limit and self._limited:
                raise ApiError(-1015, f"Too many new orders; current limit is {limit} orders per {name}.", 429, seconds)
            call.headers[f"X-MBX-ORDER-COUNT-{name}"] = str(recent + 1)
        placed.append(now)

    async def query_order(self, call: Call) -> Any:
        symbol, order_id, client_id = self._which(call.params)
        order = self._books.find(symbol, order_id, client_id)
        if order is None:
            raise ApiError(-2013, "Order does not exist.")
        return order_json(order)

    async def cancel_order(self, call: Call) -> Any:
        symbol, order_id, client_id = self._which(call.params)
        order = self._books.cancel(symbol, order_id, client_id)
        return _canceled(order, call.params.text("newClientOrderId"))

    async def cancel_open_orders(self, call: Call) -> Any:
        symbol = find_symbol(self._market, call.params.required("symbol")).symbol
        resting = self._books.open_orders(symbol)
        if not resting:
            raise ApiError(-2011, "Unknown order sent.")
        return [_canceled(self._books.cancel(symbol, order.order_id, None), None) for order in resting]

    def _which(self, params: Params) -> tuple[str, int | None, str | None]:
        symbol = find_symbol(self._market, params.required("symbol")).symbol
        order_id, client_id = params.integer("orderId"), params.text("origClientOrderId")
        if order_id is None and client_id is None:
            raise ApiError(-1102, "Param 'origClientOrderId' or 'orderId' must be sent, but both were empty/null!")
        return symbol, order_id, client_id

    async def open_orders(self, call: Call) -> Any:
        name = call.params.text("symbol")
        symbol = find_symbol(self._market, name).symbol if name is not None else None
        return [order_json(order) for order in self._books.open_orders(symbol)]

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
        ]
        forward = from_id is not None or start_ms > 0
        return [order_json(order) for order in (found[:limit] if forward else found[-limit:])]

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


def _placed(order: Order, fills: list[Fill], response: str) -> dict[str, Any]:
    answer: dict[str, Any] = {
        "symbol": order.symbol,
        "orderId": order.order_id,
        "orderListId": -1,
        "clientOrderId": order.client_order_id,
        "transactTime": order.time_ms,
    }
    if response == "ACK":
        return answer
    answer |= {
        "price": text8(order.price),
        "origQty": text8(order.qty),
        "executedQty": text8(order.executed),
        "origQuoteOrderQty": text8(order.quote_qty),
        "cummulativeQuoteQty": text8(order.quote_executed),
        "status": order.status,
        "timeInForce": order.time_in_force,
        "type": order.type,
        "side": order.side,
        "workingTime": order.time_ms,
        "selfTradePreventionMode": "NONE",
    }
    if response == "FULL":
        answer["fills"] = [
            {
                "price": text8(fill.price),
                "qty": text8(fill.qty),
                "commission": text8(fill.commission),
                "commissionAsset": fill.commission_asset,
                "tradeId": fill.id,
            }
            for fill in fills
        ]
    return answer


def _canceled(order: Order, client_id: str | None) -> dict[str, Any]:
    return {
        "symbol": order.symbol,
        "origClientOrderId": order.client_order_id,
        "orderId": order.order_id,
        "orderListId": -1,
        "clientOrderId": client_id or f"cancel-{order.order_id}",
        "transactTime": order.update_ms,
        "price": text8(order.price),
        "origQty": text8(order.qty),
        "executedQty": text8(order.executed),
        "origQuoteOrderQty": text8(order.quote_qty),
        "cummulativeQuoteQty": text8(order.quote_executed),
        "status": order.status,
        "timeInForce": order.time_in_force,
        "type": order.type,
        "side": order.side,
        "selfTradePreventionMode": "NONE",
    }


def _test_weight(params: Params) -> int:
    return 20 if "computeCommissionRates" in params else 1


def _open_weight(params: Params) -> int:
    return 6 if "symbol" in params else 80


def _trades_weight(params: Params) -> int:
    return 5 if "orderId" in params else 20
