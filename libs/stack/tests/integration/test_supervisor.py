"""Real processes under a supervisor: order, restarts, and that nothing is ever left."""

import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from marketflow_stack.errors import StackError
from marketflow_stack.processes import ProcessId, who_holds
from marketflow_stack.state import StackState
from marketflow_stack.supervisor import Event, ProcessSpec, Supervisor
from marketflow_stack.testing import eventually, free_port

SERVER = (
    "import http.server, signal, sys\n"
    "class H(http.server.BaseHTTPRequestHandler):\n"
    "    def do_GET(self): self.send_response(200); self.end_headers()\n"
    "    def log_message(self, *a): pass\n"
    "signal.signal(signal.SIGTERM, lambda *_: (print('stopping', flush=True), sys.exit(0)))\n"
    "http.server.HTTPServer(('127.0.0.1', int(sys.argv[1])), H).serve_forever()\n"
)


@pytest.fixture
def server(tmp_path: Path) -> Callable[..., ProcessSpec]:
    def make(name: str, *depends_on: str, code: str = SERVER, **more: object) -> ProcessSpec:
        port = free_port()
        given: dict[str, object] = {
            "name": name,
            "argv": [sys.executable, "-c", code, str(port)],
            "log": tmp_path / f"{name}.log",
            "ready": f"http://127.0.0.1:{port}/",
            "depends_on": depends_on,
            "ports": {name: port},
            "stop_deadline": 5,
            **more,
        }
        return ProcessSpec(**given)  # type: ignore[arg-type]

    return make


def test_processes_start_after_what_they_need_and_stop_before_it(
    tmp_path: Path, server: Callable[..., ProcessSpec]
) -> None:
    events: list[Event] = []
    made = tmp_path / "made"
    once = server("once", "first", argv=["sh", "-c", f"echo done > {made}"], ready=None, one_shot=True)
    with Supervisor([server("last", "once"), once, server("first")], tmp_path / "run", on_event=events.append):
        assert made.exists()
        told = [(event.name, event.phase) for event in events]
        assert told.index(("first", "ready")) < told.index(("once", "starting"))
        assert told.index(("once", "done")) < told.index(("last", "starting"))
        state = StackState.read(tmp_path / "run")
        assert state is not None
        assert {p.name: p.phase for p in state.processes} == {"first": "ready", "once": "done", "last": "ready"}
        running = [p.process for p in state.processes if p.process is not None]
        assert len(running) == 2
    told = [(event.name, event.phase) for event in events]
    assert told.index(("last", "stopped")) < told.index(("first", "stopped"))
    assert (tmp_path / "last.log").read_text() == "stopping\n"
    assert not any(process.alive() for process in running)
    assert StackState.read(tmp_path / "run") is None


def test_starts_are_counted_over_the_supervisors_of_a_folder(
    tmp_path: Path, server: Callable[..., ProcessSpec]
) -> None:
    for already in (0, 1):
        with Supervisor([server("one")], tmp_path / "run") as supervisor:
            assert [(p.starts, p.restarts) for p in supervisor.status()] == [(already + 1, 0)]
    (tmp_path / "run" / "starts.json").write_text("cut off in the mid")
    with Supervisor([server("one")], tmp_path / "run") as supervisor:
        assert supervisor.status()[0].starts == 1


def test_a_start_that_fails_shows_what_the_log_says_of_this_run_only(
    tmp_path: Path, server: Callable[..., ProcessSpec]
) -> None:
    (tmp_path / "one.log").write_text("a failure of last week\n")
    spec = server("one", argv=["sh", "-c", "echo this one; exit 3"])
    with pytest.raises(StackError) as caught:
        Supervisor([spec], tmp_path / "run").start()
    assert caught.value.remedy == f"see {tmp_path / 'one.log'}, which ends with:\n  this one"


def test_a_crashed_process_comes_back_and_the_crash_is_counted(
    tmp_path: Path, server: Callable[..., ProcessSpec]
) -> None:
    with Supervisor([server("one"), server("two")], tmp_path / "run") as supervisor:
        before = supervisor.identity("one")
        before.signal(signal.SIGKILL)
        assert before.wait(30)
        eventually(lambda: [p.restarts for p in supervisor.status()] == [1, 0])
        supervisor.wait_ready("one", timeout=60)
        assert supervisor.identity("one") != before


def test_a_frozen_process_is_left_alone_and_still_stops(tmp_path: Path, server: Callable[..., ProcessSpec]) -> None:
    with Supervisor([server("one")], tmp_path / "run") as supervisor:
        frozen = supervisor.identity("one")
        frozen.signal(signal.SIGSTOP)
        supervisor.add(server("one-2", "one"))
        supervisor.wait_ready("one-2", timeout=60)
        assert supervisor.identity("one") == frozen
    assert not frozen.alive()


