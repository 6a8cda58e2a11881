"""pytest plugin: one real Kafka broker per run, topics of their own for each test, and programs that use them.

The root conftest.py loads it. All xdist workers of a run share the broker; a keeper process outside of the
workers owns it, and ends it when the last worker has gone, however it went.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import (
    OFFSET_BEGINNING,
    Consumer,
    IsolationLevel,
    KafkaError,
    KafkaException,
    Message,
    TopicPartition,
)
from confluent_kafka.admin import AdminClient, OffsetSpec  # type: ignore[attr-defined]  # its stubs lack it

from marketflow_stack.errors import StackError
from marketflow_stack.processes import ProcessId
from marketflow_stack.processes import free_port as free_port
from marketflow_stack.programs import FORKS
from marketflow_stack.programs import Exchange as Exchange
from marketflow_stack.programs import Program as Program
from marketflow_stack.programs import Programs as Programs
from marketflow_stack.programs import ask as ask
from marketflow_stack.programs import eventually as eventually
from marketflow_stack.text import tail
from marketflow_stack.topics import TopicSpec, ensure_topics, read_terraform

BOOTSTRAP_VARIABLE = "MARKETFLOW_TEST_BOOTSTRAP"  # use this broker instead of starting one
_RUN_VARIABLE = "MARKETFLOW_TEST_RUN"  # the folder that the processes of one pytest run share
_KEEPER_DEADLINE = 200  # seconds for jars, format and start; measured: 5, and 60 on a machine with load 16


def pytest_configure(config: pytest.Config) -> None:
    if hasattr(config, "workerinput"):
        return  # an xdist worker inherits the controller's folder by the environment
    run = Path(tempfile.gettempdir()) / f"marketflow-test-{os.getpid()}-{secrets.token_hex(4)}"
    os.environ[_RUN_VARIABLE] = str(run)


def pytest_unconfigure(config: pytest.Config) -> None:
    FORKS.close()
    if hasattr(config, "workerinput"):
        return
    run = Path(os.environ.pop(_RUN_VARIABLE, "/nonexistent"))
    keeper = _keeper(run)
    # No user is left now, so the keeper is stopping the broker: the run ends when it has.
    if keeper is not None and not keeper.wait(30):
        raise RuntimeError(f"the broker's keeper (pid {keeper.pid}) did not end; see {run / 'keeper.log'}")
    shutil.rmtree(run, ignore_errors=True)


@dataclass(frozen=True)
class Broker:
    """A running broker, `bootstrap` as HOST:PORT."""

    bootstrap: str


@pytest.fixture(scope="session")
def broker() -> Iterator[Broker]:
    """The run's Kafka broker; tests must not stop it (use KafkaBroker for one to break)."""
    given = os.environ.get(BOOTSTRAP_VARIABLE)
    if given:
        yield Broker(given)
        return
    run = Path(os.environ[_RUN_VARIABLE])
    run.mkdir(exist_ok=True)
    # A shared lock means "I use the broker". The kernel gives it up when this process dies, in any way; the
    # keeper waits for the exclusive lock, which it gets when nobody is left.
    with (run / "users.lock").open("w") as users:
        fcntl.flock(users, fcntl.LOCK_SH)
        yield Broker(_bootstrap(run))


def _bootstrap(run: Path) -> str:
    with (run / "start.lock").open("w") as start:
        fcntl.flock(start, fcntl.LOCK_EX)
        address = run / "bootstrap"
        keeper = _keeper(run)
        if keeper is not None and address.exists():
            return address.read_text()
        for name in ("bootstrap", "failure", "keeper.pid"):
            (run / name).unlink(missing_ok=True)
        # Not a Popen, which would complain at its end that the keeper, as it should, is still running.
        log = os.open(run / "keeper.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        pid = os.posix_spawn(
            sys.executable,
            [sys.executable, "-m", "marketflow_stack.keeper", str(run)],
            os.environ,
            file_actions=[(os.POSIX_SPAWN_DUP2, log, 1), (os.POSIX_SPAWN_DUP2, log, 2)],
            setsid=True,
        )
        os.close(log)
        deadline = time.monotonic() + _KEEPER_DEADLINE
        while not address.exists():
            if ProcessId.of(pid) is None or time.monotonic() > deadline:
                failure = run / "failure"
                reason = failure.read_text() if failure.exists() else tail(run / "keeper.log")
                raise StackError(f"the tests' Kafka broker did not start: {reason}", "")
            time.sleep(0.05)
        return address.read_text()


def _keeper(run: Path) -> ProcessId | None:
    try:
        return ProcessId.of(int((run / "keeper.pid").read_text()))
    except (OSError, ValueError):
        return None


@pytest.fixture
def topic_prefix() -> str:
    """Unique to the test: put it before names of topics, groups and transactional ids."""
    return f"t{secrets.token_hex(4)}-"


@dataclass(frozen=True)
class CreatedTopics:
    """The four topics under a test's own prefix; `topics["ohlcv_raw"]` is the whole name."""

    bootstrap: str
    prefix: str
    specs: tuple[TopicSpec, ...]

    def __getitem__(self, name: str) -> str:
        if name not in {spec.name for spec in self.specs}:
            raise KeyError(name)
        return self.prefix + name

    @property
    def names(self) -> Mapping[str, str]:
        return {spec.name: self.prefix + spec.name for spec in self.specs}


