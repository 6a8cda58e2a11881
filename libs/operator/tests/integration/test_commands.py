"""`marketflow command` on a real broker: who is told, where order_events knows some accounts and not others."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path

import pytest
from marketflow_common import topics as names
from marketflow_common.events import AccountOpened
from marketflow_common.kafka import client
from marketflow_common.kafka.source import Publisher
from marketflow_common.settings import KafkaSettings
from marketflow_operator import cli
from marketflow_stack.testing import CreatedTopics
from typer.testing import CliRunner

pytestmark = [pytest.mark.broker]


def test_only_a_halt_reaches_an_account_that_is_not_known(
    topics: CreatedTopics, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MARKETFLOW_KAFKA_BOOTSTRAP_SERVERS", topics.bootstrap)
    monkeypatch.setenv("MARKETFLOW_KAFKA_TOPIC_PREFIX", topics.prefix)
    kafka = KafkaSettings(bootstrap_servers=topics.bootstrap, topic_prefix=topics.prefix)

    def given() -> list[tuple[str, str]]:
        return sorted(
            (record.event.account, record.event.action)
            for partition in range(3)
            for record in client.read_range(kafka, names.TRADING_SIGNALS, partition, 0)
        )

    def command(action: str, account: str) -> tuple[int, str]:
        cli.err.file, cli.out.file = None, None  # type: ignore[assignment]  # the streams of this invocation
        done = CliRunner().invoke(cli.app, ["command", action, "--account", account, "--state", str(tmp_path)])
        return done.exit_code, done.output

    # Before any account is opened nobody can say that one is wrong.
    assert command("reduce-only", "mian")[0] == 0
    assert given() == [("mian", "reduce_only")]
    for account in ("main", "savings"):
        partition = names.partition_of(account, 3)
        publisher = Publisher(kafka, account, names.ORDER_EVENTS, partition)
        publisher.open()
        publisher.publish([AccountOpened(account, "paper", {"USDT": Decimal(1)}, 1)])
    code, text = command("resume", "mian")
    assert (code, text.count("\n")) == (3, 1)
    assert "order_events has no account 'mian', it has main, savings; name one of them with --account" in text
    assert given() == [("mian", "reduce_only")]
    code, text = command("halt", "mian")
    assert code == 3
    assert "it has main, savings" in text
    assert [command(action, "savings")[0] for action in ("halt", "flatten")] == [0, 0]
    assert given() == [("mian", "halt"), ("mian", "reduce_only"), ("savings", "flatten"), ("savings", "halt")]
