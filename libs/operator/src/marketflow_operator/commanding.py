"""Writes a signed command for the executor to trading_signals.

Must never publish inside of a transaction: a halt must be readable at once, and cannot be taken back.
"""

from __future__ import annotations

import getpass
import os
import secrets
import socket
from typing import Final

from confluent_kafka import KafkaError, KafkaException, Message
from marketflow_common import topics
from marketflow_common.commands import signed
from marketflow_common.events import Action, Command
from marketflow_common.kafka import client
from marketflow_common.settings import KafkaSettings

from .audit.topics import CannotRead, answers

__all__ = ["LIFETIME_US", "compose", "others", "publish"]

LIFETIME_US: Final = 60_000_000
"""What loosens or sells must be honoured while whoever asked for it still looks on."""


def compose(action: Action, account: str, reason: str, secret: str, now_us: int) -> Command:
    """The command record, signed where there is a secret. A halt never expires."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):
        user = str(os.getuid())
    expires_at = None if action == "halt" else now_us + LIFETIME_US
    number = f"{now_us // 1_000_000}-{secrets.token_hex(4)}"
    return signed(
        Command(number, account, action, f"{user}@{socket.gethostname()}", now_us, expires_at, "", reason), secret
    )


def others(kafka: KafkaSettings, account: str) -> list[str]:
    """The accounts that order_events knows if this one is not among them, else none. Raises CannotRead."""
    answers(kafka)
    found: set[str] = set()
    try:
        partitions = client.partition_count(kafka, topics.ORDER_EVENTS)
        # The account's own partition begins with its opening: an account that is known is found at once.
        own = topics.partition_of(account, partitions)
        for partition in sorted(range(partitions), key=lambda one: one != own):
            for record in client.read_range(kafka, topics.ORDER_EVENTS, partition, 0):
                if record.event.account == account:
                    return []
                found.add(record.event.account)
    except client.FatalKafkaError as error:
        raise CannotRead(str(error)) from None
    except KafkaException as error:
        raise CannotRead(f"Kafka at {kafka.bootstrap_servers}: {error.args[0].str()}") from None
    return sorted(found)


def publish(kafka: KafkaSettings, command: Command) -> str:
    """Write it; returns where it is (topic/partition@offset). Raises CannotRead if the broker has not taken it."""
    answers(kafka)
    try:
        partitions = client.partition_count(kafka, topics.TRADING_SIGNALS)
        partition = topics.partition_of(command.account, partitions)
        producer = client.plain_producer(kafka)
        outcome: list[KafkaError | str] = []

        def on_delivery(error: KafkaError | None, message: Message) -> None:
            outcome.append(error if error is not None else f"{message.topic()}/{partition}@{message.offset()}")

        client.send(producer, kafka.topic(topics.TRADING_SIGNALS), partition, command, on_delivery)
        producer.flush(client.PATIENCE)
    except client.FatalKafkaError as error:
        raise CannotRead(str(error)) from None
    except KafkaException as error:
        raise CannotRead(f"Kafka at {kafka.bootstrap_servers}: {error.args[0].str()}") from None
    if not outcome or isinstance(outcome[0], KafkaError):
        why = outcome[0].str() if outcome and isinstance(outcome[0], KafkaError) else "no answer"
        raise CannotRead(
            f"Kafka at {kafka.bootstrap_servers} has not taken the {command.action} ({why}); it may have arrived: "
            "look at the executor's trading state before sending another"
        )
    return str(outcome[0])
