"""Starts a set of processes in order of readiness, keeps them running, and ends them without leaving any.

No orphan, ever: each child is started by `processes.spawn`, so the kernel kills it when the supervisor ends,
SIGKILL included (PR_SET_PDEATHSIG, set by a launcher between fork and exec; see _launch.py). Nothing here
knows what the processes do; that is stack.py's.
"""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Literal

from marketflow_stack.errors import StackError
from marketflow_stack.processes import (
    ProcessId,
    has_ended,
    kill_group,
    port_is_free,
    spawn,
    terminate,
    wait_end,
    who_holds,
)
from marketflow_stack.state import ProcessState, StackState, make_folder
from marketflow_stack.text import size, tail

_ROUND = 0.05  # seconds between two looks at the processes
_FIRST_BACKOFF, _LONGEST_BACKOFF = 0.5, 10.0  # seconds before a crashed process is started again
_STEADY = 30.0  # seconds after which a process counts as running well, and its backoff starts anew
_NOT_AGAIN = 78  # exit status of a service whose settings are wrong (EX_CONFIG): the same again would not help
_STARTS = "starts.json"  # how often each process was started in this folder, by name
_LOG_LIMIT = 20 * 2**20  # bytes after which a log is put aside when its process starts

Phase = Literal["waiting", "preparing", "starting", "ready", "done", "backoff", "failed", "stopped"]


@dataclass(frozen=True)
class ProcessSpec:
    """One process to run.

    `env` is added to the supervisor's own environment. `ready` is a URL that answers 200, or a function that
    says so; None counts as ready at once. A `one_shot` has to end with status 0 and is then done. `prepare`
    runs before each start, and may block. `ports` have to be free at the start.
    """

    name: str
    argv: Sequence[str]
    log: Path
    env: Mapping[str, str] = field(default_factory=dict)
    ready: str | Callable[[], bool] | None = None
    depends_on: Sequence[str] = ()
    one_shot: bool = False
    prepare: Callable[[], None] | None = None
    ports: Mapping[str, int] = field(default_factory=dict)
    url: str = ""
    cwd: Path | None = None
    ready_timeout: float = 120  # for a process that hangs; one that ends is seen at once
    stop_deadline: float = 15


@dataclass(frozen=True)
class Event:
    """Something that happened to a process: its new phase, and one line about it."""

    name: str
    phase: Phase
    text: str


class _Child:
    def __init__(self, spec: ProcessSpec) -> None:
        self.spec = spec
        self.phase: Phase = "waiting"
        self.process: subprocess.Popen[bytes] | None = None
        self.identity: ProcessId | None = None
        self.preparing: Future[None] | None = None
        self.error: BaseException | None = None  # of its preparation
        self.restarts = 0
        self.backoff = _FIRST_BACKOFF
        self.since = time.monotonic()  # when the phase began
        self.ever_ready = False
        self.log_from = 0  # where the log of its last start begins

    @property
    def settled(self) -> bool:
        return self.phase in ("ready", "done")


