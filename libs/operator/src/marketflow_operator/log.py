"""Stretches of the topics, found by time or offset, as a read_committed reader sees them.

Must never commit, nor read on beyond what was asked for.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Final

from confluent_kafka import Consumer, KafkaError, KafkaException, Message, TopicPartition
from marketflow_common import codec
from marketflow_common.kafka import client
from marketflow_common.settings import KafkaSettings
from marketflow_common.topics import ALL

from .audit.model import Seen, Where
from .audit.topics import CannotRead, answers, topic_ids

__all__ = ["Log"]

BLOCK: Final = 20_000
"""Offsets that are read at a time on the way back."""
CLOCKS: Final = 5_000
"""Milliseconds by which the clocks of two brokers may differ."""
PATIENCE: Final = 30.0
"""Seconds without a single record or end before reading is given up."""
Meant = Callable[[Any], bool]


class Log:
    """One consumer for many short readings. Every method raises CannotRead. Close it at the end."""

    def __init__(self, kafka: KafkaSettings) -> None:
        answers(kafka)
        try:
            self.partitions = client.partition_count(kafka, *ALL)
            self.ids = topic_ids(kafka)
        except client.FatalKafkaError as error:
            raise CannotRead(str(error)) from None
        except KafkaException as error:
            raise CannotRead(f"Kafka at {kafka.bootstrap_servers}: {error.args[0].str()}") from None
        self._kafka = kafka
        self._consumer: Consumer = client.reader(kafka, "trace", log_level=0)
        self._bounds: dict[tuple[str, int], tuple[int, int]] = {}

    def close(self) -> None:
        """Leave the broker."""
        self._consumer.close()

    def low(self, name: str, partition: int) -> int:
        """The offset of the oldest record there is."""
        return self._ends(name, partition)[0]

    def read(self, name: str, partition: int, meant: Meant, first: int = 0, end: int | None = None) -> list[Seen]:
        """The records from ``first`` to before ``end`` (by default all there are) whose events are meant."""
        low, high = self._ends(name, partition)
        found: list[Seen] = []
        self._scan(name, partition, max(first, low), high if end is None else min(end, high), meant, found)
        return found

    def back(
        self, name: str, partition: int, before_ms: int, meant: Meant, enough: Meant, floor: int = 0
    ) -> list[Seen]:
        """The records meant that were appended up to a time, from there backwards until one is ``enough``, in order.

        Not further back than ``floor``.
        """
        low, _ = self._ends(name, partition)
        end = self._offset_after(name, partition, before_ms + CLOCKS)
        floor, found = max(low, floor), list[Seen]()
        while end > floor:
            start = max(floor, end - BLOCK)
            block: list[Seen] = []
            done = self._scan(name, partition, start, end, meant, block, enough)
            found = block + found
            if done:
                break
            end = start
        return found

    def _ends(self, name: str, partition: int) -> tuple[int, int]:
        key = (name, partition)
        if key not in self._bounds:
            try:
                self._bounds[key] = client.watermarks(self._consumer, self._kafka.topic(name), partition)
            except KafkaException as error:
                raise self._away(error.args[0]) from None
        return self._bounds[key]

    def _offset_after(self, name: str, partition: int, at_ms: int) -> int:
        """The first offset that was appended later, or the end."""
        here = TopicPartition(self._kafka.topic(name), partition, at_ms + 1)
        try:
            [found] = self._consumer.offsets_for_times([here], timeout=client.TIMEOUT)
        except KafkaException as error:
            raise self._away(error.args[0]) from None
        _, high = self._ends(name, partition)
        return high if found.offset < 0 else min(int(found.offset), high)

    def _scan(
        self,
        name: str,
        partition: int,
        start: int,
        end: int,
        meant: Meant,
        found: list[Seen],
        enough: Meant = lambda _: False,
    ) -> bool:
        """Read a stretch; whether any record of it was enough."""
        if start >= end:
            return False
        self._consumer.assign([TopicPartition(self._kafka.topic(name), partition, start)])
        at, done, until = start, False, time.monotonic() + PATIENCE
        while at < end:
            messages = self._consumer.consume(10_000, 0.2)
            for message in messages:
                error = message.error()
                offset = message.offset() or 0
                if error is not None:
                    if error.code() == KafkaError._PARTITION_EOF:
                        at = max(at, offset)
                    elif not error.retriable():
                        raise self._away(error)
                    continue
                at = offset + 1
                if offset >= end:
                    break
                event = _event(name, message)
                if event is None:
                    continue  # what nobody can read is no link of any chain; it lies in RAW.REJECTS
                if meant(event):
                    key = message.key()
                    text = key.decode(errors="replace") if isinstance(key, bytes) else key
                    found.append(Seen(Where(name, partition, offset), message.timestamp()[1], text, event))
                done = enough(event) or done
            if messages:
                until = time.monotonic() + PATIENCE
            elif time.monotonic() > until:
                raise CannotRead(f"Kafka gave nothing of {name}/{partition} from offset {at} on for {PATIENCE:g} s")
        return done

    def _away(self, error: KafkaError) -> CannotRead:
        return CannotRead(f"Kafka at {self._kafka.bootstrap_servers}: {error.str()}")


def _event(name: str, message: Message) -> Any:
    try:
        return codec.decode(name, message.value())
    except codec.Unreadable:
        return None
