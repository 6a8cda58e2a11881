"""One partition of ohlcv_raw: its symbols' streams in, their sequences, and the transactions out.

Must never publish before the tail of the partition was read behind the fence, nor read on from a socket when
what was read cannot be kept.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from random import uniform
from typing import Final

from confluent_kafka import KafkaException
from marketflow_common import logs, topics
from marketflow_common.clock import now_us
from marketflow_common.events import Event, Gap, Trade, Watermark
from marketflow_common.kafka.client import FatalKafkaError
from marketflow_common.kafka.source import Publisher, PublishFailed, read_back
from marketflow_common.metrics import MESSAGES_IN, UNREADABLE
from websockets.asyncio.client import ClientConnection
from websockets.exceptions import WebSocketException

from . import metrics
from .binance import PAGE, SOURCE, Closed, Rest, RestError, Unreadable, read, subscribed
from .sequence import Before, Hole, Minutes, Need, SymbolSequence, Tail, unpublished
from .settings import Settings

__all__ = ["BROKER_AWAY", "Lane"]

_log = logs.get("ingestor")
BROKER_AWAY: Final = (PublishFailed, KafkaException, FatalKafkaError)
_SYMBOLS_PER_SOCKET: Final = 100
"""200 streams: far below the exchange's 1,024 per connection, and an address of 4 kB."""
_MESSAGES_PER_TURN: Final = 256
_FLUSH_SECONDS: Final = 5.0
_COUNT_SECONDS: Final = 1.0


class _Leave(Exception):
    """Ends the task group of a lane."""


def _pauses(first: float, highest: float) -> Iterator[float]:
    """Growing pauses with full jitter, so that replicas and symbols do not ask in step."""
    while True:
        yield uniform(first / 2, first)
        first = min(first * 2, highest)


