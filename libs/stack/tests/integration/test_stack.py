"""The stack's own parts together in the background: up, seen from outside, and gone."""

import json
import os
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from confluent_kafka.admin import AdminClient
from marketflow_stack.errors import StackError
from marketflow_stack.processes import who_holds
from marketflow_stack.stack import Ports, StackConfig, running, start_detached
from marketflow_stack.state import StackState
from marketflow_stack.testing import eventually
from marketflow_stack.topics import read_terraform, topic_differences

pytestmark = pytest.mark.broker


@pytest.fixture
def config(tmp_path: Path) -> Iterator[StackConfig]:
    """A stack without services, on free ports."""
    config = StackConfig(state=tmp_path / "state", ports=Ports.free(), autostart=False, services=())
    yield config
    state = StackState.read(config.run)
    if state is not None:
        state.stop()


def held(config: StackConfig) -> list[str]:
    ports = config.ports
    used = (ports.kafka, ports.controller, ports.recorder, ports.simulator)
    return [str(holder) for port in used if (holder := who_holds(port)) is not None]


def test_up_and_down_leaves_the_data_and_nothing_else(config: StackConfig) -> None:
    told: list[tuple[str, str]] = []
    state = start_detached(config, lambda event: told.append((event.name, event.phase)))
    assert {p.name: p.phase for p in state.processes} == {
        "kafka": "ready",
        "topics": "done",
        "recorder": "ready",
        "simulator": "ready",
    }
    assert told.index(("kafka", "ready")) < told.index(("topics", "starting"))
    admin = AdminClient({"bootstrap.servers": config.bootstrap})
    assert topic_differences(admin, read_terraform(config.root / "infra" / "kafka-topics.tf")) == []
    with urllib.request.urlopen(f"{config.url('simulator')}/sim/health", timeout=5) as answer:
        assert answer.status == 200
    with urllib.request.urlopen(f"{config.url('recorder')}/recorded", timeout=5) as answer:
        assert json.load(answer) == []

    found = running(config.state)
    assert found is not None
    assert found[1].ports == config.ports
    with pytest.raises(StackError, match=rf"already \(pid {state.supervisor.pid}\)"):
        start_detached(config)

    assert found[0].stop()
    assert held(config) == []
    assert running(config.state) is None
    assert (config.state / "kafka" / "data").is_dir()


def test_a_market_that_waits_is_started_once_all_is_ready_and_goes_on_after_a_crash(config: StackConfig) -> None:
    def started() -> bool:
        with urllib.request.urlopen(f"{config.url('simulator')}/sim/market", timeout=5) as answer:
            return bool(json.load(answer)["running"])

    state = start_detached(replace(config, start_when_ready=True))
    assert started()
    simulator = next(p.process for p in state.processes if p.name == "simulator")
    assert simulator is not None
    simulator.signal(signal.SIGKILL)
    assert simulator.wait(10)
    eventually(lambda: who_holds(config.ports.simulator) is not None and started(), timeout=60)


def test_nothing_is_left_when_the_supervisor_is_killed_and_the_next_start_works(config: StackConfig) -> None:
    state = start_detached(config)
    state.supervisor.signal(signal.SIGKILL)
    assert state.supervisor.wait(30)
    assert eventually(lambda: held(config) == [], timeout=30)
    assert running(config.state) is None
    again = start_detached(config)
    assert again.supervisor != state.supervisor
    assert again.stop()
    assert held(config) == []


def test_ctrl_c_while_it_starts_stops_all_of_it(config: StackConfig, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(config.to_json())
    script = (
        "import sys; from pathlib import Path; from marketflow_stack.stack import StackConfig, start_detached\n"
        "config = StackConfig.from_json(Path(sys.argv[1]).read_text())\n"
        "start_detached(config, lambda event: print(event.name, event.phase, flush=True))\n"
    )
    command = [sys.executable, "-c", script, str(tmp_path / "config.json")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as starter:
        assert starter.stdout is not None
        eventually(lambda: starter.stdout and starter.stdout.readline() == "kafka starting\n")
        starter.send_signal(signal.SIGINT)
    assert starter.returncode != 0
    assert held(config) == []


def test_a_taken_port_is_told_by_the_command_that_starts_in_the_background(config: StackConfig) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(StackError, match=rf"recorder needs port {port}: .*\(pid {os.getpid()}\)"):
            start_detached(replace(config, ports=replace(config.ports, recorder=port)))
    assert held(config) == []
