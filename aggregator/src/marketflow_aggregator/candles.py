"""One-minute candles from a symbol's trades: which window a trade belongs to, when a window is closed, what is missing.

Pure: records in, candles and notes out. Must never read a clock, or let a candle depend on anything but the
order of its own symbol's records; how much of the log is read again after a restart changes nothing.

A symbol's ids are the truth. A window closes when a trade of a later one, or a watermark, passes its end. Ids
that were skipped may belong to any window from that of the trade before to that of the trade after; the candles
of both name them as missing. A late trade goes into its window, out of these ranges, and narrows those of other
windows: times follow ids. The candles that this changes are stated again, one revision higher, once the symbol's
next record in order, or the end of the range, shows that the run of late trades is over.

All that a restart needs to know of closed windows is in their candles; of the windows after the last candle, in
the records from `pins` on. ``replay`` takes these in, knowing that their candles are out.
"""

from __future__ import annotations

from collections.abc import Iterable
from decimal import Decimal, localcontext
from itertools import pairwise
from typing import Any, NamedTuple

from marketflow_common.events import Bar, Candle, Event, IdRange, Trade, Watermark
from marketflow_common.intervals import MINUTE, window_start
from marketflow_common.numbers import EXACT

from .folds import EMPTY, candle_of, flat_candle, fold_of, merge
from .windows import Closed, Window, without

__all__ = ["DAY", "INTERVAL", "PIN_RECORDS", "REACH", "Candles", "Item", "Made", "Note"]

