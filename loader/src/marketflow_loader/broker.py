"""What the loader asks the broker besides records: which topic this is, and where its oldest record lies.

Must never change anything at the broker.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Final

from confluent_kafka import KafkaException, TopicCollection, TopicPartition
from confluent_kafka.admin import OffsetSpec  # type: ignore[attr-defined]  # public there, but not declared as export
from marketflow_common.kafka import client
from marketflow_common.settings import KafkaSettings

__all__ = ["Broker", "NoAnswer"]

TIMEOUT: Final = 10.0
"""Seconds for one look-up; the broker answers in milliseconds or is away."""


class NoAnswer(Exception):
    """The broker did not tell; it is away, or the topic is not there (yet)."""


class Broker:
    """Look-ups at the broker."""

    def __init__(self, kafka: KafkaSettings) -> None:
        self._kafka = kafka
        self._admin = client.admin(kafka)

    def topic_ids(self, names: Collection[str]) -> dict[str, str]:
        """Plain name of a topic to the id it was given when it was made. Raises NoAnswer."""
        full = {self._kafka.topic(name): name for name in names}
        try:
            asked = self._admin.describe_topics(TopicCollection(list(full)), request_timeout=TIMEOUT)
            return {full[topic]: str(future.result().topic_id) for topic, future in asked.items()}
        except KafkaException as error:
            raise NoAnswer(f"topics {', '.join(full)}: {error.args[0].str()}") from error

    def oldest(self, name: str, partition: int) -> int:
        """Offset of the oldest record there is, or of the next one where there is none. Raises NoAnswer."""
        here = TopicPartition(self._kafka.topic(name), partition)
        try:
            asked = self._admin.list_offsets({here: OffsetSpec.earliest()}, request_timeout=TIMEOUT)  # type: ignore[no-untyped-call]
            return int(asked[here].result().offset)
        except KafkaException as error:
            raise NoAnswer(f"{here.topic}/{partition}: {error.args[0].str()}") from error
