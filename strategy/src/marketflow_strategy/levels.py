"""Weak levels: a swing extreme on the side that the running bias is expected to break, confirmed by volume.

Pure; must never look at anything but the candles it is given.
"""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal
from typing import ClassVar

from marketflow_common.events import Candle
from marketflow_common.numbers import EXACT
from pydantic import Field, model_validator

from . import signals

__all__ = ["WeakLevels"]


class WeakLevelsParameters(signals.Parameters):
    """All in candles, but for the volume factor."""

    lookback: int = Field(30, ge=4, le=1000, description="candles that a decision sees")
    swing: int = Field(2, ge=1, le=100, description="candles on each side that a swing extreme has to exceed")
    bias_window: int = Field(10, ge=1, le=999, description="the bias is the sign of the change of the close over these")
    momentum_window: int = Field(3, ge=1, le=999, description="the momentum is the change of the close over these")
    volume_window: int = Field(10, ge=1, le=999, description="candles before the newest whose mean volume is compared")
    volume_factor: Decimal = Field(Decimal("1.5"), ge=0, max_digits=20, decimal_places=12)

    @model_validator(mode="after")
    def _fits(self) -> WeakLevelsParameters:
        needed = max(self.bias_window + 1, self.momentum_window + 1, self.volume_window + 1, 2 * self.swing + 2)
        if self.lookback < needed:
            raise ValueError(f"lookback is {self.lookback}, but the windows need {needed} candles")
        return self


class WeakLevels:
    """The rule, over the last ``lookback`` candles (the newest is the one decided on):

    - Swing low: a candle before the newest whose low is below the lows of ``swing`` candles before it and not above
      those of ``swing`` candles after it; swing high likewise. All of them lie before the newest candle.
    - Bias: up if the close is above that of ``bias_window`` candles ago, down if below.
    - With the bias up the latest swing high is weak (expected to break), with the bias down the latest swing low.
    - BUY: bias up, close above the weak high, the candle before closed at or below it (it breaks now), momentum over
      ``momentum_window`` positive, and volume at least ``volume_factor`` times the mean of the ``volume_window``
      candles before. SELL: the mirror image. Else HOLD.
    """

    name: ClassVar[str] = "weak_levels"
    Parameters: ClassVar[type[signals.Parameters]] = WeakLevelsParameters

    def __init__(self, parameters: WeakLevelsParameters) -> None:
        self.parameters = parameters

    @property
    def lookback(self) -> int:
        return self.parameters.lookback

    @property
    def momentum_window(self) -> int:
        return self.parameters.momentum_window

    def decide(self, candles: Sequence[Candle]) -> signals.Decision:
        p = self.parameters
        newest, past = candles[-1], candles[:-1]
        bias = newest.close.compare(candles[-1 - p.bias_window].close)
        momentum = newest.close.compare(candles[-1 - p.momentum_window].close)
        if bias == 0:
            return signals.Decision("HOLD", reasons=("no bias: the close is where it was",))
        up = bias > 0
        sign = 1 if up else -1
        side, name = ("BUY", "weak_high") if up else ("SELL", "weak_low")
        level = self._latest_swing([sign * (c.high if up else c.low) for c in past])
        if level is None:
            return signals.Decision("HOLD", reasons=(f"no swing {'high' if up else 'low'} to break",))
        level = sign * level
        levels = {name: level}
        broken_now = sign * newest.close > sign * level and sign * past[-1].close <= sign * level
        reasons = [f"bias {'up' if up else 'down'}, close {newest.close:f} against {name.replace('_', ' ')} {level:f}"]
        if not broken_now:
            return signals.Decision("HOLD", levels, (*reasons, "not broken by this candle"))
        if sign * momentum <= 0:
            return signals.Decision("HOLD", levels, (*reasons, "momentum does not go with it"))
        before = past[-p.volume_window :]
        total = Decimal(0)
        for candle in before:
            total = EXACT.add(total, candle.volume)
        if EXACT.multiply(newest.volume, Decimal(len(before))) < EXACT.multiply(total, p.volume_factor):
            return signals.Decision("HOLD", levels, (*reasons, f"volume {newest.volume:f} does not confirm it"))
        reasons.append(f"broken with volume {newest.volume:f}")
        return signals.Decision("BUY" if side == "BUY" else "SELL", levels, tuple(reasons))

    def _latest_swing(self, extremes: Sequence[Decimal]) -> Decimal | None:
        """The latest local maximum: above ``swing`` values before it, not below ``swing`` values after it."""
        swing = self.parameters.swing
        for i in range(len(extremes) - 1 - swing, swing - 1, -1):
            here = extremes[i]
            if all(here > e for e in extremes[i - swing : i]) and all(
                here >= e for e in extremes[i + 1 : i + 1 + swing]
            ):
                return here
        return None
