"""Topic to topic, exactly once: a partition is a lane with its own state and its own transactional producer.

Output and input position are committed in one transaction. Must never let state run ahead of what is
committed: on any error the lane is thrown away and opened again from Kafka, by the same code as at start.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Protocol, cast

from confluent_kafka import Consumer, KafkaError, KafkaException, Message, Producer, TopicPartition

from .. import logs, metrics
from ..events import Event
from ..health import Health
from ..settings import KafkaSettings
from . import client
from .client import Batch, Committed, Decoder, Fenced, Record

__all__ = ["Lane", "Transform"]

_log = logs.get("transform")
IDLE_COMMIT_SECONDS = 5.0
"""A position that moved without any output is committed this often, so that a restart reads little again."""
RETRY_SECONDS = 0.5
LAG_SECONDS = 5.0
BEHIND = 500
"""So many records at once mean that there is more to catch up: then one transaction serves several takings."""
HELD = 5
"""Full batches that one transaction holds at most."""
COMMITTERS = 12
"""So many lanes besides the first commit at a time."""
_GROUP_MOVED_ON = (
    KafkaError.ILLEGAL_GENERATION,
    KafkaError.UNKNOWN_MEMBER_ID,
    KafkaError.REBALANCE_IN_PROGRESS,
)


class Lane(Protocol):
    """The state of one partition. A new one is made at every assignment and after every error.

    Order of calls: ``restore_output`` for each record of the own output from mark ``out_from`` on;
    ``restore_input`` for each record of the input from mark ``in_from`` up to the committed offset; then
    ``process``, once or several times, then ``position``, and ``delivered`` once a transaction has committed.

    A lane may have ``skim(values) -> indices`` as well: it is called before each ``process``, with the bytes of the
    records, takes in what it can do without an event, and leaves the others, in order, to ``process``.
    """

    def restore_output(self, record: Record) -> None:
        """A record that this partition's lane has published before."""

    def restore_input(self, record: Record) -> None:
        """A record before the committed position, whose output has been published."""

    def process(self, batch: Batch) -> list[Event]:
        """Take records in, in order; return what is to be published, in order."""

    def position(self, next_offset: int) -> Committed:
        """What to commit when everything before ``next_offset`` was processed.

        Marks: ``in_from``, lowest input offset needed to restore (at most the committed offset); ``out_from``,
        lowest output offset needed.
        """

    def delivered(self, outputs: Sequence[Event], offsets: Sequence[int]) -> None:
        """All that ``process`` has returned since the last time, and the offset that each has got."""


@dataclass
class _Open:
    """A lane at work, or (``lane is None``) one that waits to be opened again.

    ``outputs`` of the input before ``next_offset`` (-1: nothing was taken) are not committed yet.
    """

    producer: Producer | None
    lane: Lane | None
    committed: Committed
    retry_at: float = 0.0
    last_commit: float = 0.0
    next_offset: int = -1
    outputs: list[Event] = field(default_factory=list)
    offsets: list[int] = field(default_factory=list)


