"""One symbol: which window a trade belongs to, when a window is closed, what is missing, what comes late.

Pure: records in, candles and notes out, as part of the book of its partition (candles.py, which tells the rules).
Must never read a clock or let a candle depend on anything but the order of the symbol's own records.
"""

from __future__ import annotations

from decimal import Decimal
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

from marketflow_common.events import Candle, IdRange, Trade, Watermark, WireTrade
from marketflow_common.intervals import MINUTE, window_start

from .folds import EMPTY, Fold, candle_of, flat_candle, fold_of, fold_of_run, merge
from .windows import Closed, Window, without

if TYPE_CHECKING:
    from ._skim import Skimmer
    from .candles import Candles

__all__ = ["AHEAD", "AHEAD_TRADES", "DAY", "INTERVAL", "RECENT", "Note", "Series"]

INTERVAL = "1m"
DAY = 1440 * MINUTE
"""How long things wait: after this long without a record a symbol starts anew and is not waited for by a restart,
and a missing trade that is later than this is not taken any more."""
RECENT = 3 * MINUTE
"""Closed windows this recent are kept: the exchange's own word on them, a watermark's kline, comes after their end."""
AHEAD = 10_000_000
"""A trade's time this far ahead of its own receipt is not believed: an hour closed by mistake cannot be taken back."""
AHEAD_TRADES = 10_000
"""So many trades of one symbol wait for their time at most. More are no mistake of the exchange's: it is the
receiver's clock that is behind, and the next one counts as any other."""


class Note(NamedTuple):
    """Something that people should know: what for (a counter's name) and the facts."""

    what: str
    facts: dict[str, Any]


