"""Apache Kafka on this machine without a container: its jars, and one KRaft broker as a child process.

It may keep data only in the directory it is given, listens on 127.0.0.1 only, and never outlives the process
that started it.
"""

from __future__ import annotations

import base64
import fcntl
import os
import re
import secrets
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from hashlib import blake2b
from pathlib import Path

from marketflow_stack.errors import StackError
from marketflow_stack.processes import end, free_ports, kill_group, port_answers, port_is_free, spawn, who_holds
from marketflow_stack.text import size, tail
from marketflow_stack.topics import wait_for_broker

KAFKA_VERSION = "4.1.1"
SLF4J_VERSION = "1.7.36"  # the slf4j-api that Kafka 4.1.1 itself is built with
MINIMUM_JAVA = 17  # Kafka 4's brokers need it
JAVA_ENVIRONMENT = {"LC_ALL": "C.UTF-8"}  # by its locale Java reads its arguments and writes the names of files

_POM = f"""\
<project xmlns="http://maven.apache.org/POM/4.0.0">
  <modelVersion>4.0.0</modelVersion>
  <groupId>marketflow</groupId><artifactId>kafka-jars</artifactId><version>1</version><packaging>pom</packaging>
  <dependencies>
    <dependency><groupId>org.apache.kafka</groupId><artifactId>kafka_2.13</artifactId><version>{KAFKA_VERSION}</version></dependency>
    <dependency><groupId>org.apache.kafka</groupId><artifactId>kafka-tools</artifactId><version>{KAFKA_VERSION}</version></dependency>
    <dependency><groupId>org.slf4j</groupId><artifactId>slf4j-simple</artifactId><version>{SLF4J_VERSION}</version></dependency>
  </dependencies>
</project>
"""
_COPY = "org.apache.maven.plugins:maven-dependency-plugin:3.6.1:copy-dependencies"
_NEEDED = (
    f"kafka_2.13-{KAFKA_VERSION}.jar",
    f"kafka-tools-{KAFKA_VERSION}.jar",
    f"slf4j-simple-{SLF4J_VERSION}.jar",
)


def cache_directory() -> Path:
    """MarketFlow's folder in the user's cache."""
    configured = os.environ.get("XDG_CACHE_HOME", "")
    base = Path(configured) if Path(configured).is_absolute() else Path.home() / ".cache"
    return base / "marketflow"


def find_java() -> Path:
    """A Java that Kafka runs on, from JAVA_HOME or the PATH; StackError if there is none or it is too old."""
    remedy = f"install Java {MINIMUM_JAVA} or newer (Debian: openjdk-17-jre-headless), or set JAVA_HOME to one"
    home = os.environ.get("JAVA_HOME")
    if home:
        java = Path(home) / "bin" / "java"
        if not os.access(java, os.X_OK):
            raise StackError(f"JAVA_HOME is {home}, but there is no {java}", "correct or unset JAVA_HOME")
    else:
        found = shutil.which("java")
        if found is None:
            raise StackError("Kafka needs Java and there is no `java` on the PATH", remedy)
        java = Path(found)
    try:
        said = _version_of(java)
    except (OSError, subprocess.SubprocessError) as error:
        raise StackError(f"{java} does not run: {error}", remedy) from None
    version = java_version(said)
    if version is None:
        first = said.strip().splitlines()[:1] or ["nothing"]
        raise StackError(f"{java} -version says {first[0]!r}, which names no version", remedy)
    if version < MINIMUM_JAVA:
        raise StackError(f"{java} is Java {version}, Kafka {KAFKA_VERSION} needs {MINIMUM_JAVA}", remedy)
    return java


@cache
def _version_of(java: Path) -> str:
    """What `java -version` says: a process each time, so asked once."""
    return subprocess.run([java, "-version"], capture_output=True, text=True, timeout=30).stderr


def java_version(said: str) -> int | None:
    """The major version in the text of `java -version`: 17 of "17.0.15", 8 of "1.8.0_402"."""
    match = re.search(r'version "(?:1\.)?(\d+)', said)
    return int(match.group(1)) if match else None


