"""Topic to the outside world: the effect first, then the commit.

Must never commit what has not taken effect, nor drop a record because the outside is away.
"""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import suppress
from itertools import groupby
from operator import methodcaller
from typing import NamedTuple, Protocol, runtime_checkable

from confluent_kafka import Consumer, KafkaException, Message, TopicPartition

from .. import clock, logs, metrics
from ..health import Health
from ..settings import KafkaSettings
from . import client
from .client import Committed

__all__ = ["Batches", "Effect", "Limits", "Retry", "Sink", "Slot", "StagedEffect"]

_log = logs.get("sink")
REPORT_SECONDS = 1.0
AHEAD = 2
"""Flushes of a staged effect that are under way at a time: one that is being written, and one that is ready."""
PATIENCE_SECONDS = 1.0
"""A full buffer waits so long for the flush before it; then fetching is paused."""
STILL_SECONDS = 60.0
"""A flush that takes longer counts as standing still, for the watchdog."""


_TOPIC, _PARTITION = methodcaller("topic"), methodcaller("partition")


class Slot(NamedTuple):
    """One partition of one topic; the topic by its plain name, without prefix."""

    topic: str
    partition: int


Batches = Mapping[Slot, Sequence[Message]]
Marks = Mapping[Slot, Mapping[str, int]]


class Retry(Exception):
    """The outside cannot take the (rest of the) records now: keep them, and try again after ``seconds``.

    ``written`` names, for slots where a first part did take effect, the offset of the first record that did not:
    what lies before it is committed with ``marks`` and not offered again.
    """

    def __init__(
        self,
        reason: str,
        seconds: float = 1.0,
        written: Mapping[Slot, int] | None = None,
        marks: Marks | None = None,
    ) -> None:
        super().__init__(reason)
        self.seconds = seconds
        self.written = written or {}
        self.marks = marks or {}


class Limits(NamedTuple):
    """When a flush is due, whichever comes first; and how much may wait while the outside is away.

    Under a staged effect up to AHEAD flushes of that size are under way besides.
    """

    rows: int = 10_000
    bytes: int = 8_000_000
    seconds: float = 1.0


class Effect(Protocol):
    """What a sink does with records."""

    def opened(self, slot: Slot, committed: Committed) -> int | None:
        """A partition is now ours. Returns the offset to start from; None: the committed one, or the oldest."""

    def closed(self, slot: Slot) -> None:
        """A partition is no longer ours; what was not written is dropped and read again by the next owner."""

    def write(self, batches: Batches) -> Marks:
        """Make the effect durable, for all batches. Returns marks to commit beside each position.

        Raises Retry to be called again with at least the same records.
        """


@runtime_checkable
class StagedEffect(Protocol):
    """An effect in two parts, so that records are made ready while those before them are still being written.

    ``opened`` and ``closed`` as in Effect; they are called while nothing is being written.
    """

    def opened(self, slot: Slot, committed: Committed) -> int | None: ...

    def closed(self, slot: Slot) -> None: ...

    def prepare(self, batches: Batches) -> Callable[[], Marks]:
        """Do what needs no answer from outside. Raises Retry as ``Effect.write`` does.

        The result does the rest of what ``Effect.write`` does; it is called by another thread, one after the other,
        and not at all if one before it has failed. Its records then come again, with those that failed.
        """


class _Flight(NamedTuple):
    """A flush under way."""

    batches: Batches
    outcome: Future[Marks]
    begun: float
    rows: int
    bytes: int


class _Grounded(Exception):
    """The flush before this one has failed."""


