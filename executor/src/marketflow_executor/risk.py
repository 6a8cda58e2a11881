"""What an account may lose and how fast it may trade: equity, loss of the day, drawdown, pace, as a fold.

Pure. Must come to the same numbers in whatever order the log's partitions are read: the path of equity is a function of
the set of events, sorted by their own times, never of the order of their arrival.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections.abc import Mapping
from datetime import UTC, datetime
from decimal import Decimal, localcontext
from typing import Final, Literal, NamedTuple

import msgspec
from marketflow_common.events import Signal, TradingState, TradingStateChanged
from marketflow_common.numbers import EXACT, ZERO

__all__ = [
    "DAILY_LOSS",
    "DRAWDOWN",
    "RECONCILER",
    "SEVERITY",
    "Entry",
    "Path",
    "RiskLimits",
    "Standing",
    "deviates",
    "refuses",
    "supervise",
]

RECONCILER: Final = "reconciliation"
DAILY_LOSS: Final = "risk:daily_loss"
DRAWDOWN: Final = "risk:drawdown"
"""Who a change of the trading state names as its author, where it was not a person."""
_DAY_US: Final = 86_400_000_000
_MINUTE_MS: Final = 60_000
_EVERY: Final = 256
"""Entries between two states that are kept, so that a late entry does not make all be walked again."""
_PACE: Final = 1_000
"""Intents remembered for the orders of the last minute; the limit is at most that."""
Pace = Literal["order_rate", "price_deviation", "cool_down"]
SEVERITY: Final[Mapping[TradingState, int]] = {"ACTIVE": 0, "REDUCE_ONLY": 1, "HALTED": 2}


class RiskLimits(msgspec.Struct, frozen=True):
    """Limits beyond the size of positions; 0 switches one off. Amounts in quote, times in milliseconds."""

    max_daily_loss: Decimal = ZERO
    max_drawdown_pct: Decimal = ZERO
    on_daily_loss: TradingState = "REDUCE_ONLY"
    on_drawdown: TradingState = "HALTED"
    cool_down_ms: int = 0
    max_orders_per_minute: int = 0
    max_price_deviation_pct: Decimal = ZERO
    price_fresh_ms: int = 300_000


class Standing(msgspec.Struct, frozen=True):
    """How an account stands at one moment, in the quote asset ``quote``; times in microseconds.

    ``equity`` is the quote balance and the worth of all positions at their last known prices; ``peak`` the highest it
    was. The results of the day count from 00:00 UTC, or from a later resume.
    """

    quote: str = ""
    equity: Decimal = ZERO
    peak: Decimal = ZERO
    day_realized: Decimal = ZERO
    day_unrealized: Decimal = ZERO
    orders_last_minute: int = 0
    last_loss_at: int | None = None
    last_price: Decimal | None = None
    last_price_at: int | None = None


# --- the path of equity ------------------------------------------------------------------------------


class Entry(NamedTuple):
    """One event of the log as far as equity goes. ``number``, its place within its symbol's log, is set by the path."""

    at: int
    symbol: str
    number: int = -1
    quote: str = ""
    price: Decimal | None = None
    realized: Decimal = ZERO
    qty: Decimal = ZERO
    cost: Decimal = ZERO
    resumed: bool = False
    """The account was set to trade again by a person: peak and loss of the day count from here."""


class _Held(NamedTuple):
    quote: str
    qty: Decimal
    cost: Decimal
    price: Decimal | None
    at: int


class _Result(NamedTuple):
    """Of one quote asset, since the account was opened: what counts beside the opening balance."""

    realized: Decimal = ZERO
    unrealized: Decimal = ZERO
    peak: Decimal = ZERO
    day_realized: Decimal = ZERO
    day_unrealized: Decimal = ZERO
    """Realized and unrealized when the day began."""


class _State(NamedTuple):
    day: int
    held: dict[str, _Held]
    results: dict[str, _Result]


