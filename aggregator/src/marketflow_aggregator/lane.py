"""One partition of ohlcv_raw at work: the candles' core, the offsets that a restart needs, metrics and logs.

Must never decide anything about a candle.
"""

from __future__ import annotations

from collections.abc import Sequence

from marketflow_common import logs
from marketflow_common.clock import now_us
from marketflow_common.events import Candle, Event, Trade, WireTrade
from marketflow_common.kafka.client import Batch, Committed, Record

from . import metrics
from .candles import Candles

__all__ = ["CandleLane"]

_log = logs.get("aggregator")


class CandleLane:
    """A lane (see marketflow_common.kafka.transform.Lane) from trades to candles.

    Mark ``in_from``: the first trade of the oldest open window, which a restart reads again. Mark ``out_from``:
    the oldest own candle still needed (each symbol's last ones, those with missing trades, and the minutes of longer
    windows that are open).
    """

    def __init__(self, partition: int, output_end: int, intervals: Sequence[str] = ()) -> None:
        """``intervals``: longer ones to be made besides 1m."""
        self._partition = str(partition)
        self._candles = Candles(output_end, intervals)
        self._counted: dict[str, int] = dict.fromkeys(self._candles.counts, 0)

    def restore_output(self, record: Record) -> None:
        """An own candle."""
        self._candles.restore(record.offset, record.event)

    def restore_input(self, record: Record) -> None:
        """A record whose candles are out, for the windows that were open after it."""
        self._candles.replay((record,))

    def skim(self, values: list[bytes | None]) -> Sequence[int]:
        """See marketflow_common.kafka.transform.Lane."""
        return self._candles.skim(values)

    def process(self, batch: Batch) -> list[Event]:
        """Records in, candles out."""
        made = self._candles.take(batch.events, batch.record)
        now = now_us()
        for candle, (_, appended_ms, cause) in made:
            seen = cause.received_at if isinstance(cause, Trade | WireTrade) else appended_ms * 1000
            metrics.LATENCY.observe(max(0, now - seen) / 1e6)
            metrics.CLOSED.labels("yes" if candle.revision else "no").inc()
        self._report()
        return [candle for candle, _ in made]

    def position(self, next_offset: int) -> Committed:
        """See the class."""
        in_from, out_from = self._candles.pins(next_offset)
        marks = {"in_from": in_from} if in_from < next_offset else {}
        return Committed(next_offset, marks if out_from is None else marks | {"out_from": out_from})

    def delivered(self, outputs: Sequence[Event], offsets: Sequence[int]) -> None:
        """The candles have got these offsets."""
        if offsets:
            self._candles.floor = offsets[-1] + 1
        for candle, offset in zip(outputs, offsets, strict=True):
            assert isinstance(candle, Candle)
            self._candles.located(candle, offset)

    def _report(self) -> None:
        for note in self._candles.notes:
            level = _log.error if note.what in ("different", "stranded") else _log.warning
            level(f"candle_{note.what}", partition=self._partition, **note.facts)
        self._candles.notes.clear()
        for name, value in self._candles.counts.items():
            if value != self._counted[name]:
                metrics.COUNTERS[name].inc(value - self._counted[name])
                self._counted[name] = value
        metrics.OPEN.labels(self._partition).set(self._candles.windows_open)
