"""Candles of longer intervals out of a symbol's one-minute candles, by the same monoid.

Pure: statements of one-minute candles in, candles out. Must never read a clock or look at a trade.

A longer window closes when the candle of its last minute, or a later one, is stated. It is stated again when one
of its minutes is. Minutes that lie wholly inside a hole in the ids have no candle: the ids between their
neighbours are missing in every window that the hole touches. A window whose first minutes are not known (a symbol
begins in it) is cut and gives no candle. All of this follows from the one-minute candles alone, so a restart reads
those of the windows that may still change, and nothing else.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from decimal import Decimal
from typing import NamedTuple

from marketflow_common.events import Candle, IdRange
from marketflow_common.intervals import INTERVALS, MINUTE, window_start
from marketflow_common.ranges import add

from .folds import EMPTY, Fold, candle_of, fold_of_candle, merge
from .series import DAY, same

__all__ = ["Longer"]


class _Part(NamedTuple):
    """One or more one-minute candles that follow one another. ``offset``: no later than the first one's record."""

    start: int
    end: int
    fold: Fold
    close: Decimal
    first_id: int
    last_id: int
    missing: tuple[IdRange, ...]
    offset: int


def _part(candle: Candle, offset: int) -> _Part:
    return _Part(
        candle.open_time,
        candle.open_time + MINUTE,
        fold_of_candle(candle),
        candle.close,
        candle.first_trade_id,
        candle.last_trade_id,
        candle.missing,
        offset,
    )


def _between(a: _Part, b: _Part) -> tuple[IdRange, ...]:
    """Ids that may be missing in the minutes between, which have no candle: all from one's last to the other's first.

    Neighbours name ids as missing that may as well lie in between.
    """
    lo = (a.fold.last_id if a.fold.trade_count else a.last_id) + 1
    hi = (b.fold.first_id if b.fold.trade_count else b.first_id) - 1
    return ((lo, hi),) if a.end < b.start and lo <= hi else ()


def _joined(a: _Part, b: _Part) -> _Part:
    return _Part(
        a.start,
        b.end,
        merge(a.fold, b.fold),
        b.close,
        min(a.first_id, b.first_id),
        max(a.last_id, b.last_id),
        a.missing + _between(a, b) + b.missing,
        min(a.offset, b.offset),
    )


def _united(ranges: Iterable[IdRange]) -> tuple[IdRange, ...]:
    """The same ids in sorted ranges that neither overlap nor touch."""
    found: list[IdRange] = []
    for lo, hi in ranges:
        add(found, lo, hi)
    return tuple(found)


class _Window:
    """A longer window that is open or may still change. ``late``: later minutes were stated before its first one.

    ``before`` and ``beyond``: the nearest known parts outside of it; they tell where a hole at its edge ends.
    """

    __slots__ = ("before", "beyond", "end", "late", "parts", "start", "stated")

    def __init__(self, start: int, length: int, before: _Part | None, late: bool) -> None:
        self.start, self.end, self.before, self.late = start, start + length, before, late
        self.parts: dict[int, _Part] = {}
        self.beyond: _Part | None = None
        self.stated: Candle | None = None

    def ordered(self) -> list[_Part]:
        return [self.parts[at] for at in sorted(self.parts)]

    def edge(self) -> _Part | None:
        """The part before, if the window's first minutes have no candle."""
        return self.before if min(self.parts) > self.start else None

    def tail(self) -> _Part | None:
        """The part beyond, if the window's last minutes have no candle."""
        return self.beyond if max(part.end for part in self.parts.values()) < self.end else None

    @property
    def cut(self) -> bool:
        """Whether nothing is known of its first minutes."""
        first = min(self.parts)
        return first > self.start and (self.before is None or first - self.before.start > DAY)

    @property
    def closed(self) -> bool:
        return self.beyond is not None or max(part.end for part in self.parts.values()) == self.end

    def candle(self, symbol: str, interval: str) -> Candle:
        """What is known of it, one revision on."""
        parts = self.ordered()
        whole = parts[0]
        for part in parts[1:]:
            whole = _joined(whole, part)
        missing = whole.missing
        edge = self.edge()
        if edge is not None:
            missing += _between(edge, whole)
        tail = self.tail()
        if tail is not None:
            missing += _between(whole, tail)
        fold = whole.fold
        if not fold.trade_count:
            price, last = whole.close, whole.last_id
            fold = EMPTY._replace(first_id=last + 1, last_id=last, open=price, high=price, low=price, close=price)
        revision = int(self.late) if self.stated is None else self.stated.revision + 1
        return candle_of(fold, symbol, interval, self.start, _united(missing), revision)

    def may_change(self, kept: Collection[int]) -> bool:
        """Whether it is open, or holds or borders a minute that may be stated again."""
        edges = (self.edge(), self.tail())
        return not self.closed or any(at in kept for at in (*self.parts, *(e.start for e in edges if e is not None)))

    def news(self, symbol: str, interval: str) -> Candle | None:
        """Its candle, if it has one that has not been stated."""
        if not self.closed or self.cut:
            return None
        candle, stated = self.candle(symbol, interval), self.stated
        return None if stated is not None and same(candle, stated) else candle

    def settle(self, kept: Collection[int]) -> None:
        """Join neighbouring minutes that cannot be stated again: what is kept does not grow with the interval."""
        if len(self.parts) < 2:
            return
        parts: list[_Part] = []
        for part in self.ordered():
            if parts and part.start not in kept and parts[-1].start not in kept:
                parts[-1] = _joined(parts[-1], part)
            else:
                parts.append(part)
        self.parts = {part.start: part for part in parts}


