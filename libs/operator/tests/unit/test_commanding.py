"""`marketflow command`: what it writes, and what it refuses to write."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from marketflow_common.commands import genuine
from marketflow_common.events import Command
from marketflow_common.settings import KafkaSettings
from marketflow_operator import cli, commanding
from marketflow_operator.audit.topics import CannotRead
from marketflow_stack.processes import free_port

SECRET = "the-operators-secret"


@pytest.fixture
def published(monkeypatch: pytest.MonkeyPatch) -> list[Command]:
    """What would have been written."""
    found: list[Command] = []

    def publish(_: KafkaSettings, command: Command) -> str:
        found.append(command)
        return "trading_signals/1@7"

    monkeypatch.setattr(commanding, "publish", publish)
    monkeypatch.setattr(commanding, "others", lambda *_: [])
    return found


def test_a_command_is_signed_with_the_secret_of_the_file_and_expires(
    run: Any, published: list[Command], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = tmp_path / "secret"
    file.write_text(SECRET + "\n")
    monkeypatch.setenv("MARKETFLOW_EXECUTOR_COMMAND_SECRET_FILE", str(file))
    code, text = run("command", "reduce-only", "--account", "savings", "--reason", "news", "--json")
    [made] = published
    assert (code, json.loads(text)) == (
        0,
        {"id": made.id, "account": "savings", "action": "reduce_only", "where": "trading_signals/1@7"},
    )
    assert genuine(made, SECRET)
    assert SECRET not in text
    assert (made.account, made.action, made.reason) == ("savings", "reduce_only", "news")
    assert made.expires_at == made.issued_at + commanding.LIFETIME_US


def test_a_halt_needs_no_secret_and_never_expires(
    run: Any, published: list[Command], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MARKETFLOW_EXECUTOR_COMMAND_SECRET_FILE", "/not/there")
    monkeypatch.setenv("MARKETFLOW_EXECUTOR_ACCOUNT", "savings")
    code, text = run("command", "halt")
    [made] = published
    assert code == 0
    assert "halt of savings is given" in text
    assert (made.account, made.signature, made.expires_at) == ("savings", "", None)
    code, text = run("command", "resume")
    assert code == cli.USAGE
    assert "MARKETFLOW_EXECUTOR_COMMAND_SECRET_FILE: the file /not/there cannot be read" in text
    assert len(published) == 1


@pytest.mark.parametrize(("arguments", "said"), [(["stop"], "ACTION is 'stop'"), (["halt", "--account", "a b"], "a b")])
def test_what_is_no_command_is_wrong_usage(run: Any, published: list[Command], arguments: list[str], said: str) -> None:
    code, text = run("command", *arguments)
    assert code == cli.USAGE
    assert said in text
    assert not published


def test_a_command_that_reaches_no_broker_could_not_be_given(run: Any) -> None:
    nowhere = f"127.0.0.1:{free_port()}"
    code, text = run("command", "halt", "--kafka", nowhere)
    assert code == cli.CANNOT
    assert f"no Kafka broker answers at {nowhere}" in text


def test_an_account_that_nobody_knows_is_given_nothing_but_a_halt(
    run: Any, published: list[Command], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []

    def others(_: KafkaSettings, account: str) -> list[str]:
        asked.append(len(published))
        return ["main", "savings"]

    monkeypatch.setattr(commanding, "others", others)
    code, text = run("command", "halt", "--account", "mian")
    assert (code, [made.account for made in published], asked) == (cli.CANNOT, ["mian"], [1])  # given, then asked
    assert "marketflow: order_events has no account 'mian', it has main, savings; name one" in text
    for action in ("resume", "reduce-only", "flatten"):
        code, text = run("command", action, "--account", "mian")
        assert (code, len(published), text.count("\n")) == (cli.CANNOT, 1, 1)
        assert "it has main, savings" in text


def test_a_halt_is_a_success_though_nobody_can_say_whose_account_it_is(
    run: Any, published: list[Command], monkeypatch: pytest.MonkeyPatch
) -> None:
    def others(*_: object) -> list[str]:
        raise CannotRead("Kafka is away")

    monkeypatch.setattr(commanding, "others", others)
    code, text = run("command", "halt")
    assert (code, len(published)) == (0, 1)
    assert "could not be looked up: Kafka is away" in text
    assert run("command", "resume")[0] == cli.CANNOT
    assert len(published) == 1


def test_no_two_commands_have_the_same_id() -> None:
    made = {commanding.compose("halt", "main", "", "", 1_000_000).id for _ in range(100)}
    assert len(made) == 100
