"""Settings, logs, health and the frame around a service."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import threading
import urllib.error
import urllib.request

import pytest
from confluent_kafka import KafkaError, KafkaException
from marketflow_common import logs, service
from marketflow_common.health import Health
from marketflow_common.kafka.client import FatalKafkaError, Fenced
from marketflow_common.settings import (
    CommaList,
    InvalidSettings,
    KafkaSettings,
    ServiceSettings,
    describe,
    load,
    prefix,
    split_commas,
)
from pydantic import Field, SecretStr, field_validator


class Example(ServiceSettings):
    model_config = prefix("COMMON")
    symbols: CommaList = Field(("BTCUSDT",), description="what to follow")
    api_secret: SecretStr = Field(SecretStr(""), description="key")
    limit: int = Field(5, ge=1, description="how many")
    _split = field_validator("symbols", mode="before")(split_commas)


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in os.environ:
        if name.startswith("MARKETFLOW_"):
            monkeypatch.delenv(name)
    # pytest's own handlers come back after each test: configure() replaces them all.
    monkeypatch.setattr(logging.getLogger(), "handlers", [])


def test_settings_come_from_the_environment_with_one_prefix(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MARKETFLOW_COMMON_SYMBOLS", "ETHUSDT, SOLUSDT")
    monkeypatch.setenv("MARKETFLOW_KAFKA_BOOTSTRAP_SERVERS", "kafka:9092")
    values = load(Example)
    assert values.symbols == ("ETHUSDT", "SOLUSDT")
    assert values.kafka.bootstrap_servers == "kafka:9092"
    assert values.limit == 5


def test_every_wrong_setting_is_named_with_its_value_and_a_misspelt_one_with_its_neighbour(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MARKETFLOW_COMMON_LIMIT", "none")
    monkeypatch.setenv("MARKETFLOW_COMMON_SYMBOL", "X")
    monkeypatch.setenv("MARKETFLOW_LOG_LEVEL", "LOUD")
    with pytest.raises(InvalidSettings) as caught:
        load(Example)
    text = str(caught.value)
    assert "MARKETFLOW_COMMON_LIMIT" in text
    assert "'none'" in text
    assert "did you mean MARKETFLOW_COMMON_SYMBOLS?" in text
    assert "MARKETFLOW_LOG_LEVEL" in text


def test_a_secret_is_in_no_error_and_no_description(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MARKETFLOW_COMMON_API_SECRET", "hush")
    monkeypatch.setenv("MARKETFLOW_COMMON_LIMIT", "0")
    with pytest.raises(InvalidSettings) as caught:
        load(Example)
    assert "hush" not in str(caught.value)
    assert "hush" not in repr(describe(Example))


def test_every_setting_is_described() -> None:
    for name, _, meaning in describe(Example) + describe(KafkaSettings):
        assert name.startswith("MARKETFLOW_")
        assert meaning


def _get(port: int, path: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def test_health_tells_ready_from_alive_and_serves_metrics() -> None:
    with Health("x", stall_after=3600) as health:
        assert _get(health.port, "/readyz")[0] == 503
        assert _get(health.port, "/healthz")[0] == 200
        health.ready(True)
        health.detail(role="leader")
        status, body = _get(health.port, "/readyz")
        assert (status, json.loads(body)["role"]) == (200, "leader")
        assert "messages_in_total" in _get(health.port, "/metrics")[1]
        assert _get(health.port, "/else")[0] == 404


def test_a_loop_that_gives_no_sign_of_life_is_neither_ready_nor_alive() -> None:
    with Health("x", stall_after=-1) as health:
        health.ready(True)
        assert _get(health.port, "/readyz")[0] == 503
        status, body = _get(health.port, "/healthz")
        assert status == 503
        assert "no sign of life" in body


def test_a_taken_port_is_named_with_the_setting_to_change() -> None:
    with Health("loader") as first, pytest.raises(OSError, match="MARKETFLOW_LOADER_HTTP_PORT"):
        Health("loader", port=first.port)


def test_sigterm_stops_a_service_with_exit_code_zero() -> None:
    def main(_: Example, __: Health, stop: threading.Event) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.wait(5)

    assert service.run("common", Example, main, []) == 0


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (Fenced("x"), service.EXIT_FENCED),
        (FatalKafkaError("x"), service.EXIT_UNAVAILABLE),
        (OSError("x"), service.EXIT_UNAVAILABLE),
        (KafkaException(KafkaError(KafkaError._TRANSPORT)), service.EXIT_UNAVAILABLE),
    ],
)
def test_what_ends_a_service_has_its_exit_code(error: Exception, code: int) -> None:
    def main(*_: object) -> None:
        raise error

    assert service.run("common", Example, main, []) == code


def test_a_service_that_stands_still_leaves_and_shows_where() -> None:
    script = (
        "import sys, threading\n"
        "from marketflow_common import service, settings\n"
        "class Example(settings.ServiceSettings):\n"
        "    model_config = settings.prefix('COMMON')\n"
        "service.STUCK_SECONDS = 2.0\n"
        "def stand_still(*_): threading.Event().wait()\n"
        "sys.exit(service.run('common', Example, stand_still, []))\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert done.returncode == service.EXIT_STUCK
    assert '"stuck"' in done.stderr
    assert "in stand_still" in done.stderr


def test_a_wrong_setting_ends_a_service_with_one_line_and_a_code(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MARKETFLOW_COMMON_LIMIT", "0")
    assert service.run("common", Example, lambda *_: None, []) == service.EXIT_CONFIG
    assert "MARKETFLOW_COMMON_LIMIT" in capsys.readouterr().err
    assert service.run("common", Example, lambda *_: None, ["--check"]) == service.EXIT_CONFIG


def test_logs_are_one_object_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("common")
    logs.get("x").info("candle_closed", symbol="ETHUSDT", count=3)
    line = json.loads(capsys.readouterr().err)
    assert (line["event"], line["symbol"], line["count"], line["service"]) == ("candle_closed", "ETHUSDT", 3, "common")
    logs.configure("common", form="text")
    logs.get("x").warning("slow", seconds=2)
    assert "WARNING common slow seconds=2" in capsys.readouterr().err