@pytest.fixture
def topics(broker: Broker, topic_prefix: str, topics_file: Path) -> Iterator[CreatedTopics]:
    """The four topics as infra/kafka-topics.tf declares them, for this test alone."""
    specs = tuple(read_terraform(topics_file))
    ensure_topics(broker.bootstrap, specs, prefix=topic_prefix)
    yield CreatedTopics(broker.bootstrap, topic_prefix, specs)
    admin = AdminClient({"bootstrap.servers": broker.bootstrap, "log_level": 0})
    for name, future in admin.delete_topics([topic_prefix + spec.name for spec in specs]).items():
        try:
            future.result()
        except KafkaException as error:
            if error.args[0].code() != KafkaError.UNKNOWN_TOPIC_OR_PART:
                raise RuntimeError(f"cannot delete {name}") from error


@pytest.fixture(scope="session")
def topics_file(pytestconfig: pytest.Config) -> Path:
    """infra/kafka-topics.tf of this checkout."""
    return pytestconfig.rootpath / "infra" / "kafka-topics.tf"


@pytest.fixture
def programs(tmp_path: Path) -> Iterator[Programs]:
    """Starts programs of any kind, and ends what still runs when the test ends."""
    started = Programs(tmp_path)
    yield started
    started.close()


@pytest.fixture
def service(topics: CreatedTopics, programs: Programs) -> Callable[..., Program]:
    """`service("ingestor", INGESTOR_SYMBOLS="ETHUSDT")` starts one on the test's topics.

    Arguments after the name take the place of `-m marketflow_<name>`: a script that runs the service in its own way.
    """

    def start(name: str, *instead: str | Path, **settings: object) -> Program:
        port = free_port()
        values = {
            f"{name.upper()}_HTTP_PORT": port,
            "KAFKA_BOOTSTRAP_SERVERS": topics.bootstrap,
            "KAFKA_TOPIC_PREFIX": topics.prefix,
            **settings,
        }
        return programs.start(Program, name, instead or ("-m", f"marketflow_{name}"), values, port)

    return start


def read_all(bootstrap: str, topic: str, isolation: str = "read_committed", timeout: float = 120) -> list[Message]:
    """Every record of a topic up to its end at this moment, by partition and offset.

    The end of a `read_committed` reader is the last stable offset: it stands before an open transaction.
    Raises AssertionError if the end is not reached within `timeout` seconds.
    """
    # Who waits for a record asks many times a second: what was read before is not read again, and without anything
    # new the ends are all that is asked for. A reader of its own each time took the broker 30 ms.
    key, begin = (bootstrap, topic, isolation), time.monotonic()
    known = _readers.pop(key, None) or _Reader(bootstrap, topic, isolation)
    while True:
        try:
            records = known.read(timeout)
            break
        except KafkaException:
            # A broker that has come back has another epoch than the one that this reader knows, or no ends yet.
            known.close()
            if time.monotonic() > begin + min(timeout, 20):
                raise
            time.sleep(0.1)
            known = _Reader(bootstrap, topic, isolation)
        except BaseException:
            known.close()
            raise
    _readers[key] = known
    while len(_readers) > _READERS:
        _readers.pop(next(iter(_readers))).close()
    return records


_READERS = 4
_readers: dict[tuple[str, str, str], _Reader] = {}


class _Reader:
    """What was read of one topic. A topic that is made anew under its name must have another reader."""

    def __init__(self, bootstrap: str, topic: str, isolation: str) -> None:
        self._topic = topic
        self._isolation = IsolationLevel[isolation.upper()]
        # A broker that a test has killed, and started again, is no news.
        quiet: dict[str, Any] = {"bootstrap.servers": bootstrap, "log_level": 0, "error_cb": lambda _: None}
        self._admin = AdminClient(quiet)
        self._consumer = Consumer(
            quiet
            | {
                "group.id": "read-all",  # demanded by the client; nothing is ever committed
                "enable.auto.commit": False,
                "enable.partition.eof": True,
                "isolation.level": isolation,
                "fetch.wait.max.ms": 50,
            }
        )
        self._read: dict[int, int] = {}
        self._records: list[Message] = []

    def close(self) -> None:
        self._consumer.close()

    def read(self, timeout: float) -> list[Message]:
        if not self._read:
            found = self._consumer.list_topics(self._topic, timeout=10).topics[self._topic]
            if found.error is not None:
                raise KafkaException(found.error)
            self._read = dict.fromkeys(found.partitions, OFFSET_BEGINNING)
        asked = {TopicPartition(self._topic, number): OffsetSpec.latest() for number in self._read}  # type: ignore[no-untyped-call]
        answers = self._admin.list_offsets(asked, isolation_level=self._isolation, request_timeout=10)
        ends = {here.partition: answer.result().offset for here, answer in answers.items()}
        new = {number: end for number, end in ends.items() if end > max(0, self._read[number])}
        if new:
            self._fetch(new, time.monotonic() + timeout)
        return list(self._records)

    def _fetch(self, new: dict[int, int], deadline: float) -> None:
        self._consumer.assign([TopicPartition(self._topic, number, self._read[number]) for number in new])
        waiting, found = set(new), list[Message]()
        while waiting:
            if time.monotonic() > deadline:
                raise AssertionError(f"the end of {self._topic} was not reached in time in {waiting}")
            first = self._consumer.poll(0.2)
            for message in [] if first is None else [first, *self._consumer.consume(10_000, 0)]:
                error = message.error()
                if error is None:
                    found.append(message)
                elif error.code() == KafkaError._PARTITION_EOF:
                    waiting -= {message.partition()}
                else:
                    raise KafkaException(error)
        # Where each partition was read to; markers of transactions at its end included.
        for here in self._consumer.position([TopicPartition(self._topic, number) for number in new]):
            self._read[here.partition] = max(here.offset, new[here.partition])
        self._consumer.unassign()
        self._records += found
        self._records.sort(key=lambda message: (message.partition(), message.offset()))
