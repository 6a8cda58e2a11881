"""One partition of ohlcv_raw: its symbols' streams in, their sequences, and the transactions out.

Must never publish before the tail of the partition was read behind the fence.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import suppress
from typing import Any, Final

from confluent_kafka import KafkaException
from marketflow_common import logs, topics
from marketflow_common.clock import now_us
from marketflow_common.events import Event, Gap, Trade, Watermark
from marketflow_common.intervals import MINUTE
from marketflow_common.kafka.client import FatalKafkaError
from marketflow_common.kafka.source import Publisher, PublishFailed, read_back

from . import metrics
from .binance import SOURCE, Closed, Doubtful, Opened
from .budget import Connects
from .connections import Connections
from .questions import Questions
from .rest import Rest
from .sequence import SymbolSequence
from .settings import Settings
from .tail import Pins, Tail, unpublished

__all__ = ["BROKER_AWAY", "Lane", "set_within"]

_log = logs.get("ingestor")
BROKER_AWAY: Final = (PublishFailed, KafkaException, FatalKafkaError)
_FLUSH_SECONDS: Final = 5.0
_COUNT_SECONDS: Final = 1.0
_LOOK_SECONDS: Final = 0.25
_MINUTE_SECONDS: Final = 61.0
_NAMED: Final = 20
"""Symbols in a log line at most."""
_NEVER: Final = 1 << 60
_CLOCK_TOLERANCE: Final = 10_000_000
"""Microseconds by which a trade may be ahead of the exchange's clock as we have measured it."""
_DAY_MS: Final = 86_400_000
"""A symbol without a record in the last day of the partition is new: only a trading one has a watermark a minute."""


class _Leave(Exception):
    """Ends the task group of a lane."""


