"""One account as a fold over its order events: books, open orders, trading state, answered signals.

Pure. ``apply`` is called for what has committed and never before: an abort needs no undoing.
"""

from __future__ import annotations

from decimal import Decimal, localcontext

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

from .books import Assets, Books
from .decision import View
from .filters import Instrument
from .orders import Order

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
                self.state, self.state_reason, self.state_by = event.state, event.reason, event.changed_by
            case SignalSkipped():
                self._answer(event.signal_id)
            case OrderIntended():
                self._answer(event.signal_id)
                self.open[event.order_id] = Order(event)
            case _:
                if isinstance(event, OrderFilled):
                    self.books, difference = self.books.fold(event, self.assets[event.symbol])
                    if difference:
                        self.differences.append(difference)
                order = self.open.get(event.order_id)
                if order is not None:
                    order = order.follow(event)
                    self.open[event.order_id] = order
                    if order.ended:
                        del self.open[event.order_id]

    def answered(self, signal_id: str) -> bool:
        """Whether the signal has led to an intent or was skipped."""
        return signal_id in self._answered

    def view(self, symbol: str, instrument: Instrument | None, but: str = "") -> View:
        """What a decision on the symbol sees: open buys count as done, the order ``but`` as ended without effect."""
        others = [order.intent for order_id, order in self.open.items() if order_id != but]
        buys = [intent for intent in others if intent.side == "BUY"]
        quote = instrument.assets.quote if instrument else ""
        with localcontext(EXACT):
            return View(
                position=self.books.position(symbol),
                exposure=self.books.exposure() + sum(map(_worth, buys), ZERO),
                free=self.books.balance(quote)
                - sum((_worth(buy) for buy in buys if self.assets[buy.symbol].quote == quote), ZERO),
                state=self.state,
                order_open=any(intent.symbol == symbol for intent in others),
            )

    def differs(self, balances: dict[str, Decimal]) -> str:
        """Where the exchange's balances (free plus locked) and the books differ, in words; empty if nowhere."""
        found = list(self.differences)
        for asset in sorted({*balances, *self.books.balances}):
            there, here = balances.get(asset, Decimal(0)), self.books.balance(asset)
            if there != here:
                found.append(f"{asset}: the exchange has {there:f}, the books have {here:f}")
        return "; ".join(found)

    def _answer(self, signal_id: str) -> None:
        self._answered[signal_id] = None
        if len(self._answered) > _REMEMBERED:
            del self._answered[next(iter(self._answered))]


def _worth(intent: OrderIntended) -> Decimal:
    return (intent.qty or ZERO) * intent.signal_close