def kafka_jars(cache: Path | None = None) -> Path:
    """The folder that holds Kafka's jars; the first call gets them by Maven (54 MB); then no network is needed.

    Two runs at once do not clash: one downloads, the other waits, and the folder appears whole or not at all.
    """
    base = cache or cache_directory()
    jars = base / f"kafka-{KAFKA_VERSION}"
    if _complete(jars):
        return jars
    try:
        base.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StackError(f"cannot make {base}: {error.strerror}", "set XDG_CACHE_HOME to a writable folder") from None
    with _locked(base / f"kafka-{KAFKA_VERSION}.lock"):
        if not _complete(jars):  # another run may have brought them while this one waited
            _download(base, jars)
    return jars


def class_archive(java: Path) -> Path | None:
    """Kafka's classes as this Java has them in memory, a third off a broker's start; None if it makes none.

    The first call takes ten seconds: an archive is written by a broker that ends.
    """
    base = kafka_jars().parent
    name = blake2b(_version_of(java).encode(), digest_size=6).hexdigest()
    archive = base / f"kafka-{KAFKA_VERSION}-{name}.jsa"
    with suppress(OSError):  # a cache that may only be read, or a full disk: a start is slower then, and no more
        if not archive.exists():
            with _locked(base / f"kafka-{KAFKA_VERSION}.lock"):
                if not archive.exists():
                    _write_archive(java, archive)
        return archive if archive.stat().st_size else None
    return None


def _write_archive(java: Path, archive: Path) -> None:
    with tempfile.TemporaryDirectory(prefix="kafka-", dir=archive.parent) as scratch:
        new = Path(scratch) / "classes.jsa"
        port, controller = free_ports(2)
        broker = KafkaBroker(Path(scratch) / "broker", port, controller, write_archive=new)
        try:
            broker.start()
        except StackError:
            return  # why, the broker that is wanted will say
        broker.stop(60)
        # One that a full disk has cut short would end every broker with SIGBUS.
        reads = [str(java), f"-XX:SharedArchiveFile={new}", "-version"]
        if new.exists() and subprocess.run(reads, cwd=scratch, capture_output=True, timeout=30).returncode == 0:
            new.rename(archive)
        else:
            archive.touch()  # this Java cannot; asked once is enough


def _complete(jars: Path) -> bool:
    return all((jars / name).is_file() for name in _NEEDED)


def _download(base: Path, jars: Path) -> None:
    maven = shutil.which("mvn")
    if maven is None:
        raise StackError(
            f"Kafka's jars are not in {jars} yet and there is no `mvn` on the PATH to get them",
            "install Maven (Debian: maven); it is needed once",
        )
    with tempfile.TemporaryDirectory(prefix="kafka-", dir=base) as scratch:
        pom = Path(scratch) / "pom.xml"
        pom.write_text(_POM)
        whole = Path(scratch) / "jars"
        result = subprocess.run(
            [maven, "-B", "-ntp", "-f", pom, _COPY, f"-DoutputDirectory={whole}", "-DincludeScope=runtime"],
            capture_output=True,
            text=True,
        )
        if result.returncode != 0 or not _complete(whole):
            raise StackError(
                f"Maven could not get Kafka {KAFKA_VERSION}: {_maven_reason(result.stdout + result.stderr)}",
                "connect to the network once (or name your mirror in ~/.m2/settings.xml) and run it again",
            )
        if jars.exists():  # incomplete: somebody deleted a part of it
            shutil.rmtree(jars)
        whole.rename(jars)


def _maven_reason(output: str) -> str:
    errors = [line for line in output.splitlines() if "[ERROR]" in line]
    line = errors[0] if errors else (output.strip().splitlines() or ["it said nothing"])[-1]
    plain = re.sub(r"\x1b\[[0-9;]*m", "", line).replace("[ERROR]", "").strip()
    return plain if len(plain) <= 300 else plain[:300] + "…"


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def java_value(text: str) -> str:
    r"""A value as java.util.Properties reads it: the file is ISO-8859-1, a backslash escapes, the rest is \\uXXXX."""
    units = text.encode("utf-16-be", "surrogatepass")
    numbers = [int.from_bytes(units[at : at + 2], "big") for at in range(0, len(units), 2)]
    return "".join(chr(n) if 0x20 <= n < 0x7F and n != ord("\\") else f"\\u{n:04x}" for n in numbers)


