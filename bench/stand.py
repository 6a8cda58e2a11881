"""The bench's own broker, topics and processes in a scratch folder; all of it is gone at the end.

Must never touch a running stack: own ports, own data, and every process is a child that dies with this one.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient
from marketflow_stack.kafka import KafkaBroker
from marketflow_stack.processes import end, free_port, free_ports, spawn
from marketflow_stack.text import tail
from marketflow_stack.topics import ensure_topics, read_terraform

__all__ = ["ROOT", "Measured", "Stand", "TookTooLong", "wait"]

ROOT = Path(__file__).parents[1]
_TICK = os.sysconf("SC_CLK_TCK")
_PAGE = os.sysconf("SC_PAGE_SIZE")


class TookTooLong(RuntimeError):
    """What was waited for did not happen, or a process ended before; the text says what, and ends with its log."""


class Measured:
    """A child process whose processor time and memory are read from the kernel, all of its threads included."""

    def __init__(self, name: str, process: subprocess.Popen[bytes], log: Path, url: str = "") -> None:
        self.name, self.process, self.log, self.url = name, process, log, url

    def cpu_seconds(self) -> float:
        """User and system time so far, in steps of 10 ms."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / _TICK

    def resident_mb(self) -> float:
        """Resident memory now, in MB (10^6 bytes)."""
        return int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1]) * _PAGE / 1e6

    def ready(self) -> bool:
        """Whether /readyz (of the simulator /sim/health) answers 200."""
        path = "/sim/health" if self.name == "simulator" else "/readyz"
        try:
            with urllib.request.urlopen(self.url + path, timeout=2) as answer:
                return bool(answer.status == 200)
        except (urllib.error.URLError, OSError):
            return False

    def metric(self, start: str) -> float:
        """Sum of the metrics whose line starts so."""
        with urllib.request.urlopen(self.url + "/metrics", timeout=10) as answer:
            lines = answer.read().decode().splitlines()
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(start))

    def alive(self) -> None:
        """Raise TookTooLong if it has ended."""
        if self.process.poll() is not None:
            status = self.process.returncode
            raise TookTooLong(f"{self.name} ended with status {status}; its log ends with:\n{tail(self.log)}")

    def stop(self) -> None:
        """End it; a service commits and leaves its group first."""
        end(self.process, deadline=20)


def wait(what: str, check: Callable[[], bool], *processes: Measured, seconds: float = 120, pause: float = 0.05) -> None:
    """Until ``check`` is true. Raises TookTooLong."""
    deadline = time.monotonic() + seconds
    while not check():
        for process in processes:
            process.alive()
        if time.monotonic() > deadline:
            raise TookTooLong(f"{what}: not within {seconds:g} s")
        time.sleep(pause)


class Stand:
    """A context manager: the broker on entry, an empty machine on exit."""

    def __init__(self) -> None:
        self._stack = ExitStack()
        self._specs = tuple(read_terraform(ROOT / "infra" / "kafka-topics.tf"))
        self._count = 0

    def __enter__(self) -> Stand:
        self.folder = Path(tempfile.mkdtemp(prefix="marketflow-bench-"))
        self._stack.callback(shutil.rmtree, self.folder, ignore_errors=True)
        port, controller = free_ports(2)
        try:
            broker = KafkaBroker(self.folder / "kafka", port, controller)
            broker.start()
            self._stack.callback(broker.stop)
        except BaseException:
            self._stack.close()
            raise
        self.bootstrap = broker.bootstrap
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def topics(self, prefix: str) -> None:
        """The four topics under a prefix, as they are declared."""
        ensure_topics(self.bootstrap, self._specs, prefix=prefix)

    def forget(self, group: str) -> None:
        """Delete a consumer group's position, so that its next member begins at the beginning."""
        admin = AdminClient({"bootstrap.servers": self.bootstrap, "log_level": 0})
        for future in admin.delete_consumer_groups([group]).values():
            try:
                future.result()
            except KafkaException as error:
                raise TookTooLong(f"group {group} is not deleted: {error.args[0].str()}") from None

    def service(self, name: str, prefix: str, **settings: object) -> Measured:
        """A service of MarketFlow as its own process, with default settings but these."""
        port = free_port()
        environment = {
            "MARKETFLOW_KAFKA_BOOTSTRAP_SERVERS": self.bootstrap,
            "MARKETFLOW_KAFKA_TOPIC_PREFIX": prefix,
            f"MARKETFLOW_{name.upper()}_HTTP_PORT": str(port),
            **{f"MARKETFLOW_{name.upper()}_{key}": str(value) for key, value in settings.items()},
        }
        return self.process(name, [sys.executable, "-m", f"marketflow_{name}"], environment, f"http://127.0.0.1:{port}")

    def simulator(self, **settings: object) -> Measured:
        """The exchange, not yet trading (POST /sim/market/start)."""
        port = free_port()
        values = {"PORT": port, "AUTOSTART": "false", "WEIGHT_LIMIT": 0, **settings}
        environment = {f"MARKETFLOW_SIMULATOR_{key}": str(value) for key, value in values.items()}
        argv = [sys.executable, "-m", "marketflow_simulator"]
        one = self.process("simulator", argv, environment, f"http://127.0.0.1:{port}")
        wait("the simulator listens", one.ready, one)
        return one

    def process(self, name: str, argv: list[str], environment: dict[str, str], url: str = "") -> Measured:
        """Any program. It is ended with the stand, or before."""
        self._count += 1
        log = self.folder / f"{self._count}-{name}.log"
        clean = {key: value for key, value in os.environ.items() if not key.startswith("MARKETFLOW_")}
        with log.open("wb") as output:
            one = Measured(name, spawn(argv, output=output, env=clean | environment, cwd=ROOT), log, url)
        self._stack.callback(one.stop)
        return one
