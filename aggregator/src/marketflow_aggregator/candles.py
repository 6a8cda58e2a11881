"""One-minute candles from a symbol's trades: which window a trade belongs to, when a window is closed, what is missing.

Pure: records in, candles and notes out. Must never read a clock, or let a candle depend on anything but the
order of its own symbol's records; how much of the log is read again after a restart changes nothing.

A symbol's ids are the truth. A window closes when a trade of a later one, or a watermark, passes its end. Ids
that were skipped are a `Hole`: they may belong to any window from that of the trade before to that of the trade
after, and each candle there names them as missing. A late trade in a hole splits it; the candles that this
changes are stated again, one revision higher, when the symbol's next record in order (or the end of the hole)
shows that the run of late trades is over.
"""

from __future__ import annotations

from collections.abc import Iterable
from decimal import Decimal, localcontext
from itertools import pairwise
from typing import Any, NamedTuple

from marketflow_common.events import Bar, Candle, Event, Gap, IdRange, Trade, Watermark
from marketflow_common.intervals import MINUTE, window_start
from marketflow_common.numbers import EXACT

from .folds import EMPTY, candle_of, flat_candle, fold_of, fold_of_candle, merge, own_ids
from .windows import Closed, Hole, Window

__all__ = ["DAY", "INTERVAL", "Candles", "Item", "Made", "Note"]

INTERVAL = "1m"
DAY = 1440 * MINUTE
SILENCE = DAY
"""A symbol that comes back after this long starts anew: between, there may be anything."""
REPAIR = DAY
"""Holes older than this are no longer kept open for late trades."""
REACH = 3 * MINUTE
"""Closed windows this recent can still take a trade whose time steps back."""
PIN_RECORDS = 5_000_000
"""An open window of a silent symbol holds back the committed offset by at most this much: 15 s of reading again."""

Item = tuple[int, int, Event]
"""Offset, append time in ms (unused here), event: the shape of a Kafka loop's Record."""


class Note(NamedTuple):
    """Something that people should know: what for (a counter's name) and the facts."""

    what: str
    facts: dict[str, Any]


class Made(NamedTuple):
    """A candle, and the record that closed or changed it."""

    candle: Candle
    cause: Item


class Candles:
    """All symbols of one partition. Feed with ``restore`` (own output, in order), then ``process``."""

    def __init__(self, floor: int = 0) -> None:
        self.floor = floor
        """Output records of what is made from now on get at least this offset."""
        self.counts: dict[str, int] = dict.fromkeys(
            ("duplicates", "late", "cut", "stranded", "flat", "bars", "gaps", "equal", "different", "revised"), 0
        )
        self.notes: list[Note] = []
        self.made: list[Candle] = []
        self._series: dict[str, Series] = {}
        self._restored: dict[str, dict[int, tuple[Candle, Candle, int]]] = {}
        self._pins: tuple[int | None, int | None] | None = None

    def restore(self, offset: int, candle: Candle) -> None:
        """A candle that was published before."""
        known = self._restored.setdefault(candle.symbol, {})
        _, first, first_offset = known.get(candle.open_time, (candle, candle, offset))
        known[candle.open_time] = (candle, first, first_offset)

    def process(self, items: Iterable[Item]) -> list[Made]:
        """Take records in, in order; return the candles that they close or change, in order."""
        for symbol, candles in self._restored.items():
            self._series[symbol] = Series.restored(symbol, self, candles)
        self._restored = {}
        out: list[Made] = []
        series, made = self._series, self.made
        with localcontext(EXACT):  # operators below are exact, or raise
            for item in items:
                event: Any = item[2]
                kind = type(event)
                if kind is Bar:
                    self.counts["bars"] += 1
                    continue
                one = series.get(event.symbol)
                if one is None:
                    one = series[event.symbol] = Series(event.symbol, self)
                if kind is Trade:
                    one.trade(item[0], event)
                elif kind is Watermark:
                    one.watermark(item[0], event)
                else:
                    one.gap(event)
                if made:
                    out += [Made(candle, item) for candle in made]
                    made.clear()
        return out

    def changed(self) -> None:
        """What has to be kept for a restart has changed."""
        self._pins = None

    def pins(self, next_offset: int) -> tuple[int, int | None]:
        """Lowest input offset and lowest output offset that a restart needs (None: no output yet)."""
        if self._pins is None:
            alive = [s for s in self._series.values() if s.frontier is not None]
            horizon = max((s.frontier for s in alive if s.frontier is not None), default=0) - DAY
            awake = [s for s in alive if s.frontier is not None and s.frontier >= horizon]
            inputs = [p for s in awake if (p := s.input_pin()) is not None]
            outputs = [p for s in awake if (p := s.output_pin()) is not None]
            self._pins = (min(inputs, default=None), min(outputs, default=None))
        needed, output = self._pins
        if needed is not None and next_offset - needed > PIN_RECORDS:
            inputs = [p for s in self._series.values() if (p := s.input_pin()) is not None]
            needed = min((p for p in inputs if next_offset - p <= PIN_RECORDS), default=None)
        return (next_offset if needed is None else needed), output

    def located(self, candle: Candle, offset: int) -> None:
        """The output record of a candle has got this offset."""
        one = self._series.get(candle.symbol)
        if one is not None:
            one.located(candle, offset)
            self._pins = None

    @property
    def windows_open(self) -> int:
        """Windows that have trades and are not closed."""
        return sum(1 for s in self._series.values() if s.window is not None)