class Supervisor:
    """Runs `specs`; as a context manager it starts them, watches them in a thread, and stops them at the end.

    `directory` takes stack.json (see state.py) and a lock: one stack per directory.
    """

    def __init__(
        self,
        specs: Sequence[ProcessSpec],
        directory: Path,
        *,
        on_event: Callable[[Event], None] = lambda _: None,
        info: Mapping[str, str] | None = None,
    ) -> None:
        self._children = {spec.name: _Child(spec) for spec in in_order(specs)}
        self._directory = directory
        self._info = dict(info or {})
        self._on_event = on_event
        self._turn = threading.RLock()
        self._stopping = False
        self._end = threading.Event()
        self._watcher: threading.Thread | None = None
        self._preparers = ThreadPoolExecutor(max_workers=4, thread_name_prefix="prepare")
        self._lock: IO[str] | None = None
        self._starts: dict[str, int] = {}

    def __enter__(self) -> Supervisor:
        self.start()
        self._watcher = threading.Thread(target=self._watch, name="supervisor", daemon=True)
        self._watcher.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self, stop: threading.Event | None = None) -> None:
        """Start all and return when all are ready, or `stop` is set; after a failure stop all, raise StackError."""
        self._claim()
        try:
            for child in self._children.values():
                _ports_are_free(child.spec)
            while not all(child.settled for child in self._children.values()):
                if stop is not None and stop.is_set():
                    return
                self.step()
                for child in self._children.values():
                    if child.phase in ("failed", "backoff") and not child.ever_ready:
                        raise self._failure(child)
                time.sleep(_ROUND)
        except BaseException:  # Ctrl-C too
            self.stop()
            raise

    def run(self, stop: threading.Event, on_ready: Callable[[], None] = lambda: None) -> None:
        """start(), then keep everything running until `stop` is set, then stop(). `stop` ends a start as well."""
        try:
            self.start(stop)
            if not stop.is_set():
                on_ready()
            while not stop.is_set():
                self.step()
                stop.wait(_ROUND)
        finally:
            self.stop()

    def step(self) -> None:
        """Look at each process once and do what is due; never waits for long."""
        with self._turn:
            if not self._stopping:
                for child in self._children.values():
                    self._look(child)

    def stop(self) -> None:
        """SIGTERM in reverse order of dependency, SIGKILL at each one's deadline; nothing is left afterwards."""
        with self._turn:
            self._stopping = True
        self._end.set()
        if self._watcher is not None and self._watcher is not threading.current_thread():
            self._watcher.join()
        with self._turn:
            for group in reversed(levels([child.spec for child in self._children.values()])):
                self._stop_group([self._children[spec.name] for spec in group])
            self._preparers.shutdown(wait=True, cancel_futures=True)
            if self._lock is not None:
                StackState.remove(self._directory)
                self._lock.close()
                self._lock = None

    def add(self, spec: ProcessSpec) -> None:
        """One more process while the others run (a second instance); wait_ready() tells when it is up."""
        with self._turn:
            _ports_are_free(spec)
            self._children[spec.name] = _Child(spec)
            in_order([child.spec for child in self._children.values()])

    def stop_one(self, name: str) -> None:
        """Stop one process (SIGTERM, SIGKILL at its deadline) and leave it stopped."""
        with self._turn:
            self._stop_group([self._children[name]])

    def start_one(self, name: str) -> None:
        """Start a stopped process again."""
        with self._turn:
            child = self._children[name]
            if child.process is None:
                self._enter(child, "waiting", "is to start again")

    def wait_ready(self, *names: str, timeout: float = 60) -> None:
        """Until these (all, if none is named) are ready or done; StackError with the log's end otherwise."""
        deadline = time.monotonic() + timeout
        for name in names or tuple(self._children):
            child = self._children[name]
            while not child.settled:
                if child.phase == "failed" or time.monotonic() > deadline:
                    raise self._failure(child)
                if self._watcher is None:
                    self.step()
                time.sleep(_ROUND)

    def identity(self, name: str) -> ProcessId:
        """The running process of that name, to send signals to; StackError if it is not running."""
        with self._turn:
            child = self._children[name]
            if child.process is None or child.identity is None:
                raise StackError(f"{name} is not running ({child.phase})", f"see {child.spec.log}")
            return child.identity

    def status(self) -> list[ProcessState]:
        """All processes in order of start."""
        with self._turn:
            return [_state(child, self._starts) for child in self._children.values()]

    def _watch(self) -> None:
        while not self._end.wait(_ROUND):
            self.step()

    def _look(self, child: _Child) -> None:
        process = child.process
        if process is not None and has_ended(process):
            self._ended(child, process)
        elif child.phase == "waiting":
            if all(self._children[name].settled for name in child.spec.depends_on):
                self._prepare(child)
        elif child.phase == "preparing" and child.preparing is not None and child.preparing.done():
            self._launch(child, child.preparing)
        elif child.phase == "starting":
            self._ask(child)
        elif child.phase == "ready" and time.monotonic() - child.since > _STEADY:
            child.backoff = _FIRST_BACKOFF
        elif child.phase == "backoff" and time.monotonic() - child.since > child.backoff:
            child.backoff = min(_LONGEST_BACKOFF, child.backoff * 2)
            child.restarts += 1
            self._prepare(child)

    def _prepare(self, child: _Child) -> None:
        if child.spec.prepare is not None:
            child.preparing = self._preparers.submit(child.spec.prepare)
            self._enter(child, "preparing", "is being prepared")
        else:
            self._launch(child, None)

    def _launch(self, child: _Child, prepared: Future[None] | None) -> None:
        child.preparing = None
        spec = child.spec
        error = prepared.exception() if prepared is not None else None
        if error is not None:
            child.error = error
            self._enter(child, "failed", str(error))
            return
        spec.log.parent.mkdir(parents=True, exist_ok=True)
        if spec.log.exists() and spec.log.stat().st_size > _LOG_LIMIT:
            spec.log.replace(spec.log.with_suffix(".log.1"))
        environment = {**os.environ, "PYTHONUNBUFFERED": "1", **spec.env}
        # All of the stack talks on this machine: a proxy of the user's must not be asked.
        for name in ("NO_PROXY", "no_proxy"):
            environment[name] = ",".join(filter(None, (environment.get(name), "127.0.0.1,localhost")))
        self._count(spec.name)
        child.log_from = size(spec.log)
        with spec.log.open("ab") as log:
            child.process = spawn(spec.argv, output=log, env=environment, cwd=spec.cwd)
        child.identity = ProcessId.of(child.process.pid)
        self._enter(child, "starting", f"started (pid {child.process.pid})")

    def _count(self, name: str) -> None:
        """One more start, written down before it happens: what a crash may have repeated outlives the supervisor."""
        self._starts[name] = self._starts.get(name, 0) + 1
        scratch = self._directory / f"{_STARTS}.new"
        scratch.write_text(json.dumps(self._starts))
        scratch.replace(self._directory / _STARTS)

    def _ask(self, child: _Child) -> None:
        spec = child.spec
        if spec.one_shot:
            is_ready = False
        elif callable(spec.ready):
            is_ready = spec.ready()
        else:
            is_ready = spec.ready is None or answers_200(spec.ready)
        if is_ready:
            seconds = time.monotonic() - child.since
            child.ever_ready = True
            self._enter(child, "ready", f"ready after {seconds:.1f} s")
        elif time.monotonic() - child.since > spec.ready_timeout:
            assert child.process is not None
            kill_group(child.process)
            child.process = child.identity = None
            if child.ever_ready:
                self._enter(child, "backoff", f"not ready again within {spec.ready_timeout:g} s")
            else:
                self._enter(child, "failed", f"not ready within {spec.ready_timeout:g} s")

    def _ended(self, child: _Child, process: subprocess.Popen[bytes]) -> None:
        kill_group(process)  # what it may have started itself
        child.process = child.identity = None
        how = _how_it_ended(process.returncode)
        if child.spec.one_shot:
            done = process.returncode == 0
            child.ever_ready = child.ever_ready or done
            self._enter(child, "done" if done else "failed", "done" if done else how)
        elif process.returncode == _NOT_AGAIN:
            self._enter(child, "failed", f"{how}: a setting is wrong, see {child.spec.log}")
        else:
            self._enter(child, "backoff", f"{how}; starts again in {child.backoff:g} s")

    def _stop_group(self, group: Sequence[_Child]) -> None:
        for child in group:
            if child.process is not None:
                terminate(child.process)
        deadlines = {child.spec.name: time.monotonic() + child.spec.stop_deadline for child in group}
        for child in group:
            if child.preparing is not None:
                child.preparing.cancel()
                child.preparing = None
            text = "stopped"
            if child.process is not None:
                if not wait_end(child.process, max(0, deadlines[child.spec.name] - time.monotonic())):
                    text = f"killed: it had not stopped {child.spec.stop_deadline:g} s after SIGTERM"
                kill_group(child.process)
                child.process = child.identity = None
            if child.phase not in ("done", "failed", "stopped"):
                self._enter(child, "stopped", text)

    def _enter(self, child: _Child, phase: Phase, text: str) -> None:
        child.phase, child.since = phase, time.monotonic()
        if self._lock is not None:
            StackState.of_this_process(self.status(), self._info).write(self._directory)
        self._on_event(Event(child.spec.name, phase, text))

    def _failure(self, child: _Child) -> StackError:
        if isinstance(child.error, StackError):
            return child.error
        if child.error is not None:
            return StackError(f"{child.spec.name} could not be prepared: {child.error}", "")
        what = "did not become ready" if child.phase in ("starting", "waiting", "preparing") else "did not start"
        last = tail(child.spec.log, since=child.log_from)
        return StackError(f"{child.spec.name} {what}", f"see {child.spec.log}, which ends with:\n{last}")

    def _claim(self) -> None:
        make_folder(self._directory)
        lock = (self._directory / "lock").open("w")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            lock.close()
            running = StackState.read(self._directory)
            who = f" (pid {running.supervisor.pid})" if running is not None else ""
            raise StackError(
                f"a stack runs in {self._directory.parent} already{who}", "stop it with `marketflow down`"
            ) from None
        self._lock = lock
        try:
            counted = json.loads((self._directory / _STARTS).read_text())
            self._starts = {str(name): int(count) for name, count in counted.items()}
        except (OSError, ValueError, TypeError, AttributeError):
            self._starts = {}  # a new folder