class Transform:
    """Runs lanes over the partitions that the consumer group gives to this process."""

    def __init__(
        self,
        kafka: KafkaSettings,
        service: str,
        source: str,
        target: str,
        make_lane: Callable[[int, int], Lane],
        health: Health,
        *,
        batch: int = 2_000,
        decoder: Decoder | None = None,
        step: Callable[[str], None] = lambda name: None,
    ) -> None:
        """``make_lane(partition, output_end)`` makes an empty lane; ``output_end`` is the end of its output as of now.

        ``batch``: records taken at a time at most; where fewer than BEHIND come, each lane has a transaction for
        them. ``decoder``: for lanes that want their events otherwise than ``codec.decode`` gives them.
        ``step`` is told the name of each step (consumed, processed, produced, offsets_sent, committed), so that a
        test can die there.
        """
        self._kafka, self._service, self._health = kafka, service, health
        self._source, self._target, self._make_lane = source, target, make_lane
        self._in_topic, self._out_topic = kafka.topic(source), kafka.topic(target)
        self._batch, self._decoder, self._step = batch, decoder, step
        self._lanes: dict[int, _Open] = {}
        self._committers = ThreadPoolExecutor(COMMITTERS, "commit")
        self._opened = 0
        self._consumer: Consumer | None = None

    def run(self, stop: threading.Event) -> None:
        """Work until ``stop``. Raises Fenced or FatalKafkaError when this process must leave."""
        client.partition_count(self._kafka, self._source, self._target)
        self._consumer = consumer = client.consumer(self._kafka, self._service)
        failure: list[BaseException] = []

        def guarded(
            action: Callable[[list[TopicPartition]], None],
        ) -> Callable[[Consumer, list[TopicPartition]], None]:
            # An exception in a rebalance callback would surface as an opaque error; keep it and raise it ourselves.
            def callback(_: Consumer, partitions: list[TopicPartition]) -> None:
                try:
                    action(partitions)
                except BaseException as error:  # noqa: BLE001
                    failure.append(error)

            return callback

        consumer.subscribe(
            [self._in_topic],
            on_assign=guarded(self._assigned),
            on_revoke=guarded(self._revoked),
            on_lost=guarded(self._revoked),
        )
        next_lag, held = 0.0, 0
        try:
            while not stop.is_set():
                messages = self._poll(consumer)
                if failure:
                    raise failure[0]
                self._health.beat()
                for partition, batch in self._by_partition(messages).items():
                    self._take(partition, batch)
                held += len(messages)
                if len(messages) < BEHIND or held >= HELD * self._batch:
                    self._settle()
                    held = 0
                now = time.monotonic()
                for partition, open_ in list(self._lanes.items()):
                    if open_.lane is None and now >= open_.retry_at:
                        self._reopen(partition)
                if now >= next_lag:
                    self._report_lag(consumer)
                    next_lag = now + LAG_SECONDS
        finally:
            self._health.ready(False, "stopping")
            consumer.close()
            self._lanes.clear()

    # --- assignment ----------------------------------------------------------------------------------

    def _assigned(self, partitions: list[TopicPartition]) -> None:
        assert self._consumer is not None
        # Nothing is fetched before the lanes are open: where to start is not known until then.
        starts = [(p, self._open(p.partition)) for p in partitions]
        self._consumer.assign([TopicPartition(p.topic, p.partition, start or 0) for p, start in starts])
        # librdkafka keeps a pause of an earlier assignment: without this a lane would stand still, and look well.
        self._consumer.resume(partitions)
        broken = [p for p, start in starts if start is None]
        if broken:
            self._consumer.pause(broken)
        metrics.OWNED_PARTITIONS.set(len(self._lanes))
        self._health.detail(partitions=sorted(self._lanes))
        self._health.ready(True)
        _log.info("assigned", topic=self._in_topic, partitions=sorted(p.partition for p in partitions))

    def _revoked(self, partitions: list[TopicPartition]) -> None:
        # Between two polls no transaction is open, so there is nothing to flush; lost or revoked, state is dropped.
        for p in partitions:
            self._lanes.pop(p.partition, None)
            metrics.LAG.remove(self._source, str(p.partition))
        metrics.OWNED_PARTITIONS.set(len(self._lanes))
        self._health.detail(partitions=sorted(self._lanes))
        _log.info("revoked", topic=self._in_topic, partitions=sorted(p.partition for p in partitions))

    def _open(self, partition: int) -> int | None:
        """Bring a lane to what is committed: fence, position, own output, input before the position.

        Returns the offset to go on from, or None when the broker would not (it is tried again later).
        """
        assert self._consumer is not None
        consumer = self._consumer
        try:
            producer = client.producer(self._kafka, f"{self._service}-{partition}")
            # Returns only after the predecessor's transaction is decided, in output and offsets alike.
            producer.init_transactions(self._kafka.transaction_timeout_ms / 1000 + client.TIMEOUT)
            position = client.committed(consumer, self._in_topic, partition)
            _, out_end = client.watermarks(consumer, self._out_topic, partition)
            lane = self._make_lane(partition, out_end)
            beat = self._health.beat
            if "out_from" in position.marks:
                for record in client.read_range(self._kafka, self._target, partition, position.marks["out_from"], beat):
                    lane.restore_output(record)
            start = position.offset
            if start < 0:
                start, _ = client.watermarks(consumer, self._in_topic, partition)
            in_from = position.marks.get("in_from", start)
            if in_from < start:
                for record in client.read_range(
                    self._kafka, self._source, partition, in_from, beat, start, self._decoder
                ):
                    lane.restore_input(record)
        except KafkaException as error:
            self._broken(partition, error)
            return None
        self._lanes[partition] = _Open(producer, lane, position, last_commit=time.monotonic())
        self._opened += 1
        _log.info(
            "lane_opened",
            partition=partition,
            offset=start,
            in_from=in_from,
            out_from=position.marks.get("out_from"),
        )
        return start

    def _reopen(self, partition: int) -> None:
        assert self._consumer is not None
        start = self._open(partition)
        if start is not None:
            here = TopicPartition(self._in_topic, partition, start)
            self._consumer.seek(here)
            self._consumer.resume([here])

    def _broken(self, partition: int, error: KafkaException) -> None:
        """Drop lane and producer (a late EndTxn of it could hit the next transaction) and open again soon."""
        assert self._consumer is not None
        reason: KafkaError = error.args[0]
        if client.is_fenced(error):
            raise Fenced(f"{self._service}-{partition}: {reason.str()}") from error
        metrics.REOPENED.labels(self._source).inc()
        _log.warning("lane_broken", partition=partition, detail=reason.str(), effect="put back to what is committed")
        if any(p.partition == partition for p in self._consumer.assignment()):
            self._consumer.pause([TopicPartition(self._in_topic, partition)])
        # The group has moved on without this member: opening at once would fence the rightful owner, so the news
        # of the rebalance gets time to arrive.
        wait = self._kafka.session_timeout_ms / 1000 if reason.code() in _GROUP_MOVED_ON else RETRY_SECONDS
        self._lanes[partition] = _Open(None, None, Committed(-1, {}), time.monotonic() + wait)

    # --- work ----------------------------------------------------------------------------------------

    def _poll(self, consumer: Consumer) -> list[Message]:
        # consume() waits until it has all it asked for or the time is over, so it is asked only for what is there.
        first = consumer.poll(0.1)
        if first is None:
            return []
        opened = self._opened
        messages = consumer.consume(self._batch - 1, 0) if self._batch > 1 else []
        if self._opened == opened:
            messages.insert(0, first)
        # Otherwise the lanes have been opened anew while it was held here: it comes again, in its place.
        self._step("consumed")
        return messages

    def _by_partition(self, messages: list[Message]) -> dict[int, list[Message]]:
        if any(map(Message.error, messages)):
            messages = list(filter(client.is_record, messages))
        numbers = cast("list[int]", list(map(Message.partition, messages)))
        batches: dict[int, list[Message]] = {number: [] for number in sorted(set(numbers))}
        for number, message in zip(numbers, messages, strict=True):
            batches[number].append(message)
        return batches

    def _take(self, partition: int, batch: list[Message]) -> None:
        open_ = self._lanes.get(partition)
        if open_ is None or open_.lane is None:
            return
        for part in client.batches_of(batch, self._source, self._decoder, getattr(open_.lane, "skim", None)):
            open_.outputs += open_.lane.process(part)
        open_.next_offset = (batch[-1].offset() or 0) + 1
        metrics.MESSAGES_IN.labels(self._source).inc(len(batch))
        self._step("processed")

    def _settle(self) -> None:
        """Commit what the lanes have taken: all at once, because each waits for the broker four times."""
        assert self._consumer is not None
        begun = {p: position for p in list(self._lanes) if (position := self._begin(p)) is not None}
        if not begun:
            return
        members = self._consumer.consumer_group_metadata()
        first, *others = begun.items()
        under_way = [(one, self._committers.submit(self._commit, *one, members)) for one in others]
        failures = [(first[0], self._commit(*first, members)), *((p, call.result()) for (p, _), call in under_way)]
        for partition, failure in failures:
            if failure is None:
                self._committed(partition, begun[partition])
        for partition, failure in failures:
            if failure is not None:
                self._broken(partition, failure)

    def _begin(self, partition: int) -> Committed | None:
        """Send a lane's outputs in a transaction; returns the position to commit, None if nothing is open."""
        open_ = self._lanes[partition]
        if open_.lane is None or open_.producer is None or open_.next_offset < 0:
            return None
        position = open_.lane.position(open_.next_offset)
        quiet = time.monotonic() - open_.last_commit < IDLE_COMMIT_SECONDS
        if not open_.outputs and (quiet or position == open_.committed):
            return None
        offsets = open_.offsets

        # Holds the list only: a client with records in flight would keep itself alive by way of the lane.
        def on_delivery(error: KafkaError | None, message: Message) -> None:
            if error is None:
                offsets.append(message.offset() or 0)

        try:
            open_.producer.begin_transaction()
            for event in open_.outputs:
                client.send(open_.producer, self._out_topic, partition, event, on_delivery)
            self._step("produced")
        except KafkaException as error:
            self._broken(partition, error)
            return None
        return position

    def _commit(self, partition: int, position: Committed, members: Any) -> KafkaException | None:
        """Commit a lane's transaction; returns why it could not be. Changes nothing but the lane's list of offsets."""
        producer = self._lanes[partition].producer
        assert producer is not None
        start = time.monotonic()
        try:
            producer.send_offsets_to_transaction(
                [client.position(self._in_topic, partition, position.offset, position.marks)], members, client.TIMEOUT
            )
            self._step("offsets_sent")
            producer.commit_transaction(self._kafka.transaction_timeout_ms / 1000)
        except KafkaException as error:
            return error
        self._step("committed")
        metrics.TRANSACTION_SECONDS.labels(self._target).observe(time.monotonic() - start)
        return None

    def _committed(self, partition: int, position: Committed) -> None:
        open_ = self._lanes[partition]
        assert open_.lane is not None
        outputs, offsets = open_.outputs, open_.offsets
        open_.outputs, open_.offsets = [], []
        open_.lane.delivered(outputs, offsets)
        open_.committed, open_.last_commit, open_.next_offset = position, time.monotonic(), -1
        metrics.MESSAGES_OUT.labels(self._target).inc(len(outputs))

    def _report_lag(self, consumer: Consumer) -> None:
        for partition in self._lanes:
            here = TopicPartition(self._in_topic, partition)
            _, high = consumer.get_watermark_offsets(here, cached=True)
            at = consumer.position([here])[0].offset
            if high >= 0 and at >= 0:
                metrics.LAG.labels(self._source, str(partition)).set(max(0, high - at))
