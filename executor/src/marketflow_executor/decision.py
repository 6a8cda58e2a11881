"""From a signal to an intent or to the reason for none: sizing, limits and the exchange's filters.

Pure: the exchange's time and everything else that counts is handed in. Must never decide on what is not there.
"""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal, localcontext
from typing import Final, Literal

import msgspec
from marketflow_common.events import (
    Convention,
    OrderIntended,
    Signal,
    SignalSkipped,
    TradingState,
    TradingStateChanged,
)
from marketflow_common.intervals import close_time
from marketflow_common.numbers import EXACT, ZERO, fixed

from .books import Position
from .filters import Draft, Instrument, Market, Refusal
from .orders import order_id
from .plans import Terms
from .risk import DAILY_LOSS, DRAWDOWN, RiskLimits, Standing, deviates, refuses, supervise
from .sizing import Sizing, worth

__all__ = ["Limits", "Skip", "View", "decide", "sell_all", "supervised"]

Skip = Literal[
    "unknown_symbol",
    "symbol_not_trading",
    "halted",
    "reduce_only",
    "too_old",
    "attempts_exhausted",
    "order_open",
    "no_position",
    "position_limit",
    "exposure_limit",
    "insufficient_balance",
    "below_min_notional",
    "filter",
    "daily_loss",
    "drawdown",
    "cool_down",
    "order_rate",
    "price_deviation",
    "no_equity",
    "no_stop",
]
_BY: Final[dict[str, Skip]] = {DAILY_LOSS: "daily_loss", DRAWDOWN: "drawdown"}
"""Whose state has a reason of its own."""


class Limits(msgspec.Struct, frozen=True):
    """The account's sizes and limits, amounts in quote. ``max_signal_age_ms`` 0: no limit."""

    account: str
    mode: str
    order_quote: Decimal
    max_position_quote: Decimal
    max_exposure_quote: Decimal
    max_signal_age_ms: int
    max_attempts: int
    recv_window_ms: int
    convention: Convention = "average"
    risk: RiskLimits = RiskLimits()
    sizing: Sizing = Sizing()
    terms: Terms = Terms()


class View(msgspec.Struct, frozen=True):
    """The account as the decision sees it; ``exposure`` is the cost of all positions, ``free`` the quote balance.

    ``base`` is the balance of the symbol's base asset, ``open_buys`` what its open buys may still bring. ``averages``
    are the exchange's average prices by their minutes, ``open_orders`` those of the symbol that rest. ``order_open``:
    an order of the symbol has not ended; stops and targets that stand do not count.
    """

    position: Position
    exposure: Decimal
    free: Decimal
    state: TradingState
    order_open: bool
    state_by: str = ""
    state_at: int = 0
    base: Decimal = ZERO
    open_buys: Decimal = ZERO
    standing: Standing = Standing()
    averages: Mapping[int, Decimal] = {}
    open_orders: int = 0


def supervised(signal: Signal, view: View, limits: Limits, now_ms: int) -> tuple[tuple[TradingStateChanged, ...], View]:
    """The changes of the trading state that the account's numbers ask for, and the view after them."""
    if not view.standing.quote or deviates(signal, view.standing, limits.risk, now_ms):
        return (), view
    changes = supervise(limits.account, view.state, view.state_by, view.state_at, view.standing, limits.risk, now_ms)
    for change in changes:
        view = msgspec.structs.replace(view, state=change.state, state_by=change.changed_by, state_at=change.changed_at)
    return changes, view


def decide(
    signal: Signal, attempt: int, view: View, instrument: Instrument | None, limits: Limits, now_ms: int
) -> OrderIntended | SignalSkipped:
    """The order to be sent for a BUY or SELL signal, or why none is. ``now_ms`` is the exchange's time."""
    return _answer(signal, attempt, _size(signal, attempt, view, instrument, limits, now_ms), limits, now_ms)


def sell_all(
    signal: Signal, attempt: int, view: View, instrument: Instrument | None, limits: Limits, now_ms: int
) -> OrderIntended | SignalSkipped:
    """The order that sells all that is held, whatever the trading state and the limits of risk say, or why none is."""
    sized: Draft | tuple[Skip, str]
    if attempt > limits.max_attempts:
        sized = "attempts_exhausted", f"{limits.max_attempts} orders have left {view.position.qty:f} of {signal.symbol}"
    elif instrument is None:
        sized = "unknown_symbol", f"the exchange does not list {signal.symbol}"
    else:
        # At the market, whatever the terms of signals are: it is to be sold now.
        sized = _sell(signal, view, instrument, Terms(), None)
    return _answer(signal, attempt, sized, limits, now_ms)


