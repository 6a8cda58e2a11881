"""Signals are a pure function of the last candles: no future, no restart and no clock changes them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import settings as profile
from hypothesis import strategies as st
from marketflow_common import codec
from marketflow_common.events import Candle, Signal
from marketflow_common.kafka.client import Record
from marketflow_common.settings import InvalidSettings, load
from marketflow_strategy.band import Band, BandParameters
from marketflow_strategy.lane import SignalLane
from marketflow_strategy.levels import WeakLevels, WeakLevelsParameters
from marketflow_strategy.settings import Settings, make_strategies
from marketflow_strategy.signals import Strategy, canonical, signal_id
from pydantic import ValidationError

MINUTE = 60_000_000
ZERO = Decimal("0.00000000")


def candle(
    minute: int, close: str, *, low: str = "", high: str = "", volume: str = "1", symbol: str = "ETHUSDT",
    missing: tuple[tuple[int, int], ...] = (), revision: int = 0,
) -> Candle:  # fmt: skip
    price, start = Decimal(close), minute * MINUTE
    return Candle(
        symbol, "1m", start, start + MINUTE - 1, price, Decimal(high or close), Decimal(low or close), price,
        Decimal(volume), ZERO, 1, ZERO, ZERO, minute * 10, minute * 10 + 9, missing, revision,
    )  # fmt: skip


def built_in() -> list[Strategy]:
    small = WeakLevelsParameters(
        lookback=6, swing=1, bias_window=3, momentum_window=1, volume_window=4, volume_factor=Decimal(1)
    )
    return [WeakLevels(small), Band(BandParameters(buy_factor=Decimal("1.001"), sell_factor=Decimal("0.999")))]


def run(lane: SignalLane, candles: Sequence[Candle], first_offset: int = 0) -> list[Signal]:
    records = [Record(first_offset + i, 0, c) for i, c in enumerate(candles)]
    return [s for s in lane.process(records) if isinstance(s, Signal)]


def texts(signals: Sequence[Signal]) -> list[bytes]:
    return [codec.encode(s) for s in signals]


prices = st.integers(9_000, 11_000).map(lambda cents: str(Decimal(cents) / 100))


@st.composite
def histories(draw: st.DrawFn) -> list[Candle]:
    """Candles of two symbols with holes in the grid, missing trades and revisions."""
    minutes, found = {"ETHUSDT": 0, "BTCUSDT": 0}, []
    for _ in range(draw(st.integers(1, 40))):
        symbol = draw(st.sampled_from(sorted(minutes)))
        minutes[symbol] += draw(st.sampled_from([1, 1, 1, 1, 1, 2]))
        a, b, c = draw(prices), draw(prices), draw(prices)
        low, close, high = sorted((a, b, c), key=Decimal)
        missing = draw(st.sampled_from([(), (), (), ((1, 2),)]))
        found.append(
            candle(minutes[symbol], close, low=low, high=high, volume=draw(prices), symbol=symbol, missing=missing)
        )
        if draw(st.integers(0, 5)) == 0:
            found.append(candle(minutes[symbol], close, symbol=symbol, revision=1))
    return found


@given(histories(), st.data())
def test_the_future_changes_no_past_signal(history: list[Candle], data: st.DataObject) -> None:
    cut = data.draw(st.integers(0, len(history)))
    whole = run(SignalLane(built_in(), "1m"), history)
    assert texts(whole)[: len(prefix := texts(run(SignalLane(built_in(), "1m"), history[:cut])))] == prefix


@given(histories(), st.lists(st.integers(0, 40), max_size=6))
@profile(max_examples=200)
def test_any_cut_into_restarts_gives_the_same_bytes(history: list[Candle], cuts: list[int]) -> None:
    expected = texts(run(SignalLane(built_in(), "1m"), history))
    found: list[bytes] = []
    lane, at = SignalLane(built_in(), "1m"), 0
    for cut in sorted({min(c, len(history)) for c in cuts} | {len(history)}):
        found += texts(run(lane, history[at:cut], at))
        committed = lane.position(cut)
        assert committed.offset == cut
        # A restart knows nothing but the committed position and its mark.
        lane, at = SignalLane(built_in(), "1m"), cut
        for offset in range(committed.marks.get("in_from", cut), cut):
            lane.restore_input(Record(offset, 0, history[offset]))
    assert found == expected


@given(histories())
def test_there_is_one_signal_per_first_statement_and_strategy(history: list[Candle]) -> None:
    signals = run(SignalLane(built_in(), "1m"), history)
    first = [c for c in history if c.revision == 0]
    assert [(s.symbol, s.open_time) for s in signals] == [(c.symbol, c.open_time) for c in first for _ in range(2)]
    assert len({s.id for s in signals}) == len(signals)


def test_it_holds_until_the_window_is_full_and_after_every_hole() -> None:
    closes = ["100", "100", "100", "100"]
    history = [candle(m, c) for m, c in zip((1, 2, 4, 5), closes, strict=True)]
    history.append(candle(6, "100", missing=((1, 2),)))
    history.append(candle(7, "100"))
    signals = run(SignalLane([Band(BandParameters())], "1m"), history)
    assert [s.reasons[0] for s in signals] == [
        "warming up: 1 of 2 candles",
        "close 100 < 100.800, previous low times factor",
        "warming up: 1 of 2 candles",
        "close 100 < 100.800, previous low times factor",
        "trades of this window are missing",
        "warming up: 1 of 2 candles",
    ]


@pytest.mark.parametrize(
    ("close", "expected"), [("99.9", "BUY"), ("100.5", "HOLD"), ("101.9", "SELL"), ("100.0", "HOLD"), ("101", "HOLD")]
)
def test_band_compares_the_close_with_the_previous_candle(close: str, expected: str) -> None:
    band = Band(BandParameters(buy_factor=Decimal(1), sell_factor=Decimal(1)))
    decision = band.decide([candle(1, "100.5", low="100", high="101"), candle(2, close)])
    assert decision.signal_type == expected


def test_with_the_first_designs_factors_an_ordinary_minute_is_a_buy() -> None:
    decision = Band(BandParameters()).decide([candle(1, "100.5", low="100.4", high="100.6"), candle(2, "100.5")])
    assert decision.signal_type == "BUY"


LEVELS = WeakLevelsParameters(
    lookback=6, swing=1, bias_window=3, momentum_window=1, volume_window=4, volume_factor=Decimal("1.5")
)


def broken_low(volume: str = "10", close: str = "96") -> list[Candle]:
    """A swing low of 97 in the second candle, a bias that points down, and a last candle that may break it."""
    return [
        candle(1, "100", low="99"), candle(2, "98", low="97"), candle(3, "101", low="100"),
        candle(4, "100", low="98"), candle(5, "99", low="97.5"), candle(6, close, low="95", volume=volume),
    ]  # fmt: skip


def test_a_weak_low_broken_with_volume_is_a_sell() -> None:
    decision = WeakLevels(LEVELS).decide(broken_low())
    assert decision.signal_type == "SELL"
    assert decision.levels == {"weak_low": Decimal(97)}


def test_without_volume_or_without_the_break_it_holds() -> None:
    assert WeakLevels(LEVELS).decide(broken_low(volume="1.4")).signal_type == "HOLD"
    assert WeakLevels(LEVELS).decide(broken_low(close="97.5")).signal_type == "HOLD"


def test_a_weak_high_is_the_mirror_image() -> None:
    def mirrored(c: Candle) -> Candle:
        flip = {name: 200 - getattr(c, name) for name in ("open", "close")}
        return candle(
            c.open_time // MINUTE,
            str(flip["close"]),
            low=str(200 - c.high),
            high=str(200 - c.low),
            volume=str(c.volume),
        )

    decision = WeakLevels(LEVELS).decide([mirrored(c) for c in broken_low()])
    assert decision.signal_type == "BUY"
    assert decision.levels == {"weak_high": Decimal(103)}


def test_a_level_that_was_broken_before_is_not_broken_again() -> None:
    candles = broken_low()
    candles[4] = candle(5, "96.5", low="96")
    assert WeakLevels(LEVELS).decide(candles).signal_type == "HOLD"


def test_windows_that_do_not_fit_the_lookback_are_refused() -> None:
    with pytest.raises(ValidationError, match="lookback is 5, but the windows need 11"):
        WeakLevelsParameters(lookback=5)


def test_a_signals_id_depends_on_what_made_it_and_equal_parameters_are_equal_text() -> None:
    assert canonical(BandParameters(buy_factor=Decimal("1.10"))) == canonical(BandParameters(buy_factor=Decimal("1.1")))
    base = ("band", "{}", "ETHUSDT", "1m", 60)
    assert len(signal_id(*base)) == 20
    others = {signal_id(*base), signal_id("x", *base[1:]), signal_id("band", "{1}", *base[2:])}
    others |= {signal_id("band", "{}", "BTCUSDT", "1m", 60), signal_id("band", "{}", "ETHUSDT", "1m", 61)}
    assert len(others) == 5


def test_signals_are_made_of_one_interval_only() -> None:
    import msgspec

    five = msgspec.structs.replace(candle(5, "100"), interval="5m")
    assert run(SignalLane([Band(BandParameters())], "1m"), [five]) == []


@pytest.mark.parametrize(
    ("variable", "value", "says"),
    [
        ("STRATEGIES", "bant", "there is no strategy 'bant'; installed are band, weak_levels"),
        ("PARAMETERS", "{", "is not JSON"),
        ("PARAMETERS", '{"band": 3}', "JSON object of objects"),
        ("PARAMETERS", '{"bant": {}}', "parameters for bant"),
        ("PARAMETERS", '{"band": {"buy": 1}}', "band: buy: Extra inputs are not permitted; it takes buy_factor"),
        ("PARAMETERS", '{"weak_levels": {"lookback": 2}}', "weak_levels: lookback"),
        ("INTERVAL", "2m", "2m is no interval"),
    ],
)
def test_a_wrong_setting_is_named_with_what_there_is(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str, says: str
) -> None:
    monkeypatch.setenv(f"MARKETFLOW_STRATEGY_{variable}", value)
    with pytest.raises(InvalidSettings, match=says.replace("{", "\\{")):
        load(Settings)


def test_strategies_are_found_by_entry_point_with_their_parameters(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MARKETFLOW_STRATEGY_STRATEGIES", "band")
    monkeypatch.setenv("MARKETFLOW_STRATEGY_PARAMETERS", json.dumps({"band": {"buy_factor": "1.5"}}))
    (band,) = make_strategies(load(Settings))
    assert isinstance(band, Band)
    assert band.parameters.buy_factor == Decimal("1.5")
