"""Looks whether this machine has what MarketFlow needs, and says for each thing that is missing how to get it.

Must never install or change anything.
"""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from marketflow_stack.errors import StackError
from marketflow_stack.kafka import KAFKA_VERSION, cache_directory, find_java
from marketflow_stack.processes import who_holds
from marketflow_stack.stack import Ports

__all__ = ["Finding", "check_platform", "examine", "shared"]

NEEDED_DISK = 2 * 2**30
"""Bytes: environment, jars and the data of a demo come to 1.2 GB."""


@dataclass(frozen=True)
class Finding:
    """One thing looked at. A missing thing that is ``optional`` stops nothing."""

    name: str
    ok: bool
    found: str
    remedy: str = ""
    optional: bool = False


def examine(ports: Ports, state: Path, running: bool) -> Sequence[Finding]:
    """Look at everything. ``running``: the configured ports are held by the stack itself."""
    try:
        check_platform()
    except StackError as error:
        return [Finding("system", False, error.what, error.remedy)]  # the rest is looked up in Linux's /proc
    return [_python(), _java(), _jars(), *_ports(ports, running), _disk(state), _core(), _docker()]


def check_platform() -> None:
    """StackError where the local stack cannot run: it needs Linux's /proc, flock and prctl."""
    if sys.platform != "linux":
        raise StackError(
            f"the local stack needs Linux, this is {sys.platform}", "run it in a Linux machine, or use docker compose"
        )


def shared(ports: Ports) -> list[str]:
    """What to say of each port that two of our own parts are to listen on."""
    users: dict[int, list[str]] = {}
    for name in Ports.__dataclass_fields__:
        users.setdefault(getattr(ports, name), []).append(f"MARKETFLOW_STACK_{name.upper()}_PORT")
    return [f"{' and '.join(names)} are both {port}" for port, names in users.items() if len(names) > 1]


def _python() -> Finding:
    version = ".".join(map(str, sys.version_info[:3]))
    ok = (3, 11) <= sys.version_info[:2] <= (3, 13)
    return Finding(
        "Python", ok, version, "" if ok else "MarketFlow needs Python 3.11 to 3.13: make PYTHON=python3.12 setup"
    )


def _java() -> Finding:
    try:
        java = find_java()
    except StackError as error:
        return Finding("Java", False, error.what, error.remedy)
    said = subprocess.run([java, "-version"], capture_output=True, text=True, timeout=30).stderr.splitlines()
    return Finding("Java", True, f"{said[0]} at {java}")


def _jars() -> Finding:
    jars = cache_directory() / f"kafka-{KAFKA_VERSION}"
    if (jars / f"kafka_2.13-{KAFKA_VERSION}.jar").is_file():
        return Finding("Kafka", True, f"{KAFKA_VERSION} in {jars}")
    maven = shutil.which("mvn")
    if maven is not None:
        return Finding("Kafka", True, f"{KAFKA_VERSION} not yet in {jars}; the first start gets it with {maven}")
    return Finding(
        "Kafka",
        False,
        f"{KAFKA_VERSION} is not in {jars}, and there is no mvn on the PATH to get it",
        "install Maven (Debian: maven); it is needed once",
    )


def _ports(ports: Ports, running: bool) -> list[Finding]:
    names = {name: getattr(ports, name) for name in Ports.__dataclass_fields__}
    twice = [Finding("ports", False, problem, "give one of them another") for problem in shared(ports)]
    if twice:
        return twice
    if running:
        return [Finding("ports", True, "held by the stack that runs")]
    taken = [
        Finding(
            f"port {port}",
            False,
            f"{name}'s port: {holder}",
            f"end that process, or set MARKETFLOW_STACK_{name.upper()}_PORT; `make demo` takes free ports",
        )
        for name, port in names.items()
        if (holder := who_holds(port)) is not None
    ]
    free = f"{min(names.values())} to {max(names.values())}: all {len(names)} free"
    return taken or [Finding("ports", True, free)]


def _disk(state: Path) -> Finding:
    there = next(folder for folder in (state, *state.parents) if folder.exists())
    free = shutil.disk_usage(there).free
    ok = free >= NEEDED_DISK
    remedy = "" if ok else f"free {NEEDED_DISK / 2**30:.0f} GB, or set MARKETFLOW_STACK_STATE to a roomier place"
    return Finding("disk", ok, f"{free / 2**30:.1f} GB free for {state}", remedy)


def _core() -> Finding:
    module, slower = "marketflow_aggregator._skim", "takes trades in by Python, at half the speed and to the same digit"
    try:
        built = importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return Finding("aggregator", False, "is not installed here", optional=True)
    if built:
        try:
            importlib.import_module(module)
        except ImportError as error:  # one of another machine
            built, slower = False, f"{slower}; its C module is there but cannot be loaded: {error}"
    remedy = (
        "install gcc and Python's headers (Debian: gcc, libc6-dev, python3-dev), then rm .venv/.ready && make setup"
    )
    return Finding(
        "aggregator",
        built,
        "takes trades in by C" if built else slower,
        "" if built else remedy,
        optional=True,
    )


def _docker() -> Finding:
    docker = shutil.which("docker")
    remedy = "only docker compose and the containers' tests need it"
    if docker is None:
        return Finding("Docker", False, "not installed", remedy, optional=True)
    try:
        asked = subprocess.run(
            [docker, "version", "--format", "{{.Server.Version}}"], capture_output=True, text=True, timeout=20
        )
    except (OSError, subprocess.SubprocessError) as error:
        return Finding("Docker", False, str(error), remedy, optional=True)
    if asked.returncode != 0 or not asked.stdout.strip():
        why = (asked.stderr.strip().splitlines() or ["no engine answers"])[-1]
        return Finding("Docker", False, why[:120], remedy, optional=True)
    return Finding("Docker", True, f"engine {asked.stdout.strip()}", optional=True)