def _state(child: _Child, starts: Mapping[str, int]) -> ProcessState:
    return ProcessState(
        name=child.spec.name,
        phase=child.phase,
        process=child.identity,
        restarts=child.restarts,
        starts=starts.get(child.spec.name, 0),
        ports=dict(child.spec.ports),
        url=child.spec.url,
        log=str(child.spec.log),
        ready=child.spec.ready if isinstance(child.spec.ready, str) else "",
    )


def _ports_are_free(spec: ProcessSpec) -> None:
    for port in spec.ports.values():
        if not port_is_free(port):
            raise StackError(
                f"{spec.name} needs port {port}: {who_holds(port) or 'it is taken'}",
                "end that process or choose another port",
            )


def _how_it_ended(status: int) -> str:
    return f"was killed by signal {-status}" if status < 0 else f"ended with status {status}"


def answers_200(url: str) -> bool:
    """Whether a GET of the URL is answered with 200 within a second; no proxy is asked."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(url, timeout=1) as answer:
            return bool(answer.status == 200)
    except (OSError, ValueError, urllib.error.URLError):
        return False
    except Exception:  # noqa: BLE001  (http.client's own errors: whatever it is, it is not 200)
        return False


def in_order(specs: Sequence[ProcessSpec]) -> list[ProcessSpec]:
    """Specs so that each comes after those it depends on; ValueError for a name that is twice, unknown, circular."""
    return [spec for group in levels(specs) for spec in group]


def levels(specs: Sequence[ProcessSpec]) -> list[list[ProcessSpec]]:
    """Groups that can start together: each depends on earlier groups only."""
    known = {spec.name for spec in specs}
    if len(known) < len(specs):
        raise ValueError(f"a process is named twice: {sorted(spec.name for spec in specs)}")
    for spec in specs:
        if missing := set(spec.depends_on) - known:
            raise ValueError(f"{spec.name} depends on {', '.join(sorted(missing))}, which is not there")
    groups: list[list[ProcessSpec]] = []
    placed: set[str] = set()
    while len(placed) < len(specs):
        group = [spec for spec in specs if spec.name not in placed and placed.issuperset(spec.depends_on)]
        if not group:
            circle = ", ".join(spec.name for spec in specs if spec.name not in placed)
            raise ValueError(f"these depend on one another in a circle: {circle}")
        groups.append(group)
        placed.update(spec.name for spec in group)
    return groups
