"""One account as a fold over its order events: books, open orders, trading state, answered signals.

Pure. ``apply`` is called for what has committed and never before: an abort needs no undoing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from decimal import Decimal, localcontext
from typing import Literal

import msgspec
from marketflow_common.events import (
    AccountOpened,
    Convention,
    OrderEvent,
    OrderFilled,
    OrderIntended,
    SignalSkipped,
    TradingState,
    TradingStateChanged,
)
from marketflow_common.numbers import EXACT, ZERO

from .books import Assets, Books, Fill
from .commands import is_flatten
from .decision import View
from .filters import ALGO, Instrument, Market
from .orders import Order
from .plans import is_protection, is_standing, protection_id
from .risk import DAILY_LOSS, DRAWDOWN, RECONCILER, Entry, Path, Standing

__all__ = ["Account"]

_REMEMBERED = 200_000
"""Signals known to be answered; months of them. Only a position set back by hand would bring one again."""


class Account:
    """State of one account; events of other accounts are passed over."""

    def __init__(self, name: str, assets: dict[str, Assets], convention: Convention = "average") -> None:
        """``assets`` must know every symbol that has a fill."""
        self.name, self.assets = name, assets
        self.books = Books(convention=convention)
        self.open: dict[str, Order] = {}
        self.opened: AccountOpened | None = None
        self.state: TradingState = "ACTIVE"
        self.state_reason = self.state_by = ""
        self.state_at = 0
        self.before_halt: TradingStateChanged | None = None
        """What the reconciliation has halted, to be gone back to."""
        self.commands: dict[str, None] = {}
        """Ids of the commands that were honoured."""
        self.flatten: TradingStateChanged | None = None
        """The order to sell all that is held, until another command takes its place."""
        self.seen: dict[str, tuple[Decimal, int]] = {}
        """Close and last trade id of the newest signal of a symbol that led to an order."""
        self.last_fill: dict[str, int] = {}
        """The highest trade id of a symbol that is in the books."""
        self.entries: dict[str, OrderIntended] = {}
        """The newest BUY of a symbol that has a fill: its close is what stop and target are measured from."""
        self._traded: dict[str, int] = {}
        """The highest trade id of a symbol that was no fill of a stop or target that stood."""
        self._protected: dict[str, tuple[str, int]] = {}
        """Id and number of a symbol's newest protection."""
        self._flattened: dict[str, int] = {}
        self.path = Path()
        self.differences: list[str] = []
        self._answered: dict[str, None] = {}

    def apply(self, event: OrderEvent) -> None:
        """Take in one event of the log."""
        if event.account != self.name:
            return
        match event:
            case AccountOpened():
                self.opened = event
                self.books = self.books.opened(event.balances)
            case TradingStateChanged():
                self._change(event)
            case SignalSkipped():
                self._answer(event.signal_id)
                self._flattened.pop(event.signal_id, None)
                close, at = event.signal_close, event.decided_at
                # A close that was too far from the last price is none itself.
                if close is not None and at is not None and event.reason != "price_deviation":
                    self._priced(at, event.symbol, close)
            case OrderIntended():
                self._intend(event)
            case _:
                if isinstance(event, OrderFilled):
                    self._fill(event)
                order = self.open.get(event.order_id)
                if order is not None:
                    order = order.follow(event)
                    self.open[event.order_id] = order
                    if order.ended:
                        del self.open[event.order_id]

    def _intend(self, event: OrderIntended) -> None:
        order, replaced = Order(event), self.open.get(event.replaces)
        if replaced is not None:
            order = msgspec.structs.replace(order, began_ms=replaced.since_ms)
            self.open[event.replaces] = msgspec.structs.replace(replaced, latest=event.attempt)
        self.open[event.order_id] = order
        if is_protection(event.signal_id):
            self._protected[event.symbol] = (event.signal_id, event.attempt)
            return  # It follows from an order, and its close is that order's: no news of any signal or price.
        self.path.intended(event.timestamp_ms)
        if event.replaces:
            return
        self._answer(event.signal_id)
        self.seen[event.symbol] = (event.signal_close, event.signal_last_trade_id)
        if is_flatten(event.signal_id):
            self._flattened[event.signal_id] = event.attempt
        self._priced(event.timestamp_ms * 1_000, event.symbol, event.signal_close)

    def answered(self, signal_id: str) -> bool:
        """Whether the signal has led to an intent or was skipped."""
        return signal_id in self._answered

    def next_flatten(self, signal_id: str) -> int | None:
        """The number of a flatten's next order of a symbol; None once it was said why there is no further one."""
        tried = self._flattened.get(signal_id)
        return None if tried is None and self.answered(signal_id) else (tried or 0) + 1

    # --- protection ----------------------------------------------------------------------------------

    def standing(self, symbol: str) -> list[Order]:
        """The stop, or stop and target, that protect what is held of a symbol."""
        return [o for o in self.open.values() if o.intent.symbol == symbol and is_standing(o.intent)]

    def protection_due(self, symbol: str) -> Literal["", "place", "cancel"]:
        """What the protection of a symbol needs now: to be placed, or to end as it is for another quantity."""
        here = [order for order in self.open.values() if order.intent.symbol == symbol]
        if self.state == "HALTED" or self.flatten is not None or not all(is_standing(o.intent) for o in here):
            return ""
        held = self.books.position(symbol).qty > 0 and symbol in self.entries
        if not here:
            return "place" if held else ""
        wanted = protection_id(symbol, self._traded[symbol]) if held else ""
        return "" if all(order.intent.signal_id == wanted for order in here) else "cancel"

    def next_protection(self, symbol: str) -> tuple[str, int]:
        """Id and number of the protection that is to be placed; no two have both in common."""
        wanted = protection_id(symbol, self._traded[symbol])
        known, number = self._protected.get(symbol, ("", 0))
        return wanted, number + 1 if known == wanted else 1

    # --- what a decision sees ------------------------------------------------------------------------

    def view(
        self,
        symbol: str,
        instrument: Instrument | None,
        but: str = "",
        *,
        now_ms: int = 0,
        close: Decimal | None = None,
        averages: Mapping[int, Decimal] | None = None,
    ) -> View:
        """What a decision on the symbol sees at the exchange's time ``now_ms``, with a signal at ``close``.

        Open buys count as done, the order ``but`` as ended without effect.
        """
        others = [order for order_id, order in self.open.items() if order_id != but]
        buys = [order for order in others if order.intent.side == "BUY"]
        quote = instrument.assets.quote if instrument else ""
        standing = Standing()
        if instrument is not None and close is not None and close > 0:
            opening = self.opened.balances.get(quote, ZERO) if self.opened else ZERO
            standing = self.path.standing(symbol, quote, opening, now_ms, close)
        with localcontext(EXACT):
            return View(
                position=self.books.position(symbol),
                exposure=self.books.exposure() + sum(map(_worth, buys), ZERO),
                free=self.books.balance(quote)
                - sum((_worth(buy) for buy in buys if self.assets[buy.intent.symbol].quote == quote), ZERO),
                state=self.state,
                order_open=any(order.intent.symbol == symbol and not is_standing(order.intent) for order in others),
                state_by=self.state_by,
                state_at=self.state_at,
                base=self.books.balance(instrument.assets.base) if instrument else ZERO,
                open_buys=sum((buy.remaining for buy in buys if buy.intent.symbol == symbol), ZERO),
                standing=standing,
                averages=averages or {},
                open_orders=sum(o.intent.symbol == symbol and o.intent.price is not None for o in others),
            )

    def market(self, symbol: str, last: Decimal, averages: Mapping[int, Decimal] | None = None) -> Market:
        """What the symbol's filters look at besides an order, at the exchange's last and average prices."""
        here = [order for order in self.open.values() if order.intent.symbol == symbol]
        assets = self.assets.get(symbol)
        with localcontext(EXACT):
            return Market(
                last,
                averages or {},
                open_orders=sum(order.intent.price is not None for order in here),
                open_algo_orders=sum(order.intent.exchange_type in ALGO for order in here),
                base=self.books.balance(assets.base) if assets else ZERO,
                open_buys=sum((order.remaining for order in here if order.intent.side == "BUY"), ZERO),
            )

    def differs(
        self,
        balances: dict[str, Decimal],
        open_orders: Mapping[str, str] | None = None,
        fills: Mapping[str, Sequence[Fill]] | None = None,
    ) -> str:
        """Where the exchange and the books differ, in words; empty if nowhere.

        ``balances`` are free plus locked, ``open_orders`` by client id, ``fills`` those after the last one known.
        """
        found = list(self.differences)
        for asset in sorted({*balances, *self.books.balances}):
            there, here = balances.get(asset, Decimal(0)), self.books.balance(asset)
            if there != here:
                found.append(f"{asset}: the exchange has {there:f}, the books have {here:f}")
        found += [
            f"order {name} ({what}) is open at the exchange, and is none of ours that are open"
            for name, what in sorted((open_orders or {}).items())
            if name not in self.open
        ]
        if open_orders is not None:
            found += [
                f"order {name} rests by the books, and is not open at the exchange"
                for name, order in sorted(self.open.items())
                if order.exchange_order_id is not None and order.intent.price is not None and name not in open_orders
            ]
        since = self.opened.opened_at if self.opened is not None else 0
        for symbol, listed in sorted((fills or {}).items()):
            found += [
                f"trade {fill.fill_id} of {symbol} ({fill.qty:f} at {fill.price:f}) is at the exchange, "
                "and in no order of ours"
                for fill in listed
                if fill.fill_id > self.last_fill.get(symbol, -1) and fill.filled_at > since
            ]
        return "; ".join(found)

    def _change(self, event: TradingStateChanged) -> None:
        before = TradingStateChanged(self.name, self.state, self.state_reason, self.state_by, self.state_at)
        self.state, self.state_reason = event.state, event.reason
        self.state_by, self.state_at = event.changed_by, event.changed_at
        if event.command_id:
            self.commands[event.command_id] = None
            self.flatten = event if event.action == "flatten" else None
        if event.changed_by == RECONCILER and event.state == "HALTED":
            self.before_halt = before
        elif event.changed_by == RECONCILER and self.before_halt is not None:
            # Gone back to what a limit or a person had set: that is whose state it is again.
            self.state_by, self.state_at = self.before_halt.changed_by, self.before_halt.changed_at
            self.before_halt = None
        else:
            self.before_halt = None
        if event.state == "ACTIVE" and event.changed_by not in (RECONCILER, DAILY_LOSS, DRAWDOWN):
            self.path.add(Entry(event.changed_at, "", resumed=True))

    def _priced(self, at: int, symbol: str, price: Decimal) -> None:
        assets = self.assets.get(symbol)
        if assets is not None and price > 0:
            self.path.add(Entry(at, symbol, quote=assets.quote, price=price))

    def _fill(self, event: OrderFilled) -> None:
        assets, before = self.assets[event.symbol], self.books.position(event.symbol)
        self.books, difference = self.books.fold(event, assets)
        if difference:
            self.differences.append(difference)
        after = self.books.position(event.symbol)
        self.last_fill[event.symbol] = max(event.fill_id, self.last_fill.get(event.symbol, -1))
        with localcontext(EXACT):
            realized = after.realized - before.realized
            if event.commission_asset not in assets and event.commission_price is not None:
                # A fee in a third asset is no part of the realized profit, but it is gone.
                realized -= event.commission * event.commission_price
            qty, cost = after.qty - before.qty, after.cost - before.cost
        self.path.add(
            Entry(
                event.filled_at,
                event.symbol,
                quote=assets.quote,
                price=event.price,
                realized=realized,
                qty=qty,
                cost=cost,
            )
        )
        order = self.open.get(event.order_id)
        if order is None or not is_standing(order.intent):
            self._traded[event.symbol] = max(event.fill_id, self._traded.get(event.symbol, -1))
            if order is not None and event.side == "BUY":
                self.entries[event.symbol] = order.intent
        stopped = order is not None and order.intent.exchange_type == "STOP_LOSS_LIMIT"
        if event.side == "SELL" and (event.realized_pnl < 0 or stopped):
            self.path.lost(event.symbol, event.filled_at)

    def _answer(self, signal_id: str) -> None:
        self._answered[signal_id] = None
        if len(self._answered) > _REMEMBERED:
            del self._answered[next(iter(self._answered))]


def _worth(order: Order) -> Decimal:
    """What is left of an order, at its own price or the signal's."""
    price = order.intent.price
    return order.remaining * (order.intent.signal_close if price is None else price)
