"""The account's books: orders, fills and balances, and when an order fills.

Whole numbers of 1e-8 only: nothing is rounded but a commission, which is cut after its eighth decimal, as no finer
unit exists. Every step is told to `record` as a whole before anyone can learn of it. Pure: no clock, no network.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final

import msgspec

from marketflow_simulator.amounts import SCALE, text8
from marketflow_simulator.errors import ApiError
from marketflow_simulator.market import SymbolMarket
from marketflow_simulator.records import (
    ALGO_TYPES,
    MARKET_TYPES,
    Change,
    Commission,
    Execution,
    Fill,
    FillRule,
    Order,
    OrderList,
    OrderRequest,
    Side,
    Transfer,
)
from marketflow_simulator.symbols import SymbolSpec
from marketflow_simulator.trades import Trade
from marketflow_simulator.views import fill_json, list_json, order_json, signed8

_INSUFFICIENT: Final = "Account has insufficient balance for requested action."
_PAGE: Final = 500
_RESTRICTIONS: Final = {"ONLY_NEW": "NEW", "ONLY_PARTIALLY_FILLED": "PARTIALLY_FILLED"}


class Books:
    """One account. `fee` is the commission in units of 1e-8; both clocks are asked, never read here."""

    def __init__(
        self,
        specs: Iterable[SymbolSpec],
        balances: Mapping[str, int],
        fee: int | Commission,
        now_ms: Callable[[], int],
        market_us: Callable[[], int],
        record: Callable[[Sequence[Change]], None] = lambda changes: None,
        rule: FillRule = "last_trade",
    ) -> None:
        self._specs = {spec.symbol: spec for spec in specs}
        self.commission = fee if isinstance(fee, Commission) else Commission(fee)
        self._now_ms = now_ms
        self._market_us = market_us
        self._record = record
        self.rule = rule
        assets = {asset for spec in self._specs.values() for asset in (spec.base, spec.quote)}
        self.initial = dict(balances)
        self.free = {asset: balances.get(asset, 0) for asset in sorted(assets | set(balances))}
        self.locked = dict.fromkeys(self.free, 0)
        self.orders: dict[int, Order] = {}
        self.lists: dict[int, OrderList] = {}
        self.fills: list[Fill] = []
        self.transfers: list[Transfer] = []
        self.steps = {spec.symbol: spec.step for spec in self._specs.values()}
        """By symbol: quantities that the books choose themselves are whole multiples of this."""
        self.filters: dict[str, list[dict[str, Any]]] = {}
        """By symbol: filters that were set, for whom the books only remember them."""
        self._open: dict[str, dict[int, Order]] = {symbol: {} for symbol in self._specs}
        self._by_client_id: dict[str, list[int]] = {}
        self._pending: list[Change] = []
        self._executions = 0
        self.listeners: list[Callable[[Sequence[Change]], None]] = []
        """Hear of each step after it was recorded."""
        self.price_of: Callable[[str], int | None] = lambda symbol: None
        """The last price of a symbol, None if the market does not have it."""
        self.split: Callable[[str], tuple[int, bool]] = lambda symbol: (1, False)
        """In how many parts an order fills that starts to fill now, and whether all but the first part expires."""

    def restore(self, changes: Iterable[Change]) -> None:
        """Take up the books where a journal left them."""
        for change in changes:
            order = change.order
            if order is not None:
                self._executions += 1
                known = self.orders.get(order.order_id)
                if known is None or known.client_order_id != order.client_order_id:
                    self._by_client_id.setdefault(order.client_order_id, []).append(order.order_id)
                self.orders[order.order_id] = order
            if change.order_list is not None:
                self.lists[change.order_list.list_id] = change.order_list
            if change.fill is not None:
                self.fills.append(change.fill)
            if change.transfer is not None:
                self.transfers.append(change.transfer)
            if change.filters is not None:
                self.filters |= change.filters
            self.free.update(change.free)
            self.locked.update(change.locked)
        for order in self.orders.values():
            if order.working and not order.working_ms:  # written before orders said since when they work
                order.working_ms = order.time_ms
            if order.is_open:
                if not order.locked and order.list_id < 0:  # written before orders said what they hold
                    order.locked = self._needs(order, order.left, order.price)
                self._open.setdefault(order.symbol, {})[order.order_id] = order

    @property
    def fee(self) -> int:
        """Commission in units of 1e-8 of what a fill receives."""
        return self.commission.rate

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
            order = self.orders[number]
            if order.symbol == symbol and order.client_order_id == client_order_id:
                return order
        return None

    def find_list(self, list_id: int | None, client_id: str | None) -> OrderList | None:
        """The order list of that id, or the latest with that client id; both have to fit if both are given."""
        if list_id is not None:
            found = self.lists.get(list_id)
            return found if found is not None and client_id in (None, found.client_order_id) else None
        return next((one for one in reversed(self.lists.values()) if one.client_order_id == client_id), None)

    def legs(self, found: OrderList) -> list[Order]:
        return [self.orders[number] for number in found.order_ids]

    def fills_of(self, order: Order) -> list[Fill]:
        return [self.fills[number - 1] for number in order.fills]

    # --- new orders

    def place(self, request: OrderRequest, market: SymbolMarket) -> Order:
        """Accept an order and fill it as far as it fills now; ApiError if the books refuse it.

        By the rule `last_trade` a market order fills at once at the last trade's price, and so does a limit order that
        this price satisfies. By `next_trade` and `after_id` both meet a public trade to come. Any other limit order
        rests, or expires if IOC or FOK.
        """
        last = self._last(market)
        self._judge(request, last)
        amount = self._needs(request, request.qty, request.price or request.stop_price or last.price)
        if self.free[self._pays(request)] < amount:
            raise ApiError(-2010, _INSUFFICIENT)
        enters = request.type in ("LIMIT", "MARKET")
        after_id = None
        if enters and self.rule != "last_trade":
            named = self.rule == "after_id" and request.strategy_id is not None
            after_id = request.strategy_id if named else last.id
        order = self._accept(request, amount, after_id=after_id)
        if order.taking:
            self._catch_up(order, market)
        elif enters:
            self._take(order, last)
        self._end_step()
        return order

    def _catch_up(self, order: Order, market: SymbolMarket) -> None:
        """Let it meet what was traded since the trade that it names."""
        at = order.after_id + 1
        while order.is_open and (page := market.happened(at, _PAGE)):
            for trade in page:
                if order.is_open:
                    self._meet(order, trade)
            at = page[-1].id + 1

    def place_list(
        self, above: OrderRequest, below: OrderRequest, client_id: str, market: SymbolMarket
    ) -> tuple[OrderList, list[Order]]:
        """Accept an OCO pair; ApiError if the books refuse it. The two share what they lock."""
        last = self._last(market)
        if any(not one.done and one.client_order_id == client_id for one in self.lists.values()):
            raise ApiError(-2010, "Duplicate order sent.")
        if above.client_order_id == below.client_order_id:
            raise ApiError(-2010, "Duplicate order sent.")
        upper, lower = (
            leg.price if leg.type in ("LIMIT_MAKER", "TAKE_PROFIT_LIMIT") else leg.stop_price for leg in (above, below)
        )
        if not upper > last.price > lower:
            raise ApiError(-2010, "The relationship of the prices for the orders is not correct.")
        for leg in (above, below):
            self._judge(leg, last)
        amount = max(self._needs(leg, leg.qty, leg.price or leg.stop_price) for leg in (above, below))
        if self.free[self._pays(above)] < amount:
            raise ApiError(-2010, _INSUFFICIENT)
        number = len(self.lists) + 1
        first = self._accept(above, amount, number)
        second = self._accept(below, 0, number)
        found = OrderList(number, client_id, above.symbol, [first.order_id, second.order_id], self._now_ms())
        self.lists[number] = found
        self._tell_list(found)
        self._end_step()
        return found, [first, second]

    def _last(self, market: SymbolMarket) -> Trade:
        if market.last is None:
            raise ApiError(-2010, "Market is closed.")
        return market.last

    def _judge(self, request: OrderRequest, last: Trade) -> None:
        if any(o.client_order_id == request.client_order_id for o in self.open_orders()):
            raise ApiError(-2010, "Duplicate order sent.")
        if request.stop_price and _triggers(request, last.price):
            raise ApiError(-2010, "Order would trigger immediately.")
        if request.type == "LIMIT_MAKER" and _reaches(request.side, request.price, last.price):
            raise ApiError(-2010, "Order would immediately match and take.")

    def _accept(self, request: OrderRequest, amount: int, list_id: int = -1, after_id: int | None = None) -> Order:
        now = self._now_ms()
        working = request.type not in ALGO_TYPES
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
            stop_price=request.stop_price,
            working=working,
            working_ms=now if working else 0,
            list_id=list_id,
            taking=after_id is not None,
            after_id=after_id or 0,
            strategy_id=request.strategy_id,
            strategy_type=request.strategy_type,
            stp=request.stp,
        )
        self.orders[order.order_id] = order
        self._by_client_id.setdefault(order.client_order_id, []).append(order.order_id)
        self._open[order.symbol][order.order_id] = order
        self._lock(order, amount)
        self._tell(order, "NEW", moved=amount > 0)
        return order

    # --- canceling, and what comes from outside

    def cancel(
        self,
        symbol: str,
        order_id: int | None,
        client_order_id: str | None,
        cancel_id: str = "",
        restrictions: str | None = None,
    ) -> Order:
        """Cancel an open order, and its whole list if it is of one; ApiError if there is none such."""
        order = self.find(symbol, order_id, client_order_id)
        if order is None or not order.is_open:
            raise ApiError(-2011, "Unknown order sent.")
        if restrictions is not None and order.status != _RESTRICTIONS[restrictions]:
            raise ApiError(-2011, "Order was not canceled due to cancel restrictions.")
        group = self.legs(self.lists[order.list_id]) if order.list_id >= 0 else [order]
        for one in group:
            if one.is_open:
                self._close(one, "CANCELED", cancel_id=cancel_id)
        self._end_step()
        return order

    def expire(self, order: Order) -> None:
        """The exchange itself takes an open order off the book."""
        self._close(order, "EXPIRED", "EXCHANGE_CANCELED")
        self._end_step()

    def rename(self, order: Order, client_order_id: str) -> None:
        """Let a canceled order be known by the id of its cancel ("`newClientOrderId` will replace `clientOrderId`")."""
        order.client_order_id = client_order_id
        self._by_client_id.setdefault(client_order_id, []).append(order.order_id)
        self._tell(order, None, moved=False)
        self._end_step()

    def transfer(self, asset: str, delta: int) -> Transfer:
        """Put in or take out free funds without a trade; ValueError if more is to go out than is free."""
        free = self.free.get(asset, 0)
        if free + delta < 0:
            raise ValueError(f"{asset}: {signed8(delta)} is more than the {text8(free)} that is free")
        self.free[asset] = free + delta
        self.locked.setdefault(asset, 0)
        transfer = Transfer(asset, delta, self._now_ms(), self._market_us())
        self.transfers.append(transfer)
        balances = ({asset: self.free[asset]}, {asset: self.locked[asset]})
        self._pending.append(Change(None, None, *balances, self._market_us(), transfer=transfer))
        self._end_step()
        return transfer

    def keep_filters(self, symbol: str, filters: list[dict[str, Any]], step: int) -> None:
        """Remember filters that were set over a restart; quantities are multiples of `step` from now on."""
        self.steps[symbol] = step
        self.filters[symbol] = filters
        self._pending.append(Change(None, None, {}, {}, self._market_us(), moved=False, filters={symbol: filters}))
        self._end_step()

    # --- what the market does to orders

    def on_trade(self, market: SymbolMarket, trade: Trade) -> None:
        """Fill and trigger the open orders that this public trade reaches."""
        resting = self._open.get(market.symbol)
        if not resting:
            return
        for order in list(resting.values()):
            if order.is_open:  # it may have been of a pair of which one was reached
                self._meet(order, trade)
        self._end_step()

    def on_mark(self, time_us: int) -> None:
        """Nothing happens to the books because time passes."""

    def _meet(self, order: Order, trade: Trade) -> None:
        if order.taking:
            if trade.id > order.after_id:
                self._take(order, trade)
        elif not order.working:
            if _triggers(order, trade.price):
                self._trigger(order, trade)
        elif _reaches(order.side, order.price, trade.price):
            self._leave_pair(order)
            self._execute(order, order.price, trade, maker=True)

    def _trigger(self, order: Order, trade: Trade) -> None:
        """A stop price is reached: the order works from now on, and takes at this very trade's price."""
        self._leave_pair(order)
        order.working = True
        order.working_ms = order.update_ms = self._now_ms()
        self._tell(order, "NEW", moved=False)
        self._take(order, trade)

    def _take(self, order: Order, trade: Trade) -> None:
        """The order meets the market at this trade's price."""
        order.taking = False
        at_any_price = order.type in MARKET_TYPES
        if not at_any_price and not _reaches(order.side, order.price, trade.price):
            if order.time_in_force != "GTC":
                self._close(order, "EXPIRED", f"UNFILLED_{_unfilled(order)}_EXPIRED")
            elif self.rule != "last_trade":
                self._tell(order, None, moved=False)  # it rests now
            return
        if order.quote_qty and not order.executed:
            step = self.steps[order.symbol] or 1
            order.qty = order.quote_qty * SCALE // trade.price // step * step
            if not order.qty:
                self._close(order, "EXPIRED", "REJECTED")
                return
        self._execute(order, trade.price, trade, maker=False)
        if not order.is_open:
            return
        if order.time_in_force == "IOC":
            self._close(order, "EXPIRED", "UNFILLED_IOC_QUANTITY_EXPIRED")
        elif order.time_in_force == "FOK":
            while order.is_open:
                self._execute(order, trade.price, trade, maker=False)
        elif at_any_price:
            order.taking, order.after_id = True, trade.id
            self._tell(order, None, moved=False)

    def _execute(self, order: Order, price: int, trade: Trade, *, maker: bool) -> None:
        """Fill the order, or the next part of it, and close it where nothing can be left."""
        if not order.parts:
            order.parts, order.expire_rest = self.split(order.symbol)
        step = self.steps[order.symbol] or 1
        qty = order.left if order.parts <= 1 else max(order.left // order.parts // step * step, min(step, order.left))
        self._unlock(order)
        free = self.free[self._pays(order)]
        affordable = free if order.side == "SELL" else free * SCALE // price
        if affordable < qty:  # only one that takes any price can cost more than it has locked
            qty = affordable // step * step
            if qty > 0:
                self._fill(order, price, qty, trade, maker=maker)
            self._close(order, "EXPIRED", "REJECTED")
            return
        order.parts -= 1
        self._fill(order, price, qty, trade, maker=maker)
        if order.is_open and order.expire_rest:
            self._close(order, "EXPIRED", "INSUFFICIENT_LIQUIDITY")

    def _fill(self, order: Order, price: int, qty: int, trade: Trade, *, maker: bool) -> None:
        """Exchange the amounts, write the fill, and lock again what the rest of the order needs."""
        spec = self._specs[order.symbol]
        quote = price * qty // SCALE
        paid, received = (quote, qty) if order.side == "BUY" else (qty, quote)
        received_asset = spec.base if order.side == "BUY" else spec.quote
        self.free[self._pays(order)] -= paid
        self.free[received_asset] += received
        commission_asset, commission = self._commission(spec, received_asset, received, quote)
        self.free[commission_asset] -= commission
        now = self._now_ms()
        fill = Fill(
            id=len(self.fills) + 1,
            order_id=order.order_id,
            client_order_id=order.client_order_id,
            symbol=order.symbol,
            side=order.side,
            price=price,
            qty=qty,
            quote_qty=quote,
            commission=commission,
            commission_asset=commission_asset,
            time_ms=now,
            is_maker=maker,
            market_trade_id=trade.id,
            market_time_us=trade.at_us,
            list_id=order.list_id,
        )
        self.fills.append(fill)
        order.fills.append(fill.id)
        order.executed += qty
        order.quote_executed += quote
        order.update_ms = now
        if order.left > 0:
            order.status = "PARTIALLY_FILLED"
            needed = self._needs(order, order.left, order.price or price)
            self._lock(order, min(needed, self.free[self._pays(order)]))
        else:
            order.status = "FILLED"
            del self._open[order.symbol][order.order_id]
        self._tell(order, "TRADE", fill)
        self._settle_list(order)

    def _commission(self, spec: SymbolSpec, asset: str, received: int, quote: int) -> tuple[str, int]:
        """In which asset, and how much of it, cut after the eighth decimal."""
        rate, discount = self.commission.rate, self.commission.discount
        if discount:
            share = rate * (SCALE - discount)
            price = SCALE if spec.quote == "BNB" else self.price_of(f"BNB{spec.quote}")
            if asset == "BNB":
                amount = received * share // (SCALE * SCALE)
            elif price is not None:
                amount = quote * share // (SCALE * price)
            else:
                amount = -1
            if 0 <= amount <= self.free.get("BNB", -1):
                return "BNB", amount
        return asset, received * rate // SCALE

    # --- the parts of a step

    def _pays(self, order: Order | OrderRequest) -> str:
        spec = self._specs[order.symbol]
        return spec.quote if order.side == "BUY" else spec.base

    def _needs(self, order: Order | OrderRequest, qty: int, price: int) -> int:
        if order.side == "SELL":
            return qty
        if order.quote_qty and order.type == "MARKET" and self.rule != "last_trade" and qty == order.qty:
            return order.quote_qty  # its quantity is only known when it meets its trade
        return price * qty // SCALE

    def _lock(self, order: Order, amount: int) -> None:
        asset = self._pays(order)
        self.free[asset] -= amount
        self.locked[asset] += amount
        order.locked += amount

    def _unlock(self, order: Order) -> None:
        asset = self._pays(order)
        self.locked[asset] -= order.locked
        self.free[asset] += order.locked
        order.locked = 0

    def _close(self, order: Order, how: Execution, reason: str | None = None, cancel_id: str = "") -> None:
        moved = order.locked > 0
        self._unlock(order)
        order.status = "CANCELED" if how == "CANCELED" else "EXPIRED"
        order.expiry_reason = reason
        order.taking = False
        order.update_ms = self._now_ms()
        del self._open[order.symbol][order.order_id]
        self._tell(order, how, moved=moved, cancel_id=cancel_id)
        self._settle_list(order)

    def _leave_pair(self, order: Order) -> None:
        """One of a pair is reached: the other expires, and what they held together is this one's."""
        if order.list_id < 0:
            return
        for other in self.legs(self.lists[order.list_id]):
            if other is not order and other.is_open:
                self._close(other, "EXPIRED", "OCO_TRIGGER")
                self._unlock(order)
                needed = self._needs(order, order.left, order.price or order.stop_price)
                self._lock(order, min(needed, self.free[self._pays(order)]))

    def _settle_list(self, order: Order) -> None:
        found = self.lists.get(order.list_id)
        if found is not None and not found.done and not any(leg.is_open for leg in self.legs(found)):
            found.done, found.time_ms = True, order.update_ms
            self._tell_list(found)

    def _tell(
        self, order: Order, how: Execution | None, fill: Fill | None = None, *, moved: bool = True, cancel_id: str = ""
    ) -> None:
        spec = self._specs[order.symbol]
        assets = {spec.base, spec.quote} | ({fill.commission_asset} if fill is not None else set())
        free, locked = ({a: book[a] for a in sorted(assets)} for book in (self.free, self.locked))
        seen = msgspec.structs.replace(order, fills=list(order.fills))
        self._executions += 1
        self._pending.append(
            Change(
                seen,
                fill,
                free,
                locked,
                self._market_us(),
                how,
                moved=moved,
                cancel_id=cancel_id,
                number=self._executions,
            )
        )

    def _tell_list(self, found: OrderList) -> None:
        seen = msgspec.structs.replace(found, order_ids=list(found.order_ids))
        self._pending.append(Change(None, None, {}, {}, self._market_us(), order_list=seen, moved=False))

    def _end_step(self) -> None:
        if not self._pending:
            return
        changes, self._pending = self._pending, []
        self._record(changes)
        for listener in self.listeners:
            listener(changes)

    # --- the whole truth

    def ledger(self) -> dict[str, Any]:
        """Everything, as JSON with amounts in text."""
        return {
            "initial_balances": {asset: text8(amount) for asset, amount in self.initial.items()},
            "balances": {
                asset: {"free": text8(self.free[asset]), "locked": text8(self.locked[asset])} for asset in self.free
            },
            "orders": [{**order_json(order), "marketTimeUs": order.market_time_us} for order in self.orders.values()],
            "order_lists": [list_json(found, self.legs(found)) for found in self.lists.values()],
            "fills": [fill_json(fill) for fill in self.fills],
            "transfers": [
                {"asset": t.asset, "delta": signed8(t.delta), "time": t.time_ms, "marketTimeUs": t.market_time_us}
                for t in self.transfers
            ],
        }


def _reaches(side: Side, price: int, trade_price: int) -> bool:
    """Whether a limit price is satisfied by a trade's price."""
    return trade_price <= price if side == "BUY" else trade_price >= price


def _triggers(order: Order | OrderRequest, trade_price: int) -> bool:
    """Whether a stop price is reached: above the market for a STOP_LOSS BUY and a TAKE_PROFIT SELL, else below."""
    above = order.type.startswith("STOP_LOSS") == (order.side == "BUY")
    return trade_price >= order.stop_price if above else trade_price <= order.stop_price


def _unfilled(order: Order) -> str:
    """How Binance names what an order that must not rest has left."""
    return "IOC_QUANTITY" if order.time_in_force == "IOC" else "FOK_ORDER"
