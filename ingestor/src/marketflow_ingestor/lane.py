"""One partition of ohlcv_raw: its symbols' streams in, their sequences, and the transactions out.

Must never publish before the tail of the partition was read behind the fence, nor read on from a socket when
what was read cannot be kept.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import suppress
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
from .binance import SOURCE, Closed, Rest, Unreadable, read, subscribed
from .questions import Questions, growing
from .sequence import SymbolSequence
from .settings import Settings
from .tail import Pins, Tail, unpublished

__all__ = ["BROKER_AWAY", "Lane"]

_log = logs.get("ingestor")
BROKER_AWAY: Final = (PublishFailed, KafkaException, FatalKafkaError)
_SYMBOLS_PER_SOCKET: Final = 100
"""200 streams: far below the exchange's 1,024 per connection, and an address of 4 kB."""
_MESSAGES_PER_TURN: Final = 256
_FLUSH_SECONDS: Final = 5.0
_COUNT_SECONDS: Final = 1.0
_DAY_MS: Final = 86_400_000
"""A symbol without a record in the last day of the partition is new: only a trading one has a watermark a minute."""


class _Leave(Exception):
    """Ends the task group of a lane."""


class Lane:
    """Owns one partition from ``run`` until its stop event; a broken lane is made anew, by the same code."""

    def __init__(
        self, settings: Settings, partition: int, symbols: Sequence[str], rest: Rest, changed: Callable[[], None]
    ) -> None:
        self.symbols, self.subscribed = symbols, set[str]()
        self._settings, self._partition, self._changed = settings, partition, changed
        self._publisher = Publisher(settings.kafka, "ingestor", topics.OHLCV_RAW, partition)
        self._out: list[Event] = []
        self._flight: list[Event] = []
        self._wake = asyncio.Event()
        self._moved = asyncio.Event()  # something left a buffer
        self._sequences: dict[str, SymbolSequence] = {}
        self._questions = Questions(settings, rest, self._room, self._put_out)
        self._pins, self._marked = Pins({}), False

    async def run(self, stop: asyncio.Event) -> None:
        """Work until ``stop``, then publish what is buffered. Raises Fenced, or one of BROKER_AWAY."""
        tails = await asyncio.to_thread(self._open)
        self._sequences = {s: SymbolSequence(SOURCE, s, self._out, tails[s]) for s in self.symbols}
        self._pins = Pins(tails)
        _log.info("lane_opened", partition=self._partition, last_ids={s: q.last_id for s, q in self._sequences.items()})
        publishing = asyncio.create_task(self._publish())
        try:
            async with asyncio.TaskGroup() as group:
                self._questions.start(group)
                for sequence in self._sequences.values():
                    self._questions.look_after(sequence)
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
            await asyncio.to_thread(self._publisher.close)
        if publishing.done() and not publishing.cancelled():
            publishing.result()

    def _open(self) -> dict[str, Tail]:
        """Fence, and read the end of the partition: to the mark, and on until all symbols are known."""
        mark = self._publisher.open()
        self._marked = mark is not None
        tails = {symbol: Tail() for symbol in self.symbols}
        lowest, newest_ms = self._publisher.end, 0
        for chunk in read_back(self._settings.kafka, topics.OHLCV_RAW, self._partition):
            for record in reversed(chunk):
                tail = tails.get(record.event.symbol)
                if tail is not None and (not tail.known or (mark is not None and record.offset >= mark)):
                    tail.take(record.event, record.offset)
            if chunk:
                lowest, newest_ms = chunk[0].offset, newest_ms or chunk[-1].appended_ms
            if mark is not None and lowest > mark:
                continue
            if all(tail.known for tail in tails.values()) or (chunk and chunk[0].appended_ms < newest_ms - _DAY_MS):
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
        pauses = growing(0.5, 15.0)
        while True:
            try:
                async with subscribed(self._settings.ws_url, symbols) as (socket, early):
                    _log.info("subscribed", partition=self._partition, symbols=len(symbols))
                    for symbol in symbols:
                        self._sequences[symbol].connected()
                        self._questions.look_after(self._sequences[symbol])
                    self.subscribed.update(symbols)
                    self._changed()
                    for message in early:
                        self._take(message)
                    pauses = growing(0.5, 15.0)
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
            self._questions.look_after(sequence)
        if self._out:
            self._wake.set()
        return sequence

    def _put_out(self) -> None:
        self._moved.set()
        if self._out:
            self._wake.set()

    async def _room(self, sequence: SymbolSequence | None = None) -> None:
        most = self._settings.buffer_records
        while len(self._out) >= most or (sequence is not None and sequence.held >= most):
            self._moved.clear()
            await self._moved.wait()

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
        last_ids = {symbol: sequence.last_id for symbol, sequence in self._sequences.items()}
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