def server_properties(directory: Path, port: int, controller_port: int, *, lasting: bool = False) -> str:
    """The settings of a combined KRaft broker and controller that is alone in its cluster.

    `lasting`: it is not going to be killed and started again.
    StackError for a directory with a comma: `log.dirs` is a list, in which a comma cannot be escaped.
    """
    if "," in str(directory):
        raise StackError(
            f"Kafka cannot keep its data in {directory}: it takes a path with a comma for two folders",
            "name a state folder without one",
        )
    settings = {
        "process.roles": "broker,controller",
        "node.id": "1",
        "listeners": f"PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller_port}",
        "advertised.listeners": f"PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller_port}",
        "controller.listener.names": "CONTROLLER",
        "controller.quorum.bootstrap.servers": f"127.0.0.1:{controller_port}",
        "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT",
        "log.dirs": str(directory / "data"),
        # Topics come from infra/kafka-topics.tf only; a misspelt name must fail.
        "auto.create.topics.enable": "false",
        # One broker: one copy of everything.
        "default.replication.factor": "1",
        "offsets.topic.replication.factor": "1",
        "transaction.state.log.replication.factor": "1",
        "transaction.state.log.min.isr": "1",
        "share.coordinator.state.topic.replication.factor": "1",
        "share.coordinator.state.topic.min.isr": "1",
        # Fifty partitions each are made at first use otherwise: five start at once.
        "offsets.topic.num.partitions": "5",
        "transaction.state.log.num.partitions": "5",
        "share.coordinator.state.topic.num.partitions": "5",
        # A group starts with its first member instead of waiting 3 s for more.
        "group.initial.rebalance.delay.ms": "0",
        # After a SIGKILL the broker is let in again when its old registration has expired: 4 s instead of 9. But one
        # that stands still for so long on a busy machine takes its partitions away from itself.
        "broker.heartbeat.interval.ms": "500",
        "broker.session.timeout.ms": "120000" if lasting else "4000",
        # A transaction that timed out is aborted within a second instead of ten, so that a killed producer
        # holds up read_committed readers for its own timeout and hardly longer.
        "transaction.abort.timed.out.transaction.cleanup.interval.ms": "1000",
    }
    return "".join(f"{key}={java_value(value)}\n" for key, value in settings.items())


