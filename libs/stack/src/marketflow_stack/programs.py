"""Programs that tests start as real processes, and waiting for what they do; tests import it through testing.py.

A program serves HTTP and writes a log. It dies with the test run, and a test that waits for one which has ended fails
at once, with the end of its log. Nothing here may end a process that it has not started.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from http.client import HTTPException
from pathlib import Path
from typing import Any, Self, TypeVar

import pytest

from marketflow_stack.forkserver import ForkServer
from marketflow_stack.processes import free_port, kill_group, terminate
from marketflow_stack.text import tail

PATIENCE = 240.0
"""Seconds for a program to get somewhere on a machine that is busy with other things; five when it is not."""
_HTTP_SECONDS = 30.0

FORKS = ForkServer()

T = TypeVar("T")


def eventually(check: Callable[[], T], timeout: float = PATIENCE, interval: float = 0.05) -> T:
    """Ask until `check` returns something true, and return that.

    An AssertionError in it counts as "not yet", and so does looking for what is not there (LookupError, ValueError).
    After `timeout` seconds it raises AssertionError with what the last try said. In a coroutine:
    `await asyncio.to_thread(eventually, check)`. Asked less and less often, up to a fifth as often: what takes long is
    not hurried by questions, which cost it the processor.
    """
    deadline, longest = time.monotonic() + timeout, 5 * interval
    while True:
        outcome, result = _attempt(check)
        if result:
            return result
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {timeout:g} s: {outcome}")
        time.sleep(interval)
        interval = min(1.1 * interval, longest)


def _attempt(check: Callable[[], T]) -> tuple[str, T | None]:
    try:
        result = check()
    except (AssertionError, LookupError, ValueError) as error:
        return (str(error) if isinstance(error, AssertionError) else repr(error)), None
    return f"the last answer was {result!r}", result


def ask(url: str, body: Any = None, method: str = "GET") -> Any:
    """The JSON that a URL answers with, be it with 503 as a /readyz does; any other error status fails the test.

    Raises OSError or HTTPException if nobody answers.
    """
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"}, method=method)
    try:
        with urllib.request.urlopen(request, timeout=_HTTP_SECONDS) as answer:
            return json.load(answer)
    except urllib.error.HTTPError as error:
        with error:
            said = error.read()
        return json.loads(said) if error.code == 503 else pytest.fail(f"{error.code} from {url}: {said.decode()}")


class Program:
    """A running Python program that serves HTTP on `port` and writes to `log`."""

    process: subprocess.Popen[bytes]

    def __init__(
        self, arguments: Sequence[str | Path], environment: Mapping[str, object], port: int, log: Path
    ) -> None:
        """`environment`: MARKETFLOW_ settings, without that prefix; those of the test run itself do not count."""
        self.port, self.log, self.url = port, log, f"http://127.0.0.1:{port}"
        self._command = [sys.executable, *map(str, arguments)]
        outside = {name: value for name, value in os.environ.items() if not name.startswith("MARKETFLOW_")}
        self._environment = outside | {f"MARKETFLOW_{name}": str(value) for name, value in environment.items()}
        self.launch()

    def launch(self) -> Self:
        """Start it; after its end once more, with the same settings, port and log."""
        with self.log.open("ab") as out:
            self.process = FORKS.start(self._command, out, self._environment)
        return self

    def answers(self, path: str) -> bool:
        """Whether it answers with success there; fails the test if it has ended."""
        if self.process.poll() is not None:
            pytest.fail(f"{self.log.stem} has ended with {self.process.returncode}:\n{tail(self.log, 60)}")
        try:
            with urllib.request.urlopen(self.url + path, timeout=_HTTP_SECONDS) as answer:
                return bool(answer.status == 200)
        except (OSError, HTTPException):
            return False

    def wait_for(self, path: str, timeout: float = PATIENCE) -> Self:
        eventually(lambda: self.answers(path), timeout)
        return self

    def wait_ready(self) -> Self:
        return self.wait_for("/readyz")

    def health(self) -> dict[str, Any]:
        """What /readyz says, ready or not; empty while nobody answers."""
        try:
            return dict(ask(self.url + "/readyz"))
        except (OSError, HTTPException):
            return {}

    def owned(self) -> list[int]:
        """Partitions that it works on, ready or not."""
        return list(self.health().get("partitions", []))

    def metric(self, name: str) -> float:
        """The sum over all labels; a name may go on with labels: `name{symbol="X"`."""
        with urllib.request.urlopen(self.url + "/metrics", timeout=_HTTP_SECONDS) as answer:
            lines = answer.read().decode().splitlines()
        return sum(float(line.split()[-1]) for line in lines if line.startswith(name))

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def wait(self, timeout: float = PATIENCE) -> int:
        """The exit code, once it has ended."""
        return self.process.wait(timeout)

    def stop(self, timeout: float = PATIENCE) -> int:
        """SIGTERM; the exit code."""
        terminate(self.process)
        return self.wait(timeout)

    def kill(self) -> None:
        self.signal(signal.SIGKILL)
        assert self.wait() == -signal.SIGKILL


class Exchange(Program):
    """The exchange simulator; its market waits for `start()`, unless it was started with `autostart`."""

    def market(self) -> Any:
        return ask(self.url + "/sim/market")

    def start(self) -> None:
        ask(self.url + "/sim/market/start", method="POST")

    def fault(self, kind: str, **details: Any) -> Any:
        return ask(self.url + "/sim/faults", {"kind": kind, **details}, "POST")

    def heal(self) -> None:
        ask(self.url + "/sim/faults", method="DELETE")


P = TypeVar("P", bound=Program)
E = TypeVar("E", bound=Exchange)


class Programs:
    """Starts programs with logs in `folder`, and in the end ends those that still run, frozen ones too."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._started = folder, list[Program]()

    def start(
        self, kind: type[P], name: str, arguments: Sequence[str | Path], environment: Mapping[str, object], port: int
    ) -> P:
        one = kind(arguments, environment, port, self._folder / f"{name}-{port}.log")
        self._started.append(one)
        return one

    def exchange(self, kind: type[E], **settings: object) -> E:
        """The exchange simulator with settings as keywords, once it answers."""
        port = free_port()
        values = {"port": port, "autostart": "false", **settings}
        environment = {f"SIMULATOR_{name.upper()}": value for name, value in values.items()}
        return self.start(kind, "exchange", ["-m", "marketflow_simulator"], environment, port).wait_for("/sim/health")

    def close(self) -> None:
        for one in reversed(self._started):
            if one.process.poll() is None:
                kill_group(one.process)
