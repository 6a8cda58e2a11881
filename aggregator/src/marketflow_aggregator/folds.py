"""What a window of trades adds up to: a monoid, so that parts may be summed in any order and grouping.

Pure arithmetic on trades and candles; must never round, read a clock or know where records come from.
"""

from __future__ import annotations

from decimal import Decimal
from typing import NamedTuple

from marketflow_common.events import Candle, IdRange, Trade
from marketflow_common.intervals import close_time
from marketflow_common.numbers import EXACT, ZERO, fixed

__all__ = ["EMPTY", "Fold", "candle_of", "flat_candle", "fold_of", "fold_of_candle", "fold_of_run", "merge", "own_ids"]


class Fold(NamedTuple):
    """Totals of a set of trades. ``first_id`` and ``last_id`` are ids of trades that are in it."""

    first_id: int
    last_id: int
    open: Decimal
    high: Decimal
    low: Decimal
    close: Decimal
    volume: Decimal
    quote_volume: Decimal
    trade_count: int
    taker_buy_volume: Decimal
    taker_buy_quote_volume: Decimal


EMPTY = Fold(0, -1, ZERO, ZERO, ZERO, ZERO, ZERO, ZERO, 0, ZERO, ZERO)
"""No trades: the identity of ``merge``."""


def merge(a: Fold, b: Fold) -> Fold:
    """The fold of both sets of trades, which must have no trade in common. Associative and commutative.

    Open and close go by trade id, as the exchange's do, not by the order of arrival.
    """
    if not a.trade_count:
        return b
    if not b.trade_count:
        return a
    first = a if a.first_id < b.first_id else b
    last = a if a.last_id > b.last_id else b
    add = EXACT.add
    return Fold(
        first.first_id,
        last.last_id,
        first.open,
        max(a.high, b.high),
        min(a.low, b.low),
        last.close,
        add(a.volume, b.volume),
        add(a.quote_volume, b.quote_volume),
        a.trade_count + b.trade_count,
        add(a.taker_buy_volume, b.taker_buy_volume),
        add(a.taker_buy_quote_volume, b.taker_buy_quote_volume),
    )


def fold_of(trade: Trade) -> Fold:
    """One trade. The taker bought where the buyer was not the maker."""
    price, qty = trade.price, trade.qty
    quote = EXACT.multiply(price, qty)
    bought = not trade.buyer_is_maker
    return Fold(
        trade.trade_id,
        trade.trade_id,
        price,
        price,
        price,
        price,
        qty,
        quote,
        1,
        qty if bought else ZERO,
        quote if bought else ZERO,
    )


def fold_of_run(run: tuple[int, ...]) -> Fold:
    """What _skim.c has taken in, as its ``take`` gives it."""
    first_id, last_id, count, opened, high, low, close, *halves = run
    volume, quote, taker, taker_quote = (
        upper << 64 | lower for upper, lower in zip(halves[::2], halves[1::2], strict=True)
    )
    return Fold(
        first_id, last_id, scaled(opened, 8), scaled(high, 8), scaled(low, 8), scaled(close, 8),
        scaled(volume, 8), scaled(quote, 16), count, scaled(taker, 8), scaled(taker_quote, 16),
    )  # fmt: skip


def scaled(number: int, places: int) -> Decimal:
    """A whole number of the given decimal place."""
    return EXACT.scaleb(Decimal(number), -places)


def candle_of(
    fold: Fold, symbol: str, interval: str, open_time: int, missing: tuple[IdRange, ...], revision: int
) -> Candle:
    """The candle of a window with trades; its bounds take in the ids known to be missing (sorted)."""
    return Candle(
        symbol=symbol,
        interval=interval,
        open_time=open_time,
        close_time=close_time(open_time, interval),
        open=fixed(fold.open),
        high=fixed(fold.high),
        low=fixed(fold.low),
        close=fixed(fold.close),
        volume=fixed(fold.volume),
        quote_volume=fixed(fold.quote_volume),
        trade_count=fold.trade_count,
        taker_buy_volume=fixed(fold.taker_buy_volume),
        taker_buy_quote_volume=fixed(fold.taker_buy_quote_volume),
        first_trade_id=min(fold.first_id, missing[0][0]) if missing else fold.first_id,
        last_trade_id=max(fold.last_id, missing[-1][1]) if missing else fold.last_id,
        missing=missing,
        revision=revision,
    )


def flat_candle(symbol: str, interval: str, open_time: int, price: Decimal, last_id: int, revision: int) -> Candle:
    """The candle of a window proven to be without trades: the previous close, and nothing traded."""
    return candle_of(
        EMPTY._replace(first_id=last_id + 1, last_id=last_id, open=price, high=price, low=price, close=price),
        symbol,
        interval,
        open_time,
        (),
        revision,
    )


def own_ids(candle: Candle) -> tuple[int, int]:
    """First and last id that a candle with trades really holds: its bounds without missing ids at the edges."""
    first, last = candle.first_trade_id, candle.last_trade_id
    if candle.missing:
        if candle.missing[0][0] == first:
            first = candle.missing[0][1] + 1
        if candle.missing[-1][1] == last:
            last = candle.missing[-1][0] - 1
    return first, last


def fold_of_candle(candle: Candle) -> Fold:
    """What a candle says of its trades, to be merged with more."""
    if not candle.trade_count:
        return EMPTY
    first, last = own_ids(candle)
    return Fold(
        first,
        last,
        candle.open,
        candle.high,
        candle.low,
        candle.close,
        candle.volume,
        candle.quote_volume,
        candle.trade_count,
        candle.taker_buy_volume,
        candle.taker_buy_quote_volume,
    )
