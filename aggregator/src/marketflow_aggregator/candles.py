"""One-minute candles from a symbol's trades: which window a trade belongs to, when a window is closed, what is missing.

Pure: records in, candles and notes out. Must never read a clock, or let a candle depend on anything but the
order of its own symbol's records; how much of the log is read again after a restart changes nothing.

A symbol's ids are the truth. A window closes when a trade of a later one, or a watermark, passes its end, and takes
no trade in sequence any more: one whose time steps back counts in the window that comes now, as in the exchange's
klines (ADR 0012). Ids that were skipped may belong to any window from that of the trade before to that of the trade
after; the candles of both name them as missing. A late trade goes into its window, out of these ranges, and narrows
those of other windows: times follow ids. The candles that this changes are stated again, one revision higher, once
the symbol's next record in order, or the end of the range, shows that the run of late trades is over.

A trade far ahead of its own receipt is no proof of time: it waits until others have come that far (ADR 0011).

All that a restart needs to know of closed windows is in their candles; of the windows after the last candle, in
the records from `pins` on. ``replay`` takes these in, knowing that their candles are out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from decimal import localcontext
from typing import Any, NamedTuple

from marketflow_common.events import Bar, Candle, Event, Trade, Watermark, WireTrade
from marketflow_common.numbers import EXACT

from .longer import Longer
from .series import DAY, INTERVAL, Note, Series

try:
    from ._skim import Skimmer
except ImportError:  # no compiler where this was installed: the same in Python, at half the speed
    Skimmer = None  # type: ignore[assignment,misc]

__all__ = ["PIN_RECORDS", "Candles", "Item", "Made", "Note", "Skimmer"]

PIN_RECORDS = 5_000_000
"""A restart reads again at most this many records for the sake of a silent symbol: 15 s of work."""

Item = tuple[int, int, Event]
"""Offset, append time in ms (unused here), event: the shape of a Kafka loop's Record."""


class Made(NamedTuple):
    """A candle, and the record that closed or changed it."""

    candle: Candle
    cause: Item