class Series:
    """One symbol. ``next_id`` is the id that continues the sequence; None: nothing is known of the symbol."""

    def __init__(self, symbol: str, book: Candles) -> None:
        self.symbol, self.book = symbol, book
        self._forget()

    def _forget(self) -> None:
        self.next_id: int | None = None
        self.window: Window | None = None
        self.closed = 0
        self.close: Decimal | None = None
        self.stated: int | None = None  # open time of the latest stated window
        self.holes: list[Hole] = []
        self.kept: dict[int, Closed] = {}
        self.amended: set[int] = set()
        self.finals: list[IdRange] = []
        self.replay_until = -1
        self.start_offset: int | None = None  # first record, until a candle is stated
        self.amended_offset: int | None = None
        self.proof_offset: int | None = None  # a watermark that bounds a hole, until a later candle shows it
        self.book.changed()

    # --- records -------------------------------------------------------------------------------------

    def trade(self, offset: int, trade: Trade) -> None:
        """The next trade of the log."""
        window = self.window
        if (
            trade.trade_id == self.next_id
            and window is not None
            and window.start <= trade.traded_at < window.end
            and not self.amended
        ):
            price, qty = trade.price, trade.qty
            quote = price * qty
            if price > window.high:
                window.high = price
            elif price < window.low:
                window.low = price
            window.close = price
            window.volume += qty
            window.quote += quote
            window.count += 1
            window.last_id = trade.trade_id
            if not trade.buyer_is_maker:
                window.taker += qty
                window.taker_quote += quote
            self.next_id += 1
            return
        self._unusual(offset, trade)

    def watermark(self, offset: int, mark: Watermark) -> None:
        """Everything before ``through`` is out: windows up to there are closed, flat ones included."""
        self.book.changed()
        ahead = self.frontier is not None and mark.through - self.frontier > SILENCE
        if ahead or (self.window is not None and self.window.cut and mark.last_trade_id >= (self.next_id or 0)):
            self._start_anew("a watermark far ahead" if ahead else "trades missing in its first window")
        if self.next_id is None:
            return
        self._flush()
        if mark.last_trade_id >= self._expected():
            self._add_hole(mark.last_trade_id, mark.through - MINUTE, shared=False)
            self.close = None
            if self.proof_offset is None:
                self.proof_offset = offset
        if mark.through > self.closed:
            if self.window is not None and self.window.end <= mark.through:
                self._close_window()
            if self.window is None:
                self._pass_over(mark.through)
        self._compare(mark)

    def gap(self, gap: Gap) -> None:
        """Ids that could not be had. The jump of the ids says so by itself; new is only that nobody tries again."""
        self.book.counts["gaps"] += 1
        self.book.changed()
        if self.next_id is None:
            return
        self._flush()
        if gap.final:
            for hole in self.holes:
                hole.final = hole.final or (gap.first_trade_id <= hole.lo and hole.hi <= gap.last_trade_id)
            if gap.last_trade_id >= self.next_id:
                self.finals = [r for r in self.finals if r[1] >= self.next_id]
                self.finals.append((gap.first_trade_id, gap.last_trade_id))

    def _unusual(self, offset: int, trade: Trade) -> None:
        self.book.changed()
        at, trade_id = window_start(trade.traded_at), trade.trade_id
        if self.frontier is None:
            self._begin(offset, trade, at)
            return
        expected = self._expected()
        if trade_id < expected:
            self._old(offset, trade, at)
            return
        contiguous = trade_id == expected
        if at - self.frontier > SILENCE:
            self._start_anew("silent for more than a day")
        elif not contiguous and self.window is not None and self.window.cut:
            self._start_anew("trades are missing in the first window")
        if self.next_id is None:
            self._begin(offset, trade, at)
            return
        back = at < self.closed
        if self.amended and not (back and contiguous):
            self._flush()
        if not contiguous:
            self._add_hole(trade_id - 1, at, shared=True)
        self.next_id = trade_id + 1
        window = self.window
        if back:
            self._step_back(offset, trade, at)
        elif window is not None and at < window.end:
            window.load(merge(window.fold(), fold_of(trade)))
        else:
            self._close_window()
            if contiguous:
                self._pass_over(at)
            self._open(offset, trade, at)

    def _old(self, offset: int, trade: Trade, at: int) -> None:
        """An id that lies behind: a late trade, one that a restart reads again, or a duplicate."""
        hole = next((h for h in self.holes if h.lo <= trade.trade_id <= h.hi), None)
        if hole is not None:
            self._late(offset, trade, at, hole)
        elif self.next_id is not None and trade.trade_id >= self.next_id and at >= self.closed:
            # Only after a restart, where times stepped back: the id is lower than some of closed windows, but
            # the trade itself is of a window that is still open.
            self.next_id = trade.trade_id + 1
            if self.window is not None and at < self.window.end:
                self.window.load(merge(self.window.fold(), fold_of(trade)))
            else:
                self._close_window()
                self._open(offset, trade, at)
        else:
            self.book.counts["duplicates"] += 1

    # --- windows -------------------------------------------------------------------------------------

    def _begin(self, offset: int, trade: Trade, at: int) -> None:
        """The first trade ever (or anew): nothing proves that its window starts with it."""
        self.start_offset = offset
        self.closed = at
        self.window = Window(at, offset, True, fold_of(trade))
        self.next_id = trade.trade_id + 1

    def _start_anew(self, reason: str) -> None:
        if self.window is not None:
            self._note("cut", open_time=self.window.start, reason=reason)
        self._forget()

    def _open(self, offset: int, trade: Trade, at: int) -> None:
        self.window = Window(at, offset, False, fold_of(trade))
        self.closed, self.close = at, None

    def _close_window(self) -> None:
        window, self.window = self.window, None
        if window is None:
            return
        self.closed = window.end
        # Its last id may be missing; then the price at its end is not known.
        unknown = any(h.left <= window.start <= h.right and h.lo > window.last_id for h in self.holes)
        self.close = None if unknown else window.close
        if window.cut:
            self._note("cut", open_time=window.start, reason="nothing proves where its first trade is")
            return
        self.kept[window.start] = Closed(window.fold(), None, -1, self.book.floor)
        self._state(window.start)
        self._prune()

    def _pass_over(self, end: int) -> None:
        """No trade from ``closed`` to ``end``: flat candles, if the price is known."""
        if self.close is None:
            if self.next_id is not None and end > self.closed:
                for hole in self.holes:
                    if hole.hi == self.next_id - 1 and not hole.shared:
                        hole.right = max(hole.right, end - MINUTE)
        else:
            assert self.next_id is not None
            for at in range(self.closed, end, MINUTE):
                self.kept[at] = Closed(EMPTY, (self.close, self.next_id - 1), -1, self.book.floor)
                self.closed = at + MINUTE
                self.book.counts["flat"] += 1
                self._state(at)
                self._prune()
        self.closed = max(self.closed, end)

    def _state(self, at: int) -> None:
        """Publish what is known of a closed window, if that is news."""
        closed = self.kept[at]
        revision = closed.revision + 1
        if closed.fold.trade_count:
            missing = tuple((h.lo, h.hi) for h in self.holes if h.left <= at <= h.right)
            candle = candle_of(closed.fold, self.symbol, INTERVAL, at, missing, revision)
        else:
            assert closed.flat is not None
            candle = flat_candle(self.symbol, INTERVAL, at, *closed.flat, revision)
        if closed.stated is not None and _same(candle, closed.stated):
            return
        closed.stated, closed.revision = candle, revision
        self.book.made.append(candle)
        self.start_offset = None
        if revision:
            self.book.counts["revised"] += 1
        if self.stated is None or at > self.stated:
            self.stated = at
            if own_ids(candle)[1] == candle.last_trade_id:
                self.proof_offset = None

    def _flush(self) -> None:
        """State again what late trades have changed."""
        if self.amended:
            changed, self.amended, self.amended_offset = sorted(self.amended), set(), None
            for at in changed:
                self._state(at)

    def _prune(self) -> None:
        """Forget closed windows that nothing can change any more."""
        if len(self.kept) <= REACH // MINUTE and not self.holes:
            return
        open_holes = [h for h in self.holes if not h.final and h.right >= self.closed - REPAIR]
        recent = self.closed - REACH
        for at in [at for at in self.kept if at < recent and at != self.stated and at not in self.amended]:
            if not any(h.left <= at <= h.right or h.prev == at for h in open_holes):
                del self.kept[at]
        self.holes = [
            hole
            for hole in self.holes
            if hole in open_holes or hole.right >= self.closed or any(hole.left <= a <= hole.right for a in self.kept)
        ]

    # --- what is missing, and what comes late ---------------------------------------------------------

    def _expected(self) -> int:
        assert self.next_id is not None
        return max(self.next_id, self.replay_until + 1)

    def _add_hole(self, hi: int, at: int, *, shared: bool) -> None:
        """Ids from the expected one to ``hi`` are missing; ``at`` is the last window that they may belong to."""
        lo = self._expected()
        self.next_id = hi + 1
        left, prev = self.closed, (self.stated if self.window is None else self.window.start)
        last = None if self.window is not None or self.stated is None else self.kept[self.stated].stated
        if last is not None and last.last_trade_id >= lo:
            # Read again after a restart: the last candle has named these ids already, and knows which it still misses.
            here = last.open_time
            if shared:
                self._insert(Hole(lo, min(hi, last.last_trade_id), here, max(here, at), here, True, False))
                lo, left, prev = last.last_trade_id + 1, at, at
            else:
                left = prev = here
        if lo <= hi:
            final = any(a <= lo and hi <= b for a, b in self.finals)
            self._insert(Hole(lo, hi, left, max(left, at), prev, shared, final))
            self._note("gap_seen", first_trade_id=lo, last_trade_id=hi)

    def _insert(self, hole: Hole) -> None:
        self.holes.append(hole)
        self.holes.sort(key=lambda h: h.lo)

    def _late(self, offset: int, trade: Trade, at: int, hole: Hole) -> None:
        """A missing trade has come: into its window, and out of the hole."""
        self.book.counts["late"] += 1
        at = min(max(at, hole.left), hole.right)
        self._amend(offset, *(a for a in self.kept if hole.left <= a <= hole.right))
        if self.window is not None and at == self.window.start:
            self.window.load(merge(self.window.fold(), fold_of(trade)))
        else:
            self._amend(offset, at)
            closed = self.kept.setdefault(at, Closed(EMPTY, None, 0, self.book.floor))
            closed.fold = merge(closed.fold, fold_of(trade))
            if trade.trade_id + 1 == self.next_id:
                self.close = trade.price
        self.holes.remove(hole)
        trade_id = trade.trade_id
        for part in (
            Hole(hole.lo, trade_id - 1, hole.left, at, hole.prev, True, hole.final),
            Hole(trade_id + 1, hole.hi, at, hole.right, at, hole.shared, hole.final),
        ):
            if part.lo <= part.hi:
                self._insert(part)
            else:
                self._resolved(part, offset)
        if not any(h.left <= a <= h.right for h in self.holes for a in self.amended):
            self._flush()

    def _resolved(self, hole: Hole, offset: int) -> None:
        """No id is missing between two trades: the windows between them were without trades."""
        before = self.kept.get(hole.prev) if hole.prev is not None else None
        start = hole.left + MINUTE if hole.prev == hole.left else hole.left
        end = hole.right if hole.shared else hole.right + MINUTE
        for at in range(start, min(end, self.closed), MINUTE):
            if before is not None and at not in self.kept:
                self.kept[at] = Closed(EMPTY, (before.close, hole.lo - 1), 0, self.book.floor)
                self.book.counts["flat"] += 1
                self._amend(offset, at)

    def _step_back(self, offset: int, trade: Trade, at: int) -> None:
        """An id in sequence whose time lies in a closed window: klines go by the time."""
        closed = self.kept.get(at)
        if closed is None:
            self._note("stranded", trade_id=trade.trade_id, traded_at=trade.traded_at, closed_through=self.closed)
            return
        self.book.counts["late"] += 1
        closed.fold = merge(closed.fold, fold_of(trade))
        self._amend(offset, at)

    def _amend(self, offset: int, *windows: int) -> None:
        self.amended.update(windows)
        if self.amended and self.amended_offset is None:
            self.amended_offset = offset

    # --- restart -------------------------------------------------------------------------------------

    @classmethod
    def restored(cls, symbol: str, book: Candles, candles: dict[int, tuple[Candle, Candle, int]]) -> Series:
        """The state that the published candles tell: of each window the last and the first record, and its offset."""
        one = cls(symbol, book)
        ordered = []
        for at in sorted(candles):
            candle, first, offset = candles[at]
            flat = None if candle.trade_count else (candle.close, candle.last_trade_id)
            one.kept[at] = closed = Closed(fold_of_candle(candle), flat, candle.revision, offset)
            closed.stated, closed.exact, closed.whole = candle, True, first.revision == 0
            ordered.append(candle)
        last = ordered[-1]
        one.stated, one.closed, one.close = last.open_time, last.close_time + 1, last.close
        # Missing ids at the very end stay undecided: the record that showed them is read again.
        one.next_id = own_ids(last)[1] + 1
        uneven = [c for c in ordered if _uneven(c)]
        if uneven:
            # Times stepped back: which ids between are of windows still open, the trades' times will tell.
            one.replay_until = max(c.last_trade_id for c in ordered)
            one.next_id = min(one.next_id, *(c.first_trade_id for c in uneven))
        one._restore_holes(ordered, infer=not uneven)
        one._prune()
        return one

    def _restore_holes(self, ordered: list[Candle], infer: bool) -> None:
        places: dict[IdRange, list[int]] = {}
        for i, candle in enumerate(ordered):
            for missing in candle.missing:
                places.setdefault(missing, []).append(i)
        for (lo, hi), at in places.items():
            a, b = ordered[at[0]], ordered[at[-1]]
            before = ordered[at[0] - 1] if at[0] else None
            after = ordered[at[-1] + 1] if b is not ordered[-1] else None
            left, right = a.open_time, b.open_time
            prev: int | None = left
            if a.first_trade_id == lo:
                prev = None
                if before is not None and before.last_trade_id == lo - 1:
                    prev, left = before.open_time, before.close_time + 1
            shared = hi < b.last_trade_id
            if not shared:
                if after is None:
                    continue  # undecided
                if after.first_trade_id == hi + 1:
                    right = after.open_time - MINUTE
            self._insert(Hole(lo, hi, left, right, prev, shared, False))
        for before, after in pairwise(ordered):
            # A hole that filled whole windows is in no candle; it shows between two that follow one another.
            lo, hi = before.last_trade_id + 1, after.first_trade_id - 1
            start, end = before.close_time + 1, after.open_time - MINUTE
            if infer and lo <= hi and start <= end < start + SILENCE and self.kept[before.open_time].whole:
                self._insert(Hole(lo, hi, start, end, before.open_time, False, False))

    @property
    def frontier(self) -> int | None:
        """How far in time the symbol has come; None: nothing is known of it."""
        if self.next_id is None:
            return None
        return self.closed if self.window is None else self.window.start

    def input_pin(self) -> int | None:
        """Lowest input offset that a restart needs for this symbol."""
        if self.start_offset is not None:
            return self.start_offset
        pins = [self.window.offset if self.window else None, self.amended_offset, self.proof_offset]
        return min((p for p in pins if p is not None), default=None)

    def output_pin(self) -> int | None:
        """Lowest output offset that a restart needs for this symbol."""
        return min((closed.offset for closed in self.kept.values() if closed.stated is not None), default=None)

    def located(self, candle: Candle, offset: int) -> None:
        """See Candles.located."""
        closed = self.kept.get(candle.open_time)
        if closed is not None and not closed.exact:
            closed.offset, closed.exact = offset, True

    # --- the exchange's own word ----------------------------------------------------------------------

    def _compare(self, mark: Watermark) -> None:
        kline = mark.kline
        closed = self.kept.get(kline.open_time)
        if closed is None or closed.stated is None:
            return
        candle = closed.stated
        wrong = {}
        for field in kline.__struct_fields__:
            theirs, ours = getattr(kline, field), getattr(candle, field)
            if field == "close_time":  # the exchange's is in milliseconds
                theirs, ours = theirs // 1000, ours // 1000
            elif field in ("first_trade_id", "last_trade_id") and not kline.trade_count and not candle.trade_count:
                continue  # the exchange names no ids for a window without trades
            if theirs != ours:
                wrong[field] = {"exchange": str(theirs), "candle": str(ours)}
        if wrong:
            self._note("different", open_time=candle.open_time, missing=candle.missing, fields=wrong)
        else:
            self.book.counts["equal"] += 1

    def _note(self, what: str, **facts: Any) -> None:
        if what in self.book.counts:
            self.book.counts[what] += 1
        self.book.notes.append(Note(what, {"symbol": self.symbol, **facts}))


def _same(a: Candle, b: Candle) -> bool:
    """Whether two statements differ in nothing but their revision."""
    return all(getattr(a, f) == getattr(b, f) for f in a.__struct_fields__ if f != "revision")


def _uneven(candle: Candle) -> bool:
    """Whether ids of other windows lie between its own: times of its trades have stepped back."""
    missing = sum(hi - lo + 1 for lo, hi in candle.missing)
    return candle.last_trade_id - candle.first_trade_id + 1 - missing != candle.trade_count