class Lane:
    """Owns one partition from ``run`` until its stop event; a broken lane is made anew, by the same code."""

    def __init__(
        self, settings: Settings, partition: int, symbols: Sequence[str], rest: Rest, changed: Callable[[], None]
    ) -> None:
        self.symbols, self.subscribed = symbols, set[str]()
        self._settings, self._partition, self._rest, self._changed = settings, partition, rest, changed
        self._publisher = Publisher(settings.kafka, "ingestor", topics.OHLCV_RAW, partition)
        self._out: list[Event] = []
        self._flight: list[Event] = []
        self._wake = asyncio.Event()
        self._moved = asyncio.Event()  # something left a buffer
        self._sequences: dict[str, SymbolSequence] = {}
        self._settling: set[str] = set()
        self._group = asyncio.TaskGroup()

    async def run(self, stop: asyncio.Event) -> None:
        """Work until ``stop``, then publish what is buffered. Raises Fenced, or one of BROKER_AWAY."""
        tails = await asyncio.to_thread(self._open)
        self._sequences = {s: SymbolSequence(SOURCE, s, self._out, tails[s]) for s in self.symbols}
        _log.info("lane_opened", partition=self._partition, last_ids={s: q.last_id for s, q in self._sequences.items()})
        publishing = asyncio.create_task(self._publish())
        try:
            async with self._group as group:
                for i in range(0, len(self.symbols), _SYMBOLS_PER_SOCKET):
                    group.create_task(self._stream(self.symbols[i : i + _SYMBOLS_PER_SOCKET]))
                group.create_task(self._count())
                group.create_task(self._leave_at(stop, publishing))
        except BaseExceptionGroup as group_error:
            errors = [error for error in group_error.exceptions if not isinstance(error, _Leave)]
            if errors:
                raise errors[0] from None
        finally:
            await self._flush(publishing)
        if publishing.done() and not publishing.cancelled():
            publishing.result()

    def _open(self) -> dict[str, Tail]:
        self._publisher.open()
        tails = {symbol: Tail() for symbol in self.symbols}
        for chunk in read_back(self._settings.kafka, topics.OHLCV_RAW, self._partition):
            for record in reversed(chunk):
                tail = tails.get(record.event.symbol)
                if tail is not None and not tail.known:
                    tail.take(record.event)
            if all(tail.known for tail in tails.values()):
                break
        return tails

    async def _leave_at(self, stop: asyncio.Event, publishing: asyncio.Task[None]) -> None:
        stopping = asyncio.create_task(stop.wait())
        try:
            await asyncio.wait([stopping, publishing], return_when=asyncio.FIRST_COMPLETED)
        finally:
            stopping.cancel()
        raise _Leave

    # --- from the socket -----------------------------------------------------------------------------

    async def _stream(self, symbols: Sequence[str]) -> None:
        pauses = _pauses(0.5, 15.0)
        while True:
            try:
                async with subscribed(self._settings.ws_url, symbols) as (socket, early):
                    _log.info("subscribed", partition=self._partition, symbols=len(symbols))
                    for symbol in symbols:
                        self._sequences[symbol].connected()
                        self._look_after(self._sequences[symbol])
                    self.subscribed.update(symbols)
                    self._changed()
                    for message in early:
                        self._take(message)
                    pauses = _pauses(0.5, 15.0)
                    await self._read(socket)
            except (OSError, TimeoutError, WebSocketException) as error:
                pause = next(pauses)
                _log.warning(
                    "stream_lost",
                    url=self._settings.ws_url,
                    detail=str(error) or type(error).__name__,
                    again_in_s=pause,
                )
            finally:
                self.subscribed.difference_update(symbols)
                self._changed()
            metrics.RECONNECTS.inc()
            await asyncio.sleep(pause)

    async def _read(self, socket: ClientConnection) -> None:
        most, taken = self._settings.buffer_records, MESSAGES_IN.labels(metrics.STREAM)
        count = 0
        while True:
            sequence = self._take(await socket.recv(decode=False))
            count += 1
            if count == _MESSAGES_PER_TURN:  # recv() does not give way while it has messages
                taken.inc(count)
                count = 0
                await asyncio.sleep(0)
            if len(self._out) >= most or (sequence is not None and sequence.held >= most):
                await self._room(sequence)

    def _take(self, message: bytes) -> SymbolSequence | None:
        try:
            event = read(message, now_us())
        except Unreadable as error:
            UNREADABLE.labels(metrics.STREAM).inc()
            _log.error(
                "message_unreadable",
                detail=str(error)[:300],
                message=message[:300].decode(errors="replace"),
                effect="dropped; its trade is asked for by REST once the hole shows",
            )
            return None
        if isinstance(event, Trade):
            sequence = self._sequences.get(event.symbol)
            if sequence is None:
                return None
            sequence.trade(event)
        elif isinstance(event, Closed):
            sequence = self._sequences.get(event.symbol)
            if sequence is None:
                return None
            sequence.minute(event.kline)
        else:
            if event.event == "serverShutdown":
                _log.warning("server_shutdown", effect="the exchange will close the connection; it is opened again")
            return None
        if sequence.unsettled:
            self._look_after(sequence)
        if self._out:
            self._wake.set()
        return sequence

    async def _room(self, sequence: SymbolSequence | None = None) -> None:
        most = self._settings.buffer_records
        while len(self._out) >= most or (sequence is not None and sequence.held >= most):
            self._moved.clear()
            await self._moved.wait()

    # --- what only REST can tell ---------------------------------------------------------------------

    def _look_after(self, sequence: SymbolSequence) -> None:
        if sequence.symbol not in self._settling and sequence.unsettled:
            self._settling.add(sequence.symbol)
            self._group.create_task(self._settle(sequence))

    async def _settle(self, sequence: SymbolSequence) -> None:
        """Ask until the sequence needs nothing more; what does not come within the deadline is given up."""
        pauses, moved_at, waited = _pauses(0.1, 2.0), time.monotonic(), False
        last_id, filled = sequence.last_id, sequence.filled_count
        try:
            while (need := sequence.need()) is not None:
                if isinstance(need, Hole) and not need.urgent and not waited:
                    waited = True
                    await asyncio.sleep(self._settings.settle_s)
                    continue
                await self._room()
                problem = "REST has none of it yet"
                try:
                    moved = await self._ask(sequence, need)
                except RestError as error:
                    moved, problem = False, str(error)
                if self._out:
                    self._wake.set()
                self._moved.set()
                if moved:
                    pauses, moved_at = _pauses(0.1, 2.0), time.monotonic()
                    continue
                if time.monotonic() - moved_at > self._settings.fill_deadline_s:
                    gap = sequence.give_up(problem)
                    _log.error("not_filled", symbol=sequence.symbol, need=repr(need), gap=repr(gap), detail=problem)
                    moved_at = time.monotonic()
                    self._wake.set()
                    self._moved.set()
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
        if isinstance(need, Minutes):
            sequence.closed(need, await self._rest.klines(symbol, need.start, need.end))
            return True
        # One more than is missing: an answer that goes beyond the hole says that the rest of it does not exist.
        limit = PAGE if need.last is None else min(PAGE, need.last - need.first + 2)
        trades = await self._rest.trades(symbol, need.first, limit)
        moved = sequence.filled(trades, at_end=need.last is None and len(trades) < limit)
        return moved or sequence.need() != need

    async def _back_to(self, symbol: str, need: Before) -> list[Trade]:
        found: list[Trade] = []
        first = need.trade_id
        while first > 0:
            begin = max(0, first - PAGE)
            page = [t for t in await self._rest.trades(symbol, begin, first - begin) if t.trade_id < first]
            found[:0] = page
            if not page or page[0].trade_id > begin or page[0].traded_at < need.at:
                break
            first = begin
        return found

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
                await asyncio.to_thread(self._publisher.publish, batch)
            except PublishFailed as error:
                await self._recover(error)
                continue
            self._flight = []
            self._moved.set()
            self._published(batch)

    def _published(self, batch: Sequence[Event]) -> None:
        if isinstance(batch[0], Trade):
            metrics.BEHIND.observe((now_us() - batch[0].received_at) / 1_000_000)
        for event in batch:
            if isinstance(event, Watermark):
                metrics.WATERMARKS.labels(event.symbol).inc()
            elif isinstance(event, Gap):
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
            await asyncio.sleep(wait)
            try:
                tails = await asyncio.to_thread(self._open)
                break
            except BROKER_AWAY as again:
                error = again
        rest = unpublished([*self._flight, *self._out], self._sequences.values(), tails)
        if rest is None:
            raise PublishFailed(f"ohlcv_raw/{self._partition} does not hold what this process has published to it")
        _log.info("publisher_reopened", partition=self._partition, unpublished=len(rest))
        self._out[:], self._flight = rest, []
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
        seen: dict[str, tuple[int, int]] = {}
        while True:
            metrics.BUFFERED.labels(str(self._partition)).set(len(self._out) + len(self._flight))
            for symbol, sequence in self._sequences.items():
                now, before = (sequence.duplicates, sequence.filled_count), seen.get(symbol, (0, 0))
                if now != before:
                    metrics.DUPLICATES.labels(symbol).inc(now[0] - before[0])
                    metrics.FILLED.labels(symbol).inc(now[1] - before[1])
                    seen[symbol] = now
            await asyncio.sleep(_COUNT_SECONDS)
