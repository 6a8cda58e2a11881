"""The account's books: orders, fills and balances, and when an order fills.

Whole numbers of 1e-8 only: nothing is rounded but a commission, which is cut after its eighth decimal,
as no finer unit exists. Every change is told to `record` before anyone can learn of it.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final, Literal

import msgspec

from marketflow_simulator.amounts import SCALE, text8
from marketflow_simulator.errors import ApiError
from marketflow_simulator.market import SymbolMarket
from marketflow_simulator.symbols import SymbolSpec
from marketflow_simulator.trades import Trade

Side = Literal["BUY", "SELL"]
OrderType = Literal["LIMIT", "LIMIT_MAKER", "MARKET"]
TimeInForce = Literal["GTC", "IOC", "FOK"]
Status = Literal["NEW", "FILLED", "CANCELED", "EXPIRED"]


class OrderRequest(msgspec.Struct, frozen=True):
    """A new order whose parameters and filters have been checked."""

    symbol: str
    side: Side
    type: OrderType
    time_in_force: TimeInForce
    price: int
    """0 for a market order."""
    qty: int
    quote_qty: int
    """`quoteOrderQty`, 0 if the order names its quantity."""
    client_order_id: str


class Order(msgspec.Struct):
    """An order as it stands. Amounts in units of 1e-8, times in wall-clock milliseconds."""

    order_id: int
    client_order_id: str
    symbol: str
    side: Side
    type: OrderType
    time_in_force: TimeInForce
    price: int
    qty: int
    quote_qty: int
    status: Status
    time_ms: int
    update_ms: int
    market_time_us: int
    """Market time when it was placed."""
    executed: int = 0
    quote_executed: int = 0
    fills: list[int] = []


class Fill(msgspec.Struct, frozen=True):
    """One execution of an order. `id` is from the account's own series, not of the public trades."""

    id: int
    order_id: int
    client_order_id: str
    symbol: str
    side: Side
    price: int
    qty: int
    quote_qty: int
    commission: int
    commission_asset: str
    time_ms: int
    is_maker: bool
    market_trade_id: int
    """The last public trade at that moment; its price made the order fill."""
    market_time_us: int


class Change(msgspec.Struct):
    """One step of the books, whole: an order as it is now, its new fill, and the balances after it."""

    order: Order
    fill: Fill | None
    free: dict[str, int]
    locked: dict[str, int]
    market_us: int
    """Market time of the step: every public trade up to it has been considered."""


_INSUFFICIENT: Final = "Account has insufficient balance for requested action."


