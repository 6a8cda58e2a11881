"""Starts the tests' Python programs from a process that has the libraries imported already.

Hundreds of programs are started in a test run, and of the second or two of processor time that each takes to come up,
nine tenths are imports of other people's libraries. Here one process per test process imports them once, and then
forks for each program. A program is the same in all else: a child of the test process by pid, signals and exit status,
in a group of its own, killed by the kernel when the test process ends; its own modules are read from disk.
What the local stack starts (`demo`, `up`, and tests of them) starts without this, in the way it does for users.
"""

from __future__ import annotations

import ctypes
import gc
import importlib
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import types
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from marketflow_stack._launch import PR_SET_PDEATHSIG
from marketflow_stack.processes import spawn

LIBRARIES = (
    "aiohttp.web",
    "binance",
    "confluent_kafka.admin",
    "httpx",
    "msgspec.json",
    "prometheus_client",
    "pyarrow.parquet",
    "pydantic_settings",
    "snowflake.connector",
    "sqlglot.optimizer",
    "starlette.applications",
    "telegram.ext",
    "uvicorn",
    "websockets.asyncio.client",
    "websockets.asyncio.server",
)
"""What programs import from elsewhere. One that is missing here costs time, and no more. Not DuckDB, which complains at
the end of a process that its objects are still there."""
_REQUEST_BYTES = 200_000  # the environment of a program is the most of it
_PR_SET_CHILD_SUBREAPER = 36


class Child(subprocess.Popen[bytes]):
    """A child of this process that another one has forked."""

    def __init__(self, pid: int, args: Sequence[str]) -> None:
        # What subprocess.Popen.__init__ leaves behind after its own fork, without pipes.
        self.args, self.pid, self.returncode = list(args), pid, None
        self.stdin = self.stdout = self.stderr = None
        self._child_created, self._waitpid_lock = True, threading.Lock()


class ForkServer:
    """The forking process of this one; it starts with the first program and ends with this process."""

    def __init__(self) -> None:
        self._socket: socket.socket | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._said = tempfile.TemporaryFile()  # noqa: SIM115 - as long as this process
        self._lock = threading.Lock()

    def start(self, command: Sequence[str], output: IO[bytes], environment: Mapping[str, str]) -> Child:
        """Run `python -m module arguments` or `python script arguments`, as spawn() does."""
        with self._lock:
            if self._socket is None:
                self._socket = self._begin()
            request = json.dumps({"command": list(command), "environment": dict(environment)}).encode()
            try:
                socket.send_fds(self._socket, [request], [output.fileno()])
                answer = self._socket.recv(_REQUEST_BYTES)
            except ConnectionError:
                answer = b""
        if not answer:
            self._said.seek(0)
            raise RuntimeError(f"the process that starts programs has ended: {self._said.read().decode()}")
        return Child(int(answer), command)

    def _begin(self) -> socket.socket:
        # Who loses its parent becomes a child of the next one above that asks for it.
        if ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
            raise OSError("prctl(PR_SET_CHILD_SUBREAPER) failed")
        mine, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        mine.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _REQUEST_BYTES)
        with its:
            command = [sys.executable, "-m", "marketflow_stack.forkserver", str(os.getpid())]
            self._process = spawn(command, output=self._said, stdin=its)
        return mine

    def close(self) -> None:
        """End the forking process; the programs go on."""
        if self._socket is not None and self._process is not None:
            self._socket.close()
            self._process.wait()
        self._said.close()


def _serve(starter: int) -> list[str]:
    """Fork for each request; returns in the child, with its command. The process of the test run is `starter`."""
    server = socket.socket(fileno=os.dup(0))
    while True:
        request, descriptors, _, _ = socket.recv_fds(server, _REQUEST_BYTES, 1)
        if not request:
            raise SystemExit(0)
        read, write = os.pipe()
        adopted, adopt = os.pipe()
        # Two forks: once the one between has ended and is reaped, the program is a child of the starter. It waits for
        # that by reading from a pipe whose other end nobody holds then.
        between = os.fork()
        if between == 0:
            program = os.fork()
            if program:
                os.write(write, str(program).encode())
                os._exit(0)
            server.close()
            for descriptor in (read, write, adopt):
                os.close(descriptor)
            os.read(adopted, 1)
            os.close(adopted)
            return _become(json.loads(request), descriptors[0], starter)
        os.waitpid(between, 0)
        server.send(os.read(read, 32))
        for descriptor in (read, write, adopted, adopt, *descriptors):
            os.close(descriptor)


def _become(request: dict[str, Any], output: int, starter: int) -> list[str]:
    """Set up what a new process of the starter has of its own."""
    os.setsid()
    # The starter may have ended meanwhile: then nobody would ever send the signal.
    if ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0 or os.getppid() != starter:
        os._exit(1)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.close(output)
    os.environ.clear()
    os.environ.update(request["environment"])
    time.tzset()
    return list(request["command"])


def _run(arguments: Sequence[str]) -> None:
    """What the interpreter does with `-m module ...` or `script ...`."""
    main = types.ModuleType("__main__")
    sys.modules["__main__"] = main
    if arguments[0] == "-m":
        sys.argv = list(arguments[1:])
        runpy._run_module_as_main(arguments[1])  # type: ignore[attr-defined]  # what -m itself calls
        return
    script = arguments[0]
    sys.argv, sys.path[0] = list(arguments), os.path.dirname(script)  # noqa: PTH120 - as the interpreter has it
    main.__file__ = script
    with open(script, "rb") as file:  # noqa: PTH123
        code = compile(file.read(), script, "exec")
    exec(code, main.__dict__)


def main() -> None:
    """Import the libraries, then serve."""
    for name in LIBRARIES:
        with suppress(ImportError):
            importlib.import_module(name)
    # A thread does not survive a fork, and a lock that it held would never be free again. pyarrow's allocator sees to
    # that for its own.
    threads = [(task / "comm").read_text().strip() for task in Path("/proc/self/task").iterdir()]
    if len(threads) - threads.count("jemalloc_bg_thd") != 1:
        raise SystemExit(f"a library has started a thread: {threads}")
    gc.freeze()
    _run(_serve(int(sys.argv[1]))[1:])


if __name__ == "__main__":
    main()
