"""Reads the four topics as a read_committed reader sees them, with what cannot be read kept in its place.

Edge of the audit. Must never commit, nor leave a record out: an unreadable one is evidence too.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from typing import Any, Final

from confluent_kafka import Consumer, KafkaError, KafkaException, Message, TopicCollection, TopicPartition
from marketflow_common import codec
from marketflow_common.kafka import client
from marketflow_common.settings import KafkaSettings
from marketflow_common.topics import ALL, OHLCV_RAW

from .model import Seen, Where

__all__ = ["CannotRead", "TopicReader", "answers", "topic_ids"]

PATIENCE: Final = 30.0
"""Seconds without a single record or end before reading is given up."""


class CannotRead(RuntimeError):
    """A part of the system did not answer; the text says which, and what to do."""


class TopicReader:
    """All records of the four topics so far; ``advance`` reads what has come since. Close it at the end."""

    def __init__(
        self, kafka: KafkaSettings, on_record: Callable[[Seen], None] = lambda _: None, keep: bool = True
    ) -> None:
        """``keep`` false: records are handed to ``on_record`` only, for a reader that runs for days."""
        answers(kafka)
        try:
            self.partitions = client.partition_count(kafka, *ALL)
        except client.FatalKafkaError as error:
            raise CannotRead(str(error)) from None
        self._kafka, self._on_record, self._keep = kafka, on_record, keep
        self._consumer: Consumer = client.reader(kafka, "audit", log_level=0)
        self._plain = {kafka.topic(name): name for name in ALL}
        self._reached: dict[tuple[str, int], int] = {}
        self.ends: dict[tuple[str, int], int] = {}
        self._found: dict[tuple[str, int], list[Seen]] = {(n, p): [] for n in ALL for p in range(self.partitions)}
        self.whole = True
        """Whether no record of ohlcv_raw has been deleted: then what is not there never was."""
        try:
            start = []
            for name, partition in self._found:
                low, _ = client.watermarks(self._consumer, kafka.topic(name), partition)
                self._reached[name, partition] = low
                self.whole = self.whole and (name != OHLCV_RAW or low == 0)
                start.append(TopicPartition(kafka.topic(name), partition, low))
            self._consumer.assign(start)
            self.topic_ids = topic_ids(kafka)
        except KafkaException as error:
            self._consumer.close()
            raise CannotRead(f"Kafka at {kafka.bootstrap_servers}: {error.args[0].str()}") from None

    def close(self) -> None:
        """Leave the broker."""
        self._consumer.close()

    def advance(self) -> bool:
        """Read to the ends as of now; True if ``records`` has anything new. Raises CannotRead."""
        shown = dict(self.ends)
        try:
            # Downstream first: what a later topic holds has its cause in what is then read of an earlier one.
            for name in reversed(ALL):
                for partition in range(self.partitions):
                    _, high = client.watermarks(self._consumer, self._kafka.topic(name), partition)
                    self.ends[name, partition] = max(high, self.ends.get((name, partition), 0))
            self._read()
        except KafkaException as error:
            raise CannotRead(f"Kafka at {self._kafka.bootstrap_servers}: {error.args[0].str()}") from None
        # Not by what came this time: records may have come before, from beyond the ends of then, and show only now.
        return any(found and found[-1].where.offset >= shown.get(key, 0) for key, found in self._found.items())

    def _read(self) -> None:
        until = time.monotonic() + PATIENCE
        while any(self._reached[key] < end for key, end in self.ends.items()):
            messages = self._consumer.consume(10_000, 0.2)
            for message in messages:
                self._take(message)
            if messages:
                until = time.monotonic() + PATIENCE
            elif time.monotonic() > until:
                behind = {f"{n}/{p}": (self._reached[n, p], end) for (n, p), end in self.ends.items()}
                raise CannotRead(f"Kafka gave nothing for {PATIENCE:g} s although there is more: {behind}")

    def _take(self, message: Message) -> None:
        name, partition, offset = self._plain[str(message.topic())], message.partition(), message.offset()
        assert partition is not None
        assert offset is not None
        key = (name, partition)
        error = message.error()
        if error is not None:
            if error.code() == KafkaError._PARTITION_EOF:
                self._reached[key] = max(self._reached[key], offset)
            elif not error.retriable():
                raise KafkaException(error)
            return
        self._reached[key] = offset + 1
        event: Any = None
        problem = ""
        try:
            event = codec.decode(name, message.value())
        except codec.Unreadable as unreadable:
            problem = str(unreadable)
        raw = message.key()
        text = raw.decode(errors="replace") if isinstance(raw, bytes) else raw
        seen = Seen(Where(name, partition, offset), message.timestamp()[1], text, event, problem)
        if self._keep:
            self._found[key].append(seen)
        self._on_record(seen)

    @property
    def records(self) -> dict[str, list[Seen]]:
        """Everything read so far, by topic; within one by partition and offset, up to the ends."""
        return {
            name: [
                seen
                for partition in range(self.partitions)
                for seen in self._found[name, partition]
                if seen.where.offset < self.ends.get((name, partition), 0)
            ]
            for name in ALL
        }


def answers(kafka: KafkaSettings) -> None:
    """Raises CannotRead if no broker listens.

    Asked before librdkafka is, which would try for ten seconds and say so on stderr twenty times a second.
    """
    addresses = [address.strip().rpartition(":") for address in kafka.bootstrap_servers.split(",")]
    reason: OSError | ValueError | None = None
    for host, _, port in addresses:
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=3).close()
            return
        except (OSError, ValueError) as error:
            reason = error
    raise CannotRead(
        f"no Kafka broker answers at {kafka.bootstrap_servers} ({reason}); start the stack, or name one with --kafka"
    )


def topic_ids(kafka: KafkaSettings) -> dict[str, str]:
    """Kafka's id of each topic, by plain name. Raises KafkaException."""
    full = {kafka.topic(name): name for name in ALL}
    admin = client.admin(kafka)  # held until the answers are there
    asked = admin.describe_topics(TopicCollection(list(full)), request_timeout=10)
    return {full[topic]: str(future.result().topic_id) for topic, future in asked.items()}
