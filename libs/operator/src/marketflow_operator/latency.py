"""How long the stages take, from the broker's own append times of the records that trigger and that result.

Pure. Must never use a service's clock: what is measured is what a reader of the topics sees.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from marketflow_common.events import Candle, OrderIntended, Signal, Trade, Watermark
from marketflow_common.intervals import INTERVALS

from .audit.model import Evidence

__all__ = ["Latencies", "latencies", "percentile"]


_AHEAD = 10_000_000
"""A trade this far ahead of its own receipt closes no window (ADR 0011)."""


@dataclass(frozen=True)
class Latencies:
    """Milliseconds, one number per candle or order."""

    trade_to_candle: Sequence[int] = field(default_factory=list)
    candle_to_order: Sequence[int] = field(default_factory=list)
    trade_to_order: Sequence[int] = field(default_factory=list)

    def summary(self) -> dict[str, dict[str, int | None]]:
        """p50 and p99 of each stage; None where nothing was measured."""
        stages = {
            "trade_to_candle": self.trade_to_candle,
            "candle_to_order": self.candle_to_order,
            "trade_to_order": self.trade_to_order,
        }
        return {name: {"p50": percentile(values, 50), "p99": percentile(values, 99)} for name, values in stages.items()}


def percentile(values: Sequence[int], rank: float) -> int | None:
    """The smallest value that at least ``rank`` percent of the values do not exceed (nearest rank)."""
    if not values:
        return None
    return sorted(values)[max(0, math.ceil(rank / 100 * len(values)) - 1)]


def latencies(evidence: Evidence) -> Latencies:
    """Measure all candles and orders.

    A candle is triggered by the first record of its symbol, by offset, that closes its window: a trade of a later
    window, or a watermark that passes its end. An order is triggered by its signal's candle.
    """
    candles = {
        (c.symbol, c.interval, c.open_time): seen.appended_ms for seen, c in evidence.of(Candle) if c.revision == 0
    }
    triggers = _triggers(evidence, candles)
    signals = {s.id: (s.symbol, s.interval, s.open_time) for _, s in evidence.of(Signal)}
    orders = [
        (signals[intent.signal_id], seen.appended_ms)
        for seen, intent in evidence.of(OrderIntended)
        if intent.attempt == 1 and intent.signal_id in signals
    ]
    return Latencies(
        trade_to_candle=[at - triggers[key] for key, at in candles.items() if key in triggers],
        candle_to_order=[at - candles[key] for key, at in orders if key in candles],
        trade_to_order=[at - triggers[key] for key, at in orders if key in triggers],
    )


def _triggers(evidence: Evidence, candles: Mapping[tuple[str, str, int], int]) -> Mapping[tuple[str, str, int], int]:
    """Append time of the record that closed each candle's window."""
    waiting: dict[str, list[tuple[int, tuple[str, str, int]]]] = defaultdict(list)
    for key in candles:
        waiting[key[0]].append((key[2] + INTERVALS[key[1]], key))
    for ends in waiting.values():
        ends.sort(reverse=True)
    found = {}
    for seen in evidence.records.get("ohlcv_raw", ()):
        event = seen.event
        if type(event) is Trade:
            if event.traded_at - event.received_at > _AHEAD:
                continue
            passed = event.traded_at
        elif type(event) is Watermark:
            passed = event.through
        else:
            continue
        ends = waiting.get(event.symbol, [])
        while ends and ends[-1][0] <= passed:
            found[ends.pop()[1]] = seen.appended_ms
    return found