INTERVAL = "1m"
DAY = 1440 * MINUTE
"""How long things wait: after this long without a record a symbol starts anew and is not waited for by a restart,
and a missing trade that is later than this is not taken any more."""
REACH = 3 * MINUTE
"""Closed windows this recent can still take a trade whose time steps back."""
PIN_RECORDS = 5_000_000
"""A restart reads again at most this many records for the sake of a silent symbol: 15 s of work."""

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
    """All symbols of one partition. Feed with ``restore`` (own output, in order), ``replay``, then ``process``."""

    def __init__(self, floor: int = 0) -> None:
        self.floor = floor
        """Output records of what is made from now on get at least this offset."""
        self.counts: dict[str, int] = dict.fromkeys(
            ("duplicates", "late", "cut", "stranded", "flat", "bars", "gaps", "equal", "different", "revised"), 0
        )
        self.notes: list[Note] = []
        self.made: list[Candle] = []
        self.replaying = False
        self._series: dict[str, Series] = {}
        self._restored: dict[str, dict[int, tuple[Candle, Candle, int]]] = {}
        self._pins: tuple[int | None, int | None] | None = None

    def restore(self, offset: int, candle: Candle) -> None:
        """A candle that was published before."""
        known = self._restored.setdefault(candle.symbol, {})
        _, first, first_offset = known.get(candle.open_time, (candle, candle, offset))
        known[candle.open_time] = (candle, first, first_offset)

    def replay(self, items: Iterable[Item]) -> None:
        """Take in records again whose candles are out already, for the windows that were open after them."""
        self.replaying = True
        counts, notes = dict(self.counts), len(self.notes)
        self.process(items)
        self.counts, self.replaying = counts, False
        del self.notes[notes:]

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
                    one.gap()
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
            known = [(s, s.frontier) for s in self._series.values()]
            horizon = max((f for _, f in known if f is not None), default=0) - DAY
            awake = [s for s, f in known if f is not None and f >= horizon]
            inputs = [p for s in awake if (p := s.input_pin()) is not None]
            outputs = [p for s in awake if (p := s.output_pin()) is not None]
            self._pins = (min(inputs, default=None), min(outputs, default=None))
        needed, output = self._pins
        return (next_offset if needed is None else max(needed, next_offset - PIN_RECORDS)), output

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
        self.closed = 0  # all windows before are closed
        self.stated: int | None = None  # open time of the latest window with a candle
        self.kept: dict[int, Closed] = {}
        self.cut_close: Decimal | None = None  # last price of the cut first window, until a candle is stated
        self.amended: set[int] = set()
        self.start_offset: int | None = None  # first record, until a candle is stated
        self.amended_offset: int | None = None
        self.proof_offset: int | None = None  # what says where the last ids belong, until a later candle shows it
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
        if self.frontier is None:
            return
        missing = self._missing_before(mark.last_trade_id + 1)
        if mark.through - self.frontier > DAY:
            self._start_anew("silent for more than a day")
        elif missing and self.window is not None and self.window.cut:
            self._start_anew("trades are missing in the first window")
        if self.next_id is None:
            return
        self._flush()
        stated = self.stated
        if missing:
            self.next_id = mark.last_trade_id + 1
            last = self.kept[self.stated] if self.stated is not None else None
            if self.window is not None:
                self.window.missing += missing
            elif last is not None and last.highest < mark.last_trade_id:
                lo = last.after[0] if last.after is not None else max(missing[0][0], last.highest + 1)
                last.after = (lo, mark.last_trade_id)
        if mark.through > self.closed:
            if self.window is not None and self.window.end <= mark.through:
                self._close_window()
            if self.window is None:
                self._pass_over(mark.through)
        if missing and (self.proof_offset is None or self.stated != stated):
            self.proof_offset = offset
        self._compare(mark)

    def gap(self) -> None:
        """Ids that could not be had: the jump of the ids says so by itself, whether or not anybody tries again."""
        self.book.counts["gaps"] += 1
        self._flush()

    def _unusual(self, offset: int, trade: Trade) -> None:
        self.book.changed()
        at, trade_id = window_start(trade.traded_at), trade.trade_id
        if self.next_id is None or self.frontier is None:
            self._begin(offset, trade, at)
            return
        if trade_id < self.next_id:
            self._old(offset, trade, at)
            return
        missing = self._missing_before(trade_id)
        if at - self.frontier > DAY:
            self._start_anew("silent for more than a day")
        elif missing and self.window is not None and self.window.cut:
            self._start_anew("trades are missing in the first window")
        if self.next_id is None:
            self._begin(offset, trade, at)
            return
        if self.amended and (missing or at >= self.closed):
            self._flush()
        window = self.window
        if missing:
            self._note("gap_seen", first_trade_id=missing[0][0], last_trade_id=missing[0][1])
            if window is not None:
                window.missing += missing
        if at < self.closed:
            self._step_back(offset, trade, at)
        elif window is not None and at < window.end:
            window.load(merge(window.fold(), fold_of(trade)))
        else:
            self._close_window()
            if not missing:
                self._pass_over(at)
            self._open(offset, trade, at, missing)
        self.next_id = trade_id + 1

    def _old(self, offset: int, trade: Trade, at: int) -> None:
        """An id that lies behind: a late trade, one that a restart reads again, or a duplicate."""
        window = self.window
        if self._late(offset, trade, at):
            return
        if self.book.replaying and at >= self.closed and (window is None or trade.trade_id > window.last_id):
            # Times have stepped back: a closed window holds a higher id, but this trade's window has no candle yet.
            if window is None:
                self._open(offset, trade, at, [])
            else:
                window.load(merge(window.fold(), fold_of(trade)))
            return
        self.book.counts["duplicates"] += 1

    # --- windows -------------------------------------------------------------------------------------

    def _begin(self, offset: int, trade: Trade, at: int) -> None:
        """The first trade ever (or anew): nothing proves that its window starts with it."""
        self._open(offset, trade, at, [])
        assert self.window is not None
        self.window.cut = True
        self.start_offset = offset
        self.next_id = trade.trade_id + 1

    def _start_anew(self, reason: str) -> None:
        if self.window is not None:
            self._note("cut", open_time=self.window.start, reason=reason)
        self._forget()

    def _open(self, offset: int, trade: Trade, at: int, missing: list[IdRange]) -> None:
        self.window = Window(at, offset, False, missing, fold_of(trade))
        self.closed = at

    def _close_window(self) -> None:
        window, self.window = self.window, None
        if window is None:
            return
        self.closed = window.end
        if window.cut:
            self.cut_close = window.close
            self._note("cut", open_time=window.start, reason="nothing proves where its first trade is")
            return
        self.kept[window.start] = Closed(window.fold(), window.missing, self.book.floor)
        self._state(window.start)

    def _pass_over(self, end: int) -> None:
        """No trade from ``closed`` to ``end``: flat candles, if the last price is known."""
        assert self.next_id is not None
        last = self.kept[self.stated] if self.stated is not None else None
        price = self.cut_close
        if last is not None:
            price = last.close if last.highest == last.last_id and last.after is None else None
        if price is not None and not self.book.replaying:
            for at in range(self.closed, end, MINUTE):
                self._flat(at, price, self.next_id - 1)
                self._state(at)
        self.closed = max(self.closed, end)

    def _flat(self, at: int, price: Decimal, last_id: int) -> None:
        self.kept[at] = Closed(EMPTY, [], self.book.floor, flat=(price, last_id))
        self.book.counts["flat"] += 1

    def _state(self, at: int) -> None:
        """Publish what is known of a closed window, if that is news.

        A first statement that comes after those of later windows has revision 1: nobody could have acted on it.
        """
        closed = self.kept[at]
        latest = self.stated is None or at > self.stated
        revision = (0 if latest else 1) if closed.stated is None else closed.stated.revision + 1
        if closed.fold.trade_count:
            candle = candle_of(closed.fold, self.symbol, INTERVAL, at, tuple(closed.missing), revision)
        else:
            assert closed.flat is not None
            candle = flat_candle(self.symbol, INTERVAL, at, *closed.flat, revision)
        if closed.stated is not None and _same(candle, closed.stated):
            return
        closed.whole = closed.whole or (closed.stated is None and latest)
        closed.stated, self.start_offset = candle, None
        self.book.made.append(candle)
        self.book.counts["revised"] += revision > 0
        if latest:
            self.stated = at
            if closed.highest == closed.last_id == (self.next_id or 0) - 1:
                self.proof_offset = None
            self._prune()

    def _flush(self) -> None:
        """State again what late trades have changed."""
        if self.amended:
            changed, self.amended, self.amended_offset = sorted(self.amended), set(), None
            for at in changed:
                self._state(at)

    def _prune(self) -> None:
        """Forget closed windows that nothing can change any more."""
        if len(self.kept) <= REACH // MINUTE:
            return
        assert self.stated is not None
        order = sorted(self.kept)
        waiting = self.stated - DAY
        needed = {at for at in order if at > self.stated - REACH} | self.amended
        for at in order:
            if at >= waiting and (self.kept[at].missing or self.kept[at].after):
                needed.add(at)
        for at, after in pairwise(order):
            # Neighbours of an open edge: they tell the price and the end of flat windows between.
            a, b = self.kept[at], self.kept[after]
            if (at in needed and (a.after or a.highest > a.last_id)) or (after in needed and b.lowest < b.first_id):
                needed |= {at, after}
        covered = False
        for at in reversed(order):
            # What lies after a candle can be told only if no candle between is out of sight.
            if covered or (at in needed and self.kept[at].after is not None):
                needed.add(at)
                covered = not self.kept[at].whole
        for at in order:
            if at not in needed:
                del self.kept[at]

    # --- what is missing, and what comes late ---------------------------------------------------------

    def _missing_before(self, trade_id: int) -> list[IdRange]:
        assert self.next_id is not None
        return [(self.next_id, trade_id - 1)] if trade_id > self.next_id else []

    def _late(self, offset: int, trade: Trade, at: int) -> bool:
        """Take in a trade that was missing; False: it was not."""
        trade_id, window = trade.trade_id, self.window
        ranges: dict[int, IdRange] = {}
        for start, closed in self.kept.items():
            for lo, hi in closed.missing:
                if lo <= trade_id <= hi:
                    ranges[start] = (lo, hi)
        if window is not None:
            for lo, hi in window.missing:
                if lo <= trade_id <= hi:
                    ranges[window.start] = (lo, hi)
        order = [*sorted(self.kept), *([] if window is None else [window.start])]
        before = next((a for a in self.kept if (r := self.kept[a].after) and r[0] <= trade_id <= r[1]), None)
        if before is not None:
            held = self.kept[before].after
            assert held is not None
            after = next((a for a in order if a > before), self.closed)
            first, last, lo, hi = before + MINUTE, after - MINUTE, *held
        elif ranges:
            first, last = min(ranges), max(ranges)
            lo, hi = min(r[0] for r in ranges.values()), max(r[1] for r in ranges.values())
            if lo == self._lowest(first):
                first = max((a for a in order if a < first), default=first - MINUTE) + MINUTE
            if last in self.kept and hi == self.kept[last].highest:
                last = min((a for a in order if a > last), default=self.closed) - MINUTE
        else:
            return False
        self.book.counts["late"] += 1
        at = min(max(at, first), last)
        lefts, rights = set(), set()  # windows with an open edge there
        for start, (a, b) in ranges.items():
            part: Closed | Window = window if window is not None and start == window.start else self.kept[start]
            if a == part.lowest:
                lefts.add(start)
            if b == getattr(part, "highest", None):
                rights.add(start)
            part.missing = without(part.missing, trade_id, below=at >= start, above=at <= start)
            if part is not window:
                self._amend(offset, start)
        if before is not None:
            self.kept[before].after = None
            rights.add(before)
        if window is not None and at == window.start:
            window.load(merge(window.fold(), fold_of(trade)))
        else:
            if at not in self.kept:
                self.kept[at] = new = Closed(EMPTY, without([(lo, hi)], trade_id), self.book.floor)
                prev = self.kept.get(max((a for a in order if a < at), default=at))
                if prev is not None and prev.after is not None and prev.after[0] > trade_id:
                    new.after, prev.after = prev.after, None
                lefts.add(at)
                rights.add(at)
            self.kept[at].fold = merge(self.kept[at].fold, fold_of(trade))
            self._amend(offset, at)
        self._fill_flat(offset, lefts, rights)
        if not any(self.kept[a].missing for a in self.amended):
            self._flush()
        return True

    def _lowest(self, start: int) -> int:
        return self.kept[start].lowest if start in self.kept else self.window.lowest if self.window else 0

    def _fill_flat(self, offset: int, lefts: set[int], rights: set[int]) -> None:
        """Where no id is missing any more between two windows, the windows between them were without trades."""
        order = [*sorted(self.kept), self.closed]
        for at, after in pairwise(order):
            if at not in rights and after not in lefts:
                continue
            closed = self.kept[at]
            if after in self.kept:
                lowest, first = self.kept[after].lowest, self.kept[after].first_id
            elif self.window is not None:
                lowest, first = self.window.lowest, self.window.first_id
            else:
                lowest = first = self.next_id or 0
            if closed.last_id == closed.highest and not closed.after and closed.last_id + 1 == lowest == first:
                for flat in range(at + MINUTE, after, MINUTE):
                    self._flat(flat, closed.close, closed.last_id)
                    self._amend(offset, flat)

    def _step_back(self, offset: int, trade: Trade, at: int) -> None:
        """An id in sequence whose time lies in a closed window: klines go by the time."""
        closed = self.kept.get(at)
        if closed is None:
            if self.proof_offset is None:
                self.proof_offset = offset
            self._note("stranded", trade_id=trade.trade_id, traded_at=trade.traded_at, closed_through=self.closed)
            return
        self.book.counts["late"] += 1
        closed.fold = merge(closed.fold, fold_of(trade))
        self._amend(offset, at)

    def _amend(self, offset: int, at: int) -> None:
        self.amended.add(at)
        if self.amended_offset is None:
            self.amended_offset = offset

    # --- restart -------------------------------------------------------------------------------------

    @classmethod
    def restored(cls, symbol: str, book: Candles, candles: dict[int, tuple[Candle, Candle, int]]) -> Series:
        """The state that the published candles tell: of each window the last and the first record, and its offset."""
        one = cls(symbol, book)
        one.kept = {at: Closed.restored(*candles[at]) for at in sorted(candles)}
        one.stated = max(one.kept)
        one.closed = one.stated + MINUTE
        # Missing ids after the last trade are met again: the record that showed them is replayed.
        one.next_id = max(closed.last_id for closed in one.kept.values()) + 1
        if not any(closed.uneven for closed in one.kept.values()):
            covered = False
            for at, after in pairwise(one.kept):
                # Ids missing in whole windows are in no candle; they show between two that follow one another.
                lo, hi = one.kept[at].highest + 1, one.kept[after].lowest - 1
                covered = covered or one.kept[at].whole
                if covered and lo <= hi and at + MINUTE < after < at + DAY:
                    one.kept[at].after = (lo, hi)
        one._prune()
        return one

    @property
    def frontier(self) -> int | None:
        """How far in time the symbol has come; None: nothing is known of it."""
        return None if self.next_id is None else self.closed

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