class Sink:
    """Feeds an effect from the partitions that the consumer group gives to this process."""

    def __init__(
        self,
        kafka: KafkaSettings,
        group: str,
        sources: Sequence[str],
        effect: Effect | StagedEffect,
        health: Health,
        limits: Limits = Limits(),  # noqa: B008 - immutable
    ) -> None:
        self._kafka, self._group, self._sources = kafka, group, sources
        self._effect, self._health, self._limits = effect, health, limits
        self._plain = {kafka.topic(name): name for name in sources}
        self._buffers: dict[Slot, list[Message]] = {}
        self._starts: dict[Slot, int] = {}
        self._bytes = self._rows = 0
        self._oldest: float | None = None
        self._retry_at = 0.0
        self._paused = False
        self._consumer: Consumer | None = None
        self._flights: deque[_Flight] = deque()
        self._grounded = threading.Event()
        self._writer = ThreadPoolExecutor(1, "writer")

    def run(self, stop: threading.Event) -> None:
        """Work until ``stop``, then write and commit what is buffered, once."""
        client.partition_count(self._kafka, *self._sources)
        self._consumer = consumer = client.consumer(self._kafka, self._group)
        failure: list[BaseException] = []

        def assigned(_: Consumer, partitions: list[TopicPartition]) -> None:
            try:
                self._assigned(partitions)
            except BaseException as error:  # noqa: BLE001 - raised by the loop below
                failure.append(error)

        def revoked(_: Consumer, partitions: list[TopicPartition]) -> None:
            try:
                self._flush()
            except BaseException as error:  # noqa: BLE001
                failure.append(error)
            self._drop(partitions)

        def lost(_: Consumer, partitions: list[TopicPartition]) -> None:
            self._drop(partitions)

        for topic in self._sources:
            metrics.MESSAGES_IN.labels(topic)  # shown as 0, not as missing
        consumer.subscribe(list(self._plain), on_assign=assigned, on_revoke=revoked, on_lost=lost)
        next_report = 0.0
        try:
            while not stop.is_set():
                messages = self._poll(consumer)
                if failure:  # before the messages: a partition that could not be opened may have sent an error
                    raise failure[0]
                self._take(messages)
                self._settle()
                now = time.monotonic()
                if not self._flights or now - self._flights[0].begun < STILL_SECONDS:
                    self._health.beat()
                if self._due(now):
                    self._launch()
                self._press_back(consumer)
                if now >= next_report:
                    self._report(consumer)
                    next_report = now + REPORT_SECONDS
            self._flush()
        finally:
            self._health.ready(False, "stopping")
            consumer.close()
            self._writer.shutdown(wait=False, cancel_futures=True)

    # --- assignment ----------------------------------------------------------------------------------

    def _slot(self, p: TopicPartition) -> Slot:
        return Slot(self._plain[p.topic], p.partition)

    def _assigned(self, partitions: list[TopicPartition]) -> None:
        assert self._consumer is not None
        starts = []
        for p in partitions:
            position = client.committed(self._consumer, p.topic, p.partition)
            start = self._effect.opened(self._slot(p), position)
            low, high = client.watermarks(self._consumer, p.topic, p.partition)
            if start is None:
                start = position.offset if position.offset >= 0 else low
            if not low <= start <= high:
                raise client.PositionLost(
                    f"{p.topic}/{p.partition} is to be read from offset {start}, but the broker has {low} to {high}: "
                    "records were deleted before they were read, or the topic was made anew. Nothing was skipped; "
                    "find out what is missing before you set the position by hand"
                )
            starts.append(TopicPartition(p.topic, p.partition, start))
            self._buffers[self._slot(p)], self._starts[self._slot(p)] = [], start
        self._consumer.assign(starts)
        self._consumer.resume(starts)  # librdkafka keeps a pause of an earlier assignment
        self._paused = False
        self._show_owned()
        self._health.ready(True)
        _log.info("assigned", group=self._group, starts={f"{p.topic}/{p.partition}": p.offset for p in starts})

    def _drop(self, partitions: list[TopicPartition]) -> None:
        # What is under way may still take effect, but no longer under this owner: the next one finds out.
        wait([flight.outcome for flight in self._flights])
        self._flights.clear()
        self._grounded.clear()
        for p in partitions:
            slot = self._slot(p)
            if self._buffers.pop(slot, None) is not None:
                self._effect.closed(slot)
                with suppress(KeyError):  # not reported yet
                    metrics.LAG.remove(slot.topic, str(slot.partition))
        self._count()
        self._show_owned()
        _log.info("revoked", group=self._group, partitions=[f"{p.topic}/{p.partition}" for p in partitions])

    def _show_owned(self) -> None:
        metrics.OWNED_PARTITIONS.set(len(self._buffers))
        self._health.detail(partitions=sorted(f"{slot.topic}/{slot.partition}" for slot in self._buffers))

    # --- work ----------------------------------------------------------------------------------------

    def _poll(self, consumer: Consumer) -> list[Message]:
        if self._full() and not self._paused and self._flights:
            # For a moment only: a pause would throw away what the client has fetched already.
            wait([self._flights[0].outcome], 0.1)
            return []
        first = consumer.poll(min(0.02 if self._flights else 0.1, self._limits.seconds))
        if first is None:
            return []
        under_way = sum(flight.rows for flight in self._flights)
        room = max(0, min(self._limits.rows, (AHEAD + 1) * self._limits.rows - under_way) - self._rows - 1)
        return [first, *(consumer.consume(room, 0) if room else [])]

    def _take(self, messages: list[Message]) -> None:
        # Records come in long runs of a partition: looked up once for each run, not for each record.
        for topic, same_topic in groupby(filter(client.is_record, messages), _TOPIC):
            for partition, run in groupby(same_topic, _PARTITION):
                slot, found = Slot(self._plain[topic], partition), list(run)
                if slot in self._buffers:
                    self._buffers[slot] += found
                    self._rows += len(found)
                    self._bytes += sum(map(len, found))
                    metrics.MESSAGES_IN.labels(slot.topic).inc(len(found))
        if self._oldest is None and self._rows:
            self._oldest = time.monotonic()

    def _full(self) -> bool:
        """No more is fetched: so much waits for a flush, or, after one that failed, is under way again."""
        rows, size = sum(flight.rows for flight in self._flights), sum(flight.bytes for flight in self._flights)
        limits, most = self._limits, AHEAD + 1
        return self._rows >= min(limits.rows, most * limits.rows - rows) or self._bytes >= min(
            limits.bytes, most * limits.bytes - size
        )

    def _due(self, now: float) -> bool:
        if self._oldest is None or now < self._retry_at or len(self._flights) >= AHEAD:
            return False
        return self._full() or now - self._oldest >= self._limits.seconds

    def _launch(self) -> None:
        """Write what is buffered; a staged effect goes on by itself, and _settle takes in what has become of it."""
        batches = {slot: tuple(messages) for slot, messages in self._buffers.items() if messages}
        if not batches:
            return
        begun = time.monotonic()
        if not isinstance(self._effect, StagedEffect):
            try:
                marks = self._effect.write(batches)
            except Retry as error:
                self._later(error)
            else:
                self._written({slot: (messages[-1].offset() or 0) + 1 for slot, messages in batches.items()}, marks)
            return
        try:
            write = self._effect.prepare(batches)
        except Retry as error:
            self._later(error)
            return
        self._flights.append(_Flight(batches, self._writer.submit(self._fly, write), begun, self._rows, self._bytes))
        for slot in batches:
            self._buffers[slot] = []
        self._count()

    def _fly(self, write: Callable[[], Marks]) -> Marks:
        """In the writer's thread: once one has failed, those behind it are not tried."""
        if self._grounded.is_set():
            raise _Grounded
        try:
            return write()
        except BaseException:
            self._grounded.set()
            raise

    def _settle(self, finish: bool = False) -> bool:
        """Commit the flushes that are written; with ``finish``, wait for all. False if one has to be repeated."""
        while self._flights and (finish or self._flights[0].outcome.done()):
            flight = self._flights[0]
            try:
                marks = flight.outcome.result()
            except Retry as error:
                self._take_back()
                self._later(error)
                return False
            self._flights.popleft()
            ends = {slot: (messages[-1].offset() or 0) + 1 for slot, messages in flight.batches.items()}
            self._written(ends, marks, flown=flight.batches)
        return True

    def _take_back(self) -> None:
        """All that is under way is to be written again, before what has come since."""
        wait([flight.outcome for flight in self._flights])
        for flight in reversed(self._flights):
            for slot, messages in flight.batches.items():
                self._buffers[slot] = [*messages, *self._buffers[slot]]
        self._flights.clear()
        self._grounded.clear()
        self._count()
        self._oldest = -math.inf  # due as soon as the outside is to be tried again

    def _flush(self) -> None:
        """Write and commit what is at hand, and wait for it; what cannot be written stays."""
        if self._consumer is None or not self._settle(finish=True):
            return
        self._launch()
        self._settle(finish=True)

    def _later(self, error: Retry) -> None:
        self._retry_at = time.monotonic() + error.seconds
        if error.written:
            self._written(error.written, error.marks)
        else:
            _log.warning("outside_away", detail=str(error), retry_in_s=error.seconds, records_waiting=self._rows)

    def _written(self, ends: Mapping[Slot, int], marks: Marks, flown: Batches | None = None) -> None:
        """Forget the records before these offsets, and commit. ``flown`` are in no buffer any more."""
        assert self._consumer is not None
        positions = []
        for slot, end in ends.items():
            topic = self._kafka.topic(slot.topic)
            positions.append(client.position(topic, slot.partition, end, dict(marks.get(slot, {}))))
            if flown is not None:
                metrics.MESSAGES_OUT.labels(slot.topic).inc(len(flown[slot]))
                continue
            rest = [message for message in self._buffers[slot] if (message.offset() or 0) >= end]
            metrics.MESSAGES_OUT.labels(slot.topic).inc(len(self._buffers[slot]) - len(rest))
            self._buffers[slot] = rest
        if flown is None:
            self._count()
        try:
            self._consumer.commit(offsets=positions, asynchronous=False)
        except KafkaException as error:
            # The effect stands. The next commit carries this position too, or the next owner finds it out.
            _log.warning("commit_failed", detail=error.args[0].str())

    def _count(self) -> None:
        self._rows = sum(map(len, self._buffers.values()))
        self._bytes = sum(len(m) for messages in self._buffers.values() for m in messages)
        self._oldest = time.monotonic() if self._rows else None

    def _press_back(self, consumer: Consumer) -> None:
        """A full buffer stops fetching but not polling, so that the group does not give us up."""
        full = self._full()
        if full and not self._paused:
            if self._flights and time.monotonic() - self._flights[0].begun < PATIENCE_SECONDS:
                return
            consumer.pause(consumer.assignment())
            _log.info("paused", records_waiting=self._rows, bytes_waiting=self._bytes)
        elif self._paused and not full:
            consumer.resume(consumer.assignment())
            _log.info("resumed")
        self._paused = full

    def _report(self, consumer: Consumer) -> None:
        metrics.WAITING.set(self._rows + sum(len(m) for flight in self._flights for m in flight.batches.values()))
        metrics.PAUSED.set(self._paused)
        oldest = {slot: self._oldest_of(slot) for slot in self._buffers}
        for topic in self._sources:
            waiting = [m for slot, m in oldest.items() if m is not None and slot.topic == topic]
            ages = [clock.now_ms() - message.timestamp()[1] for message in waiting]
            metrics.OLDEST_WAITING.labels(topic).set(max(ages, default=0) / 1_000)
        for slot, first in oldest.items():
            here = TopicPartition(self._kafka.topic(slot.topic), slot.partition)
            try:
                # The client learns a partition's end with what it fetches: while it fetches nothing, it has to ask.
                _, high = consumer.get_watermark_offsets(here, timeout=1.0, cached=not self._paused)
            except KafkaException:
                return  # the broker is away; the next report may know
            at = consumer.position([here])[0].offset if first is None else first.offset() or 0
            at = at if at >= 0 else self._starts[slot]  # the client knows no position before the first record
            if high >= 0:
                metrics.LAG.labels(slot.topic, str(slot.partition)).set(max(0, high - at))

    def _oldest_of(self, slot: Slot) -> Message | None:
        """The first record of a slot whose effect is still to come."""
        under_way = (flight.batches[slot][0] for flight in self._flights if slot in flight.batches)
        return next(under_way, next(iter(self._buffers[slot]), None))
