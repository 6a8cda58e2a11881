"""The strategies on one partition: candles of all its symbols in, signals out, and where a restart has to read from.

Must never decide anything about a signal.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

from marketflow_common.events import Candle, Event, Signal
from marketflow_common.intervals import MINUTE
from marketflow_common.kafka.client import Committed, Record
from prometheus_client import Counter

from .signals import Series, Strategy

__all__ = ["SignalLane"]

SIGNALS = Counter("signals_generated_total", "Signals published", ["strategy", "signal_type"])
SILENT: Final = 1440 * MINUTE
"""A symbol this far behind the others of its partition is not waited for: otherwise each restart would read
everything since a delisted symbol's last candle. Should it come back after all, its windows fill anew."""
HOLES = Counter("candles_with_holes_total", "Candles that had trades missing when they were stated")


class SignalLane:
    """A lane of the transform loop. Its state is the last candles of each symbol: read again from mark ``in_from``."""

    def __init__(self, strategies: Sequence[Strategy], interval: str) -> None:
        self._strategies, self._interval = strategies, interval
        self._series: dict[str, Series] = {}

    def restore_output(self, record: Record) -> None:
        """Nothing of the own output is needed."""

    def restore_input(self, record: Record) -> None:
        self._take(record)

    def process(self, records: Iterable[Record]) -> list[Event]:
        outputs: list[Event] = []
        for record in records:
            for signal in self._take(record):
                SIGNALS.labels(signal.strategy, signal.signal_type).inc()
                outputs.append(signal)
            if record.event.missing:
                HOLES.inc()
        return outputs

    def position(self, next_offset: int) -> Committed:
        awake = max((series.newest for series in self._series.values()), default=0) - SILENT
        needed = [at for s in self._series.values() if s.newest >= awake and (at := s.needed_from) is not None]
        return Committed(next_offset, {"in_from": min(needed)} if needed else {})

    def delivered(self, outputs: Sequence[Event], offsets: Sequence[int]) -> None:
        """Offsets of the output are not needed."""

    def _take(self, record: Record) -> list[Signal]:
        candle: Candle = record.event
        if candle.interval != self._interval:
            return []
        series = self._series.get(candle.symbol)
        if series is None:
            series = self._series[candle.symbol] = Series(self._strategies)
        return series.take(record.offset, candle)