class Candles:
    """All symbols of one partition. Feed with ``restore`` (own output, in order), ``replay``, then ``process``."""

    def __init__(self, floor: int = 0, intervals: Iterable[str] = ()) -> None:
        """``intervals``: longer ones to be made of the minutes, besides 1m."""
        self._intervals = tuple(interval for interval in intervals if interval != INTERVAL)
        self._longer: dict[str, Longer] = {}
        self.floor = floor
        """Output records of what is made from now on get at least this offset."""
        self.counts: dict[str, int] = dict.fromkeys(
            ("duplicates", "late", "cut", "stranded", "ahead", "flat", "bars", "gaps", "equal", "different", "revised"),
            0,
        )
        self.notes: list[Note] = []
        self.made: list[Candle] = []
        self.replaying = False
        self._series: dict[str, Series] = {}
        self._skimmer = None if Skimmer is None else Skimmer()
        self._looked_at: set[Series] = set()  # not lent to the skimmer since
        self._restored: dict[str, dict[int, tuple[Candle, Candle, int]]] = {}
        self._pins: tuple[int | None, int | None] | None = None

    def restore(self, offset: int, candle: Candle) -> None:
        """A candle that was published before."""
        if self._intervals:
            longer = self._longer.get(candle.symbol)
            if longer is None:
                longer = self._longer[candle.symbol] = Longer(candle.symbol, self._intervals)
            if candle.interval == INTERVAL:
                longer.take(candle, offset)
            else:
                longer.restore(candle)
        if candle.interval != INTERVAL:
            return
        known = self._restored.setdefault(candle.symbol, {})
        _, first, first_offset = known.get(candle.open_time, (candle, candle, offset))
        known[candle.open_time] = (candle, first, first_offset)

    def replay(self, items: Sequence[Item]) -> None:
        """Take in records again whose candles are out already, for the windows that were open after them."""
        self.replaying = True
        counts, notes = dict(self.counts), len(self.notes)
        self.process(items)
        self.counts, self.replaying = counts, False
        del self.notes[notes:]

    def skim(self, values: list[bytes | None]) -> Sequence[int]:
        """Take in the plain trades among the values of records; the indices of the rest, which ``take`` is to get."""
        if self._skimmer is None:
            return range(len(values))
        for one in self._looked_at:
            one.lend(self._skimmer)
        self._looked_at.clear()
        return self._skimmer.skim(values)

    def process(self, items: Sequence[Item]) -> list[Made]:
        """Take records in, in order; return the candles that they close or change, in order."""
        return self.take([event for _, _, event in items], items.__getitem__)

    def take(self, events: Sequence[Any], item: Callable[[int], Item]) -> list[Made]:
        """As ``process``; of the few records that matter by themselves ``item`` gives the rest, by index."""
        for symbol, candles in self._restored.items():
            self._series[symbol] = series = Series.restored(symbol, self, candles)
            if symbol in self._longer:
                self._longer[symbol].restored(series.kept)
        self._restored = {}
        out: list[Made] = []
        known, made, skimmer = self._series, self.made, self._skimmer
        with localcontext(EXACT):  # operators below are exact, or raise
            for index, event in enumerate(events):
                kind = type(event)
                one = known.get(event.symbol)
                if one is None:
                    one = known[event.symbol] = Series(event.symbol, self)
                if skimmer is not None:
                    self._looked_at.add(one)
                    if one.lent:
                        one.take_back(skimmer)
                if kind is WireTrade:
                    if one.in_order(event):
                        continue
                    one.trade(item(index)[0], event.read())
                elif kind is Trade:
                    one.trade(item(index)[0], event)
                elif kind is Watermark:
                    one.watermark(item(index)[0], event)
                elif kind is Bar:
                    self.counts["bars"] += 1
                else:
                    one.gap()
                if made:
                    if self._intervals and not self.replaying:
                        made += self._lengthened(one, made)
                    cause = item(index)
                    out += [Made(candle, cause) for candle in made]
                    made.clear()
        return out

    def _lengthened(self, one: Series, made: list[Candle]) -> list[Candle]:
        """Candles of longer intervals that these close or change."""
        longer = self._longer.get(one.symbol)
        if longer is None:
            longer = self._longer[one.symbol] = Longer(one.symbol, self._intervals)
        for candle in made:
            longer.take(candle, self.floor)
        return longer.flush(one.kept)

    def changed(self) -> None:
        """What has to be kept for a restart has changed."""
        self._pins = None

    def pins(self, next_offset: int) -> tuple[int, int | None]:
        """Lowest input offset and lowest output offset that a restart needs (None: no output yet)."""
        if self._pins is None:
            known = [(s, s.frontier) for s in self._series.values()]
            horizon = max((f for _, f in known if f is not None), default=0) - DAY
            awake = [s for s, f in known if f is not None and f >= horizon]
            inputs = [p for s in awake if (p := s.input_pin()) is not None]
            outputs = [p for s in awake if (p := s.output_pin()) is not None]
            if self._intervals:
                longer = [self._longer[s.symbol] for s in awake if s.symbol in self._longer]
                outputs += [p for one in longer if (p := one.output_pin()) is not None]
            self._pins = (min(inputs, default=None), min(outputs, default=None))
        needed, output = self._pins
        return (next_offset if needed is None else max(needed, next_offset - PIN_RECORDS)), output

    def located(self, candle: Candle, offset: int) -> None:
        """The output record of a candle has got this offset."""
        one = self._series.get(candle.symbol)
        if one is not None and candle.interval == INTERVAL:
            one.located(candle, offset)
            self._pins = None

    @property
    def windows_open(self) -> int:
        """Windows that have trades and are not closed."""
        return sum(1 for s in self._series.values() if s.window is not None)
