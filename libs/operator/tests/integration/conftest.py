"""One whole stack for the tests of a module: real broker, warehouse, exchange, recorder and six services."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from marketflow_operator.cli import app
from marketflow_operator.demo import ENVIRONMENT
from marketflow_stack.stack import Ports, StackConfig, supervisor
from marketflow_stack.supervisor import Supervisor
from marketflow_stack.testing import eventually
from typer.testing import CliRunner


@dataclass(frozen=True)
class Stack:
    """A running stack, and the command line held against it."""

    config: StackConfig
    supervisor: Supervisor

    def market(self) -> dict[str, Any]:
        answer = httpx.get(f"{self.config.url('simulator')}/sim/market", timeout=10, trust_env=False)
        return dict(answer.json())

    def start_market(self) -> None:
        httpx.post(f"{self.config.url('simulator')}/sim/market/start", timeout=10, trust_env=False).raise_for_status()

    def audit(self, quiet: float = 2, timeout: float = 120) -> tuple[int, dict[str, dict[str, Any]]]:
        """``marketflow audit --json`` in this process: its exit code, and its checks by name."""
        limits = ("--quiet", str(quiet), "--timeout", str(timeout))
        done = CliRunner().invoke(app, ["audit", "--json", "--state", str(self.config.state), *limits])
        assert done.exit_code in (0, 1, 3), done.output
        found = json.loads(done.stdout)
        assert found["ok"] is (done.exit_code == 0)
        return done.exit_code, {check["name"]: check for check in found["checks"]}

    def trace(self, order: str | int, *more: str) -> tuple[int, dict[str, Any]]:
        """``marketflow trace --json``: its exit code, and the chain."""
        done = CliRunner().invoke(app, ["trace", str(order), "--json", "--state", str(self.config.state), *more])
        assert done.exit_code in (0, 1, 3), done.output
        return done.exit_code, json.loads(done.stdout)


def marketflow(*arguments: str, **more: Any) -> subprocess.CompletedProcess[str]:
    """The command line as a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "marketflow_operator", *arguments],
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
        **more,
    )


@pytest.fixture(scope="module")
def stack() -> Iterator[Stack]:
    """Four minutes of a market of two symbols that waits to be started; everything else is ready."""
    with tempfile.TemporaryDirectory(prefix="marketflow-operator-") as folder:
        config = StackConfig(
            state=Path(folder),
            ports=Ports.free(),
            symbols=("BTCUSDT", "ETHUSDT"),
            speed="30",
            minutes=4,
            autostart=False,
            env=ENVIRONMENT,
        )
        with supervisor(config) as running:
            yield Stack(config, running)


@pytest.fixture
def ended(stack: Stack) -> Stack:
    """The same stack once its market has ended."""
    stack.start_market()
    eventually(lambda: stack.market()["ended"], timeout=120)
    return stack


@pytest.fixture(name="marketflow")
def _marketflow() -> Any:
    """The command line: ``marketflow("audit", "--json")``."""
    return marketflow
