"""Limits of loss and pace: a function of the log, whoever reads it and in whatever order."""

from __future__ import annotations

from decimal import Decimal, localcontext
from typing import Any

import executor_builders
import pytest
from executor_builders import ASSETS, OPENED, fill, intended, limits
from hypothesis import given
from hypothesis import strategies as st
from marketflow_common.events import (
    OrderEvent,
    OrderIntended,
    OrderType,
    Side,
    SignalSkipped,
    TradingStateChanged,
)
from marketflow_common.intervals import MINUTE
from marketflow_common.numbers import EXACT
from marketflow_executor.account import Account
from marketflow_executor.decision import decide, supervised
from marketflow_executor.filters import default_instrument
from marketflow_executor.orders import Order, Report, learn
from marketflow_executor.risk import DAILY_LOSS, DRAWDOWN, RECONCILER, Entry, Path, RiskLimits, Standing

DAY_MS = 86_400_000
NOON = 19_000 * DAY_MS + DAY_MS // 2
ETH = default_instrument("ETHUSDT")
PLENTY = Decimal(10_000)


class Desk:
    """An account that takes in what is decided, and the log of it."""

    def __init__(self, **risk: Any) -> None:
        self.limits = limits(
            order_quote=Decimal(100), max_position_quote=PLENTY, max_exposure_quote=PLENTY, risk=RiskLimits(**risk)
        )
        self.account = Account("main", dict(ASSETS))
        self.log: list[OrderEvent] = []
        self._count = 0
        self.take(OPENED)

    def take(self, *events: OrderEvent) -> None:
        for event in events:
            self.log.append(event)
            self.account.apply(event)

    def traded(
        self,
        side: Side,
        qty: str,
        price: str,
        now_ms: int = NOON,
        symbol: str = "ETHUSDT",
        exchange_type: OrderType | None = None,
    ) -> None:
        """An order that fills at once."""
        self._count += 1
        intent = intended(
            f"t{self._count}",
            symbol=symbol,
            side=side,
            qty=Decimal(qty),
            timestamp_ms=now_ms,
            signal_close=Decimal(price),
            exchange_type=exchange_type,
        )
        self.take(intent)
        at = now_ms * 1_000
        report = Report(self._count, "FILLED", Decimal(qty), (fill(self._count, price, qty, at=at),), at)
        self.take(*learn(Order(intent), report, self.account.books, ASSETS[symbol], 0).events)

    def signal(self, side: Side, close: str, now_ms: int = NOON, symbol: str = "ETHUSDT") -> list[OrderEvent]:
        """What a signal leads to; it is taken into the log."""
        self._count += 1
        signal = executor_builders.signal(
            id=f"s{self._count}",
            symbol=symbol,
            open_time=(now_ms * 1_000 // MINUTE - 1) * MINUTE,
            close=Decimal(close),
            signal_type=side,
        )
        instrument = default_instrument(symbol)
        view = self.account.view(symbol, instrument, now_ms=now_ms, close=signal.close)
        changes, view = supervised(signal, view, self.limits, now_ms)
        decided = decide(signal, 1, view, instrument, self.limits, now_ms)
        self.take(*changes, decided)
        if isinstance(decided, OrderIntended):
            self.take(
                *learn(
                    Order(decided), Report(1, "REJECTED", Decimal(0), (), 1), self.account.books, ASSETS[symbol], 0
                ).events
            )
        return [*changes, decided]

    def skipped(self, side: Side, close: str, now_ms: int = NOON, symbol: str = "ETHUSDT") -> str:
        *_, last = self.signal(side, close, now_ms, symbol)
        assert isinstance(last, SignalSkipped), last
        assert last.detail
        assert (last.signal_close, last.decided_at) == (Decimal(close), now_ms * 1_000)
        return last.reason

    def ordered(self, side: Side, close: str, now_ms: int = NOON, symbol: str = "ETHUSDT") -> None:
        *_, last = self.signal(side, close, now_ms, symbol)
        assert isinstance(last, OrderIntended), last

    def resume(self, now_ms: int) -> None:
        self.take(TradingStateChanged("main", "ACTIVE", "resumed", "somebody", now_ms * 1_000))


def test_a_lost_day_ends_new_risk_with_its_numbers_and_leaves_sales() -> None:
    desk = Desk(max_daily_loss=Decimal(50))
    desk.traded("BUY", "2", "100")
    desk.traded("SELL", "1", "70")
    desk.ordered("BUY", "80.01")
    change, skip = desk.signal("BUY", "80")
    assert isinstance(change, TradingStateChanged)
    assert (change.state, change.changed_by, change.changed_at) == ("REDUCE_ONLY", DAILY_LOSS, NOON * 1_000)
    assert change.reason == "50 USDT lost on 2022-01-08 (realized -30, unrealized -20), limit 50"
    assert isinstance(skip, SignalSkipped)
    assert skip.reason == "daily_loss"
    desk.ordered("SELL", "80")
    assert len(desk.signal("BUY", "60")) == 1, "said once"


def test_a_lost_day_is_over_at_midnight_and_the_next_starts_from_what_is_open_then() -> None:
    desk = Desk(max_daily_loss=Decimal(40))
    desk.traded("BUY", "1", "100")
    assert desk.skipped("BUY", "50") == "daily_loss"
    assert desk.skipped("BUY", "50", NOON + DAY_MS // 2 - 1) == "daily_loss"
    change, decided = desk.signal("BUY", "50", NOON + DAY_MS // 2)
    assert isinstance(change, TradingStateChanged)
    assert (change.state, change.changed_by) == ("ACTIVE", DAILY_LOSS)
    assert change.reason == "the day of the loss is over; 2022-01-09 has begun"
    assert isinstance(decided, OrderIntended)
    desk.ordered("BUY", "10.01", NOON + DAY_MS // 2)
    assert desk.skipped("BUY", "10", NOON + DAY_MS) == "daily_loss"


def test_a_drawdown_ends_trading_until_a_person_says_otherwise_and_counts_from_there() -> None:
    desk = Desk(max_drawdown_pct=Decimal(10))
    desk.traded("BUY", "5", "100")
    desk.ordered("BUY", "200")  # equity 1500
    desk.ordered("BUY", "170.01")
    change, skip = desk.signal("BUY", "170")
    assert isinstance(change, TradingStateChanged)
    assert (change.state, change.changed_by) == ("HALTED", DRAWDOWN)
    assert change.reason == ("equity 1350 USDT is 150 below its peak 1500, limit 10 %")
    assert isinstance(skip, SignalSkipped)
    assert skip.reason == "drawdown"
    assert desk.skipped("SELL", "200", NOON + 3 * DAY_MS) == "drawdown"
    desk.resume(NOON + 3 * DAY_MS)
    desk.ordered("BUY", "180.01", NOON + 3 * DAY_MS + 1)
    assert desk.skipped("BUY", "160", NOON + 3 * DAY_MS + 2) == "drawdown"


def test_the_harder_of_two_limits_takes_effect_and_a_softer_one_changes_nothing_after_it() -> None:
    desk = Desk(max_daily_loss=Decimal(50), max_drawdown_pct=Decimal(10))
    desk.traded("BUY", "5", "100")
    changes = desk.signal("BUY", "80")[:-1]
    assert [e.state for e in changes if isinstance(e, TradingStateChanged)] == ["REDUCE_ONLY", "HALTED"]
    assert len(desk.signal("BUY", "80")) == 1


def test_what_the_reconciliation_has_halted_goes_back_to_what_a_limit_had_set() -> None:
    desk = Desk(max_daily_loss=Decimal(50))
    desk.traded("BUY", "1", "100")
    assert desk.skipped("BUY", "50") == "daily_loss"
    desk.take(TradingStateChanged("main", "HALTED", "differs", RECONCILER, NOON * 1_000))
    assert desk.skipped("SELL", "50") == "halted"
    before = desk.account.before_halt
    assert before is not None
    desk.take(TradingStateChanged("main", before.state, "agrees", RECONCILER, NOON * 1_000 + 5))
    assert (desk.account.state, desk.account.state_by) == ("REDUCE_ONLY", DAILY_LOSS)
    desk.ordered("BUY", "50", NOON + DAY_MS)


def test_after_a_loss_or_a_stop_a_symbol_is_not_bought_for_a_while() -> None:
    desk = Desk(cool_down_ms=60_000)
    desk.traded("BUY", "3", "100")
    desk.traded("SELL", "1", "101")
    desk.ordered("BUY", "100")
    desk.traded("SELL", "1", "99")
    assert desk.skipped("BUY", "100", NOON + 59_999) == "cool_down"
    desk.ordered("SELL", "100", NOON + 59_999)
    desk.ordered("BUY", "100", NOON + 59_999, "BTCUSDT")
    desk.ordered("BUY", "100", NOON + 60_000)
    desk.traded("SELL", "0.5", "150", NOON + 70_000, exchange_type="STOP_LOSS_LIMIT")
    assert desk.skipped("BUY", "100", NOON + 70_001) == "cool_down"


def test_orders_of_the_last_minute_are_counted_over_all_symbols() -> None:
    desk = Desk(max_orders_per_minute=2)
    desk.ordered("BUY", "100")
    desk.ordered("BUY", "100", NOON + 30_000, "BTCUSDT")
    assert desk.skipped("BUY", "100", NOON + 59_999) == "order_rate"
    desk.ordered("BUY", "100", NOON + 60_000)
    assert desk.skipped("SELL", "100", NOON + 89_999) == "order_rate"


def test_a_close_far_from_the_last_known_price_is_not_traded_while_that_price_is_fresh() -> None:
    desk = Desk(max_price_deviation_pct=Decimal(5), price_fresh_ms=60_000)
    desk.ordered("BUY", "100")
    desk.ordered("BUY", "105", NOON + 1)
    assert desk.skipped("BUY", "111", NOON + 2) == "price_deviation"
    assert desk.skipped("SELL", "111", NOON + 60_001) == "price_deviation"
    desk.ordered("BUY", "200", NOON + 60_002)


def test_equity_is_not_judged_by_a_close_that_is_no_price() -> None:
    desk = Desk(max_price_deviation_pct=Decimal(5), max_drawdown_pct=Decimal(10), max_daily_loss=Decimal(50))
    desk.traded("BUY", "5", "100")
    for close in ("1", "1000"):
        assert desk.skipped("BUY", close) == "price_deviation"
    assert desk.skipped("SELL", "0") == "filter"
    assert (desk.account.state, len(desk.log)) == ("ACTIVE", 7)
    desk.ordered("BUY", "100")


def test_the_loss_of_a_day_counts_positions_of_all_symbols_and_fees_in_a_third_asset() -> None:
    path = Path()
    path.add(Entry(1_000, "BTCUSDT", quote="USDT", price=Decimal(10), qty=Decimal(1), cost=Decimal(10)))
    path.add(Entry(2_000, "BTCUSDT", quote="USDT", price=Decimal(7)))
    path.add(Entry(2_500, "ETHBTC", quote="BTC", price=Decimal(2), qty=Decimal(1), cost=Decimal(9)))
    path.add(Entry(3_000, "ETHUSDT", quote="USDT", price=Decimal(5), realized=Decimal(-1)))
    found = path.standing("ETHUSDT", "USDT", Decimal(100), 4, Decimal(6))
    assert found == Standing(
        quote="USDT",
        equity=Decimal(96),
        peak=Decimal(100),
        day_realized=Decimal(-1),
        day_unrealized=Decimal(-3),
        last_price=Decimal(5),
        last_price_at=3_000,
    )


# --- whoever reads the log, in whatever order --------------------------------------------------------

_entries = st.lists(
    st.tuples(
        st.integers(0, 12).map(lambda quarter: quarter * DAY_MS * 250),
        st.sampled_from(["ETHUSDT", "BTCUSDT", "ETHBTC", ""]),
        st.integers(1, 9),
        st.integers(-5, 5),
        st.integers(-5, 5),
        st.integers(-5, 5),
    ),
    max_size=25,
)


def entry(values: tuple[int, str, int, int, int, int]) -> Entry:
    at, symbol, price, realized, qty, cost = values
    if not symbol:
        return Entry(at, "", resumed=True)
    quote = "BTC" if symbol == "ETHBTC" else "USDT"
    return Entry(
        at, symbol, quote=quote, price=Decimal(price), realized=Decimal(realized), qty=Decimal(qty), cost=Decimal(cost)
    )


def naive(entries: list[Entry], now: Entry) -> tuple[Decimal, Decimal, Decimal, Decimal]:
    """Equity, peak and the day's results, by walking all entries anew; of USDT, from an opening balance of 50."""
    numbered, counts = [], dict[str, int]()
    for e in entries:
        counts[e.symbol] = counts.get(e.symbol, -1) + 1
        numbered.append(e._replace(number=counts[e.symbol]))
    realized = unrealized = peak = Decimal(0)
    start = (Decimal(0), Decimal(0))
    day, held = 0, dict[str, list[Decimal]]()
    for e in [*sorted(numbered), now]:
        if e.at // (DAY_MS * 1_000) > day:
            day, start = e.at // (DAY_MS * 1_000), (realized, unrealized)
        if e.quote == "USDT":
            qty, cost, _ = held.get(e.symbol, [Decimal(0)] * 3)
            assert e.price is not None
            held[e.symbol] = [qty + e.qty, cost + e.cost, e.price]
            realized += e.realized
            unrealized = sum((q * p - c for q, c, p in held.values()), Decimal(0))
            peak = max(peak, realized + unrealized)
        if e.resumed:
            peak, start = realized + unrealized, (realized, unrealized)
    return 50 + realized + unrealized, 50 + peak, realized - start[0], unrealized - start[1]


@given(_entries, st.data())
def test_the_path_of_equity_is_the_same_in_whatever_order_its_parts_come(
    values: list[tuple[int, str, int, int, int, int]], data: st.DataObject
) -> None:
    # Within a symbol the log has an order; its events may still be older than the one before.
    entries = [entry(v) for v in values]
    lanes = [[e for e in entries if e.symbol == symbol] for symbol in ("ETHUSDT", "BTCUSDT", "ETHBTC", "")]
    path = Path()
    while any(lanes):
        path.add(data.draw(st.sampled_from([lane for lane in lanes if lane])).pop(0))
        if data.draw(st.booleans()):
            path.standing("ETHUSDT", "USDT", Decimal(50), 0, Decimal(3))
    now = 13 * DAY_MS // 4
    found = path.standing("ETHUSDT", "USDT", Decimal(50), now, Decimal(3))
    expected = naive(entries, Entry(now * 1_000, "ETHUSDT", quote="USDT", price=Decimal(3)))
    assert (found.equity, found.peak, found.day_realized, found.day_unrealized) == expected


def test_a_late_entry_of_a_long_log_is_put_where_it_belongs() -> None:
    entries = [
        Entry(n * 1_000, "ETHUSDT", quote="USDT", price=Decimal(100 + n % 7), qty=Decimal(n % 3 - 1))
        for n in range(999)
    ]
    path = Path()
    for e in entries:
        path.add(e)
        if e.at % 50_000 == 0:
            path.standing("ETHUSDT", "USDT", Decimal(50), 0, Decimal(3))
    late = [Entry(at * 1_000, "BTCUSDT", quote="USDT", price=Decimal(9), qty=Decimal(7)) for at in (700, 300, 301, 5)]
    for e in late:
        path.add(e)
        path.standing("ETHUSDT", "USDT", Decimal(50), 2_000, Decimal(3))
    found = path.standing("ETHUSDT", "USDT", Decimal(50), 2_000, Decimal(3))
    expected = naive(entries + late, Entry(2_000_000, "ETHUSDT", quote="USDT", price=Decimal(3)))
    assert (found.equity, found.peak, found.day_realized, found.day_unrealized) == expected


_days = st.lists(
    st.tuples(
        st.sampled_from(["BUY", "SELL"]),
        st.sampled_from(sorted(ASSETS)),
        st.integers(50, 150),
        st.integers(0, DAY_MS),
        st.booleans(),
    ),
    max_size=15,
)


@given(_days, st.data())
def test_a_new_leader_that_reads_the_log_decides_as_the_old_one_would_have(
    days: list[tuple[Side, str, int, int, bool]], data: st.DataObject
) -> None:
    desk = Desk(
        max_daily_loss=Decimal(60), max_drawdown_pct=Decimal(8), cool_down_ms=DAY_MS // 4, max_orders_per_minute=3,
        max_price_deviation_pct=Decimal(30), price_fresh_ms=DAY_MS,
    )  # fmt: skip
    now = NOON
    for side, symbol, price, passed, fills in days:
        now += passed
        if fills:
            desk.traded(side, "1", str(price), now, symbol)
        else:
            desk.signal(side, str(price), now, symbol)
    lanes = [[e for e in desk.log if getattr(e, "symbol", "") == symbol] for symbol in ("", "BTCUSDT", "ETHUSDT")]
    heir = Account("main", dict(ASSETS))
    while any(lanes):
        heir.apply(data.draw(st.sampled_from([lane for lane in lanes if lane])).pop(0))
    with localcontext(EXACT):
        for symbol in ASSETS:
            instrument = default_instrument(symbol)
            mine, theirs = (
                account.view(symbol, instrument, now_ms=now + 1, close=Decimal(90)) for account in (desk.account, heir)
            )
            assert mine == theirs
    assert heir.before_halt == desk.account.before_halt


@pytest.mark.parametrize("limits", [RiskLimits(), RiskLimits(max_daily_loss=Decimal(10**9))])
def test_without_limits_nothing_is_refused(limits: RiskLimits) -> None:
    desk = Desk(**{name: getattr(limits, name) for name in limits.__struct_fields__})
    desk.traded("BUY", "9", "100")
    desk.traded("SELL", "1", "1")
    desk.ordered("BUY", "1000")
    desk.ordered("BUY", "1")
