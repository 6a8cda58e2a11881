"""What the topic itself tells of a partition: where each symbol's sequence ends, what is still missing in it, and
from which record on that has to be read again.

Pure. Must never take a late trade (one that fills a gap declared before) for the end of a sequence.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from marketflow_common.events import Event, Gap, IdRange, Trade, Watermark
from marketflow_common.intervals import window_start
from marketflow_common.ranges import add, overlaps, subtract

__all__ = ["Pins", "Tail", "ids_of", "unpublished"]


class Tail:
    """What the end of the topic says of one symbol. Fed with its records, from the last one backwards, at least as
    far back as the partition's mark (see Pins) and until it is ``known``."""

    def __init__(self) -> None:
        self.through = 0
        """``through`` of the last watermark; 0: none."""
        self.firsts: dict[int, int] = {}
        """First id of each minute that was seen."""
        self.gaps: list[IdRange] = []
        """Ids declared missing that did not come later."""
        self.open: list[IdRange] = []
        """Those of them that are not declared lost for good."""
        self.pin: int | None = None
        """Offset of the oldest gap record seen that was not final."""
        self.ended = False
        """The symbol's last record but watermarks is an empty gap: a closing one, or the one before its first trade."""
        self._seen: list[IdRange] = []
        self._bare = -1  # what the empty gap ends with
        self._proven: int | None = None

    @property
    def last_id(self) -> int:
        """Last id that was published or declared missing, or the one before the first that will be; -1: none."""
        return self._seen[-1][1] if self._seen else self._bare

    @property
    def known(self) -> bool:
        """Nothing further back can change it: the last watermark and all ids after its own were seen."""
        return self._proven is not None and bool(self._seen) and self._seen[-1][0] - 1 <= self._proven <= self.last_id

    def take(self, event: Event, offset: int = 0) -> None:
        """The record before the ones taken so far."""
        if isinstance(event, Watermark):
            if self._proven is None:
                self._proven, self.through = event.last_trade_id, event.through
            return
        if not isinstance(event, Trade | Gap):
            return
        first, last = ids_of(event)
        if isinstance(event, Trade):
            minute = window_start(event.traded_at)
            self.firsts[minute] = min(self.firsts.get(minute, first), first)
        elif last < first:
            if not self._seen and not self.ended:
                self.ended, self._bare = True, last
        else:
            missing = [(first, last)]
            for low, high in self._seen:  # whatever was published of it came later
                subtract(missing, low, high)
            for low, high in missing:
                add(self.gaps, low, high)
                if not event.final:
                    add(self.open, low, high)
            if not event.final:
                self.pin = offset
        add(self._seen, first, last)


class Pins:
    """The mark of a partition: no record before it is needed to know which gaps are open.

    A symbol's oldest gap that is not final holds it until every id of its gaps has come or is lost, and a record
    in order has followed: so the last records of a symbol are never late trades of a gap that lies before the mark.
    """

    def __init__(self, tails: Mapping[str, Tail]) -> None:
        self._pins = {s: (t.pin, list(t.open), t.last_id) for s, t in tails.items() if t.pin is not None}

    @property
    def mark(self) -> int | None:
        """Lowest offset that a restart needs beside the tail; None: nothing."""
        return min((pin for pin, _, _ in self._pins.values()), default=None)

    def take(self, events: Iterable[Event], offset: int) -> None:
        """These are about to be published, at ``offset`` or later."""
        for event in events:
            if isinstance(event, Gap) and not event.final and event.symbol not in self._pins:
                self._pins[event.symbol] = offset, [], event.first_trade_id - 1
            elif not self._pins:
                continue
            if isinstance(event, Trade | Gap) and event.symbol in self._pins:
                pin, open_, last_id = self._pins[event.symbol]
                first, last = ids_of(event)
                if first <= last_id:
                    subtract(open_, first, last)
                elif isinstance(event, Gap) and not event.final:
                    add(open_, first, last)
                elif not open_:
                    del self._pins[event.symbol]
                    continue
                self._pins[event.symbol] = pin, open_, max(last_id, last)


def unpublished(events: Sequence[Event], last_ids: Mapping[str, int], tails: Mapping[str, Tail]) -> list[Event] | None:
    """Those of ``events`` that the topic (as ``tails`` show it) does not hold yet, in order.

    ``last_ids`` is where the sequences are once all of them are out. None: the topic and these do not add up to
    that, so somebody else has written to it, or it has lost records.
    """
    rest: list[Event] = []
    last = {symbol: tail.last_id for symbol, tail in tails.items()}
    for event in events:
        tail = tails[event.symbol]  # type: ignore[attr-defined]
        if isinstance(event, Watermark):
            if event.through > tail.through:
                rest.append(event)
        elif isinstance(event, Trade | Gap):
            first, end = ids_of(event)
            if end < first:  # stands for no id, so it is there if it comes last there, or ids behind it are
                if not tail.ended and tail.last_id <= end:
                    rest.append(event)
            elif end > last[event.symbol]:
                if first != last[event.symbol] + 1 and last[event.symbol] >= 0:
                    return None
                last[event.symbol] = end
                rest.append(event)
            elif (first > tail.last_id or overlaps(tail.open, first, end)) and (
                isinstance(event, Trade) or event.final
            ):
                rest.append(event)
    return rest if all(last[symbol] == last_id for symbol, last_id in last_ids.items()) else None


def ids_of(event: Trade | Gap) -> IdRange:
    """First and last id that a record stands for; an empty gap stands for none."""
    if isinstance(event, Trade):
        return event.trade_id, event.trade_id
    return event.first_trade_id, event.last_trade_id