class Path:
    """Equity over time. ``add`` may come in any order; the answers depend on what was added only."""

    def __init__(self) -> None:
        self._entries: list[Entry] = []
        self._kept: list[_State] = []
        """The state before entry 0, 256, 512, ..."""
        self._now = _State(0, {}, {})
        self._walked = 0
        self._intents: list[int] = []
        self._losses: dict[str, int] = {}
        self._numbers: dict[str, int] = {}

    def add(self, entry: Entry) -> None:
        """One event; those of one symbol (or of the account, with an empty one) in their order."""
        number = self._numbers[entry.symbol] = self._numbers.get(entry.symbol, -1) + 1
        place = bisect_left(self._entries, (entry.at, entry.symbol, number))
        self._entries.insert(place, entry._replace(number=number))
        if place < self._walked:
            back = place // _EVERY
            del self._kept[back + 1 :]
            self._now, self._walked = _copied(self._kept[back]), back * _EVERY

    def intended(self, at_ms: int) -> None:
        """An order that was to be sent."""
        insort(self._intents, at_ms)
        del self._intents[:-_PACE]

    def lost(self, symbol: str, at: int) -> None:
        """A closing fill with a loss, or one of a stop."""
        self._losses[symbol] = max(at, self._losses.get(symbol, at))

    def standing(self, symbol: str, quote: str, opening: Decimal, now_ms: int, close: Decimal) -> Standing:
        """How the account stands now, with a signal of ``symbol`` at ``close``."""
        with localcontext(EXACT):
            self._walk()
            before = self._now.held.get(symbol)
            # An entry of now that is never kept: what is decided goes by it, and what is recorded will say the same.
            state = _after(_copied(self._now), Entry(now_ms * 1_000, symbol, -1, quote, close))
            result = state.results[quote]
            intents = bisect_right(self._intents, now_ms) - bisect_right(self._intents, now_ms - _MINUTE_MS)
            return Standing(
                quote=quote,
                equity=opening + result.realized + result.unrealized,
                peak=opening + result.peak,
                day_realized=result.realized - result.day_realized,
                day_unrealized=result.unrealized - result.day_unrealized,
                orders_last_minute=intents,
                last_loss_at=self._losses.get(symbol),
                last_price=before.price if before else None,
                last_price_at=before.at if before else None,
            )

    def _walk(self) -> None:
        for place in range(self._walked, len(self._entries)):
            if place % _EVERY == 0 and place // _EVERY == len(self._kept):
                self._kept.append(_copied(self._now))
            self._now = _after(self._now, self._entries[place])
        self._walked = len(self._entries)


def _copied(state: _State) -> _State:
    return _State(state.day, dict(state.held), dict(state.results))


