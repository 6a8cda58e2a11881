"""Signals are a pure function of the last candles: whatever comes after or before, and however often one restarts."""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal
from random import Random
from typing import ClassVar

from hypothesis import given, settings
from hypothesis import strategies as st
from marketflow_common import codec
from marketflow_common.events import Candle, Signal
from marketflow_common.intervals import MINUTE
from marketflow_common.kafka.client import Committed, Record
from marketflow_strategy.band import Band, BandParameters
from marketflow_strategy.lane import SignalLane
from marketflow_strategy.levels import WeakLevels, WeakLevelsParameters
from marketflow_strategy.signals import Decision, Parameters, Series, Strategy, canonical, signal_id


class Seen:
    """A strategy that tells what it was shown."""

    name: ClassVar[str] = "seen"
    Parameters: ClassVar[type[Parameters]] = Parameters

    def __init__(self) -> None:
        self.parameters = Parameters()
        self.lookback, self.momentum_window = 3, 2
        self.windows: list[list[int]] = []

    def decide(self, candles: Sequence[Candle]) -> Decision:
        self.windows.append([c.open_time // MINUTE for c in candles])
        return Decision("BUY", {"level": Decimal("1.5")}, ("because",))


def candle(minute: int, close: str = "10", *, missing: bool = False, revision: int = 0, symbol: str = "S") -> Candle:
    price = Decimal(close)
    return Candle(
        symbol, "1m", minute * MINUTE, (minute + 1) * MINUTE - 1, price, price + 1, price - 1, price, Decimal(5),
        Decimal(50), 1, Decimal(0), Decimal(0), minute, minute, ((minute, minute),) if missing else (), revision,
    )  # fmt: skip


def signals(series: Series, *candles: Candle) -> list[Signal]:
    return [signal for i, c in enumerate(candles) for signal in series.take(i, c)]


def test_it_holds_until_it_has_seen_enough_and_says_so() -> None:
    made = signals(Series([Seen()]), candle(1), candle(2), candle(3))
    assert [s.signal_type for s in made] == ["HOLD", "HOLD", "BUY"]
    assert [s.reasons for s in made] == [
        ("warming up: 1 of 3 candles",), ("warming up: 2 of 3 candles",), ("because",),
    ]  # fmt: skip


def test_a_signal_carries_its_candle_momentum_and_levels() -> None:
    (_, _, one) = signals(Series([Seen()]), candle(1, "3"), candle(2, "7"), candle(3, "4"))
    assert codec.encode(one).decode() == (
        '{"type":"signal","id":"69f1591f003fd25132d9","strategy":"seen",'
        '"parameters":"{}","symbol":"S","interval":"1m","open_time":180000000,"close":"4","volume":"5",'
        '"momentum":"0.33333333","signal_type":"BUY","last_trade_id":3,"levels":{"level":"1.50000000"},'
        '"reasons":["because"]}'
    )


def test_a_missing_window_is_said_and_the_lookback_fills_again() -> None:
    seen = Seen()
    made = signals(Series([seen]), *map(candle, (1, 2, 3, 6, 7, 8)))
    assert [s.signal_type for s in made] == ["HOLD", "HOLD", "BUY", "HOLD", "HOLD", "BUY"]
    assert made[3].reasons == ("a hole: no candle for 2 windows before this one",)
    assert seen.windows == [[1, 2, 3], [6, 7, 8]]


def test_a_candle_with_missing_trades_is_a_hole() -> None:
    seen = Seen()
    holed = candle(4, missing=True)
    made = signals(Series([seen]), *map(candle, (1, 2, 3)), holed, *map(candle, (5, 6, 7)))
    assert made[3].reasons == ("trades of this window are missing",)
    assert [s.signal_type for s in made[3:]] == ["HOLD", "HOLD", "HOLD", "BUY"]
    assert seen.windows == [[1, 2, 3], [5, 6, 7]]


def test_later_revisions_and_old_windows_decide_nothing() -> None:
    series = Series([Seen()])
    assert len(signals(series, *map(candle, (1, 2, 3)))) == 3
    assert signals(series, candle(2, "99", revision=1)) == []
    (late,) = signals(series, candle(2))
    assert (late.signal_type, late.reasons) == ("HOLD", ("this window was stated after a later one",))
    (one,) = signals(series, candle(4, "20"))
    assert (one.signal_type, str(one.momentum)) == ("BUY", "1.00000000")


def test_an_id_is_the_same_for_equal_parameters_and_differs_for_anything_else() -> None:
    same = {canonical(BandParameters(buy_factor=Decimal(text))) for text in ("1.01", "1.010", "1.0100")}
    assert len(same) == 1
    base = ("band", same.pop(), "S", "1m", MINUTE)
    others = [("level", *base[1:]), (base[0], "{}", *base[2:]), (*base[:2], "T", "1m", MINUTE), (*base[:4], 2 * MINUTE)]
    assert len({signal_id(*ids) for ids in [base, *others]}) == 5  # type: ignore[arg-type]
    assert all(c in "0123456789abcdef" for c in signal_id(*base))


def built_in() -> list[Strategy]:
    small = WeakLevelsParameters(
        lookback=6, swing=1, bias_window=3, momentum_window=1, volume_window=4, volume_factor=Decimal("0.5")
    )
    return [WeakLevels(small), Band(BandParameters(buy_factor=Decimal("1.01"), sell_factor=Decimal("0.99")))]


def history(random: Random, length: int) -> list[Candle]:
    """Random candles of three symbols with holes, missing trades and revisions."""
    minutes = {f"S{i}": 0 for i in range(3)}
    candles: list[Candle] = []
    for _ in range(length):
        symbol = random.choice(list(minutes))
        minutes[symbol] += 3 if random.random() < 0.05 else 1
        candles.append(
            candle(minutes[symbol], str(random.randint(80, 120)), missing=random.random() < 0.05, symbol=symbol)
        )
        if random.random() < 0.1:
            old = random.choice(candles)
            candles.append(candle(old.open_time // MINUTE, "500", revision=1, symbol=old.symbol))
    return candles


def run(lane: SignalLane, candles: Sequence[Candle], start: int = 0) -> list[bytes]:
    records = [Record(start + i, 0, c) for i, c in enumerate(candles)]
    return [codec.encode(signal) for signal in lane.process(records)]


randoms = st.integers(0, 2**64).map(Random)


@settings(max_examples=100, deadline=None)
@given(randoms, st.integers(1, 120), st.integers(0, 120))
def test_the_future_changes_no_past_signal(random: Random, length: int, cut: int) -> None:
    candles = history(random, length)
    whole = run(SignalLane(built_in(), "1m"), candles)
    part = run(SignalLane(built_in(), "1m"), candles[:cut])
    assert whole[: len(part)] == part


@settings(max_examples=100, deadline=None)
@given(randoms, st.integers(1, 120))
def test_restarts_at_any_place_change_no_signal(random: Random, length: int) -> None:
    candles = history(random, length)
    straight = run(SignalLane(built_in(), "1m"), candles)
    lane, committed, found, at = SignalLane(built_in(), "1m"), Committed(-1, {}), list[bytes](), 0
    while at < len(candles):
        size = random.randint(1, 9)
        made = run(lane, candles[at : at + size], at)
        if random.random() < 0.5:  # dies, before or after the commit
            if random.random() < 0.5:
                found += made
                at = min(at + size, len(candles))
                committed = lane.position(at)
            lane = SignalLane(built_in(), "1m")
            for offset in range(committed.marks.get("in_from", at), at):
                lane.restore_input(Record(offset, 0, candles[offset]))
            continue
        found += made
        at = min(at + size, len(candles))
        committed = lane.position(at)
    assert found == straight


@settings(max_examples=100, deadline=None)
@given(randoms, st.integers(1, 120))
def test_there_is_one_signal_per_first_statement_and_strategy(random: Random, length: int) -> None:
    candles = history(random, length)
    made = SignalLane(built_in(), "1m").process([Record(i, 0, c) for i, c in enumerate(candles)])
    wanted = [(c.symbol, c.open_time, name) for c in candles if not c.revision for name in ("weak_levels", "band")]
    assert [(s.symbol, s.open_time, s.strategy) for s in made if isinstance(s, Signal)] == wanted
    assert len({s.id for s in made if isinstance(s, Signal)}) == len(wanted)


@settings(max_examples=50, deadline=None)
@given(randoms)
def test_only_the_last_lookback_candles_count(random: Random) -> None:
    candles = [candle(i, str(random.randint(80, 120))) for i in range(30)]
    whole, short = SignalLane(built_in(), "1m"), SignalLane(built_in(), "1m")
    assert run(whole, candles)[-2:] == run(short, candles[-6:])[-2:]


def test_each_candle_gets_one_signal_per_strategy_in_the_configured_order() -> None:
    made = SignalLane(built_in(), "1m").process([Record(i, 0, candle(i)) for i in range(3)])
    assert [s.strategy for s in made if isinstance(s, Signal)] == ["weak_levels", "band"] * 3


def test_candles_of_other_intervals_are_not_looked_at() -> None:
    assert SignalLane(built_in(), "5m").process([Record(0, 0, candle(1))]) == []


def test_a_restart_reads_the_lookback_of_every_symbol_but_not_of_those_long_gone() -> None:
    lane = SignalLane(built_in(), "1m")
    lane.process([Record(0, 0, candle(1, symbol="GONE"))])
    lane.process([Record(i, 0, candle(i)) for i in range(1, 20)])
    assert lane.position(20) == Committed(20, {"in_from": 0})
    lane.process([Record(20, 0, candle(3000))])
    assert lane.position(21) == Committed(21, {"in_from": 20})
