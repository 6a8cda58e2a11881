"""The two built-in rules, one small window of candles each."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest
from marketflow_common.events import Candle
from marketflow_common.intervals import MINUTE
from marketflow_strategy.band import Band, BandParameters
from marketflow_strategy.levels import WeakLevels, WeakLevelsParameters
from pydantic import ValidationError

Bar = tuple[str, str, str, str]  # high, low, close, volume


def candles(*bars: Bar) -> list[Candle]:
    return [
        Candle(
            "S", "1m", i * MINUTE, (i + 1) * MINUTE - 1, Decimal(close), Decimal(high), Decimal(low), Decimal(close),
            Decimal(volume), Decimal(0), 1, Decimal(0), Decimal(0), i, i,
        )
        for i, (high, low, close, volume) in enumerate(bars)
    ]  # fmt: skip


def band(buy: str, sell: str) -> Band:
    return Band(BandParameters(buy_factor=Decimal(buy), sell_factor=Decimal(sell)))


@pytest.mark.parametrize(
    ("close", "signal"),
    [("100.99", "BUY"), ("101", "HOLD"), ("109", "HOLD"), ("118.8", "HOLD"), ("118.81", "SELL")],
)
def test_band_compares_the_close_with_the_previous_low_and_high(close: str, signal: str) -> None:
    window = candles(("120", "100", "110", "1"), ("999", "1", close, "1"))
    decision = band("1.01", "0.99").decide(window)
    assert decision.signal_type == signal
    assert decision.levels == {"previous_low": Decimal(100), "previous_high": Decimal(120)}


def test_band_says_buy_where_both_hold() -> None:
    window = candles(("100.5", "100", "100.2", "1"), ("100.5", "100", "100.3", "1"))
    assert band("1.008", "0.992").decide(window).signal_type == "BUY"


def test_with_the_first_designs_numbers_a_candle_is_a_buy_unless_it_jumps() -> None:
    assert BandParameters().buy_factor == Decimal("1.008")
    assert BandParameters().sell_factor == Decimal("0.992")
    usual = [candles(("100.4", "100", "100.2", "1"), ("101", "99", str(c), "1")) for c in (99, 100, 100.5, 100.79)]
    assert {Band(BandParameters()).decide(window).signal_type for window in usual} == {"BUY"}


def levels(**more: Any) -> WeakLevels:
    small: dict[str, Any] = {
        "lookback": 6, "swing": 1, "bias_window": 3, "momentum_window": 1, "volume_window": 4, "volume_factor": "1.2",
    }  # fmt: skip
    return WeakLevels(WeakLevelsParameters.model_validate(small | more))


# The third candle is the swing high (12): its neighbours are lower. The newest closes above it, on volume 2.
RISE: tuple[Bar, ...] = (
    ("10", "8", "9", "1"), ("11", "9", "10", "1"), ("12", "10", "10", "1"), ("11", "9", "10", "1"),
    ("11.5", "9", "11", "1"), ("13", "11", "12.5", "2"),
)  # fmt: skip


def mirrored(bars: tuple[Bar, ...]) -> tuple[Bar, ...]:
    return tuple((str(50 - Decimal(low)), str(50 - Decimal(high)), str(50 - Decimal(c)), v) for high, low, c, v in bars)


def test_a_weak_high_broken_with_the_bias_on_volume_is_a_buy() -> None:
    decision = levels().decide(candles(*RISE))
    assert decision.signal_type == "BUY"
    assert decision.levels == {"weak_high": Decimal(12)}
    assert decision.reasons == ("bias up, close 12.5 against weak high 12", "broken with volume 2")


def test_a_weak_low_broken_with_the_bias_on_volume_is_a_sell() -> None:
    decision = levels().decide(candles(*mirrored(RISE)))
    assert decision.signal_type == "SELL"
    assert decision.levels == {"weak_low": Decimal(38)}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({5: ("13", "11", "12", "2")}, "not broken by this candle"),
        ({4: ("12.5", "9", "12.2", "1")}, "not broken by this candle"),
        ({5: ("13", "11", "12.5", "1.19")}, "volume 1.19 does not confirm it"),
        ({5: ("13", "9", "10", "2")}, "no bias: the close is where it was"),
        ({0: ("11", "8", "9", "1"), 2: ("11", "9", "10", "1"), 4: ("11", "9", "11", "1")}, "no swing high to break"),
    ],
)
def test_otherwise_it_holds_and_says_why(change: dict[int, Bar], reason: str) -> None:
    bars = tuple(change.get(i, bar) for i, bar in enumerate(RISE))
    decision = levels().decide(candles(*bars))
    assert (decision.signal_type, decision.reasons[-1]) == ("HOLD", reason)


def test_the_momentum_must_go_with_the_break() -> None:
    bars = (*RISE[:3], ("14", "9", "13", "1"), ("11.5", "9", "11", "1"), RISE[5])
    decision = levels(momentum_window=2).decide(candles(*bars))
    assert (decision.signal_type, decision.reasons[-1]) == ("HOLD", "not broken by this candle")
    low = (*RISE[:3], ("12", "9", "12.6", "1"), ("11", "9", "11", "1"), RISE[5])
    decision = levels(momentum_window=2).decide(candles(*low))
    assert (decision.signal_type, decision.reasons[-1]) == ("HOLD", "momentum does not go with it")


def test_the_newest_of_several_swings_counts() -> None:
    bars = (
        ("20", "9", "10", "1"), ("30", "9", "10", "1"), ("12", "9", "10", "1"), ("13", "9", "10", "1"),
        ("12", "9", "10", "1"), ("12", "9", "10", "1"), ("14", "9", "13.5", "5"),
    )  # fmt: skip
    assert levels(lookback=7).decide(candles(*bars)).levels == {"weak_high": Decimal(13)}


def test_parameters_that_do_not_fit_together_are_refused_by_name() -> None:
    with pytest.raises(ValidationError, match="lookback is 5, but the windows need 6 candles"):
        levels(lookback=5, bias_window=5)
    with pytest.raises(ValidationError, match="buy_facter"):
        BandParameters.model_validate({"buy_facter": "1"})