class Books:
    """One account. `fee` is the commission in units of 1e-8; both clocks are asked, never read here."""

    def __init__(
        self,
        specs: Iterable[SymbolSpec],
        balances: Mapping[str, int],
        fee: int,
        now_ms: Callable[[], int],
        market_us: Callable[[], int],
        record: Callable[[Change], None] = lambda change: None,
    ) -> None:
        self._specs = {spec.symbol: spec for spec in specs}
        self.fee = fee
        self._now_ms = now_ms
        self._market_us = market_us
        self._record = record
        assets = {asset for spec in self._specs.values() for asset in (spec.base, spec.quote)}
        self.initial = dict(balances)
        self.free = {asset: balances.get(asset, 0) for asset in sorted(assets | set(balances))}
        self.locked = dict.fromkeys(self.free, 0)
        self.orders: dict[int, Order] = {}
        self.fills: list[Fill] = []
        self._open: dict[str, dict[int, Order]] = {symbol: {} for symbol in self._specs}
        self._by_client_id: dict[str, list[int]] = {}

    def restore(self, changes: Iterable[Change]) -> None:
        """Take up the books where a journal left them."""
        for change in changes:
            if change.order.order_id not in self.orders:
                self._by_client_id.setdefault(change.order.client_order_id, []).append(change.order.order_id)
            self.orders[change.order.order_id] = change.order
            if change.fill is not None:
                self.fills.append(change.fill)
            self.free.update(change.free)
            self.locked.update(change.locked)
        for order in self.orders.values():
            if order.status == "NEW":
                self._open.setdefault(order.symbol, {})[order.order_id] = order

    # --- questions

    def open_orders(self, symbol: str | None = None) -> list[Order]:
        """Open orders of a symbol or of all, by order id."""
        if symbol is not None:
            return list(self._open.get(symbol, {}).values())
        return sorted((o for some in self._open.values() for o in some.values()), key=lambda o: o.order_id)

    def find(self, symbol: str, order_id: int | None, client_order_id: str | None) -> Order | None:
        """The order of that id, or the latest with that client id; both have to fit if both are given."""
        if order_id is not None:
            order = self.orders.get(order_id)
            if order is None or order.symbol != symbol:
                return None
            return order if client_order_id in (None, order.client_order_id) else None
        for number in reversed(self._by_client_id.get(client_order_id or "", [])):
            if self.orders[number].symbol == symbol:
                return self.orders[number]
        return None

    def fills_of(self, order: Order) -> list[Fill]:
        return [self.fills[number - 1] for number in order.fills]

    # --- orders

    def place(self, request: OrderRequest, market: SymbolMarket) -> Order:
        """Accept an order and fill it as far as it fills now; ApiError if the books refuse it.

        A market order fills at once and in full at the last trade's price, and so does a limit order
        that the last trade's price satisfies; any other limit order rests, or expires if IOC or FOK.
        """
        last = market.last
        if last is None:
            raise ApiError(-2010, "Market is closed.")
        if any(o.client_order_id == request.client_order_id for o in self.open_orders()):
            raise ApiError(-2010, "Duplicate order sent.")
        buys = request.side == "BUY"
        is_market = request.type == "MARKET"
        crosses = is_market or (last.price <= request.price if buys else last.price >= request.price)
        if request.type == "LIMIT_MAKER" and crosses:
            raise ApiError(-2010, "Order would immediately match and take.")
        asset, amount = self._needs(request.symbol, request.side, request.price or last.price, request.qty)
        if self.free[asset] < amount:
            raise ApiError(-2010, _INSUFFICIENT)
        now = self._now_ms()
        order = Order(
            order_id=len(self.orders) + 1,
            client_order_id=request.client_order_id,
            symbol=request.symbol,
            side=request.side,
            type=request.type,
            time_in_force=request.time_in_force,
            price=request.price,
            qty=request.qty,
            quote_qty=request.quote_qty,
            status="NEW",
            time_ms=now,
            update_ms=now,
            market_time_us=self._market_us(),
            fills=[],
        )
        self.orders[order.order_id] = order
        self._by_client_id.setdefault(order.client_order_id, []).append(order.order_id)
        if crosses:
            self._fill(order, last.price, last, maker=False)
        elif order.time_in_force == "GTC":
            self.free[asset] -= amount
            self.locked[asset] += amount
            self._open[order.symbol][order.order_id] = order
            self._tell(order, None)
        else:
            order.status = "EXPIRED"
            self._tell(order, None)
        return order

    def cancel(self, symbol: str, order_id: int | None, client_order_id: str | None) -> Order:
        """Cancel an open order; ApiError if there is none such."""
        order = self.find(symbol, order_id, client_order_id)
        if order is None or order.status != "NEW":
            raise ApiError(-2011, "Unknown order sent.")
        self._unlock(order)
        order.status = "CANCELED"
        order.update_ms = self._now_ms()
        self._tell(order, None)
        return order

    def on_trade(self, market: SymbolMarket, trade: Trade) -> None:
        """Fill the resting orders whose price this public trade reaches, each in full at its own price."""
        resting = self._open.get(market.symbol)
        if not resting:
            return
        for order in list(resting.values()):
            buys = order.side == "BUY"
            if trade.price <= order.price if buys else trade.price >= order.price:
                self._unlock(order)
                self._fill(order, order.price, trade, maker=True)

    def on_mark(self, time_us: int) -> None:
        """Nothing happens to the books because time passes."""

    def _needs(self, symbol: str, side: Side, price: int, qty: int) -> tuple[str, int]:
        spec = self._specs[symbol]
        return (spec.quote, price * qty // SCALE) if side == "BUY" else (spec.base, qty)

    def _unlock(self, order: Order) -> None:
        asset, amount = self._needs(order.symbol, order.side, order.price, order.qty)
        self.locked[asset] -= amount
        self.free[asset] += amount
        del self._open[order.symbol][order.order_id]

    def _fill(self, order: Order, price: int, trade: Trade, *, maker: bool) -> None:
        spec = self._specs[order.symbol]
        quote = price * order.qty // SCALE
        if order.side == "BUY":
            paid, paid_asset, received, received_asset = quote, spec.quote, order.qty, spec.base
        else:
            paid, paid_asset, received, received_asset = order.qty, spec.base, quote, spec.quote
        commission = received * self.fee // SCALE
        self.free[paid_asset] -= paid
        self.free[received_asset] += received - commission
        now = self._now_ms()
        fill = Fill(
            id=len(self.fills) + 1,
            order_id=order.order_id,
            client_order_id=order.client_order_id,
            symbol=order.symbol,
            side=order.side,
            price=price,
            qty=order.qty,
            quote_qty=quote,
            commission=commission,
            commission_asset=received_asset,
            time_ms=now,
            is_maker=maker,
            market_trade_id=trade.id,
            market_time_us=trade.at_us,
        )
        self.fills.append(fill)
        order.fills.append(fill.id)
        order.executed = order.qty
        order.quote_executed = quote
        order.status = "FILLED"
        order.update_ms = now
        self._tell(order, fill)

    def _tell(self, order: Order, fill: Fill | None) -> None:
        spec = self._specs[order.symbol]
        assets = (spec.base, spec.quote)
        free, locked = ({a: book[a] for a in assets} for book in (self.free, self.locked))
        self._record(Change(order, fill, free, locked, self._market_us()))

    # --- the whole truth

    def ledger(self) -> dict[str, Any]:
        """Everything, as JSON with amounts in text."""
        return {
            "initial_balances": {asset: text8(amount) for asset, amount in self.initial.items()},
            "balances": {
                asset: {"free": text8(self.free[asset]), "locked": text8(self.locked[asset])} for asset in self.free
            },
            "orders": [{**order_json(order), "marketTimeUs": order.market_time_us} for order in self.orders.values()],
            "fills": [fill_json(fill) for fill in self.fills],
        }


def order_json(order: Order) -> dict[str, Any]:
    """The documented answer of `GET /api/v3/order`."""
    return {
        "symbol": order.symbol,
        "orderId": order.order_id,
        "orderListId": -1,
        "clientOrderId": order.client_order_id,
        "price": text8(order.price),
        "origQty": text8(order.qty),
        "executedQty": text8(order.executed),
        "cummulativeQuoteQty": text8(order.quote_executed),
        "status": order.status,
        "timeInForce": order.time_in_force,
        "type": order.type,
        "side": order.side,
        "stopPrice": text8(0),
        "icebergQty": text8(0),
        "time": order.time_ms,
        "updateTime": order.update_ms,
        "isWorking": True,
        "workingTime": order.time_ms,
        "origQuoteOrderQty": text8(order.quote_qty),
        "selfTradePreventionMode": "NONE",
    }


def fill_json(fill: Fill) -> dict[str, Any]:
    """A fill with all that the simulator knows of it."""
    return {
        **trade_json(fill),
        "clientOrderId": fill.client_order_id,
        "side": fill.side,
        "marketTradeId": fill.market_trade_id,
        "marketTimeUs": fill.market_time_us,
    }


def trade_json(fill: Fill) -> dict[str, Any]:
    """The documented entry of `GET /api/v3/myTrades`."""
    return {
        "symbol": fill.symbol,
        "id": fill.id,
        "orderId": fill.order_id,
        "orderListId": -1,
        "price": text8(fill.price),
        "qty": text8(fill.qty),
        "quoteQty": text8(fill.quote_qty),
        "commission": text8(fill.commission),
        "commissionAsset": fill.commission_asset,
        "time": fill.time_ms,
        "isBuyer": fill.side == "BUY",
        "isMaker": fill.is_maker,
        "isBestMatch": True,
    }
