"""The reader of commands: it has read to the end only once nothing that was there is missing."""

from __future__ import annotations

from typing import Any

import pytest
from confluent_kafka import KafkaError, KafkaException, Message
from marketflow_common import codec, topics
from marketflow_common.events import Command
from marketflow_common.kafka import client
from marketflow_common.settings import KafkaSettings
from marketflow_executor import watch
from marketflow_executor.watch import CommandReader


class Log:
    """A partition: what each poll gives, and the end that the broker tells."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, start: int, end: int, *polls: list[Message]) -> None:
        self.polls, self.settings = list(polls), {}
        monkeypatch.setattr(client, "consumer", self._made)
        monkeypatch.setattr(client, "committed", lambda *_: client.Committed(start, {}))
        monkeypatch.setattr(client, "watermarks", lambda *_: (0, end))
        self.reader = CommandReader(KafkaSettings(), "group", "main", 3)

    def _made(self, _: KafkaSettings, group: str, **settings: Any) -> Log:
        self.settings = settings
        return self

    def assign(self, partitions: Any) -> None:
        self.assigned = [(p.topic, p.partition, p.offset) for p in partitions]

    def consume(self, _: int, timeout: float) -> list[Message]:
        return self.polls.pop(0) if self.polls else []

    def close(self) -> None:
        self.closed = True


def record(offset: int, account: str = "main") -> Message:
    event = Command(f"c-{offset}", account, "halt", "alice", 1, None, "")
    return Message(
        topic=topics.TRADING_SIGNALS, partition=0, offset=offset, value=codec.encode(event), timestamp=(1, 1)
    )


def eof(offset: int) -> Message:
    return Message(
        topic=topics.TRADING_SIGNALS, partition=0, offset=offset, error=KafkaError(KafkaError._PARTITION_EOF)
    )


def ids(commands: list[Command]) -> list[str]:
    return [command.id for command in commands]


def test_it_reads_on_until_the_end_that_the_broker_tells(monkeypatch: pytest.MonkeyPatch) -> None:
    log = Log(monkeypatch, 5, 8, [], [record(5)], [], [record(6, "other"), record(7)], [record(8)])
    assert ids(log.reader.to_end(lambda: None)) == ["c-5", "c-7"]
    assert ids(log.reader.arrived()) == ["c-8"]
    assert log.assigned == [(topics.TRADING_SIGNALS, topics.partition_of("main", 3), 5)]
    # An open transaction of the strategy must hold up no halt.
    assert log.settings["isolation.level"] == "read_uncommitted"


def test_the_end_may_lie_behind_the_last_record(monkeypatch: pytest.MonkeyPatch) -> None:
    log = Log(monkeypatch, 5, 9, [record(6)], [eof(9)], [record(9)])
    assert ids(log.reader.to_end(lambda: None)) == ["c-6"]


def test_without_the_end_there_is_no_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    log = Log(monkeypatch, 5, 8, [record(5)])
    monkeypatch.setattr(watch, "PATIENCE_S", 0.0)
    with pytest.raises(KafkaException, match="up to 8, but gave none after 6"):
        log.reader.to_end(lambda: None)


def test_a_lost_position_ends_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    gone = Message(topic="t", partition=0, offset=5, error=KafkaError(KafkaError._AUTO_OFFSET_RESET))
    log = Log(monkeypatch, 5, 8, [gone])
    with pytest.raises(client.PositionLost):
        log.reader.arrived()
