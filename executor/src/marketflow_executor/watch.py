"""Reads the account's commands from trading_signals, ahead of the signals and of whatever is still being published,
and honours them.

Must never say that all commands are read while one that was there at the time of asking is not.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Final

from confluent_kafka import KafkaError, KafkaException, Message, TopicPartition
from marketflow_common import clock, logs, topics
from marketflow_common.events import Command
from marketflow_common.kafka import client
from marketflow_common.settings import KafkaSettings

from . import meters
from .commands import judge
from .desk import Desk
from .exchange import Unavailable

__all__ = ["CommandReader", "heed"]

_log = logs.get("executor")

PATIENCE_S: Final = 10.0


class CommandReader:
    """The commands of one account, from the committed position of its signals on."""

    def __init__(self, kafka: KafkaSettings, group: str, account: str, partitions: int) -> None:
        """``group`` is the one that signals are read by: what lies before its position was seen by a former term."""
        self._account, self._topic = account, kafka.topic(topics.TRADING_SIGNALS)
        self._partition = topics.partition_of(account, partitions)
        # Uncommitted: a transaction of the strategy that stays open must hold up no halt. Commands are published
        # outside of transactions, so that none of them can be taken back.
        # A reader: an order waits for the end, and behind what ends a transaction only an empty answer tells of it.
        self._consumer = client.reader(kafka, group, **{"isolation.level": "read_uncommitted"})
        try:
            start = client.committed(self._consumer, self._topic, self._partition).offset
            if start < 0:
                start, _ = client.watermarks(self._consumer, self._topic, self._partition)
            self._next = start
            self._consumer.assign([TopicPartition(self._topic, self._partition, start)])
        except BaseException:
            self._consumer.close()
            raise

    def close(self) -> None:
        """Give the connection back."""
        self._consumer.close()

    def arrived(self) -> list[Command]:
        """Commands that have come in, without asking the broker."""
        return self._take(0)

    def to_end(self, alive: Callable[[], None]) -> list[Command]:
        """All commands that the broker has by now. Raises KafkaException if it does not give them."""
        _, end = client.watermarks(self._consumer, self._topic, self._partition)
        found, deadline = self._take(0), time.monotonic() + PATIENCE_S
        while self._next < end:
            alive()
            found += self._take(0.05)
            if time.monotonic() > deadline:
                said = (
                    f"{self._topic}/{self._partition} has records up to {end}, but gave none after {self._next} for "
                    f"{PATIENCE_S:g} s: no order is sent while a halt may be among them"
                )
                raise KafkaException(KafkaError(KafkaError._TIMED_OUT, said))
        return found

    def _take(self, timeout: float) -> list[Command]:
        good: list[Message] = []
        for message in self._consumer.consume(500, timeout):
            error, offset = message.error(), message.offset() or 0
            if error is not None and error.code() == KafkaError._PARTITION_EOF:
                # The end may lie behind the last record: what ends a transaction takes an offset, too.
                self._next = max(self._next, offset)
            elif client.is_record(message):
                good.append(message)
                self._next = offset + 1
        events = [record.event for record in client.records_of(good, topics.TRADING_SIGNALS)]
        return [event for event in events if isinstance(event, Command) and event.account == self._account]


def heed(desk: Desk, commands: Sequence[Command], secret: str) -> bool:
    """Honour commands that have not been honoured yet, each in a transaction of its own; whether one was a resume."""
    resumed = False
    for command in commands:
        account = desk.account
        if command.id in account.commands:
            continue
        try:
            now_us = desk.exchange.now_ms() * 1_000
        except Unavailable:
            now_us = clock.now_us()  # A halt waits for no exchange.
        trusting = desk.limits.mode != "live"
        judged = judge(command, account.state, account.state_at, now_us, secret, trusting=trusting)
        if isinstance(judged, str):
            meters.COMMANDS.labels(command.action, "refused").inc()
            _log.error(
                "command_refused",
                id=command.id,
                action=command.action,
                asked_by=command.asked_by,
                detail=judged,
                effect=f"the account stays {account.state}",
            )
            continue
        desk.commit([judged])
        meters.COMMANDS.labels(command.action, "honoured").inc()
        _log.error("trading_state", state=judged.state, detail=judged.reason, changed_by=judged.changed_by)
        resumed = resumed or command.action == "resume"
    return resumed