def test_one_process_can_be_stopped_and_started_again(tmp_path: Path, server: Callable[..., ProcessSpec]) -> None:
    with Supervisor([server("one")], tmp_path / "run") as supervisor:
        supervisor.stop_one("one")
        assert [p.phase for p in supervisor.status()] == ["stopped"]
        with pytest.raises(StackError, match=r"one is not running \(stopped\)"):
            supervisor.identity("one")
        supervisor.start_one("one")
        supervisor.wait_ready("one", timeout=60)
        assert [p.restarts for p in supervisor.status()] == [0]


def test_a_process_that_ends_at_its_start_fails_the_start_with_its_last_words(
    tmp_path: Path, server: Callable[..., ProcessSpec]
) -> None:
    first = server("first")
    broken = server("broken", "first", code="import sys; sys.exit('no such database: MARKETFLOW')")
    with pytest.raises(StackError, match=r"(?s)broken did not start.*no such database: MARKETFLOW"):
        Supervisor([first, broken], tmp_path / "run").start()
    assert who_holds(first.ports["first"]) is None


def test_a_process_that_never_gets_ready_fails_the_start_at_its_deadline(
    tmp_path: Path, server: Callable[..., ProcessSpec]
) -> None:
    slow = server("slow", code="import time; print('still warming up', flush=True); time.sleep(600)", ready_timeout=1)
    with pytest.raises(StackError, match=r"(?s)slow did not .*still warming up"):
        Supervisor([slow], tmp_path / "run").start()


def test_a_failed_preparation_is_the_reason_that_is_given(tmp_path: Path, server: Callable[..., ProcessSpec]) -> None:
    def prepare() -> None:
        raise StackError("the disk is full", "make room")

    with pytest.raises(StackError, match="the disk is full; make room"):
        Supervisor([server("one", prepare=prepare)], tmp_path / "run").start()


def test_a_taken_port_is_refused_before_anything_starts(tmp_path: Path, server: Callable[..., ProcessSpec]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        specs = [server("first"), server("second", ports={"second": port})]
        with pytest.raises(
            StackError, match=rf"second needs port {port}: port {port} is taken by .*\(pid {os.getpid()}\)"
        ):
            Supervisor(specs, tmp_path / "run").start()
    assert not (tmp_path / "first.log").exists()


def test_wrong_settings_are_not_tried_again(tmp_path: Path, server: Callable[..., ProcessSpec]) -> None:
    with Supervisor(
        [server("one", code=SERVER.replace("sys.exit(0)", "sys.exit(78)"))], tmp_path / "run"
    ) as supervisor:
        supervisor.identity("one").signal(signal.SIGTERM)
        eventually(lambda: [(p.phase, p.restarts) for p in supervisor.status()] == [("failed", 0)])


def test_two_stacks_do_not_share_a_folder(tmp_path: Path, server: Callable[..., ProcessSpec]) -> None:
    with (
        Supervisor([server("one")], tmp_path / "run"),
        pytest.raises(StackError, match=rf"already \(pid {os.getpid()}\)"),
    ):
        Supervisor([server("other")], tmp_path / "run").start()


def test_a_stop_that_comes_during_the_start_is_obeyed(tmp_path: Path, server: Callable[..., ProcessSpec]) -> None:
    stop = threading.Event()
    slow = server("slow", code="import time; time.sleep(600)")
    events: list[Event] = []

    def hear(event: Event) -> None:
        events.append(event)
        if event.phase == "starting":
            stop.set()

    Supervisor([slow], tmp_path / "run", on_event=hear).run(stop)
    assert [event.phase for event in events] == ["starting", "stopped"]


def test_nothing_survives_a_supervisor_that_is_killed(tmp_path: Path) -> None:
    ports = [free_port(), free_port()]
    script = (
        "import sys, threading; from pathlib import Path\n"
        "from marketflow_stack.supervisor import ProcessSpec, Supervisor\n"
        f"argv = lambda port: [sys.executable, '-c', {SERVER!r}, str(port)]\n"
        "specs = [ProcessSpec(name=f'p{n}', argv=argv(n), log=Path(sys.argv[1]) / 'log',"
        f" ready=f'http://127.0.0.1:{{n}}/', ports={{'p': n}}) for n in {ports}]\n"
        "Supervisor(specs, Path(sys.argv[1]) / 'run').run(threading.Event(), lambda: print('up', flush=True))\n"
    )
    command = [sys.executable, "-c", script, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as supervisor:
        assert supervisor.stdout is not None
        assert supervisor.stdout.readline() == "up\n"
        state = StackState.read(tmp_path / "run")
        assert state is not None
        assert state.supervisor == ProcessId.of(supervisor.pid)
        supervisor.kill()
    for process in state.processes:
        assert process.process is not None
        assert process.process.wait(30)
    assert [who_holds(port) for port in ports] == [None, None]
    assert StackState.read(tmp_path / "run") is None