class Longer:
    """All longer intervals of one symbol."""

    def __init__(self, symbol: str, intervals: Iterable[str]) -> None:
        self.symbol = symbol
        self._windows: dict[str, dict[int, _Window]] = {interval: {} for interval in intervals}
        self._newest: _Part | None = None
        self._touched: set[tuple[int, int, str]] = set()

    def take(self, candle: Candle, offset: int) -> None:
        """A statement of a one-minute candle; its output record has this offset or a higher one."""
        part = _part(candle, offset)
        for interval, windows in self._windows.items():
            start, length = window_start(part.start, interval), INTERVALS[interval]
            window = windows.get(start)
            if window is None:
                late = self._newest is not None and self._newest.start >= start + length - MINUTE
                window = windows[start] = _Window(start, length, self._last_before(windows, start), late)
            known = window.parts.get(part.start)
            window.parts[part.start] = part if known is None else part._replace(offset=known.offset)
            self._touch(window, interval)
            for other in windows.values():
                if other.start > start and (other.before is None or other.before.start <= part.start):
                    other.before = part
                    self._touch(other, interval)
                elif other.start < start and (other.beyond is None or part.start <= other.beyond.start):
                    other.beyond = part
                    self._touch(other, interval)
        if self._newest is None or part.start >= self._newest.start:
            self._newest = part

    def restore(self, candle: Candle) -> None:
        """A longer candle that was published before."""
        window = self._windows.get(candle.interval, {}).get(candle.open_time)
        if window is not None:
            window.stated = candle

    def restored(self, kept: Collection[int]) -> None:
        """All that a restart needs has been taken.

        It may have read a part of the minutes of windows that need nothing more: these do not agree with what was
        stated of them, or were not stated although they are closed.
        """
        for interval, windows in self._windows.items():
            for start in list(windows):
                window = windows[start]
                if window.closed and (window.stated is None or window.cut or window.news(self.symbol, interval)):
                    del windows[start]
        self.settle(kept)

    def settle(self, kept: Collection[int]) -> None:
        """Forget what cannot change any more. ``kept``: minutes whose candles may be stated again."""
        self._touched.clear()
        for windows in self._windows.values():
            for start in list(windows):
                if windows[start].may_change(kept):
                    windows[start].settle(kept)
                else:
                    del windows[start]

    def flush(self, kept: Collection[int]) -> list[Candle]:
        """Candles that the minutes taken since have closed or changed, shorter intervals first."""
        made = []
        for _, start, interval in sorted(self._touched):
            window = self._windows[interval][start]
            candle = window.news(self.symbol, interval)
            if candle is not None:
                window.stated = candle
                made.append(candle)
        self.settle(kept)
        return made

    def output_pin(self) -> int | None:
        """Lowest output offset that a restart needs."""
        pins = []
        for windows in self._windows.values():
            for window in windows.values():
                if not window.cut:
                    edge = window.edge()
                    pins += [part.offset for part in (*window.parts.values(), *([edge] if edge else []))]
        return min(pins, default=None)

    def _last_before(self, windows: dict[int, _Window], start: int) -> _Part | None:
        """The newest known minute before a window."""
        known = [part for window in windows.values() if window.start < start for part in window.parts.values()]
        if self._newest is not None and self._newest.start < start:
            known.append(self._newest)
        return max(known, key=lambda part: part.start, default=None)

    def _touch(self, window: _Window, interval: str) -> None:
        self._touched.add((INTERVALS[interval], window.start, interval))
