"""Client configuration, errors and the small look-ups that the three loops share.

Must never commit on its own (auto-commit is off) nor reset an offset silently.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from queue import Empty, SimpleQueue
from typing import Any, Final, NamedTuple, TypeVar
from weakref import finalize

from confluent_kafka import (
    OFFSET_INVALID,
    Consumer,
    KafkaError,
    KafkaException,
    Message,
    Producer,
    TopicPartition,
)
from confluent_kafka.admin import AdminClient

from .. import codec, logs, metrics
from ..events import Event
from ..settings import KafkaSettings

__all__ = [
    "Batch",
    "BoundedProducer",
    "Committed",
    "FatalKafkaError",
    "Fenced",
    "PositionLost",
    "Record",
    "Skim",
    "admin",
    "batches_of",
    "committed",
    "committed_anywhere",
    "consumer",
    "is_fenced",
    "is_record",
    "partition_count",
    "plain_producer",
    "position",
    "producer",
    "read_range",
    "reader",
    "records_of",
    "send",
    "watermarks",
]

TIMEOUT: Final = 10.0
"""Seconds for one look-up at the broker."""
OVERDUE: Final = 3.0
"""How long after its limit a call is given up."""
PATIENCE: Final = 20.0
"""Seconds for which a look-up is repeated while the broker starts, elects or loads."""
_PASSING: Final = frozenset(
    {
        KafkaError._TRANSPORT,
        KafkaError._TIMED_OUT,
        KafkaError._ALL_BROKERS_DOWN,
        KafkaError._WAIT_COORD,
        KafkaError._UNKNOWN_PARTITION,
        KafkaError.LEADER_NOT_AVAILABLE,
        KafkaError.NOT_LEADER_FOR_PARTITION,
        KafkaError.UNKNOWN_TOPIC_OR_PART,
        KafkaError.COORDINATOR_LOAD_IN_PROGRESS,
        KafkaError.COORDINATOR_NOT_AVAILABLE,
        KafkaError.NOT_COORDINATOR,
        KafkaError.UNSTABLE_OFFSET_COMMIT,
        KafkaError.REQUEST_TIMED_OUT,
        KafkaError.BROKER_NOT_AVAILABLE,
    }
)
CHUNK: Final = 500
"""Records that are decoded at a time."""
T = TypeVar("T")
QUIET_SECONDS: Final = 10.0
"""Between two log lines about a broker that cannot be reached: without it an outage floods the log."""
_log = logs.get("kafka")


class FatalKafkaError(RuntimeError):
    """The process cannot go on; the text says what to do."""


class Fenced(FatalKafkaError):
    """Another instance with the same transactional id has taken over."""


class PositionLost(FatalKafkaError):
    """A committed offset lies outside the partition: records were deleted before they were read."""


class Record(NamedTuple):
    """One readable record: offset, broker's append time in ms, and the event."""

    offset: int
    appended_ms: int
    event: Any


@dataclass(frozen=True, slots=True)
class Batch:
    """Readable records of one partition, in order. What is needed of few records is not asked for before."""

    events: Sequence[Any]
    record: Callable[[int], Record]
    """The record of the event at an index."""

    def __iter__(self) -> Iterator[Record]:
        return map(self.record, range(len(self.events)))


Skim = Callable[["list[bytes | None]"], Sequence[int]]
"""Takes in what needs no event of its own; the indices of the values that do, in order."""
Decoder = Callable[[Sequence[bytes | None]], "list[Any] | None"]
"""The events in the values of records, otherwise than ``codec.decode`` gives them; None: it must read these."""


class Committed(NamedTuple):
    """A committed position: offset of the next record (-1: none yet) and the numbers stored with it."""

    offset: int
    marks: dict[str, int]


def _security(kafka: KafkaSettings) -> dict[str, Any]:
    config: dict[str, Any] = {
        "bootstrap.servers": kafka.bootstrap_servers,
        "security.protocol": kafka.security_protocol,
        # A broker that comes back is found again within a second, not after the default of ten.
        "reconnect.backoff.max.ms": 1_000,
        # error_cb reports outages, once per event; librdkafka itself would print a line per connection and retry.
        "log_level": 2,
    }
    if kafka.security_protocol.startswith("SASL"):
        config |= {
            "sasl.mechanism": kafka.sasl_mechanism,
            "sasl.username": kafka.sasl_username,
            "sasl.password": kafka.sasl_password.get_secret_value(),
        }
    if kafka.ssl_ca_location:
        config["ssl.ca.location"] = kafka.ssl_ca_location
    return config