class Lane:
    """Owns one partition from ``run`` until its stop event; a broken lane is made anew, by the same code."""

    def __init__(
        self, settings: Settings, partition: int, rest: Rest, connects: Connects, changed: Callable[[], None]
    ) -> None:
        self.symbols: Sequence[str] = ()
        self.subscribed, self.ahead = set[str](), _NEVER
        self.anew = set[str]()
        """Symbols whose ids the exchange has begun anew: refused."""
        self._rest, self._connects = rest, connects
        self._halted: Sequence[str] = ()
        self._streams: list[Connections] = []
        self._coming, self._ending = set[str](), set[str]()
        self._past: dict[str, SymbolSequence] = {}  # ended; they may trade again
        self._group: asyncio.TaskGroup | None = None
        self._closed: dict[str, int] = {}  # open time of the last closed minute that the stream brought
        self._settings, self._partition, self._changed = settings, partition, changed
        self._publisher = Publisher(settings.kafka, "ingestor", topics.OHLCV_RAW, partition)
        self._out: list[Event] = []
        self._flight: list[Event] = []
        self._wake = asyncio.Event()
        self._moved = asyncio.Event()  # something left a buffer
        self._sequences: dict[str, SymbolSequence] = {}
        self._questions = Questions(settings, rest, self._room, self._put_out)
        self._pins, self._marked = Pins({}), False
        self._stop = asyncio.Event()

    async def run(self, stop: asyncio.Event) -> None:
        """Work until ``stop``, then publish what is buffered. Raises Fenced, or one of BROKER_AWAY."""
        self._stop = stop
        tails = await asyncio.to_thread(self._open)
        self._sequences = {s: SymbolSequence(SOURCE, s, self._out, tail) for s, tail in tails.items()}
        self._pins = Pins(tails)
        some = {s: tails[s].last_id for s in self.symbols[:_NAMED] if s in tails}
        _log.info("lane_opened", partition=self._partition, symbols=len(self.symbols), last_ids=some)
        publishing = asyncio.create_task(self._publish())
        try:
            async with asyncio.TaskGroup() as group:
                self._group = group
                self._questions.start(group)
                for sequence in self._sequences.values():
                    self._questions.look_after(sequence)
                self._connect([symbol for symbol in self.symbols if symbol in self._sequences])
                self.follow(self.symbols, self._halted)
                for symbol, tail in tails.items():
                    if symbol not in self.symbols and tail.last_id >= 0 and not tail.ended:
                        group.create_task(self._end(symbol))
                group.create_task(self._count())
                group.create_task(self._leave_at(stop, publishing))
        except BaseExceptionGroup as group_error:
            errors = [error for error in group_error.exceptions if not isinstance(error, _Leave)]
            if errors:
                raise errors[0] from None
        finally:
            await self._flush(publishing)
            await asyncio.to_thread(self._publisher.close)
        if publishing.done() and not publishing.cancelled():
            publishing.result()

    def _open(self) -> dict[str, Tail]:
        """Fence, and read the end of the partition: to the mark, and on until all symbols are known."""
        mark = self._publisher.open()
        self._marked = mark is not None
        pending = {event.symbol for event in (*self._flight, *self._out) if isinstance(event, Trade | Gap | Watermark)}
        known = {symbol: Tail() for symbol in {*self.symbols, *self._sequences, *pending}}
        others = {symbol: Tail() for symbol in self._halted if symbol not in known}
        return self._read_back(known, mark, others)

    def _read_back(self, known: dict[str, Tail], mark: int | None, others: dict[str, Tail]) -> dict[str, Tail]:
        """Until all of ``known`` are, or for a day; of ``others`` what is met on the way."""
        tails, newest_ms = known | others, 0
        for chunk in read_back(self._settings.kafka, topics.OHLCV_RAW, self._partition):
            for record in reversed(chunk):
                tail = tails.get(record.event.symbol)
                if tail is not None and (not tail.known or (mark is not None and record.offset >= mark)):
                    tail.take(record.event, record.offset)
            newest_ms = newest_ms or (chunk[-1].appended_ms if chunk else 0)
            if mark is not None and (not chunk or chunk[0].offset > mark):
                continue
            if all(tail.known for tail in known.values()) or (chunk and chunk[0].appended_ms < newest_ms - _DAY_MS):
                break
        return known | {symbol: tail for symbol, tail in others.items() if tail.known}

    # --- symbols that come and go --------------------------------------------------------------------

    def follow(self, trading: Sequence[str], halted: Sequence[str]) -> None:
        """From now on these trade; ``halted`` were asked for too."""
        before, self.symbols, self._halted = self.symbols, trading, halted
        if self._group is None:
            return
        streamed = {symbol for group in self._streams for symbol in group.symbols}
        added = [symbol for symbol in trading if symbol not in streamed and symbol not in self._coming]
        if added:
            self._coming.update(added)
            self._group.create_task(self._add(added))
        for symbol in before:
            if symbol not in trading and symbol in self._sequences:
                self._group.create_task(self._end(symbol))

    async def _add(self, symbols: Sequence[str]) -> None:
        for symbol in symbols:
            if symbol in self._past:
                self._sequences[symbol] = self._past.pop(symbol)
        new = {symbol: Tail() for symbol in symbols if symbol not in self._sequences}
        if new:
            new = await asyncio.to_thread(self._read_back, new, None, {})
        self._sequences |= {s: SymbolSequence(SOURCE, s, self._out, tail) for s, tail in new.items()}
        self._connect([symbol for symbol in symbols if symbol in self.symbols])
        self._coming.difference_update(symbols)
        _log.info("symbols_added", partition=self._partition, symbols=list(symbols[:_NAMED]), count=len(symbols))

    def _connect(self, symbols: Sequence[str]) -> None:
        """Spread symbols over connections: first where there is room."""
        assert self._group is not None
        rest, most = list(symbols), self._settings.symbols_per_connection
        for group in self._streams:
            if group.symbols:
                room = most - len(group.symbols)
                group.symbols, rest = group.symbols | set(rest[:room]), rest[room:]
        while rest:
            self._streams.append(Connections(self._settings, rest[:most], self, self._connects))
            self._group.create_task(self._streams[-1].run())
            rest = rest[most:]

    async def _end(self, symbol: str) -> None:
        """Publish and prove what there is of a symbol that trades no more, and close it."""
        if symbol in self._ending:
            return
        self._ending.add(symbol)
        sequence = self._sequences[symbol]
        sequence.connected()
        self._questions.look_after(sequence)
        await _until(lambda: not sequence.unsettled, 2 * self._settings.fill_deadline_s)
        minutes = sequence.unproven_minutes
        if minutes is not None:
            # Its last minute is closed once another symbol's is, and at the latest a minute from now.
            last = minutes.end - MINUTE
            await _until(lambda: max(self._closed.values(), default=0) >= last, _MINUTE_SECONDS)
            await self._questions.prove(sequence, minutes)
        self._ending.discard(symbol)
        if symbol in self.symbols:
            return  # it trades again
        sequence.end("the exchange does not trade this symbol any more")
        self._put_out()
        self._closed.pop(symbol, None)
        self._past[symbol] = self._sequences.pop(symbol)
        for group in self._streams:
            group.symbols -= {symbol}
        self._streams = [group for group in self._streams if group.symbols]
        metrics.ENDED.labels(symbol).inc()
        _log.warning("symbol_ended", symbol=symbol, last_trade_id=sequence.last_id, whole=not sequence.unsettled)

    async def _leave_at(self, stop: asyncio.Event, publishing: asyncio.Task[None]) -> None:
        stopping = asyncio.create_task(stop.wait())
        try:
            await asyncio.wait([stopping, publishing], return_when=asyncio.FIRST_COMPLETED)
        finally:
            stopping.cancel()
        raise _Leave

    # --- from the streams ----------------------------------------------------------------------------

    def began(self, symbols: Collection[str]) -> None:
        """See connections.Listener, as for the methods that follow."""
        for symbol in symbols:
            if symbol in self._sequences:
                self._sequences[symbol].connected()
                self._questions.look_after(self._sequences[symbol])

    def covered(self, symbols: Collection[str]) -> None:
        for symbol in symbols:
            if symbol in self._sequences:
                self._sequences[symbol].covered()
        self._put_out()

    def streaming(self, symbols: Iterable[str], connected: bool) -> None:
        (self.subscribed.update if connected else self.subscribed.difference_update)(symbols)
        self._changed()

    def heard(self, event: Trade | Closed | Opened | Doubtful) -> bool:
        sequence = self._sequences.get(event.symbol)
        if sequence is None:
            return False
        if type(event) is Trade:
            sequence.trade(event)
            if sequence.anew >= 0 and event.symbol not in self.anew:
                self._started_anew(sequence)
        elif type(event) is Closed:
            self._closed[event.symbol] = event.kline.open_time
            sequence.minute(event.kline)
        elif type(event) is Opened:
            sequence.opened(event.open_time, event.first_trade_id)
        else:
            self._doubt(event, sequence)
        if sequence.unsettled:
            self._questions.look_after(sequence)
        if self._out:
            self._wake.set()
        most = self._settings.buffer_records
        return len(self._out) >= most or sequence.held >= most

    def _started_anew(self, sequence: SymbolSequence) -> None:
        self.anew.add(sequence.symbol)
        metrics.ANEW.set(len(self.anew))
        _log.error(
            "ids_start_anew",
            symbol=sequence.symbol,
            published_up_to=sequence.last_id,
            exchange_is_at=sequence.anew,
            effect="nothing of this symbol is published any more; the others go on",
            remedy="another market, or a reset testnet: give it topics of its own (MARKETFLOW_KAFKA_TOPIC_PREFIX)",
        )
        self._changed()

    def _doubt(self, event: Any, sequence: SymbolSequence) -> None:
        metrics.DOUBTED.labels(event.symbol).inc()
        sequence.told(event.trade_id)
        _log.error(
            "time_ahead",
            symbol=event.symbol,
            trade_id=event.trade_id,
            traded_at=event.traded_at,
            event_at=event.event_at,
            effect="taken as not delivered; REST is asked for it",
        )

    async def behind(self, symbol: str) -> bool | None:
        sequence = self._sequences.get(symbol)
        return None if sequence is None else await self._questions.behind(sequence)

    def overdue(self, symbols: Collection[str]) -> str | None:
        newest = max((self._closed.get(symbol, 0) for symbol in symbols), default=0)
        late = [s for s in symbols if 0 < self._closed.get(s, 0) < newest - MINUTE]
        return min(late, default=None)

    async def drained(self) -> None:
        most = self._settings.buffer_records
        while len(self._out) >= most or any(s.held >= most for s in self._sequences.values()):
            self._moved.clear()
            await self._moved.wait()

    async def _room(self) -> None:
        while len(self._out) >= self._settings.buffer_records:
            self._moved.clear()
            await self._moved.wait()

    def _put_out(self) -> None:
        self._moved.set()
        if self._out:
            self._wake.set()

    # --- to the topic --------------------------------------------------------------------------------

    async def _publish(self) -> None:
        most = self._settings.batch_records
        while True:
            await self._wake.wait()
            if len(self._out) < most:
                await asyncio.sleep(self._settings.batch_wait_ms / 1_000)
            batch = self._flight = self._out[:most]
            del self._out[:most]
            if not self._out:
                self._wake.clear()
            if not batch:
                continue
            try:
                await asyncio.to_thread(self._publisher.publish, batch, self._mark(batch))
            except PublishFailed as error:
                await self._recover(error)
                continue
            self._flight = []
            self._moved.set()
            self._published(batch)

    def _mark(self, batch: Sequence[Event]) -> tuple[int, bool] | None:
        """The mark to commit with the batch, if it has changed."""
        before = self._pins.mark if self._marked else None
        self._pins.take(batch, self._publisher.end)
        mark = self._pins.mark
        if mark == before and self._marked == (mark is not None):
            return None
        self._marked = mark is not None
        return (self._publisher.end if mark is None else mark), self._marked

    def _published(self, batch: Sequence[Event]) -> None:
        if isinstance(batch[0], Trade):
            metrics.BEHIND.observe((now_us() - batch[0].received_at) / 1_000_000)
        for event in batch:
            if isinstance(event, Watermark):
                metrics.WATERMARKS.labels(event.symbol).inc()
            elif isinstance(event, Gap) and event.first_trade_id <= event.last_trade_id:
                metrics.GAPS.labels(event.symbol, str(event.final).lower()).inc()
                _log.error(
                    "gap_published",
                    symbol=event.symbol,
                    first=event.first_trade_id,
                    last=event.last_trade_id,
                    final=event.final,
                    reason=event.reason,
                )

    async def _recover(self, error: Exception) -> None:
        """Find out what the topic holds and go on behind it. Raises PublishFailed if that is not ours."""
        while True:
            # Whoever lost its membership in the group in the meantime gets time to hear of it: opening at once
            # would fence the rightful owner.
            wait = self._settings.kafka.session_timeout_ms / 1_000
            _log.warning("publish_failed", partition=self._partition, detail=str(error), again_in_s=wait)
            if await set_within(self._stop, wait):
                # The partition is somebody else's by now, who will read what was published and go on from there.
                raise PublishFailed(f"ohlcv_raw/{self._partition} was given up while a batch was in doubt: {error}")
            try:
                tails = await asyncio.to_thread(self._open)
                break
            except BROKER_AWAY as again:
                error = again
        last_ids = {symbol: sequence.last_id for symbol, sequence in self._sequences.items()}
        tails = {symbol: Tail() for symbol in last_ids} | tails  # a symbol may have been added meanwhile
        rest = unpublished([*self._flight, *self._out], last_ids, tails)
        if rest is None:
            raise PublishFailed(f"ohlcv_raw/{self._partition} does not hold what this process has published to it")
        _log.info("publisher_reopened", partition=self._partition, unpublished=len(rest))
        self._out[:], self._flight, self._pins = rest, [], Pins(tails)
        self._moved.set()
        if rest:
            self._wake.set()

    async def _flush(self, publishing: asyncio.Task[None]) -> None:
        publishing.add_done_callback(lambda _: self._moved.set())
        with suppress(TimeoutError):
            async with asyncio.timeout(_FLUSH_SECONDS):
                while (self._out or self._flight) and not publishing.done():
                    self._moved.clear()
                    await self._moved.wait()
        publishing.cancel()
        await asyncio.wait([publishing])
        _log.info("lane_closed", partition=self._partition, unpublished=len(self._out) + len(self._flight))

    async def _count(self) -> None:
        """Counters that would cost too much per trade."""
        seen: dict[str, tuple[int, int, int]] = {}
        while True:
            if self._rest.offset_us is not None:
                self.ahead = self._rest.offset_us + _CLOCK_TOLERANCE
            metrics.BUFFERED.labels(str(self._partition)).set(len(self._out) + len(self._flight))
            metrics.OPEN_GAPS.labels(str(self._partition)).set(sum(len(s.open) for s in self._sequences.values()))
            for symbol, sequence in self._sequences.items():
                now = (sequence.duplicates, sequence.filled_count, sequence.late_count)
                before = seen.get(symbol, (0, 0, 0))
                if now != before:
                    metrics.DUPLICATES.labels(symbol).inc(now[0] - before[0])
                    metrics.FILLED.labels(symbol).inc(now[1] - before[1])
                    metrics.LATE.labels(symbol).inc(now[2] - before[2])
                    seen[symbol] = now
            await asyncio.sleep(_COUNT_SECONDS)


async def set_within(event: asyncio.Event, seconds: float) -> bool:
    """Wait for an event, at most so long; whether it is set."""
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await event.wait()
    return event.is_set()


async def _until(done: Callable[[], bool], seconds: float) -> None:
    """Wait for something that nobody announces, at most so long."""
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            while True:
                if done():
                    return
                await asyncio.sleep(_LOOK_SECONDS)
