"""A tape whose future was changed: trades taken out, put in or given another time, and the ids after them made to fit.

Pure, and only for what has not happened yet: whoever edits sees to that. The tape beneath is never touched.
"""

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice

import msgspec

from marketflow_simulator.trades import Tape, Trade

_END = 1 << 62


class _Part(msgspec.Struct):
    """A stretch of the tape: the trades beneath with an id from `first` on and before `until`, or trades of its own."""

    first: int
    until: int
    start_us: int
    """When its first trade is published."""
    shift: int = 0
    """What its ids are higher by than those beneath."""
    agg_shift: int = 0
    own: list[Trade] | None = None

    def shown(self, trade: Trade) -> Trade:
        if not (self.shift or self.agg_shift):
            return trade
        return msgspec.structs.replace(trade, id=trade.id + self.shift, agg_id=trade.agg_id + self.agg_shift)

    def moved(self, ids: int, aggs: int) -> "_Part":
        if self.own is None:
            return msgspec.structs.replace(self, shift=self.shift + ids, agg_shift=self.agg_shift + aggs)
        own = [msgspec.structs.replace(t, id=t.id + ids, agg_id=t.agg_id + aggs) for t in self.own]
        return msgspec.structs.replace(self, own=own)


class EditedTape:
    """A `Tape` over another one. Edits are told by the ids and times as they are at that moment."""

    def __init__(self, base: Tape) -> None:
        self._base = base
        self._parts = [_Part(0, _END, 0)]
        self._closed: list[_Part] | None = None

    # --- edits

    def splice(self, first: int, until: int, put_in: Sequence[Trade] = (), renumber: bool = True) -> None:
        """Put trades (in order) in the place of those from `first` to before `until`; they get their ids here.

        `first` is the id of a trade. With `renumber` the ids after it have no hole; without, those of the trades
        taken out are never given to any other.
        """
        at = self._split(first)
        to = self._split(until)
        start = next(self._by_id(self._parts[at:]), None)
        before = self.latest(first - 1, 1)
        later = next(self._by_id(self._parts[to:]), None)
        agg = 1 if start is None else start.agg_id
        if before and start is not None and before[-1].agg_id == start.agg_id:
            agg += 1
        own = [msgspec.structs.replace(t, id=first + i, agg_id=agg + i) for i, t in enumerate(put_in)]
        rest = self._parts[to:]
        if later is not None and (renumber or own):
            ids = first + len(own) - later.id if renumber else 0
            rest = [part.moved(ids, agg + len(own) - later.agg_id) for part in rest]
        middle = [_Part(0, 0, own[0].at_us, own=own)] if own else []
        self._parts = [*self._parts[:at], *middle, *rest]

    def close(self, first: int) -> None:
        """Take out all trades from the id `first` on, until `reopen`."""
        at = self._split(first)
        self._closed = self._parts[at:]
        del self._parts[at:]

    def reopen(self, from_us: int) -> None:
        """Let those trades that were taken out by `close` and are published at `from_us` or later come after all."""
        closed, self._closed = self._closed or [], None
        kept, self._parts = self._parts, closed
        first, start = next(self._by_id(closed), None), next(self.live(from_us), None)
        if first is not None and start is not None:
            self.splice(first.id, start.id)
        self._parts = [*kept, *(self._parts if start is not None else ())]

    def _split(self, trade_id: int) -> int:
        """Index of the part that begins with the first trade of this id or a higher one, made if need be."""
        for index, part in enumerate(self._parts):
            found = next(self._by_id([part], trade_id), None)
            if found is None:
                continue
            if found == next(self._by_id([part])):
                return index
            if part.own is not None:
                cut = part.own.index(found)
                halves = [part.own[:cut], part.own[cut:]]
                self._parts[index : index + 1] = [_Part(0, 0, own[0].at_us, own=own) for own in halves]
            else:
                cut = found.id - part.shift
                later = msgspec.structs.replace(part, first=cut, start_us=found.at_us)
                self._parts[index : index + 1] = [msgspec.structs.replace(part, until=cut), later]
            return index + 1
        return len(self._parts)

    # --- what a tape has to offer

    @property
    def symbol(self) -> str:
        return self._base.symbol

    @property
    def first_at_us(self) -> int:
        return self._base.first_at_us

    @property
    def last_at_us(self) -> int | None:
        return self._base.last_at_us

    def live(self, from_us: int) -> Iterator[Trade]:
        for part in list(self._parts):
            if part.own is not None:
                yield from (trade for trade in part.own if trade.at_us >= from_us)
                continue
            for trade in self._base.live(max(from_us, part.start_us)):
                if trade.id >= part.until:
                    break
                if trade.id >= part.first:
                    yield part.shown(trade)

    def by_id(self, from_id: int, limit: int) -> list[Trade]:
        return list(islice(self._by_id(self._parts, from_id, limit), limit))

    def _by_id(self, parts: Iterable[_Part], from_id: int = -_END, page: int = 1) -> Iterator[Trade]:
        """Trades of the parts from an id on; `page` is how many are got from the tape beneath at once."""
        for part in list(parts):
            if part.own is not None:
                yield from (trade for trade in part.own if trade.id >= from_id)
                continue
            at = max(from_id - part.shift, part.first)
            while at < part.until and (found := self._base.by_id(at, page)):
                for trade in found:
                    if trade.id >= part.until:
                        break
                    yield part.shown(trade)
                at = found[-1].id + 1

    def latest(self, until_id: int, limit: int) -> list[Trade]:
        rows: list[Trade] = []
        for part in reversed(self._parts):
            if len(rows) >= limit:
                break
            if part.own is not None:
                found = [trade for trade in part.own if trade.id <= until_id]
            else:
                last = min(until_id - part.shift, part.until - 1)
                beneath = self._base.latest(last, limit - len(rows)) if last >= part.first else []
                found = [part.shown(trade) for trade in beneath if trade.id >= part.first]
            rows[:0] = found[-(limit - len(rows)) :]
        return rows

    def between(self, from_us: int, until_us: int) -> list[Trade]:
        rows: list[Trade] = []
        for part in self._parts:
            if part.own is not None:
                rows += (trade for trade in part.own if from_us <= trade.at_us < until_us)
            elif until_us > part.start_us:
                beneath = self._base.between(max(from_us, part.start_us), until_us)
                rows += (part.shown(trade) for trade in beneath if part.first <= trade.id < part.until)
        return rows

    def before(self, us: int) -> Trade | None:
        for part in reversed(self._parts):
            if part.own is not None:
                found = [trade for trade in part.own if trade.at_us < us]
                if found:
                    return found[-1]
            elif us > part.start_us:
                beneath = self._base.before(us)
                if beneath is not None and beneath.id >= part.until:
                    beneath = next(iter(self._base.latest(part.until - 1, 1)), None)
                if beneath is not None and beneath.id >= part.first:
                    return part.shown(beneath)
        return None

    def count(self, from_us: int, until_us: int) -> int:
        return len(self.between(from_us, until_us))

    def agg_start(self, agg_id: int) -> int | None:
        for part in self._parts:
            if part.own is not None:
                beneath = next((trade.id for trade in part.own if trade.agg_id >= agg_id), None)
                if beneath is not None:
                    return beneath
                continue
            found = self._base.agg_start(agg_id - part.agg_shift)
            if found is not None and max(found, part.first) < part.until:
                return max(found, part.first) + part.shift
        return None

    def prepare(self, us: int) -> bool:
        return self._base.prepare(us)