def _quiet() -> Callable[[KafkaError], None]:
    """For one client: librdkafka retries by itself, many times a second; the log says so every ten seconds."""
    silent_until = 0.0

    def say(error: KafkaError) -> None:
        nonlocal silent_until
        if time.monotonic() >= silent_until:
            silent_until = time.monotonic() + QUIET_SECONDS
            _log.warning("broker", detail=error.str())

    return say


def consumer(kafka: KafkaSettings, group: str, **more: Any) -> Consumer:
    """A consumer that commits nothing by itself, reads only what is committed, and never resets."""
    config = _security(kafka) | {
        "group.id": kafka.topic(group),
        "enable.auto.commit": False,
        "enable.auto.offset.store": False,
        "isolation.level": "read_committed",
        "auto.offset.reset": "error",
        "allow.auto.create.topics": False,
        "session.timeout.ms": kafka.session_timeout_ms,
        "heartbeat.interval.ms": max(300, kafka.session_timeout_ms // 4),
        # Range puts the same partition numbers of co-partitioned topics on one member; cooperative-sticky loses
        # commits in librdkafka.
        "partition.assignment.strategy": "range",
        # The default of one second leaves a fast reader waiting with an empty queue.
        "fetch.queue.backoff.ms": 2,
        # A fetch is answered at once when there is something, so waiting long costs no latency; waiting shortly costs
        # broker and client an empty answer each time. What waits is a partition that is given or resumed meanwhile.
        "fetch.wait.max.ms": 250,
        "error_cb": _quiet(),
        **more,
    }
    return Consumer(config)


def reader(kafka: KafkaSettings, group: str, **more: Any) -> Consumer:
    """A consumer that reads up to the end, and is told of it: by an empty answer, which is asked for soon."""
    return consumer(kafka, group, **{"enable.partition.eof": True, "fetch.wait.max.ms": 20, **more})


class BoundedProducer(Producer):
    """A transactional producer that keeps the time limit of each call.

    librdkafka's send_offsets_to_transaction waits for the group's coordinator whatever its limit (its issues 5456 and
    5511): for ever, if the broker went away at the wrong moment. So that one call is made by a thread of its own, which
    is left behind when it does not come back. A producer whose call has timed out must not be used again; the next
    one of its transactional id fences it, which also ends its transaction.
    """

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__(config)
        self._todo: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._done: SimpleQueue[BaseException | None] = SimpleQueue()
        # The thread knows the queues only: it must not keep the producer alive.
        threading.Thread(target=_serve, args=(self._todo, self._done), name="offsets", daemon=True).start()
        finalize(self, self._todo.put, None)

    def send_offsets_to_transaction(
        self, positions: list[TopicPartition], group_metadata: Any, timeout: float = TIMEOUT
    ) -> None:
        """As the base, within ``timeout`` and OVERDUE seconds. Raises KafkaException."""
        self._todo.put(partial(self._send_offsets, positions, group_metadata, timeout))
        try:
            error = self._done.get(timeout=timeout + OVERDUE)
        except Empty:
            raise KafkaException(
                KafkaError(KafkaError._TIMED_OUT, f"no answer to the transaction's offsets in {timeout + OVERDUE:g} s")
            ) from None
        if error is not None:
            raise error

    def _send_offsets(self, positions: list[TopicPartition], group_metadata: Any, timeout: float) -> None:
        super().send_offsets_to_transaction(positions, group_metadata, timeout)


def _serve(todo: SimpleQueue[Callable[[], None] | None], done: SimpleQueue[BaseException | None]) -> None:
    while (call := todo.get()) is not None:
        said: BaseException | None = None
        try:
            call()
        except BaseException as error:  # noqa: BLE001 - raised where it was called
            said = error
        del call
        done.put(said)
        del said


def producer(kafka: KafkaSettings, transactional_id: str) -> Producer:
    """A transactional producer tuned for small transactions (6.5 ms instead of 28 ms for one record)."""
    return BoundedProducer(
        _security(kafka)
        | {
            "transactional.id": kafka.topic(transactional_id),
            "transaction.timeout.ms": kafka.transaction_timeout_ms,
            "delivery.timeout.ms": kafka.transaction_timeout_ms,
            "enable.idempotence": True,
            "acks": "all",
            "compression.type": "lz4",
            "linger.ms": 0,
            "retry.backoff.ms": 1,
            "retry.backoff.max.ms": 10,
            "error_cb": _quiet(),
        }
    )


def plain_producer(kafka: KafkaSettings) -> Producer:
    """A producer without transactions, for the rare record that stands for itself."""
    return Producer(
        _security(kafka)
        | {
            "enable.idempotence": True,
            "acks": "all",
            "delivery.timeout.ms": kafka.transaction_timeout_ms,
            "error_cb": _quiet(),
        }
    )


def send(
    producer: Producer,
    topic: str,
    partition: int,
    event: Event,
    on_delivery: Callable[[KafkaError | None, Message], None],
) -> None:
    """Queue one event in the producer's transaction; a full queue is waited for, not dropped."""
    while True:
        try:
            producer.produce(
                topic,
                value=codec.encode(event),
                key=codec.key_of(event),
                partition=partition,
                headers=codec.headers_of(event),
                on_delivery=on_delivery,
            )
            return
        except BufferError:
            producer.poll(0.1)


def is_fenced(error: KafkaException) -> bool:
    """Whether the error says that a newer producer with the same id exists."""
    return error.args[0].code() in (
        KafkaError._FENCED,
        KafkaError.INVALID_PRODUCER_EPOCH,
        KafkaError.PRODUCER_FENCED,
    )


def is_record(message: Message) -> bool:
    """Whether a consumer's message is a record; if not, what the client has to say is logged.

    Raises PositionLost or FatalKafkaError where it is something that cannot be gone on from.
    """
    error = message.error()
    if error is None:
        return True
    if error.code() in (KafkaError._AUTO_OFFSET_RESET, KafkaError.OFFSET_OUT_OF_RANGE):
        raise PositionLost(f"{error.str()}; nothing was reset")
    if error.fatal():
        raise FatalKafkaError(error.str())
    _log.warning("too_slow" if error.code() == KafkaError._MAX_POLL_EXCEEDED else "consume_error", detail=error.str())
    return False


def admin(kafka: KafkaSettings) -> AdminClient:
    """A client for look-ups that no consumer offers."""
    return AdminClient(_security(kafka) | {"error_cb": _quiet()})


def partition_count(kafka: KafkaSettings, *names: str) -> int:
    """Number of partitions of the topics. Raises FatalKafkaError if one is missing or the numbers differ."""
    client = admin(kafka)
    try:
        found = client.list_topics(timeout=TIMEOUT).topics
    except KafkaException as error:
        raise FatalKafkaError(
            f"no Kafka broker answers at {kafka.bootstrap_servers} ({error.args[0].str()}); "
            "start one, or set MARKETFLOW_KAFKA_BOOTSTRAP_SERVERS"
        ) from None
    counts = {}
    for name in names:
        topic = kafka.topic(name)
        if topic not in found:
            raise FatalKafkaError(f"topic {topic} does not exist; create the topics of infra/kafka-topics.tf first")
        counts[topic] = len(found[topic].partitions)
    if len(set(counts.values())) != 1:
        raise FatalKafkaError(
            f"the topics must have equally many partitions, but have {counts}: "
            "a symbol would change its partition between them; see infra/kafka-topics.tf"
        )
    return next(iter(counts.values()))


def _patiently(ask: Callable[[], T]) -> T:
    """Ask until the answer is no passing state of the cluster (an election, a coordinator that still loads)."""
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            return ask()
        except KafkaException as error:
            if error.args[0].code() not in _PASSING or time.monotonic() > deadline:
                raise
            time.sleep(0.1)


def watermarks(client: Consumer, topic: str, partition: int) -> tuple[int, int]:
    """Offset of the oldest record there is, and the end of what a read_committed reader can see."""
    here = TopicPartition(topic, partition)
    low, high = _patiently(lambda: client.get_watermark_offsets(here, timeout=TIMEOUT, cached=False))
    return int(low), int(high)


def committed(client: Consumer, topic: str, partition: int) -> Committed:
    """The group's committed position with its marks. Raises PositionLost if its records are gone."""
    found = committed_anywhere(client, topic, partition)
    if found.offset < 0:
        return found
    low, high = watermarks(client, topic, partition)
    if not low <= found.offset <= high:
        raise PositionLost(
            f"committed offset {found.offset} of {topic}/{partition} lies outside of what the broker has "
            f"({low} to {high}): records were deleted before they were read, or the topic was made anew. "
            "Nothing was reset. Find out what is missing, then set the group's offset by hand "
            "(kafka-consumer-groups --reset-offsets)"
        )
    return found


def committed_anywhere(client: Consumer, topic: str, partition: int) -> Committed:
    """As ``committed``, whether or not there are records at that position."""

    def ask() -> TopicPartition:
        found = client.committed([TopicPartition(topic, partition)], timeout=TIMEOUT)[0]
        if found.error:
            raise KafkaException(found.error)
        return found

    found = _patiently(ask)
    if found.offset == OFFSET_INVALID or found.offset < 0:
        return Committed(-1, {})
    return Committed(found.offset, json.loads(found.metadata) if found.metadata else {})


def position(topic: str, partition: int, offset: int, marks: dict[str, int]) -> TopicPartition:
    """A position to commit, with the numbers that a restart needs beside it."""
    return TopicPartition(topic, partition, offset, json.dumps(marks, separators=(",", ":")) if marks else "")


def batches_of(
    messages: Sequence[Message], topic: str, decoder: Decoder | None = None, skim: Skim | None = None
) -> Iterator[Batch]:
    """The readable events of messages of a topic; what cannot be read is counted, logged and passed over."""
    # A few hundred at a time: what is decoded is used while it is still in the processor's cache.
    for start in range(0, len(messages), CHUNK):
        part = messages[start : start + CHUNK]
        values = list(map(Message.value, part)) if decoder or skim else []
        if skim is not None:
            rest = skim(values)
            if len(rest) < len(part):
                part, values = [part[index] for index in rest], [values[index] for index in rest]
        events = decoder(values) if decoder else None
        if events is None:
            part, events = _one_by_one(part, topic)
        yield Batch(events, partial(_record, part, events))


def records_of(messages: Sequence[Message], topic: str, decoder: Decoder | None = None) -> Iterator[Record]:
    """As ``batches_of``, record by record."""
    return chain.from_iterable(batches_of(messages, topic, decoder))


def _record(messages: Sequence[Message], events: Sequence[Any], index: int) -> Record:
    message = messages[index]
    return Record(message.offset() or 0, message.timestamp()[1], events[index])


def _one_by_one(messages: Sequence[Message], topic: str) -> tuple[list[Message], list[Any]]:
    good, events = list[Message](), list[Any]()
    for message in messages:
        try:
            events.append(codec.decode(topic, message.value()))
            good.append(message)
        except codec.Unreadable as error:
            metrics.UNREADABLE.labels(topic).inc()
            _log.error(
                "record_unreadable",
                topic=message.topic(),
                partition=message.partition(),
                offset=message.offset(),
                detail=str(error)[:300],
                effect="skipped; its bytes land in RAW.REJECTS",
            )
    return good, events


def read_range(
    kafka: KafkaSettings,
    name: str,
    partition: int,
    start: int,
    keep_going: Callable[[], None] | None = None,
    end: int | None = None,
    decoder: Decoder | None = None,
) -> Iterator[Record]:
    """All committed records of one partition from ``start`` (or the oldest there is) to its end as of now.

    ``keep_going`` is called now and then, for a health beat. Raises FatalKafkaError if the broker stops answering.
    """
    client = reader(kafka, "reader")
    topic = kafka.topic(name)
    try:
        low, high = watermarks(client, topic, partition)
        high = high if end is None else min(high, end)
        start = max(low, start)
        if start >= high:
            return
        client.assign([TopicPartition(topic, partition, start)])
        idle = 0
        while True:
            messages = client.consume(10_000, 0.05)
            if keep_going:
                keep_going()
            good, at_end = [], False
            for message in messages:
                error = message.error()
                if error is None:
                    if (message.offset() or 0) < high:
                        good.append(message)
                elif error.code() == KafkaError._PARTITION_EOF:
                    at_end = True
                elif not error.retriable():
                    raise KafkaException(error)
            yield from records_of(good, name, decoder)
            if at_end or client.position([TopicPartition(topic, partition)])[0].offset >= high:
                return
            idle = 0 if messages else idle + 1
            if idle * 0.05 > 3 * TIMEOUT:
                raise FatalKafkaError(f"{topic}/{partition} gave nothing more before offset {high} for {3 * TIMEOUT} s")
    finally:
        client.close()
