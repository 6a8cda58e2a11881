"""The demo as an operator runs it: interrupted, it leaves no process and no port; the command line is a process."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from marketflow_stack.processes import free_port, port_is_free
from marketflow_stack.stack import Ports, running
from marketflow_stack.testing import eventually

pytestmark = pytest.mark.broker


@pytest.mark.timeout(600)
def test_ctrl_c_in_the_middle_of_a_demo_leaves_no_process_and_no_port(tmp_path: Path) -> None:
    output = tmp_path / "output.txt"
    command = [sys.executable, "-m", "marketflow_operator", "demo", "--state", str(tmp_path), "--speed", "5"]
    with output.open("wb") as sink:
        demo = subprocess.Popen(command, stdout=sink, stderr=subprocess.STDOUT)
    try:
        eventually(lambda: "the market opens" in output.read_text() or demo.poll() is not None, timeout=240)
        found = running(tmp_path / "demo" / "latest")
        assert found is not None, output.read_text()
        processes = [entry.process for entry in found[0].processes if entry.process is not None]
        ports = [port for entry in found[0].processes for port in entry.ports.values()]
        assert len(processes) >= 10
        demo.send_signal(signal.SIGINT)
        assert demo.wait(120) == 130
    finally:
        if demo.poll() is None:
            demo.kill()
            demo.wait()
    assert not [process for process in processes if process.alive()]
    assert all(port_is_free(port) for port in ports)
    said = output.read_text().splitlines()
    assert said[-2:] == ["everything has stopped", "marketflow: interrupted"]
    assert "Traceback" not in output.read_text()


def test_up_says_who_holds_a_taken_port(marketflow: Any, tmp_path: Path) -> None:
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        environment = {**os.environ, "MARKETFLOW_STACK_KAFKA_PORT": str(port)}
        done = marketflow("up", "--state", str(tmp_path), env=environment)
    assert done.returncode == 3
    assert done.stderr.startswith(f"marketflow: kafka needs port {port}: port {port} is taken by ")
    assert f"(pid {os.getpid()})" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.timeout(300)
def test_sigterm_to_up_while_it_starts_leaves_no_process_and_no_port(tmp_path: Path) -> None:
    output = tmp_path / "output.txt"
    ports = Ports.free()
    environment = {f"MARKETFLOW_STACK_{name.upper()}_PORT": str(port) for name, port in vars(ports).items()}
    command = [sys.executable, "-m", "marketflow_operator", "up", "--state", str(tmp_path / "state")]
    with output.open("wb") as sink:
        up = subprocess.Popen(command, stdout=sink, stderr=subprocess.STDOUT, env={**os.environ, **environment})
    try:
        eventually(lambda: "kafka " in output.read_text() or up.poll() is not None, timeout=120)
        found = running(tmp_path / "state")
        assert found is not None, output.read_text()
        up.send_signal(signal.SIGTERM)
        assert up.wait(120) == 130
    finally:
        if up.poll() is None:
            up.kill()
            up.wait()
    assert running(tmp_path / "state") is None
    assert not found[0].supervisor.alive()
    assert all(port_is_free(port) for port in vars(ports).values())
    assert output.read_text().splitlines()[-1] == "marketflow: interrupted"


@pytest.mark.timeout(600)
def test_live_watches_an_exchange_without_a_key_and_ends_with_its_candles_beside_the_exchanges(tmp_path: Path) -> None:
    # The simulator stands where Binance does: what live asks, anybody may ask.
    port = free_port()
    url = f"127.0.0.1:{port}"
    market = [
        sys.executable,
        "-m",
        "marketflow_simulator",
        "--port",
        str(port),
        "--symbols",
        "ETHUSDT",
        "--speed",
        "30",
    ]
    live = [sys.executable, "-m", "marketflow_operator", "live", "--symbols", "ETHUSDT", "--state", str(tmp_path)]
    places = {"MARKETFLOW_INGESTOR_WS_URL": f"ws://{url}", "MARKETFLOW_INGESTOR_REST_URL": f"http://{url}"}
    output = tmp_path / "output.txt"
    with (
        output.open("wb") as sink,
        subprocess.Popen(market, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as sim,
    ):
        try:
            eventually(lambda: not port_is_free(port))
            watching = subprocess.Popen(live, stdout=sink, stderr=subprocess.STDOUT, env={**os.environ, **places})
            try:
                candles = re.compile(r"[1-9]\d* candles")
                eventually(lambda: candles.search(output.read_text()) or watching.poll() is not None, timeout=240)
                watching.send_signal(signal.SIGINT)
                assert watching.wait(120) == 0, output.read_text()
            finally:
                if watching.poll() is None:
                    watching.kill()
                    watching.wait()
        finally:
            sim.terminate()
    said = output.read_text().splitlines()
    assert re.fullmatch(rf"All [1-9]\d* candles equal the klines of http://{url} in every field\.", said[-2]), said
    assert said[-1] == "everything has stopped; its data stays"


def test_live_says_at_once_that_no_exchange_answers(marketflow: Any, tmp_path: Path) -> None:
    url = f"http://127.0.0.1:{free_port()}"
    done = marketflow("live", "--state", str(tmp_path), env={**os.environ, "MARKETFLOW_INGESTOR_REST_URL": url})
    assert done.returncode == 3
    assert done.stderr.startswith(f"marketflow: no exchange answers at {url}")
    assert "MARKETFLOW_INGESTOR_WS_URL" in done.stderr
