"""Processes are named so that no other is ever hit."""

import os
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from marketflow_stack.errors import StackError
from marketflow_stack.processes import ProcessId, end, free_ports, kill_group, port_is_free, spawn, who_holds
from marketflow_stack.state import StackState, make_folder
from marketflow_stack.testing import eventually


def test_a_recycled_pid_is_another_process_and_gets_no_signal() -> None:
    own = ProcessId.of(os.getpid())
    assert own is not None
    assert own.alive()
    before = ProcessId(own.pid, own.started - 1, own.boot)
    assert not before.alive()
    assert not before.signal(signal.SIGKILL)
    other_boot = ProcessId(own.pid, own.started, "another")
    assert not other_boot.signal(signal.SIGKILL)


def test_a_process_that_has_ended_is_gone_even_before_it_is_reaped() -> None:
    with subprocess.Popen([sys.executable, "-c", ""], stdin=subprocess.DEVNULL) as process:
        assert eventually(lambda: ProcessId.of(process.pid) is None)


def test_the_holder_of_a_port_is_named_and_a_free_port_has_none() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        holder = who_holds(port)
        assert holder is not None
        assert holder.pid == os.getpid()
        assert str(holder).startswith(f"port {port} is taken by ")
        assert not port_is_free(port)
    assert who_holds(port) is None
    assert port_is_free(port)


def test_a_port_is_not_given_to_two_choosers_before_either_could_open_it() -> None:
    code = "from marketflow_stack.processes import free_ports; print(*free_ports(400))"
    choosers = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) for _ in range(6)]
    ports = [port for chooser in choosers for port in chooser.communicate(timeout=120)[0].split()]
    assert len(ports) == len(set(ports)) == 2_400


def test_free_ports_differ_and_cannot_be_taken_by_an_outgoing_connection() -> None:
    ports = free_ports(50)
    first, last = map(int, Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split())
    assert len(set(ports)) == 50
    # On a machine whose whole range is for connections there is no such port.
    assert first <= 16_000 or not [port for port in ports if first <= port <= last]


def test_a_program_that_is_not_there_ends_with_127_and_says_so(tmp_path: Path) -> None:
    with (tmp_path / "log").open("wb") as log:
        process = spawn(["/no/such/program"], output=log)
    assert process.wait(20) == 127
    assert (tmp_path / "log").read_text() == "cannot run /no/such/program: No such file or directory\n"


def test_a_process_that_ignores_sigterm_is_killed_with_its_children(tmp_path: Path) -> None:
    script = "trap '' TERM; sleep 600 & echo $!; wait; wait"
    with (tmp_path / "log").open("wb") as log:
        process = spawn(["sh", "-c", script], output=log)
    grandchild = ProcessId.of(int(eventually(lambda: (tmp_path / "log").read_text().strip())))
    assert grandchild is not None
    assert not end(process, deadline=0.2)
    assert process.returncode == -signal.SIGKILL
    assert grandchild.wait(5)


def test_a_frozen_process_is_ended_by_sigterm(tmp_path: Path) -> None:
    with (tmp_path / "log").open("wb") as log:
        process = spawn(["sleep", "600"], output=log)
    process.send_signal(signal.SIGSTOP)
    assert end(process, deadline=10)
    assert process.returncode == -signal.SIGTERM


def test_children_left_by_a_process_that_has_ended_are_killed(tmp_path: Path) -> None:
    with (tmp_path / "log").open("wb") as log:
        process = spawn(["sh", "-c", "sleep 600 & echo $!"], output=log)
    grandchild = ProcessId.of(int(eventually(lambda: (tmp_path / "log").read_text().strip())))
    assert grandchild is not None
    assert end(process, deadline=5)
    kill_group(process)
    assert grandchild.wait(5)


@pytest.mark.parametrize("name", ["state/run", "state"])
def test_a_state_folder_that_is_a_file_or_cannot_be_made_is_named(tmp_path: Path, name: str) -> None:
    (tmp_path / "state").write_text("a file")
    with pytest.raises(StackError, match=r"state.*(cannot be read|cannot be made) \(.+\); name a state folder"):
        StackState.read(tmp_path / name)
    with pytest.raises(StackError, match=r"state.* cannot be made \(.+\); name a state folder"):
        make_folder(tmp_path / name)


def test_the_holder_of_a_port_is_found_while_it_opens_and_closes_files() -> None:
    over = threading.Event()

    def busy() -> None:
        while not over.is_set():
            for descriptor in [os.open(os.devnull, os.O_RDONLY) for _ in range(50)]:
                os.close(descriptor)

    worker = threading.Thread(target=busy)
    worker.start()
    try:
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            holders = [who_holds(taken.getsockname()[1]) for _ in range(20)]
    finally:
        over.set()
        worker.join()
    assert {holder and holder.pid for holder in holders} == {os.getpid()}
