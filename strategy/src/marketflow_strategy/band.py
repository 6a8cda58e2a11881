"""The band rule: where the close lies against the previous candle's low and high, each moved by a factor.

Pure; must never look at anything but the candles it is given.
"""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal
from typing import ClassVar

from marketflow_common.events import Candle
from marketflow_common.numbers import EXACT
from pydantic import Field

from . import signals

__all__ = ["Band"]


class BandParameters(signals.Parameters):
    """Factors of the band. With 1.008 and 0.992, the first design's, one-minute candles nearly always say BUY."""

    buy_factor: Decimal = Field(Decimal("1.008"), gt=0, max_digits=20, decimal_places=12)
    sell_factor: Decimal = Field(Decimal("0.992"), gt=0, max_digits=20, decimal_places=12)
    momentum_window: int = Field(1, ge=1, le=500)


class Band:
    """BUY when close < previous low * buy_factor; else SELL when close > previous high * sell_factor; else HOLD."""

    name: ClassVar[str] = "band"
    Parameters: ClassVar[type[signals.Parameters]] = BandParameters

    def __init__(self, parameters: BandParameters) -> None:
        self.parameters = parameters

    @property
    def lookback(self) -> int:
        return self.parameters.momentum_window + 1

    @property
    def momentum_window(self) -> int:
        return self.parameters.momentum_window

    def decide(self, candles: Sequence[Candle]) -> signals.Decision:
        previous, close = candles[-2], candles[-1].close
        buy_below = EXACT.multiply(previous.low, self.parameters.buy_factor)
        sell_above = EXACT.multiply(previous.high, self.parameters.sell_factor)
        levels = {"previous_low": previous.low, "previous_high": previous.high}
        if close < buy_below:
            return signals.Decision("BUY", levels, (f"close {close:f} < {buy_below:f}, previous low times factor",))
        if close > sell_above:
            return signals.Decision("SELL", levels, (f"close {close:f} > {sell_above:f}, previous high times factor",))
        return signals.Decision("HOLD", levels, (f"close {close:f} is within {buy_below:f} and {sell_above:f}",))
