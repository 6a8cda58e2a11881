"""The whole chain as processes, driven by a test: start it, feed it a market, hurt it, and read what it published."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from marketflow_operator.demo import ENVIRONMENT
from marketflow_stack.processes import free_port
from marketflow_stack.stack import Ports, StackConfig, service_spec, supervisor
from marketflow_stack.supervisor import Supervisor
from marketflow_stack.testing import ask, eventually, read_all

FREEZE_SECONDS = 15
_MINUTE_US = 60_000_000


class Chain:
    """A running stack whose market waits until ``open_market``."""

    def __init__(self, config: StackConfig, processes: Supervisor) -> None:
        self.config, self.processes = config, processes
        self.story: list[str] = []

    def open_market(self) -> None:
        ask(self.config.url("simulator") + "/sim/market/start", method="POST")

    def market(self) -> dict[str, Any]:
        found: dict[str, Any] = ask(self.config.url("simulator") + "/sim/market")
        return found

    def wait_market_end(self, timeout: float) -> None:
        eventually(lambda: self.market()["ended"], timeout=timeout, interval=0.2)

    def records(self, topic: str) -> dict[str, list[bytes]]:
        """Values of a topic by key, in order."""
        found: dict[str, list[bytes]] = {}
        for message in read_all(self.config.bootstrap, topic):
            key = message.key()
            found.setdefault(key.decode() if isinstance(key, bytes) else str(key), []).append(message.value() or b"")
        return found

    def audit(self) -> dict[str, Any]:
        """What `marketflow audit --json` says; the test fails, showing it, if it does not hold."""
        done = subprocess.run(
            [sys.executable, "-m", "marketflow_operator", "audit", "--json", "--state", str(self.config.state)],
            capture_output=True,
            text=True,
            timeout=240,
        )
        assert done.returncode == 0, f"{done.stdout}\n{done.stderr}\n" + "\n".join(self.story)
        found: dict[str, Any] = json.loads(done.stdout)
        assert found["ok"]
        assert len(found["checks"]) >= 10
        return found

    # --- faults --------------------------------------------------------------------------------------

    def kill(self, service: str) -> None:
        """SIGKILL in mid-minute; returns when the one that the supervisor started in its place is at work."""
        self._mid_minute()
        before = self.processes.identity(service)
        self._tell(f"SIGKILL {service}")
        before.signal(signal.SIGKILL)
        eventually(lambda: not before.alive())
        self._wait_at_work(service, service)
        self._tell(f"{service} is at work again")

    def freeze(self, service: str) -> None:
        """SIGSTOP for 15 s while a second instance takes over, then SIGCONT; the second is stopped afterwards."""
        self._mid_minute()
        before = self.processes.identity(service)
        self._tell(f"SIGSTOP {service}")
        before.signal(signal.SIGSTOP)
        frozen_at = time.monotonic()
        second = f"{service}-2"
        self.processes.add(service_spec(self.config, service, free_port(), 2))
        self.processes.wait_ready(second)
        self._wait_at_work(second, service)
        self._tell(f"{second} has taken over")
        eventually(lambda: time.monotonic() - frozen_at >= FREEZE_SECONDS, timeout=60)
        before.signal(signal.SIGCONT)
        self._tell(f"SIGCONT {service}")
        # It either leaves, because it was fenced, and is started anew; or it notices and stands by.
        self.processes.wait_ready(service)
        self.processes.stop_one(second)
        self._wait_at_work(service, service)
        self._tell(f"{service} is at work again")

    def _mid_minute(self) -> None:
        def inside() -> bool:
            market = self.market()
            return market["ended"] or 5 <= market["market_time_us"] % _MINUTE_US / 1_000_000 <= 55

        eventually(inside, interval=0.05)

    def _wait_at_work(self, name: str, service: str) -> None:
        """Until the instance owns all that a sole instance owns."""

        def at_work() -> bool:
            entry = next(p for p in self.processes.status() if p.name == name)
            try:
                state = ask(f"{entry.url}/readyz")
            except OSError:
                return False
            if service == "executor":
                return bool(state["ready"] and state.get("role") == "leader")
            return bool(state["ready"] and len(state.get("partitions", ())) >= 3)

        eventually(at_work, timeout=90)

    def _tell(self, what: str) -> None:
        market = self.market()
        self.story.append(f"{market['market_time_us']} {'ended' if market['ended'] else 'running'} {what}")


@contextmanager
def running_chain(state: Path, market: Mapping[str, Any], speed: str) -> Iterator[Chain]:
    """A stack on free ports, its market waiting; everything is stopped at the end."""
    config = StackConfig(state=state, ports=Ports.free(), autostart=False, env=ENVIRONMENT, speed=speed, **market)
    with supervisor(config) as processes:
        yield Chain(config, processes)


@pytest.fixture(scope="session")
def run_chain() -> Callable[..., Any]:
    """``running_chain``, for fixtures of a module."""
    return running_chain


@pytest.fixture
def chain(tmp_path: Path, market: Mapping[str, Any]) -> Callable[[str], Any]:
    """``with chain("4") as c`` starts the suite on the module's market at that speed."""
    return lambda speed: running_chain(tmp_path / "stack", market, speed)


@pytest.fixture(scope="module")
def market(recording: Path) -> Mapping[str, Any]:
    return {"replay": recording, "symbols": ("ETHUSDT",)}
