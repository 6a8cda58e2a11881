"""One symbol's trades in the order of their ids, and its minutes once every trade of them is out.

Pure: no I/O, no clock. Events go in by methods, records to publish are appended to ``out``, and ``need()`` says
what only the exchange's REST side can tell. Must never put out a trade twice, beyond a hole that was not filled
or declared, or out of order but for the late trades of a declared gap.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

from marketflow_common.events import Event, Gap, IdRange, Kline, Trade, Watermark
from marketflow_common.intervals import MINUTE, window_start
from marketflow_common.ranges import add, overlaps, subtract
from msgspec.structs import replace

from .tail import Tail

__all__ = ["Before", "Hole", "Minutes", "Need", "SymbolSequence"]

_ODD: Final = 3
"""Old ids with new times in a row that prove that the exchange has begun to number anew."""
_LOST: Final = "the exchange does not have these trades"
_KEPT_MINUTES: Final = 10_080
"""Minutes whose first id is remembered while no watermark comes to forget them: a week."""


class Before(NamedTuple):
    """Nothing was ever published: wanted are the trades before ``trade_id``, back to one before the time ``at``."""

    trade_id: int
    at: int


class Hole(NamedTuple):
    """Trades ``first`` to ``last`` are missing; ``last`` None: it is not known whether there are any.

    ``urgent``: later trades wait for them. Otherwise the stream itself may still bring them in a moment.
    """

    first: int
    last: int | None
    urgent: bool


class Minutes(NamedTuple):
    """The stream did not bring the closed klines of the minutes from ``start`` up to ``end`` (exclusive)."""

    start: int
    end: int


Need = Before | Hole | Minutes


class _Minute(NamedTuple):
    """A closed kline that waits until everything up to ``last_id`` is out (None: not yet known up to where)."""

    kline: Kline
    last_id: int | None


class SymbolSequence:
    """The state machine of one symbol. ``unsettled`` is True while ``need()`` has something to ask."""

    def __init__(self, source: str, symbol: str, out: list[Event], tail: Tail | None = None) -> None:
        self.source, self.symbol = source, symbol
        self.unsettled = False
        self.duplicates = self.filled_count = self.late_count = 0
        self.open: list[IdRange] = []
        """Ids of gaps that are out and not final: to be asked for in the background."""
        self._out = out
        self._held: dict[int, Trade] = {}
        self._minutes: list[_Minute] = []
        self._next = -1  # id to publish next; -1: nothing was ever published
        self._opening = (-1, -1)  # a minute, and the id of its first trade
        self._through = 0  # the minutes before it are proven, or will never be
        self._asked = 0  # the minutes before it were asked for by REST
        self._minute_end = 0
        self.anew = -1
        """An id of the exchange's that proves that it numbers its trades anew, from below; -1: none. Nothing is put
        out from then on: the two sequences of ids must not become one."""
        self._odd = 0  # old ids with new times, one after the other
        self._told = -1  # an id that exists, though the stream did not bring it
        self._firsts: dict[int, int] = {}
        self._gaps: list[IdRange] = []
        self._unproven = False  # since the last (re)connection nothing says that no trade is missing at the end
        self._unproven_before = False  # so it was already when the last connection began
        self._resumed = False
        if tail is not None and tail.last_id >= 0:
            self._next = tail.last_id + 1
            self._through = tail.through or min(tail.firsts, default=0)
            self._firsts = {at: tail.firsts[at] for at in sorted(tail.firsts) if at >= self._through}
            self._gaps, self.open = list(tail.gaps), list(tail.open)
            self._minute_end = max(self._firsts, default=self._through - MINUTE) + MINUTE

    @property
    def last_id(self) -> int:
        """The last id that is out or declared missing; -1: none."""
        return self._next - 1 if self._next >= 0 else -1

    @property
    def held(self) -> int:
        """Trades that wait for a hole to be filled."""
        return len(self._held)

    @property
    def newest_id(self) -> int:
        """The highest id that the stream has brought; -1: none."""
        return max(self._held, default=self.last_id)

    @property
    def minute_open(self) -> int:
        """Open time of the minute of the last trade."""
        return self._minute_end - MINUTE

    @property
    def unproven_minutes(self) -> Minutes | None:
        """The minutes up to that of the last trade for which there is no watermark; None: there is one for all."""
        return Minutes(self._through, self._minute_end) if 0 < self._through < self._minute_end else None

    # --- what the stream says ------------------------------------------------------------------------

    def connected(self) -> None:
        """The stream begins (again) here: trades may be missing between the last one and the next."""
        if self._next >= 0 or self._held:
            self._unproven_before = self._unproven
            self._unproven = self._resumed = self.unsettled = True

    def covered(self) -> None:
        """After all nothing is missing before the last ``connected``: another connection has brought it, from its
        own beginning on."""
        if self._unproven and not self._unproven_before and self._next >= 0:
            self._proven_up_to(self.newest_id)
            self._advance()

    def told(self, trade_id: int) -> None:
        """A trade of this id exists, but what the stream said of it cannot be used."""
        if self._next >= 0 and trade_id >= self._next:
            self._told = max(self._told, trade_id)
            self.unsettled = True

    def trade(self, trade: Trade) -> None:
        """The next trade of the stream."""
        if self.anew >= 0:
            return
        if trade.trade_id == self._next:
            self._publish(trade)
            self._odd = 0
            if self.unsettled:
                self._proven_up_to(trade.trade_id)
                self._advance()
        elif trade.trade_id < self._next and trade.traded_at >= self._minute_end:
            self._old_id_new_time(trade)
        elif trade.trade_id < self._next or trade.trade_id in self._held:
            self.duplicates += 1
        else:
            self._held[trade.trade_id] = trade
            self.unsettled = True
            if self._next >= 0:
                self._proven_up_to(trade.trade_id - 1)

    def opened(self, open_time: int, first_trade_id: int) -> None:
        """The first trade of a minute that is not closed yet has this id."""
        if self._next < 0:
            self._opening = (open_time, first_trade_id)

    def minute(self, kline: Kline) -> None:
        """The exchange has closed a minute."""
        if self._next < 0 and not self._held:
            return  # nothing of the symbol is known yet, so there is nothing to prove
        if self.anew >= 0 or (self._odd and kline.last_trade_id < self._next):
            return  # the proof of other trades than those that were published
        self._through = self._through or kline.open_time
        if kline.open_time < self._through or any(kline.open_time == m.kline.open_time for m in self._minutes):
            return
        last_id: int | None = kline.last_trade_id
        if kline.trade_count == 0:
            # Names no id; but the stream has sent everything before it.
            last_id = None if self._unproven else self.newest_id
        insort(self._minutes, _Minute(kline, last_id), key=lambda m: m.kline.open_time)
        self._advance()

    # --- what REST says ------------------------------------------------------------------------------

    def need(self) -> Need | None:
        """What is to be asked of REST now."""
        if self.anew >= 0:
            return None
        if self._next < 0:
            if not self._held:
                return None
            first = self._held[min(self._held)]
            return Before(first.trade_id, window_start(first.traded_at))
        if self._held:
            return Hole(self._next, min(self._held) - 1, True)
        if self._told >= self._next:
            return Hole(self._next, self._told, True)
        head = self._minutes[0] if self._minutes else None
        if head is not None and head.last_id is not None and head.last_id >= self._next:
            return Hole(self._next, head.last_id, False)
        if self._unproven:
            return Hole(self._next, None, False)
        known = max(self._through, self._asked)
        if head is not None and head.kline.open_time > known:
            return Minutes(known, head.kline.open_time)
        # A trade of a later minute says that all minutes before it are closed.
        if self._resumed and self._minute_end - MINUTE > known:
            return Minutes(known, self._minute_end - MINUTE)
        return None

    def start(self, earlier: Sequence[Trade], unasked: str = "") -> bool:
        """Answer to Before: trades before the first one, by id. Returns whether the first minute is whole.

        ``unasked``: why there is no answer. An empty gap before the first trade says so in the topic.
        """
        first = self._held[min(self._held)]
        minute, begin, run = window_start(first.traded_at), first.trade_id, []
        for trade in reversed(earlier):
            if trade.trade_id >= begin:
                continue
            if trade.trade_id != begin - 1:
                break
            run.append(trade)
            begin = trade.trade_id
            if trade.traded_at < minute:
                break
        self._next, self._through = begin, minute
        if unasked:
            self._out.append(Gap(self.source, self.symbol, begin, begin - 1, unasked, True))
        self._minutes = [m for m in self._minutes if m.kline.open_time >= minute]
        for trade in reversed(run):
            self._publish(trade)
        self.filled_count += len(run)
        self._advance()
        return bool(run) and run[-1].traded_at < minute

    def start_by_kline(self) -> bool:
        """Go on without an answer to Before where the minute's open kline begins with the first trade: nothing that
        was missing could have come. Returns whether it does."""
        first = self._held[min(self._held)]
        if self._opening != (window_start(first.traded_at), first.trade_id):
            return False
        self.start((), "not asked for what is before: the minute begins here")
        return True

    def filled(self, trades: Iterable[Trade], at_end: bool) -> bool:
        """Answer to Hole: the exchange's trades from ``first`` on, by id; ``at_end``: there were no more.

        What is missing below a trade that the answer holds is lost for good: a final gap. Returns whether the
        answer brought the symbol forward.
        """
        before = self._next
        for trade in trades:
            if trade.trade_id < self._next:
                continue
            while self._next < trade.trade_id:
                if not self._publish_held():
                    end = min([trade.trade_id, *(i for i in self._held if i < trade.trade_id)])
                    self._gap(end - 1, _LOST, final=True)
            if self._held.pop(trade.trade_id, None) is None:
                self.filled_count += 1
            self._publish(trade)
        if at_end:
            self._proven_up_to(self._next - 1)
        self._advance()
        return self._next > before

    def closed(self, need: Minutes, klines: Iterable[Kline]) -> None:
        """Answer to Minutes: closed klines in order of time, whose ids REST does not tell.

        Only those whose count agrees with the published ids become watermarks; a later one covers the others.
        Beside a gap agreement may be chance: nobody knows on which side of the minute's edge its ids lie.
        """
        for kline in klines:
            if not self._through <= kline.open_time < need.end:
                continue
            first, end = self._first_from(kline.open_time), self._first_from(kline.open_time + MINUTE)
            beside_gap = overlaps(self._gaps, first - 1, end)
            if kline.trade_count == end - first and not beside_gap:
                ids = (first, end - 1) if kline.trade_count else (-1, -1)
                self._watermark(replace(kline, first_trade_id=ids[0], last_trade_id=ids[1]), end - 1)
        self._asked, self._resumed = max(self._asked, need.end), False
        if self._through < need.end:
            # The stream may have lost the last trades along with their minutes' klines. A minute without trades
            # must not cover that: it names no id.
            self._unproven = True
            self._minutes = [m if m.kline.trade_count else m._replace(last_id=None) for m in self._minutes]
        self._advance()

    def give_up(self, reason: str) -> Gap | None:
        """REST did not answer in time: go on without, and say what is missing. Returns the gap, if it is one.

        Where not even the end of the hole is known, nothing is declared: it stays open.
        """
        need, gap = self.need(), None
        if isinstance(need, Before):
            self.start((), f"what is before is not known: {reason}")
        elif isinstance(need, Minutes):
            self.closed(need, ())
        elif isinstance(need, Hole) and need.last is not None:
            gap = self._gap(need.last, reason, final=False)
            self._advance()
        return gap

    # --- what comes late -----------------------------------------------------------------------------

    def late(self, gap: IdRange, trades: Iterable[Trade]) -> bool:
        """The exchange's trades from the gap's first id on, by id, for one of ``open``.

        Those of the gap go out as late trades; ids that the answer skips, or lies beyond, are lost: a final gap.
        Returns whether the answer told anything.
        """
        at, end = gap
        for trade in trades:
            if trade.trade_id < at or at > end:
                continue
            self.lost((at, min(end, trade.trade_id - 1)), _LOST)
            at = trade.trade_id + 1
            if trade.trade_id <= end:
                self._out.append(trade)
                self.late_count += 1
                subtract(self.open, trade.trade_id, trade.trade_id)
                subtract(self._gaps, trade.trade_id, trade.trade_id)
                minute = window_start(trade.traded_at)
                if minute >= self._through and self._firsts.get(minute, at) >= at:
                    self._firsts = dict(sorted({**self._firsts, minute: trade.trade_id}.items()))
        return at > gap[0]

    def lost(self, gap: IdRange, reason: str) -> None:
        """Nobody will ask for these of ``open`` again; an empty range is ignored."""
        if gap[1] >= gap[0]:
            self._out.append(Gap(self.source, self.symbol, *gap, reason, True))
            subtract(self.open, *gap)

    def end(self, reason: str) -> None:
        """The symbol does not trade any more: what is still open is lost, and a closing gap says that this is all.

        The closing gap is final and empty: it begins behind the last id and ends with it. Trades may follow later.
        """
        for gap in list(self.open):
            self.lost(gap, reason)
        if self._next >= 0:
            self._out.append(Gap(self.source, self.symbol, self._next, self._next - 1, reason, True))

    def _old_id_new_time(self, trade: Trade) -> None:
        """No repeat: a repeat lies in a minute that was seen. A few such, or one far off, and the ids start anew."""
        self._odd += 1
        if self._odd >= _ODD or trade.traded_at >= self._minute_end + MINUTE:
            self.anew, self.unsettled = trade.trade_id, False
            self._held.clear()
            self._minutes.clear()

    # --- going forward -------------------------------------------------------------------------------

    def _publish(self, trade: Trade) -> None:
        self._out.append(trade)
        self._next = trade.trade_id + 1
        if trade.traded_at >= self._minute_end:
            minute = window_start(trade.traded_at)
            self._minute_end = minute + MINUTE
            self._through = self._through or minute
            self._firsts[minute] = trade.trade_id
            if len(self._firsts) > _KEPT_MINUTES:
                del self._firsts[next(iter(self._firsts))]

    def _publish_held(self) -> bool:
        trade = self._held.pop(self._next, None)
        if trade is None:
            return False
        self._publish(trade)
        return True

    def _gap(self, last: int, reason: str, final: bool) -> Gap:
        gap = Gap(self.source, self.symbol, self._next, last, reason, final)
        self._out.append(gap)
        add(self._gaps, self._next, last)
        if not final:
            add(self.open, self._next, last)
        self._next = last + 1
        return gap

    def _proven_up_to(self, last_id: int) -> None:
        """Everything that happened before this moment of the stream has an id of at most ``last_id``."""
        if self._unproven:
            self._unproven = False
            self._minutes = [m if m.last_id is not None else m._replace(last_id=last_id) for m in self._minutes]

    def _advance(self) -> None:
        if self._next >= 0:
            # After each: a trade behind a minute's edge whose time steps back counts by what is proven before it.
            self._prove()
            while self._held and self._publish_held():
                self._prove()
        self.unsettled = self.need() is not None
        if not self.unsettled:
            self._resumed = False

    def _prove(self) -> None:
        while self._minutes:
            kline, last_id = self._minutes[0]
            if kline.open_time >= self._through:
                if last_id is None or last_id >= self._next or kline.open_time > max(self._through, self._asked):
                    return
                empty = kline.trade_count == 0
                self._watermark(kline, self._first_from(kline.open_time + MINUTE) - 1 if empty else last_id)
            self._minutes.pop(0)

    def _watermark(self, kline: Kline, last_id: int) -> None:
        self._through = kline.close_time + 1
        self._out.append(Watermark(self.source, self.symbol, self._through, last_id, kline))
        self._firsts = {at: first for at, first in self._firsts.items() if at >= self._through}
        self._gaps = [gap for gap in self._gaps if gap[1] >= last_id]

    def _first_from(self, at: int) -> int:
        """First published id of the minutes from ``at`` on; the next id if none was published there."""
        return next((first for minute, first in self._firsts.items() if minute >= at), self._next)
