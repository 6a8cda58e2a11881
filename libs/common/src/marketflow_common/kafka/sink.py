"""Topic to the outside world: the effect first, then the commit.

Must never commit what has not taken effect, nor drop a record because the outside is away.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

from confluent_kafka import Consumer, KafkaException, Message, TopicPartition

from .. import logs, metrics
from ..health import Health
from ..settings import KafkaSettings
from . import client
from .client import Committed

__all__ = ["Batches", "Effect", "Limits", "Retry", "Sink", "Slot"]

_log = logs.get("sink")
LAG_SECONDS = 5.0


class Slot(NamedTuple):
    """One partition of one topic; the topic by its plain name, without prefix."""

    topic: str
    partition: int


Batches = Mapping[Slot, Sequence[Message]]


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
        marks: Mapping[Slot, Mapping[str, int]] | None = None,
    ) -> None:
        super().__init__(reason)
        self.seconds = seconds
        self.written = written or {}
        self.marks = marks or {}


class Limits(NamedTuple):
    """When a flush is due, whichever comes first; and how much may wait while the outside is away."""

    rows: int = 10_000
    bytes: int = 8_000_000
    seconds: float = 1.0


class Effect(Protocol):
    """What a sink does with records."""

    def opened(self, slot: Slot, committed: Committed) -> int | None:
        """A partition is now ours. Returns the offset to start from; None: the committed one, or the oldest."""

    def closed(self, slot: Slot) -> None:
        """A partition is no longer ours; what was not written is dropped and read again by the next owner."""

    def write(self, batches: Batches) -> Mapping[Slot, Mapping[str, int]]:
        """Make the effect durable, for all batches. Returns marks to commit beside each position.

        Raises Retry to be called again with at least the same records.
        """


class Sink:
    """Feeds an Effect from the partitions that the consumer group gives to this process."""

    def __init__(
        self,
        kafka: KafkaSettings,
        group: str,
        sources: Sequence[str],
        effect: Effect,
        health: Health,
        limits: Limits = Limits(),  # noqa: B008 - immutable
    ) -> None:
        self._kafka, self._group, self._sources = kafka, group, sources
        self._effect, self._health, self._limits = effect, health, limits
        self._plain = {kafka.topic(name): name for name in sources}
        self._buffers: dict[Slot, list[Message]] = {}
        self._bytes = self._rows = 0
        self._oldest: float | None = None
        self._retry_at = 0.0
        self._paused = False
        self._consumer: Consumer | None = None

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

        consumer.subscribe(list(self._plain), on_assign=assigned, on_revoke=revoked, on_lost=lost)
        next_lag = 0.0
        try:
            while not stop.is_set():
                messages = self._poll(consumer)
                if failure:  # before the messages: a partition that could not be opened may have sent an error
                    raise failure[0]
                self._take(messages)
                self._health.beat()
                now = time.monotonic()
                if self._due(now):
                    self._flush()
                self._press_back(consumer)
                if now >= next_lag:
                    self._report_lag(consumer)
                    next_lag = now + LAG_SECONDS
            self._flush()
        finally:
            self._health.ready(False, "stopping")
            consumer.close()

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
            self._buffers[self._slot(p)] = []
        self._consumer.assign(starts)
        self._consumer.resume(starts)  # librdkafka keeps a pause of an earlier assignment
        self._paused = False
        self._show_owned()
        self._health.ready(True)
        _log.info("assigned", group=self._group, starts={f"{p.topic}/{p.partition}": p.offset for p in starts})

    def _drop(self, partitions: list[TopicPartition]) -> None:
        for p in partitions:
            slot = self._slot(p)
            if self._buffers.pop(slot, None) is not None:
                self._effect.closed(slot)
        self._count()
        self._show_owned()
        _log.info("revoked", group=self._group, partitions=[f"{p.topic}/{p.partition}" for p in partitions])

    def _show_owned(self) -> None:
        metrics.OWNED_PARTITIONS.set(len(self._buffers))
        self._health.detail(partitions=sorted(f"{slot.topic}/{slot.partition}" for slot in self._buffers))

    # --- work ----------------------------------------------------------------------------------------

    def _poll(self, consumer: Consumer) -> list[Message]:
        first = consumer.poll(min(0.1, self._limits.seconds))
        if first is None:
            return []
        room = max(0, self._limits.rows - self._rows - 1)
        return [first, *(consumer.consume(room, 0) if room else [])]

    def _take(self, messages: list[Message]) -> None:
        taken = dict.fromkeys(self._sources, 0)
        for message in filter(client.is_record, messages):
            slot = Slot(self._plain[message.topic() or ""], message.partition() or 0)
            if slot in self._buffers:
                self._buffers[slot].append(message)
                self._rows += 1
                self._bytes += len(message)
                taken[slot.topic] += 1
        for topic, count in taken.items():
            metrics.MESSAGES_IN.labels(topic).inc(count)
        if self._oldest is None and self._rows:
            self._oldest = time.monotonic()

    def _due(self, now: float) -> bool:
        if self._oldest is None or now < self._retry_at:
            return False
        limits = self._limits
        return self._rows >= limits.rows or self._bytes >= limits.bytes or now - self._oldest >= limits.seconds

    def _flush(self) -> None:
        batches = {slot: tuple(messages) for slot, messages in self._buffers.items() if messages}
        if not batches or self._consumer is None:
            return
        try:
            marks = self._effect.write(batches)
            written: Mapping[Slot, int] = {slot: (m[-1].offset() or 0) + 1 for slot, m in batches.items()}
        except Retry as error:
            self._retry_at = time.monotonic() + error.seconds
            marks, written = error.marks, error.written
            if not written:
                _log.warning("outside_away", detail=str(error), retry_in_s=error.seconds, records_waiting=self._rows)
                return
        positions = []
        for slot, offset in written.items():
            topic = self._kafka.topic(slot.topic)
            positions.append(client.position(topic, slot.partition, offset, dict(marks.get(slot, {}))))
            rest = [message for message in batches[slot] if (message.offset() or 0) >= offset]
            metrics.MESSAGES_OUT.labels(slot.topic).inc(len(batches[slot]) - len(rest))
            self._buffers[slot] = rest
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
        full = self._rows >= self._limits.rows or self._bytes >= self._limits.bytes
        if full and not self._paused:
            consumer.pause(consumer.assignment())
        elif self._paused and not full:
            consumer.resume(consumer.assignment())
        self._paused = full

    def _report_lag(self, consumer: Consumer) -> None:
        for slot in self._buffers:
            here = TopicPartition(self._kafka.topic(slot.topic), slot.partition)
            _, high = consumer.get_watermark_offsets(here, cached=True)
            at = consumer.position([here])[0].offset
            if high >= 0 and at >= 0:
                metrics.LAG.labels(slot.topic, str(slot.partition)).set(max(0, high - at))