def _after(state: _State, entry: Entry) -> _State:
    """The state after an entry; changes the maps of the one handed in."""
    held, results = state.held, state.results
    day = max(state.day, entry.at // _DAY_US)
    if day > state.day:
        for quote, r in results.items():
            results[quote] = r._replace(day_realized=r.realized, day_unrealized=r.unrealized)
    if entry.quote:
        before = held.get(entry.symbol, _Held(entry.quote, ZERO, ZERO, None, 0))
        newer = entry.price is not None and entry.at >= before.at
        price, at = (entry.price, entry.at) if newer else (before.price, before.at)
        after = held[entry.symbol] = _Held(entry.quote, before.qty + entry.qty, before.cost + entry.cost, price, at)
        r = results.get(entry.quote, _Result())
        realized, unrealized = r.realized + entry.realized, r.unrealized + _open(after) - _open(before)
        results[entry.quote] = r._replace(
            realized=realized, unrealized=unrealized, peak=max(r.peak, realized + unrealized)
        )
    if entry.resumed:
        for quote, r in results.items():
            results[quote] = r._replace(
                peak=r.realized + r.unrealized, day_realized=r.realized, day_unrealized=r.unrealized
            )
    return _State(day, held, results)


def _open(held: _Held) -> Decimal:
    return held.qty * held.price - held.cost if held.price is not None else ZERO


# --- what follows from it ----------------------------------------------------------------------------


def supervise(
    account: str, state: TradingState, state_by: str, state_at: int, standing: Standing, limits: RiskLimits, now_ms: int
) -> tuple[TradingStateChanged, ...]:
    """The changes of the trading state that the numbers of now ask for, in words.

    What a lost day has set ends with the next day; a drawdown stays until a person says otherwise.
    """
    changes: list[TradingStateChanged] = []

    def change(to: TradingState, reason: str, by: str) -> None:
        nonlocal state
        changes.append(TradingStateChanged(account, to, reason, by, now_ms * 1_000))
        state = to

    today, quote = now_ms * 1_000 // _DAY_US, standing.quote
    if state != "ACTIVE" and state_by == DAILY_LOSS and today > state_at // _DAY_US:
        change("ACTIVE", f"the day of the loss is over; {_day(now_ms)} has begun", DAILY_LOSS)
    with localcontext(EXACT):
        lost = -(standing.day_realized + standing.day_unrealized)
        below = standing.peak - standing.equity
        # below / peak >= limit / 100, without a division
        deep = standing.peak > 0 and below * 100 >= limits.max_drawdown_pct * standing.peak
        if 0 < limits.max_daily_loss <= lost and SEVERITY[limits.on_daily_loss] > SEVERITY[state]:
            change(
                limits.on_daily_loss,
                f"{_plain(lost)} {quote} lost on {_day(now_ms)} (realized {_plain(standing.day_realized)}, "
                f"unrealized {_plain(standing.day_unrealized)}), limit {_plain(limits.max_daily_loss)}",
                DAILY_LOSS,
            )
        if limits.max_drawdown_pct > 0 and deep and SEVERITY[limits.on_drawdown] > SEVERITY[state]:
            change(
                limits.on_drawdown,
                f"equity {_plain(standing.equity)} {quote} is {_plain(below)} below its peak {_plain(standing.peak)}, "
                f"limit {_plain(limits.max_drawdown_pct)} %",
                DRAWDOWN,
            )
    return tuple(changes)


def deviates(signal: Signal, standing: Standing, limits: RiskLimits, now_ms: int) -> str:
    """How far the signal's close is from the last known price, in words, if that is too far; empty if it is not.

    Such a close is no price: equity is not judged by it, and the next signal is not compared with it.
    """
    price, at = standing.last_price, standing.last_price_at
    if not limits.max_price_deviation_pct or not price or at is None or now_ms - at // 1_000 > limits.price_fresh_ms:
        return ""
    with localcontext(EXACT):
        apart = abs(signal.close - price)
        if apart * 100 <= limits.max_price_deviation_pct * price:
            return ""
    return (
        f"its close {_plain(signal.close)} is {_plain(apart)} from the last known price {_plain(price)}, "
        f"limit {_plain(limits.max_price_deviation_pct)} %"
    )


def refuses(signal: Signal, standing: Standing, limits: RiskLimits, now_ms: int) -> tuple[Pace, str] | None:
    """The limit of pace or price that a signal meets, and the numbers in words; None if it meets none."""
    if 0 < limits.max_orders_per_minute <= standing.orders_last_minute:
        return "order_rate", f"{standing.orders_last_minute} orders in a minute, limit {limits.max_orders_per_minute}"
    if apart := deviates(signal, standing, limits, now_ms):
        return "price_deviation", apart
    if signal.signal_type == "BUY" and limits.cool_down_ms > 0 and standing.last_loss_at is not None:
        since = now_ms - standing.last_loss_at // 1_000
        if since < limits.cool_down_ms:
            return "cool_down", f"{signal.symbol} was sold with a loss {since} ms ago, limit {limits.cool_down_ms}"
    return None


def _plain(value: Decimal) -> str:
    return f"{value.normalize(EXACT):f}"


def _day(now_ms: int) -> str:
    return datetime.fromtimestamp(now_ms // 1_000, UTC).strftime("%Y-%m-%d")
