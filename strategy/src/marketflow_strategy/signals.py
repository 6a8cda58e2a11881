"""From candles to signals: the state per symbol, and what every strategy has to offer.

Pure: a signal depends on the last ``lookback`` candles and the strategy's parameters, on nothing else. Must never
act on a later revision of a candle, or decide across a hole in the time grid.
"""

from __future__ import annotations

import hashlib
import json
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, ClassVar, Protocol

from marketflow_common.events import Candle, Signal, SignalType
from marketflow_common.intervals import INTERVALS
from marketflow_common.numbers import EXACT, ZERO, divide, fixed
from pydantic import BaseModel, ConfigDict

__all__ = ["Decision", "Parameters", "Series", "Strategy", "canonical", "signal_id"]


class Parameters(BaseModel):
    """Base of a strategy's parameters: frozen, and a misspelt one is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


@dataclass(frozen=True)
class Decision:
    """What a strategy says: the levels it looked at, and its reasons in words."""

    signal_type: SignalType
    levels: dict[str, Decimal] = field(default_factory=dict)
    reasons: tuple[str, ...] = ()


class Strategy(Protocol):
    """A strategy, found by its entry point in ``marketflow.strategies`` and made with its parameters."""

    name: ClassVar[str]
    Parameters: ClassVar[type[Parameters]]
    parameters: Any

    @property
    def lookback(self) -> int:
        """Number of candles that a decision sees, the newest included."""

    @property
    def momentum_window(self) -> int:
        """Candles over which the signal's momentum is measured; less than ``lookback``."""

    def decide(self, candles: Sequence[Candle]) -> Decision:
        """Decide from exactly ``lookback`` candles of consecutive windows, oldest first, none with missing trades."""


def canonical(parameters: BaseModel) -> str:
    """Parameters as text that is the same for equal parameters: sorted JSON, numbers as strings in fixed point."""
    plain = {
        name: format(value.normalize(), "f") if isinstance(value, Decimal) else value
        for name, value in parameters.model_dump().items()
    }
    return json.dumps(plain, sort_keys=True, separators=(",", ":"))


def signal_id(strategy: str, parameters: str, symbol: str, interval: str, open_time: int) -> str:
    """Twenty hexadecimal digits, the same for the same candle and strategy on every machine."""
    text = "|".join((strategy, parameters, symbol, interval, str(open_time)))
    return hashlib.sha256(text.encode()).hexdigest()[:20]


class Series:
    """The newest candles of one symbol, and the signals that its next candle gives.

    Signals are made from a candle's first statement (revision 0); a later revision changes none of them.
    """

    def __init__(self, strategies: Sequence[Strategy]) -> None:
        self._strategies = [(s, canonical(s.parameters)) for s in strategies]
        self._candles: deque[tuple[int, Candle]] = deque(maxlen=max(s.lookback for s in strategies))
        self._last: tuple[int, int] | None = None

    @property
    def needed_from(self) -> int | None:
        """Offset of the oldest record that this state was made of; None before the first."""
        if self._candles:
            return self._candles[0][0]
        return self._last[0] if self._last else None

    @property
    def newest(self) -> int:
        """Open time of the newest candle; 0 before the first."""
        return self._last[1] if self._last else 0

    def take(self, offset: int, candle: Candle) -> list[Signal]:
        """Take the next candle in; one signal per strategy, in the strategies' order."""
        if candle.revision > 0:
            return []
        hole = self._admit(offset, candle)
        return [self._signal(strategy, text, candle, hole) for strategy, text in self._strategies]

    def _admit(self, offset: int, candle: Candle) -> str:
        """Put the candle into the window; a hole in the time grid empties it. Returns why there can be no decision."""
        last, skipped = self._last, 0
        if last is not None and candle.open_time <= last[1]:
            return "this window was stated after a later one"
        if last is not None:
            skipped = (candle.open_time - last[1]) // INTERVALS[candle.interval] - 1
        if skipped:
            self._candles.clear()
        self._last = (offset, candle.open_time)
        if candle.missing:
            self._candles.clear()
            return "trades of this window are missing"
        self._candles.append((offset, candle))
        return f"a hole: no candle for {skipped} window{'s' * (skipped > 1)} before this one" if skipped else ""

    def _signal(self, strategy: Strategy, parameters: str, candle: Candle, hole: str) -> Signal:
        window = [c for _, c in self._candles][-strategy.lookback :]
        momentum = ZERO
        if hole:
            decision = Decision("HOLD", reasons=(hole,))
        elif len(window) < strategy.lookback:
            decision = Decision("HOLD", reasons=(f"warming up: {len(window)} of {strategy.lookback} candles",))
        else:
            before = window[-1 - strategy.momentum_window].close
            if before:
                momentum = divide(EXACT.subtract(candle.close, before), before)
            decision = strategy.decide(window)
        return Signal(
            id=signal_id(strategy.name, parameters, candle.symbol, candle.interval, candle.open_time),
            strategy=strategy.name,
            parameters=parameters,
            symbol=candle.symbol,
            interval=candle.interval,
            open_time=candle.open_time,
            close=candle.close,
            volume=candle.volume,
            momentum=momentum,
            signal_type=decision.signal_type,
            last_trade_id=candle.last_trade_id,
            levels={name: fixed(level) for name, level in sorted(decision.levels.items())},
            reasons=decision.reasons,
        )
