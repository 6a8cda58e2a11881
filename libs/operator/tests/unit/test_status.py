"""`marketflow status` shows what each part says of itself, not what the supervisor last heard of it."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from marketflow_common.health import Health
from marketflow_operator import asking
from marketflow_stack.processes import free_port
from marketflow_stack.stack import StackConfig
from marketflow_stack.state import ProcessState, StackState

Made = Callable[..., None]


@pytest.fixture
def service() -> Iterator[Callable[..., str]]:
    """The HTTP side of a service that is ready, or is not for a reason; its URL."""
    with ExitStack() as stack:

        def serve(name: str, reason: str = "", **details: str) -> str:
            health = stack.enter_context(Health(name))
            health.ready(not reason, reason)
            health.detail(**details)
            return f"http://127.0.0.1:{health.port}"

        yield serve


@pytest.fixture
def frozen() -> Iterator[Callable[[], str]]:
    """Ports that take a connection, as those of a stopped process do, and never say a word."""
    with ExitStack() as stack:

        def listen() -> str:
            port = stack.enter_context(socket.create_server(("127.0.0.1", 0))).getsockname()[1]
            return f"http://127.0.0.1:{port}"

        yield listen


@pytest.fixture
def running(tmp_path: Path) -> Callable[..., None]:
    """Write down a stack of these processes (name: phase, URL) as one that this process supervises."""
    paths = {"warehouse": "/health", "recorder": "/health", "simulator": "/sim/health"}

    def write(**parts: tuple[str, str]) -> None:
        config = StackConfig(state=tmp_path / "state")
        config.run.mkdir(parents=True)
        processes = [
            ProcessState(name.replace("_", "-"), phase, None, 0, {}, url, f"{name}.log", ready=ready)
            for name, (phase, url) in parts.items()
            for ready in [url + paths.get(name, "/readyz") if url.startswith("http") else ""]
        ]
        StackState.of_this_process(processes, {"config": config.to_json()}).write(config.run)

    return write


def test_each_part_says_itself_how_it_is(
    run: Any, running: Made, service: Callable[..., str], frozen: Callable[[], str]
) -> None:
    running(
        kafka=("ready", "127.0.0.1:9092"),
        topics=("done", ""),
        ingestor=("ready", frozen()),
        aggregator=("ready", frozen()),
        aggregator_2=("ready", frozen()),
        warehouse=("ready", frozen()),
        recorder=("ready", frozen()),
        strategy=("ready", service("strategy", "no partitions yet")),
        executor=("ready", service("executor", trading="HALTED")),
        simulator=("ready", service("simulator")),
        loader=("backoff", f"http://127.0.0.1:{free_port()}"),
        notifier=("ready", f"http://127.0.0.1:{free_port()}"),
    )
    begun = time.monotonic()
    code, text = run("status", "--json")
    assert time.monotonic() - begun < 5 * asking.SECONDS  # five are frozen, and asked at once
    found = json.loads(text)
    assert (code, found["well"]) == (1, False)
    assert {row["name"]: (row["phase"], row["state"], row["reason"], row["trading"]) for row in found["processes"]} == {
        "kafka": ("ready", "ready", "", None),
        "topics": ("done", "done", "", None),
        "ingestor": ("ready", "no answer", "/readyz: ReadTimeout", None),
        "aggregator": ("ready", "no answer", "/readyz: ReadTimeout", None),
        "aggregator-2": ("ready", "no answer", "/readyz: ReadTimeout", None),
        "warehouse": ("ready", "no answer", "/health: ReadTimeout", None),
        "recorder": ("ready", "no answer", "/health: ReadTimeout", None),
        "strategy": ("ready", "not ready", "no partitions yet", None),
        "executor": ("ready", "ready", "", "HALTED"),
        "simulator": ("ready", "not ready", "/sim/health answers 404", None),
        "loader": ("backoff", "backoff", "", None),
        "notifier": ("ready", "no answer", "/readyz: ConnectError", None),
    }


@pytest.mark.parametrize("state", ["ACTIVE", "HALTED"])
def test_the_executors_line_shows_its_trading_state(
    run: Any, running: Made, service: Callable[..., str], state: str
) -> None:
    running(kafka=("ready", "127.0.0.1:9092"), executor=("ready", service("executor", trading=state)))
    code, text = run("status")
    assert code == 0
    [line] = [line for line in text.splitlines() if line.startswith("executor ")]
    assert line.split()[1] == "ready"
    assert line.endswith(f" trading {state}")


@pytest.mark.parametrize(
    ("reason", "said"), [("waiting for the exchange: " + "it is away " * 20, "not ready"), (None, "no answer")]
)
def test_a_part_that_only_the_supervisor_calls_ready_is_no_success(
    run: Any,
    running: Made,
    service: Callable[..., str],
    frozen: Callable[[], str],
    reason: str | None,
    said: str,
) -> None:
    running(executor=("ready", service("executor", reason, trading="ACTIVE") if reason else frozen()))
    code, text = run("status")
    assert code == 1
    assert text.count("\n") == 2
    line = text.splitlines()[1]
    assert said in line
    assert (reason or "/readyz: ReadTimeout").strip() in line