def _answer(
    signal: Signal, attempt: int, sized: Draft | tuple[Skip, str], limits: Limits, now_ms: int
) -> OrderIntended | SignalSkipped:
    if isinstance(sized, Draft):
        assert signal.signal_type != "HOLD"
        priced = sized.price is not None
        return OrderIntended(
            account=limits.account,
            order_id=order_id(signal.id, attempt),
            signal_id=signal.id,
            attempt=attempt,
            symbol=signal.symbol,
            side=signal.signal_type,
            order_type="LIMIT" if priced else "MARKET",
            qty=fixed(sized.qty),
            quote_qty=None,
            price=fixed(sized.price) if sized.price is not None else None,
            timestamp_ms=now_ms,
            recv_window_ms=limits.recv_window_ms,
            mode=limits.mode,
            signal_close=signal.close,
            signal_last_trade_id=signal.last_trade_id,
            exchange_type="LIMIT_MAKER" if sized.order_type == "LIMIT_MAKER" else None,
            time_in_force=limits.terms.time_in_force if priced else None,
        )
    reason, detail = sized
    return SignalSkipped(
        limits.account, signal.id, signal.symbol, signal.signal_type, reason, detail, signal.close, now_ms * 1_000
    )


def _size(
    signal: Signal, attempt: int, view: View, instrument: Instrument | None, limits: Limits, now_ms: int
) -> Draft | tuple[Skip, str]:
    if attempt > limits.max_attempts:
        return "attempts_exhausted", f"{limits.max_attempts} attempts provably did not reach the exchange"
    if instrument is None:
        return "unknown_symbol", f"the exchange does not list {signal.symbol}"
    if signal.close <= 0:
        return "filter", f"its close is {signal.close:f}"
    age_ms = now_ms - (close_time(signal.open_time, signal.interval) + 1) // 1_000
    if 0 < limits.max_signal_age_ms < age_ms:
        return "too_old", f"its candle closed {age_ms} ms ago by the exchange's clock, limit {limits.max_signal_age_ms}"
    if view.state == "HALTED":
        return _BY.get(view.state_by, "halted"), "trading is halted; order_events says why (trading_state_changed)"
    if view.order_open:
        return "order_open", f"an order of {signal.symbol} has not ended yet"
    if not instrument.trading:
        return "symbol_not_trading", f"the exchange does not trade {signal.symbol} now"
    if refused := refuses(signal, view.standing, limits.risk, now_ms):
        return refused
    size = worth(signal, view.standing, limits.sizing, limits.order_quote)
    if isinstance(size, tuple):
        return size
    if signal.signal_type == "SELL":
        return _sell(signal, view, instrument, limits.terms, size)
    if view.state == "REDUCE_ONLY":
        return _BY.get(view.state_by, "reduce_only"), "only positions may be reduced"
    assert size is not None, "only a SELL is of everything"
    return _buy(signal, view, instrument, limits, size)


def _buy(signal: Signal, view: View, instrument: Instrument, limits: Limits, size: Decimal) -> Draft | tuple[Skip, str]:
    kind, limit = limits.terms.order_type, limits.terms.price("BUY", signal.close)
    price = signal.close if limit is None else limit
    with localcontext(EXACT):
        rooms: list[tuple[Decimal, Skip, str]] = [
            (size, "below_min_notional", f"order size {size:f}"),
            (
                limits.max_position_quote - view.position.cost,
                "position_limit",
                f"{view.position.cost:f} of {limits.max_position_quote:f} is held",
            ),
            (
                limits.max_exposure_quote - view.exposure,
                "exposure_limit",
                f"{view.exposure:f} of {limits.max_exposure_quote:f} is held in all symbols",
            ),
        ]
        # The tightest limit sizes the order, and is the reason if too little is left; the order's own size goes first.
        quote, reason, detail = min(rooms, key=lambda room: room[0])
        qty = instrument.affordable(quote, price, kind)
    found = instrument.fit(Draft("BUY", kind, qty, limit), _market(signal, view))
    if isinstance(found, Refusal):
        if reason == "below_min_notional" and qty >= instrument.least(price, kind):
            reason = "filter"
        return reason, f"{found.filter}: {found.detail} ({detail})"
    notional = EXACT.multiply(found.qty, price)
    if notional > view.free:
        quote_asset = instrument.assets.quote
        return "insufficient_balance", f"{notional:f} {quote_asset} needed, {view.free:f} there"
    return found


def _sell(
    signal: Signal, view: View, instrument: Instrument, terms: Terms, size: Decimal | None
) -> Draft | tuple[Skip, str]:
    position = view.position
    if position.qty <= 0:
        return "no_position", f"no {instrument.assets.base} is held"
    kind, limit = terms.order_type, terms.price("SELL", signal.close)
    price = signal.close if limit is None else limit
    least = instrument.least(price, kind)
    with localcontext(EXACT):
        qty = position.qty if size is None else instrument.affordable(size, price, kind)
        # A rest that could never be sold by itself goes along.
        if position.qty - qty < least:
            qty = position.qty
    found = instrument.fit(Draft("SELL", kind, qty, limit), _market(signal, view))
    if isinstance(found, Draft):
        return found
    return (
        "below_min_notional" if position.qty < least else "filter",
        f"{found.filter}: {found.detail} ({position.qty:f} held)",
    )


def _market(signal: Signal, view: View) -> Market:
    return Market(signal.close, view.averages, view.open_orders, base=view.base, open_buys=view.open_buys)
