"""The outside world to a topic: who publishes which partition, and publishing without loss or repeat.

Must never publish to a partition that another instance has taken over.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence

from confluent_kafka import Consumer, KafkaError, KafkaException, Message, Producer, TopicPartition

from .. import logs, metrics
from ..events import Event
from ..health import Health
from ..settings import KafkaSettings
from . import client
from .client import Fenced, Record

__all__ = ["Ownership", "PublishFailed", "Publisher", "read_back"]

_log = logs.get("source")


class PublishFailed(RuntimeError):
    """A transaction did not commit for certain. Open the publisher again, read the tail, and go on from there."""


class Publisher:
    """The one writer of a partition of a topic: each ``publish`` is a transaction.

    After ``open`` every earlier writer of the partition is fenced and its last transaction is decided, so the
    tail of the topic tells what has been published.

    A transaction may carry a *mark*: the offset of the oldest record that a restart has to read beside the tail.
    It is kept as the committed position of the service's group, ``{"mark": 1}`` beside it, or ``{"mark": 0}``
    where none is needed; nobody consumes from there.
    """

    def __init__(self, kafka: KafkaSettings, service: str, topic: str, partition: int) -> None:
        self._kafka, self._name, self._topic = kafka, topic, kafka.topic(topic)
        self._id, self._partition = f"{service}-{partition}", partition
        self._group = service
        self._producer: Producer | None = None
        self._reader: Consumer | None = None
        self.end = 0
        """The next record gets this offset or a higher one."""

    def open(self) -> int | None:
        """Fence earlier writers; returns the mark. Raises PublishFailed if the broker does not answer in time."""
        self._producer = None
        try:
            producer = client.producer(self._kafka, self._id)
            producer.init_transactions(self._kafka.transaction_timeout_ms / 1000 + client.TIMEOUT)
            if self._reader is None:
                self._reader = client.consumer(self._kafka, self._group)
            _, self.end = client.watermarks(self._reader, self._topic, self._partition)
            offset, marks = client.committed_anywhere(self._reader, self._topic, self._partition)
        except KafkaException as error:
            raise PublishFailed(f"{self._id}: {error.args[0].str()}") from error
        self._producer = producer
        return offset if marks.get("mark") else None

    def close(self) -> None:
        """Give the connections back; the fence stays."""
        if self._reader is not None:
            self._reader.close()
        self._producer = self._reader = None

    def publish(self, events: Sequence[Event], mark: tuple[int, bool] | None = None) -> None:
        """Publish events in order, and the mark (its offset, whether it is needed), all or none.

        Raises Fenced, or PublishFailed when the outcome is not known.
        """
        producer = self._producer
        if producer is None:
            raise PublishFailed(f"{self._id} is not open")
        failed: list[KafkaError] = []
        end = self.end

        def on_delivery(error: KafkaError | None, message: Message) -> None:
            nonlocal end
            if error is not None:
                failed.append(error)
            else:
                end = (message.offset() or 0) + 1

        try:
            producer.begin_transaction()
            for event in events:
                client.send(producer, self._topic, self._partition, event, on_delivery)
            if mark is not None and self._reader is not None:
                here = client.position(self._topic, self._partition, mark[0], {"mark": int(mark[1])})
                producer.send_offsets_to_transaction([here], self._reader.consumer_group_metadata(), client.TIMEOUT)
            producer.commit_transaction(self._kafka.transaction_timeout_ms / 1000)
        except KafkaException as error:
            # The producer is given up: a late EndTxn of it could hit its next transaction (no KIP-890 here).
            self._producer = None
            if client.is_fenced(error):
                raise Fenced(f"{self._id}: {error.args[0].str()}") from error
            raise PublishFailed(f"{self._id}: {error.args[0].str()}") from error
        if failed:
            self._producer = None
            raise PublishFailed(f"{self._id}: {failed[0].str()}")
        self.end = end
        metrics.MESSAGES_OUT.labels(self._name).inc(len(events))


class Ownership:
    """Shares partitions among replicas of a publisher: membership of a group on the topic, reading nothing.

    ``assigned`` and ``revoked`` are called on the thread of ``run``, with sorted partition numbers.
    """

    def __init__(
        self,
        kafka: KafkaSettings,
        service: str,
        topic: str,
        health: Health,
        assigned: Callable[[list[int]], None],
        revoked: Callable[[list[int]], None],
    ) -> None:
        self._kafka, self._service, self._topic, self._health = kafka, service, topic, health
        self._assigned, self._revoked = assigned, revoked

    def run(self, stop: threading.Event) -> None:
        """Hold membership until ``stop``. An error of the callbacks is raised here."""
        consumer = client.consumer(self._kafka, self._service)
        failure: list[BaseException] = []

        def on_assign(_: Consumer, partitions: list[TopicPartition]) -> None:
            consumer.assign([TopicPartition(p.topic, p.partition, 0) for p in partitions])
            if partitions:
                consumer.pause(partitions)
            self._call(self._assigned, "assigned", partitions, failure)

        def on_revoke(_: Consumer, partitions: list[TopicPartition]) -> None:
            self._call(self._revoked, "revoked", partitions, failure)

        consumer.subscribe(
            [self._kafka.topic(self._topic)], on_assign=on_assign, on_revoke=on_revoke, on_lost=on_revoke
        )
        try:
            while not stop.is_set() and not failure:
                message = consumer.poll(0.1)
                self._health.beat()
                error = message.error() if message is not None else None
                if error is not None and error.fatal():
                    raise client.FatalKafkaError(error.str())
        finally:
            consumer.close()
        if failure:
            raise failure[0]

    def _call(
        self,
        action: Callable[[list[int]], None],
        name: str,
        partitions: list[TopicPartition],
        failure: list[BaseException],
    ) -> None:
        numbers = sorted(p.partition for p in partitions)
        _log.info(name, topic=self._topic, partitions=numbers)
        try:
            action(numbers)
        except BaseException as error:  # noqa: BLE001 - raised by run
            failure.append(error)


def read_back(kafka: KafkaSettings, name: str, partition: int, chunk: int = 2_000) -> Iterator[list[Record]]:
    """Committed records of a partition from its end backwards, in chunks that grow; each chunk is in order.

    A chunk covers at most its number of offsets, so one may be empty. Ends at the oldest record there is.
    """
    reader = client.consumer(kafka, "reader")
    try:
        low, end = client.watermarks(reader, kafka.topic(name), partition)
    finally:
        reader.close()
    while end > low:
        start = max(low, end - chunk)
        yield list(client.read_range(kafka, name, partition, start, end=end))
        end, chunk = start, chunk * 2