class Series:
    """One symbol. ``next_id`` is the id that continues the sequence; None: nothing is known of the symbol."""

    def __init__(self, symbol: str, book: Candles) -> None:
        self.symbol, self.book = symbol, book
        self.early: dict[int, list[tuple[int, Trade]]] = {}  # by window: trades far ahead of their receipt
        self.passed: set[int] = set()  # ids of such from next_id on
        self.lent = False  # the skimmer takes trades into the open window
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

    def in_order(self, trade: WireTrade) -> bool:
        """Take a trade into the open window if it goes on with the sequence, and nothing else happens."""
        window, trade_id = self.window, trade.trade_id
        if (
            trade_id != self.next_id
            or window is None
            or not window.start <= trade.traded_at < window.end
            or self.amended
            or self.passed
        ):
            return False
        if trade.price != window.text:
            window.reprice(trade.price)
        qty = Decimal(trade.qty)
        window.volume += qty
        if not trade.buyer_is_maker:
            window.taker += qty
        window.count += 1
        window.last_id = trade_id
        self.next_id = trade_id + 1
        return True

    def lend(self, skimmer: Skimmer) -> None:
        """Let the skimmer take what ``in_order`` would."""
        window = self.window
        if window is None or self.next_id is None or self.amended or self.passed or not self.symbol.isascii():
            return
        self.lent = skimmer.arm(self.symbol, self.next_id, window.start, window.end)

    def take_back(self, skimmer: Skimmer) -> None:
        """What the skimmer has taken in belongs to the open window."""
        self.lent = False
        run = skimmer.take(self.symbol)
        if run is not None:
            assert self.window is not None
            fold = fold_of_run(run)
            self.window.load(merge(self.window.fold(), fold))
            self.next_id = fold.last_id + 1

    def watermark(self, offset: int, mark: Watermark) -> None:
        """Everything before ``through`` is out: windows up to there are closed, flat ones included."""
        self.book.changed()
        if self.next_id is None:
            self._begin_early(mark.through)
        if self.next_id is None:
            return
        missing = self._missing_before(mark.last_trade_id + 1)
        if mark.through - self.closed > DAY:
            self._start_anew("silent for more than a day")
        elif missing and self.window is not None and self.window.cut:
            self._start_anew("trades are missing in the first window")
        if self.next_id is None:
            return
        self._flush()
        stated = self.stated
        if missing:
            self._go_on(mark.last_trade_id + 1)
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
                self._open_early()
        if missing and (self.proof_offset is None or self.stated != stated):
            self.proof_offset = offset
        self._compare(mark)

    def gap(self) -> None:
        """Ids that could not be had: the jump of the ids says so by itself, whether or not anybody tries again."""
        self.book.counts["gaps"] += 1
        self._flush()

    def trade(self, offset: int, trade: Trade) -> None:
        """Any trade."""
        self.book.changed()
        at, trade_id = window_start(trade.traded_at), trade.trade_id
        ahead = self._is_ahead(trade, at)
        if trade_id in self.passed:
            self.book.counts["duplicates"] += 1
            return
        if self.next_id is not None and trade_id < self.next_id:
            self._old(offset, trade, at, ahead)
            return
        if ahead:
            self._hold(offset, trade, at)
        else:
            self._next(offset, trade, at)

    def _next(self, offset: int, trade: Trade, at: int) -> None:
        """A trade that goes on with the sequence, or begins it."""
        trade_id = trade.trade_id
        if self.next_id is None:
            self._begin(offset, trade, at)
            return
        missing = self._missing_before(trade_id)
        if at - self.closed > DAY:
            self._start_anew("silent for more than a day")
        elif missing and self.window is not None and self.window.cut:
            self._start_anew("trades are missing in the first window")
        if self.next_id is None:
            self._begin(offset, trade, at)
            return
        # The exchange's klines tile the ids: one that it has closed takes no more, whatever time a trade names.
        at = max(at, self.closed)
        self._flush()
        window = self.window
        if missing:
            self._note("gap_seen", first_trade_id=missing[0][0], last_trade_id=missing[0][1])
            if window is not None:
                window.missing += missing
        if window is not None and at < window.end:
            window.load(merge(window.fold(), fold_of(trade)))
        else:
            self._close_window()
            if not missing:
                self._pass_over(at)
            self._open(offset, trade, at, missing)
        self._go_on(trade_id + 1)

    def _old(self, offset: int, trade: Trade, at: int, ahead: bool) -> None:
        """An id that lies behind: a late trade, one that a restart reads again, or a duplicate."""
        window = self.window
        if self._late(offset, trade, at):
            return
        if self.book.replaying and ahead:
            if all(t.trade_id != trade.trade_id for _, t in self.early.get(at, ())):
                self._hold(offset, trade, at)
            return
        if (
            self.book.replaying
            and trade.traded_at - trade.received_at > AHEAD
            and at >= self.closed
            and (window is None or trade.trade_id > window.last_id)
        ):
            # It had waited for its window, which has no candle yet; a closed one holds a higher id.
            if window is None:
                self._open(offset, trade, at, [])
            else:
                window.load(merge(window.fold(), fold_of(trade)))
            return
        self.book.counts["duplicates"] += 1

    def _go_on(self, next_id: int) -> None:
        """The sequence goes on at this id, or behind those that are known already."""
        while next_id in self.passed:
            next_id += 1
        self.next_id = next_id
        if self.passed:
            self.passed = {i for i in self.passed if i > next_id}

    # --- trades ahead of their time --------------------------------------------------------------------

    def _is_ahead(self, trade: Trade, at: int) -> bool:
        """Whether the trade would open a later window by a time that its receipt does not bear out."""
        return (
            trade.traded_at - trade.received_at > AHEAD
            and at > (self.closed if self.window is None else self.window.start)
            and sum(map(len, self.early.values())) < AHEAD_TRADES
        )

    def _hold(self, offset: int, trade: Trade, at: int) -> None:
        """Its id has its place in the sequence; the trade itself waits for its window."""
        if not self.early:  # one line for a burst: where the receiver's clock is behind, every trade is ahead
            self._note(
                "ahead", trade_id=trade.trade_id, traded_at=trade.traded_at, received_at=trade.received_at,
                effect="closes no window; waits until the symbol's other trades have come that far",
            )  # fmt: skip
        else:
            self.book.counts["ahead"] += 1
        if trade.traded_at - trade.received_at > DAY:
            self._strand(offset, trade)
        else:
            self.early.setdefault(at, []).append((offset, trade))
        if trade.trade_id == self.next_id:
            self._go_on(trade.trade_id + 1)
        elif self.next_id is None or trade.trade_id > self.next_id:
            self.passed.add(trade.trade_id)

    def _take_early(self, at: int) -> tuple[int, Fold] | None:
        """The trades that have waited for this window, and the offset of the first of them."""
        waiting = self.early.pop(at, None)
        if waiting is None:
            return None
        fold = EMPTY
        for _, trade in waiting:
            fold = merge(fold, fold_of(trade))
        return waiting[0][0], fold

    def _begin_early(self, through: int) -> None:
        """A watermark bears out the first trades of a symbol: it is the receiver's clock that is behind."""
        proven = [at for at in self.early if at < through]
        waiting = [row for at in proven for row in self.early.pop(at)]
        self.passed -= {trade.trade_id for _, trade in waiting}
        for offset, trade in sorted(waiting, key=lambda row: row[1].trade_id):
            self._next(offset, trade, window_start(trade.traded_at))

    def _open_early(self) -> None:
        """Time has come to a window that trades have waited for."""
        early = self._take_early(self.closed)
        if early is not None:
            self.window = Window(self.closed, early[0], False, [], early[1])

    def _drop_early(self, end: int) -> None:
        """What waited for windows that are passed and get no candle."""
        for at in sorted(at for at in self.early if at < end):
            for offset, trade in self.early.pop(at):
                self._strand(offset, trade)

    def _strand(self, offset: int, trade: Trade) -> None:
        """Leave a trade out for good; that its id was there is told by its record only."""
        self.proof_offset = offset if self.proof_offset is None else min(offset, self.proof_offset)
        self._note("stranded", trade_id=trade.trade_id, traded_at=trade.traded_at, closed_through=self.closed)

    # --- windows -------------------------------------------------------------------------------------

    def _begin(self, offset: int, trade: Trade, at: int) -> None:
        """The first trade ever (or anew): nothing proves that its window starts with it."""
        self._open(offset, trade, at, [])
        assert self.window is not None
        self.window.cut = True
        self.start_offset = offset
        self._go_on(trade.trade_id + 1)

    def _start_anew(self, reason: str) -> None:
        if self.window is not None:
            self._note("cut", open_time=self.window.start, reason=reason)
        self._forget()

    def _open(self, offset: int, trade: Trade, at: int, missing: list[IdRange]) -> None:
        early = self._take_early(at)
        fold = fold_of(trade)
        if early is not None:
            offset, fold = min(offset, early[0]), merge(fold, early[1])
        self.window = Window(at, offset, False, missing, fold)
        self.closed = at
        self._drop_early(at)

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
                early = self._take_early(at)
                if early is None:
                    self._flat(at, price, self.next_id - 1)
                else:
                    self.kept[at] = Closed(early[1], [], self.book.floor)
                    price = early[1].close
                self._state(at)
        self._drop_early(end)
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
        if closed.stated is not None and same(candle, closed.stated):
            return
        closed.whole = closed.whole or (closed.stated is None and latest)
        closed.stated = candle
        if self.start_offset is not None and any(c.highest >= (self.next_id or 0) - 1 for c in self.kept.values()):
            self.start_offset = None  # the candles tell the last id
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
        if len(self.kept) <= RECENT // MINUTE:
            return
        assert self.stated is not None
        order = sorted(self.kept)
        waiting = self.stated - DAY
        needed = {at for at in order if at > self.stated - RECENT} | self.amended
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
        if not self.passed:
            return [(self.next_id, trade_id - 1)] if trade_id > self.next_id else []
        missing, lo = [], self.next_id
        for known in (*sorted(i for i in self.passed if i < trade_id), trade_id):
            if known > lo:
                missing.append((lo, known - 1))
            lo = known + 1
        return missing

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
        covered = False
        for at, after in pairwise(one.kept):
            # Ids missing in whole windows are in no candle; they show between two that follow one another, where
            # no trade that had waited for its time could be among them.
            lo, hi = one.kept[at].highest + 1, one.kept[after].lowest - 1
            covered = covered or one.kept[at].whole
            if (
                covered
                and lo <= hi
                and at + MINUTE < after < at + DAY
                and not any(c.fold.trade_count and c.lowest <= hi and c.highest >= lo for c in one.kept.values())
            ):
                one.kept[at].after = (lo, hi)
        one._prune()
        return one

    @property
    def frontier(self) -> int | None:
        """How far in time the symbol has come; None: nothing is known of it."""
        if self.next_id is None:
            return max((t.received_at for waiting in self.early.values() for _, t in waiting), default=None)
        return self.closed

    def input_pin(self) -> int | None:
        """Lowest input offset that a restart needs for this symbol."""
        early = min((waiting[0][0] for waiting in self.early.values()), default=None)
        pins = [self.start_offset, early]
        if self.start_offset is None:
            pins += [self.window.offset if self.window else None, self.amended_offset, self.proof_offset]
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


def same(a: Candle, b: Candle) -> bool:
    """Whether two statements differ in nothing but their revision."""
    return all(getattr(a, f) == getattr(b, f) for f in a.__struct_fields__ if f != "revision")