class KafkaBroker:
    """One broker whose data lives in `directory`; start() again, on any ports, goes on with that data."""

    def __init__(
        self,
        directory: Path,
        port: int,
        controller_port: int,
        log: Path | None = None,
        *,
        lasting: bool = False,
        write_archive: Path | None = None,
    ) -> None:
        """`lasting`: it works for many minutes, and is not going to be killed and started again.

        `write_archive`: where to write the archive of classes when it ends, instead of using the cache's.
        """
        self._write_archive, self._lasting = write_archive, lasting
        self.directory = directory.resolve()
        server_properties(self.directory, port, controller_port)  # a folder that cannot be is refused at once
        self.port = port
        self.controller_port = controller_port
        self.log = log or self.directory / "kafka.log"
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def bootstrap(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process is not None and self._process.poll() is None else None

    def argv(self) -> list[str]:
        """The broker's command line; `prepare()` must have run."""
        writes = [f"-XX:ArchiveClassesAtExit={self._write_archive}"] if self._write_archive else []
        return [*self._java("-Xms256m", "-Xmx512m", *writes), "kafka.Kafka", str(self.directory / "server.properties")]

    def prepare(self) -> None:
        """Write the settings and, in a new directory, format the storage. StackError if that fails."""
        java = self._java("-Xmx128m")
        self.directory.mkdir(parents=True, exist_ok=True)
        properties = self.directory / "server.properties"
        properties.write_text(server_properties(self.directory, self.port, self.controller_port, lasting=self._lasting))
        if (self.directory / "data" / "meta.properties").exists():
            return
        # What a format that was interrupted has left cannot hold records.
        shutil.rmtree(self.directory / "data", ignore_errors=True)
        tool = [*java, "kafka.tools.StorageTool"]
        result = subprocess.run(
            [*tool, "format", "--standalone", "-t", _cluster_id(), "-c", str(properties)],
            capture_output=True,
            text=True,
            errors="replace",
            env={**os.environ, **JAVA_ENVIRONMENT},
        )
        if result.returncode != 0:
            raise StackError(
                f"Kafka could not format {self.directory / 'data'}: {java_reason(result.stdout + result.stderr)}",
                "check that the folder is writable and the disk not full",
            )

    def start(self, timeout: float = 120) -> None:
        """Start and wait until it answers; StackError with the log's end if it does not in `timeout` s."""
        if self.pid is not None:
            return
        for port in (self.port, self.controller_port):
            if not port_is_free(port):
                raise StackError(
                    str(who_holds(port) or f"port {port} is taken"), "end that process or choose another port"
                )
        self.prepare()
        self.log.parent.mkdir(parents=True, exist_ok=True)
        began = size(self.log)
        with self.log.open("ab") as output:
            self._process = spawn(self.argv(), output=output, env={**os.environ, **JAVA_ENVIRONMENT})
        self._wait(timeout, began)

    def ready(self) -> bool:
        """Whether the broker answers a metadata request now."""
        if not port_answers(self.port):
            return False  # without this librdkafka would back off for a second
        try:
            wait_for_broker(self.bootstrap, 0)
        except StackError:
            return False
        return True

    def _wait(self, timeout: float, began: int) -> None:
        assert self._process is not None
        deadline = time.monotonic() + timeout
        while not self.ready():
            status = self._process.poll()
            if status is None and time.monotonic() < deadline:
                time.sleep(0.1)
                continue
            problem = f"ended with status {status}" if status is not None else f"did not answer within {timeout:g} s"
            self.kill()
            last = tail(self.log, since=began)
            raise StackError(f"the Kafka broker {problem}; its log ends with:\n{last}", f"see {self.log}")

    def stop(self, deadline: float = 30) -> bool:
        """SIGTERM, and SIGKILL after `deadline` seconds. True if SIGTERM was enough."""
        return self._leave(lambda process: end(process, deadline=deadline))

    def kill(self) -> None:
        """SIGKILL, as a crash; what was acknowledged is still there after the next start()."""

        def crash(process: subprocess.Popen[bytes]) -> bool:
            kill_group(process)
            return True

        self._leave(crash)

    def _leave(self, how: Callable[[subprocess.Popen[bytes]], bool]) -> bool:
        process, self._process = self._process, None
        return how(process) if process is not None else True

    def _java(self, *options: str) -> list[str]:
        simple, java = "-Dorg.slf4j.simpleLogger", find_java()
        archive = None if self._write_archive else class_archive(java)
        return [
            str(java),
            *options,
            *([f"-XX:SharedArchiveFile={archive}"] if archive else []),
            # For a broker that lives for minutes on two cores: without the second compiler and the parallel
            # collector, coming up costs 4 s of processor time instead of 9.
            *([] if self._lasting else ["-XX:TieredStopAtLevel=1"]),
            "-XX:+UseSerialGC",
            "-Djava.awt.headless=true",
            f"{simple}.showDateTime=true",
            f"{simple}.dateTimeFormat=yyyy-MM-dd'T'HH:mm:ss.SSSZ",
            f"{simple}.defaultLogLevel=warn",
            f"{simple}.log.kafka.server.KafkaRaftServer=info",
            "-cp",
            f"{kafka_jars()}/*",
        ]


def java_reason(output: str) -> str:
    """Why a Java program ended, from what it wrote: its first exception, or else its last line that is no frame."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    lines = [line for line in lines if not re.match(r"at \S+\(|\.\.\. \d+ more$", line)]
    thrown = re.compile(r'(?:Exception in thread "\S+" |Caused by: )?((?:\w+\.)+\w*(?:Exception|Error)\b.*)')
    named = [found[1] for line in lines if (found := thrown.match(line))]
    return (named[:1] or lines[-1:] or ["no reason given"])[0]


def _cluster_id() -> str:
    """A cluster id in Kafka's format: 16 random bytes, URL-safe base64 without padding."""
    # Never with a leading "-", which the tool would take for an option (Kafka's own Uuid.randomUuid does the same).
    while (name := base64.urlsafe_b64encode(secrets.token_bytes(16)).decode().rstrip("=")).startswith("-"):
        pass
    return name
