"""What only the exchange's REST side can tell: holes, first minutes, missed minutes, and what came of open gaps.

Must never decide what is published (that is sequence.py), nor let a gap's late trades hold up the live stream.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator
from random import uniform
from typing import Final

from marketflow_common import logs
from marketflow_common.events import Trade

from .budget import HOUSEKEEPING, LATE
from .rest import PAGE, Rest, RestError, Waiting
from .sequence import Before, Hole, Minutes, Need, SymbolSequence
from .settings import Settings

__all__ = ["Questions", "growing"]

_log = logs.get("ingestor")
_REORDER_SECONDS: Final = 0.05
"""Ids that come out of order, or over two connections, are there within this time."""


def growing(first: float, highest: float) -> Iterator[float]:
    """Growing pauses in seconds with full jitter, so that replicas and symbols do not ask in step."""
    while True:
        yield uniform(first / 2, first)
        first = min(first * 2, highest)


class Questions:
    """Asks for the sequences of one lane, one question per symbol at a time, late ones beside.

    ``room`` waits until the lane can take more; ``moved`` is told that a sequence has put something out.
    """

    def __init__(
        self, settings: Settings, rest: Rest, room: Callable[[], Awaitable[None]], moved: Callable[[], None]
    ) -> None:
        self._settings, self._rest, self._room, self._moved = settings, rest, room, moved
        self._settling: set[str] = set()
        self._filling: set[str] = set()
        self._group: asyncio.TaskGroup | None = None

    def start(self, group: asyncio.TaskGroup) -> None:
        """Work in tasks of this group from now on."""
        self._group = group

    def look_after(self, sequence: SymbolSequence) -> None:
        """See to it that the sequence gets what it needs."""
        assert self._group is not None
        if sequence.unsettled and sequence.symbol not in self._settling:
            self._settling.add(sequence.symbol)
            self._group.create_task(self._settle(sequence))
        if sequence.open and sequence.symbol not in self._filling:
            self._filling.add(sequence.symbol)
            self._group.create_task(self._fill_late(sequence))

    async def _settle(self, sequence: SymbolSequence) -> None:
        """Ask until the sequence needs nothing more; what does not come within the deadline is given up."""
        pauses, moved_at, waited = growing(0.1, 2.0), time.monotonic(), False
        last_id, filled, settle = sequence.last_id, sequence.filled_count, self._settings.settle_s
        try:
            while (need := sequence.need()) is not None:
                if isinstance(need, Hole) and not waited:
                    waited = True
                    await asyncio.sleep(min(_REORDER_SECONDS, settle) if need.urgent else settle)
                    continue
                await self._room()
                problem, asked_at = "REST has none of it yet", time.monotonic()
                try:
                    moved = await self._ask(sequence, need)
                except Waiting as error:
                    if not isinstance(need, Before):
                        moved_at += time.monotonic() - asked_at  # a queue of our own making is no reason for a gap
                        continue
                    # But no symbol waits for minutes, for the sake of its first one, until its turn comes.
                    moved, problem = sequence.start_by_kline(), str(error)
                except RestError as error:
                    moved, problem = False, str(error)
                self._moved()
                if moved:
                    pauses, moved_at = growing(0.1, 2.0), time.monotonic()
                    continue
                if time.monotonic() - moved_at > self._settings.fill_deadline_s:
                    gap = sequence.give_up(problem)
                    _log.error("not_filled", symbol=sequence.symbol, need=repr(need), gap=repr(gap), detail=problem)
                    moved_at = time.monotonic()
                    self._moved()
                    self.look_after(sequence)
                await asyncio.sleep(next(pauses))
            if sequence.filled_count > filled:
                trades = sequence.filled_count - filled
                _log.info("filled", symbol=sequence.symbol, after=last_id, up_to=sequence.last_id, trades=trades)
        finally:
            self._settling.discard(sequence.symbol)

    async def _ask(self, sequence: SymbolSequence, need: Need) -> bool:
        symbol = sequence.symbol
        if isinstance(need, Before):
            whole = sequence.start(await self._back_to(symbol, need))
            _log.info("first_trade", symbol=symbol, trade_id=need.trade_id, first_minute="whole" if whole else "cut")
            return True
        if not isinstance(need, Hole):
            sequence.closed(need, await self._rest.klines(symbol, need.start, need.end))
            return True
        if need.last is None and await self._rest.newest_id(symbol) < need.first:
            sequence.filled([], at_end=True)
            return True
        # One more than is missing: an answer that goes beyond the hole says that the rest of it does not exist.
        limit = PAGE if need.last is None else min(PAGE, need.last - need.first + 2)
        try:
            trades = await self._rest.trades(symbol, need.first, limit)
        except Waiting:
            raise
        except RestError:
            if need.last is None:
                raise
            trades = await self._rest.single_trades(symbol, sequence.minute_open, need.first, need.last)
            if not trades:
                raise
        moved = sequence.filled(trades, at_end=need.last is None and len(trades) < limit)
        return moved or sequence.need() != need

    async def _back_to(self, symbol: str, need: Before) -> list[Trade]:
        found: list[Trade] = []
        first = need.trade_id
        while first > 0:
            begin = max(0, first - PAGE)
            page = [
                t for t in await self._rest.trades(symbol, begin, first - begin, HOUSEKEEPING) if t.trade_id < first
            ]
            found[:0] = page
            if not page or page[0].trade_id > begin or page[0].traded_at < need.at:
                break
            first = begin
        return found

    async def prove(self, sequence: SymbolSequence, minutes: Minutes) -> None:
        """Watermarks for minutes that are closed, as far as REST's klines agree with what was published."""
        pauses, deadline = growing(0.1, 2.0), time.monotonic() + self._settings.fill_deadline_s
        while time.monotonic() < deadline:
            try:
                sequence.closed(minutes, await self._rest.klines(sequence.symbol, minutes.start, minutes.end))
                return
            except RestError:
                await asyncio.sleep(next(pauses))

    async def behind(self, sequence: SymbolSequence) -> bool | None:
        """Whether REST has trades that the stream did not bring in time; None: it cannot be told."""
        try:
            newest = await self._rest.newest_id(sequence.symbol)
        except Waiting:
            return False  # another connection would cost the weight that there is not
        except RestError:
            return None
        if newest > sequence.newest_id:
            await asyncio.sleep(self._settings.settle_s)
        if sequence.last_id < 0 or newest <= sequence.newest_id:
            return False
        sequence.told(newest)
        self.look_after(sequence)
        return True

    async def _fill_late(self, sequence: SymbolSequence) -> None:
        """Ask for the open gaps, oldest first, until each id has come or is lost."""
        pauses, moved_at = growing(1.0, self._settings.late_pause_s), time.monotonic()
        try:
            while sequence.open:
                await asyncio.sleep(next(pauses))
                await self._room()
                if not sequence.open:
                    break
                first, last = gap = sequence.open[0]
                late, problem = sequence.late_count, "REST has none of it yet"
                try:
                    trades = await self._rest.trades(sequence.symbol, first, min(PAGE, last - first + 2), LATE)
                    moved = sequence.late(gap, trades)
                except RestError as error:
                    moved, problem = False, str(error)
                if moved:
                    pauses, moved_at = growing(1.0, self._settings.late_pause_s), time.monotonic()
                    came = sequence.late_count - late
                    _log.info("filled_late", symbol=sequence.symbol, gap=gap, trades=came, open=len(sequence.open))
                elif time.monotonic() - moved_at > self._settings.late_give_up_s:
                    sequence.lost(gap, f"given up after {self._settings.late_give_up_s:g} s: {problem}")
                    _log.error("lost_for_good", symbol=sequence.symbol, gap=gap, detail=problem)
                self._moved()
        finally:
            self._filling.discard(sequence.symbol)
