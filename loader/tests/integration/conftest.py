"""Fixtures of the loader's tests: a real warehouse process, its database for one test, real loader processes."""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import closing
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
import snowflake.connector
from marketflow_common import topics as names
from marketflow_common.events import Candle, Event, Trade
from marketflow_common.kafka.source import Publisher
from marketflow_common.settings import KafkaSettings, SnowflakeSettings
from marketflow_loader import schema
from marketflow_stack.testing import CreatedTopics, eventually, free_port, read_all

PATIENCE = 120.0
"""Seconds for a process to get somewhere, on a machine that is busy with other things; it takes five when it is not."""
RUNNER = Path(__file__).with_name("runner.py")
IDLE_TRANSACTION = 1.0
"""Seconds after which the test warehouse rolls back what a killed loader left open."""


class WarehouseProcess:
    """``python -m marketflow_stack.warehouse`` that can be killed and started again over the same folder."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.port, self.process = folder, free_port(), None
        self.process: subprocess.Popen[bytes] | None
        self.log = folder.with_suffix(".log")

    def start(self) -> None:
        with self.log.open("ab") as out:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "marketflow_stack.warehouse", "--port", str(self.port), "--data",
                 str(self.folder), "--idle-transaction", str(IDLE_TRANSACTION)],
                stdout=out, stderr=out,
            )  # fmt: skip
        eventually(self.healthy, timeout=PATIENCE)

    def healthy(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, self.log.read_text()
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/health", timeout=1) as answer:
                return bool(answer.status == 200)
        except (urllib.error.URLError, OSError):
            return False

    def kill(self, number: signal.Signals = signal.SIGKILL) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGCONT)
        self.process.send_signal(number)
        self.process.wait(30)


@pytest.fixture(scope="session")
def shared_warehouse(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WarehouseProcess]:
    """One warehouse for all tests that do not break it; each has a database of its own."""
    warehouse = WarehouseProcess(tmp_path_factory.mktemp("warehouse") / "data")
    warehouse.start()
    yield warehouse
    warehouse.kill(signal.SIGTERM)


@pytest.fixture
def own_warehouse(tmp_path: Path) -> Iterator[WarehouseProcess]:
    """A warehouse to break."""
    warehouse = WarehouseProcess(tmp_path / "warehouse")
    warehouse.start()
    yield warehouse
    if warehouse.process is not None and warehouse.process.poll() is None:
        warehouse.kill()


def settings_for(warehouse: WarehouseProcess) -> SnowflakeSettings:
    return SnowflakeSettings(
        account="local", user="loader", password="x", host="127.0.0.1", port=warehouse.port, protocol="http",
        database=f"T_{secrets.token_hex(4).upper()}",
    )  # fmt: skip


class Tables:
    """A test's database."""

    def __init__(self, warehouse: WarehouseProcess) -> None:
        self.warehouse, self.settings = warehouse, settings_for(warehouse)
        schema.apply(self.settings, schema.schema_text(), 30)

    def ask(self, statement: str, *values: Any) -> list[tuple[Any, ...]]:
        arguments = self.settings.connect_arguments("test")
        with closing(snowflake.connector.connect(**arguments)) as connection:
            return list(connection.cursor().execute(statement, values or None).fetchall())

    def offsets(self, table: str) -> list[tuple[str, int, int]]:
        """(topic, partition, offset) of each row, sorted."""
        rows = self.ask(f"SELECT KAFKA_TOPIC, KAFKA_PARTITION, KAFKA_OFFSET FROM {table}")
        return sorted((str(t), int(p), int(o)) for t, p, o in rows)


@pytest.fixture
def tables(shared_warehouse: WarehouseProcess) -> Tables:
    return Tables(shared_warehouse)


@pytest.fixture
def own_tables(own_warehouse: WarehouseProcess) -> Tables:
    return Tables(own_warehouse)


@pytest.fixture
def kafka(topics: CreatedTopics) -> KafkaSettings:
    return KafkaSettings(bootstrap_servers=topics.bootstrap, topic_prefix=topics.prefix)


class Loader:
    """One loader process."""

    def __init__(self, process: subprocess.Popen[bytes], port: int, log: Path) -> None:
        self.process, self.port, self.log = process, port, log

    def state(self) -> str:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/readyz", timeout=1) as answer:
                return str(answer.read().decode())
        except urllib.error.HTTPError as error:
            return str(error.read().decode())
        except (urllib.error.URLError, OSError) as error:
            return str(error)

    def wait_ready(self) -> Loader:
        def ready() -> bool:
            assert self.process.poll() is None, self.log.read_text()
            return '"ready": true' in self.state()

        eventually(ready, timeout=PATIENCE)
        return self

    def wait(self, timeout: float = PATIENCE) -> int:
        return self.process.wait(timeout)

    def stop(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        assert self.wait() == 0, self.log.read_text()

    def metric(self, name: str) -> float:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/metrics", timeout=2) as answer:
            lines = answer.read().decode().splitlines()
        return sum(float(line.split()[-1]) for line in lines if line.startswith(name))


@pytest.fixture
def start_loader(topics: CreatedTopics, tmp_path: Path) -> Iterator[Callable[..., Loader]]:
    """``start_loader(tables, "--die-at", "copied")`` starts one; what still runs is killed at the end."""
    running: list[Loader] = []

    def start(tables: Tables, *arguments: str, **more: str) -> Loader:
        port, log = free_port(), tmp_path / f"loader-{len(running)}.log"
        environment = {name: value for name, value in os.environ.items() if not name.startswith("MARKETFLOW_")} | {
            "MARKETFLOW_KAFKA_BOOTSTRAP_SERVERS": topics.bootstrap,
            "MARKETFLOW_KAFKA_TOPIC_PREFIX": topics.prefix,
            "MARKETFLOW_SNOWFLAKE_ACCOUNT": "local",
            "MARKETFLOW_SNOWFLAKE_USER": "loader",
            "MARKETFLOW_SNOWFLAKE_PASSWORD": "x",
            "MARKETFLOW_SNOWFLAKE_HOST": "127.0.0.1",
            "MARKETFLOW_SNOWFLAKE_PORT": str(tables.settings.port),
            "MARKETFLOW_SNOWFLAKE_PROTOCOL": "http",
            "MARKETFLOW_SNOWFLAKE_DATABASE": tables.settings.database,
            "MARKETFLOW_SNOWFLAKE_NETWORK_TIMEOUT": "5",
            "MARKETFLOW_LOADER_HTTP_PORT": str(port),
            "MARKETFLOW_LOADER_FLUSH_SECONDS": "0.2",
            "MARKETFLOW_LOG_FORMAT": "text",
            # The runner forks: a thread of Arrow's allocator would be missing in the child, which may then hang.
            "JE_ARROW_MALLOC_CONF": "background_thread:false",
            **more,
        }
        with log.open("wb") as out:
            process = subprocess.Popen([sys.executable, RUNNER, *arguments], stderr=out, stdout=out, env=environment)
        running.append(Loader(process, port, log))
        return running[-1]

    yield start
    for one in running:
        if one.process.poll() is None:
            one.process.send_signal(signal.SIGCONT)
            one.process.kill()
        one.process.wait()


def trade_of(partition: int, number: int) -> Trade:
    price = Decimal(number) / 8 + Decimal("0.000000000000000001")
    return Trade(
        "test", f"S{partition}", number, price, Decimal(number), number % 2 == 0, number * 1_000, number * 1_001
    )


@pytest.fixture
def trade() -> Callable[[int, int], Trade]:
    """``trade(partition, number)``: every value tells its number, with all eighteen places."""
    return trade_of


def candle_of(partition: int, number: int) -> Candle:
    one, zero = Decimal(number), Decimal("0E-8")
    return Candle(
        f"S{partition}", "1m", number * 60_000_000, number * 60_000_000 + 59_999_999, one, one, one, one, one, one, 1,
        zero, zero, number, number, ((number, number), (number + 2, number + 3)), 1,
    )  # fmt: skip


@pytest.fixture
def publish(kafka: KafkaSettings) -> Callable[..., None]:
    """``publish(topic, partition, events)``: one transaction, as the services write them."""
    publishers: dict[tuple[str, int], Publisher] = {}

    def send(topic: str, partition: int, events: list[Event]) -> None:
        if (topic, partition) not in publishers:
            publishers[topic, partition] = Publisher(kafka, f"test-{topic}", topic, partition)
            publishers[topic, partition].open()
        publishers[topic, partition].publish(events)

    return send


@pytest.fixture
def feed(publish: Callable[..., None]) -> Callable[[int, int], None]:
    """``feed(first, last)``: trades and candles with these numbers in each partition, many small transactions."""

    def send(first: int, last: int, batch: int = 20) -> None:
        for at in range(first, last + 1, batch):
            numbers = range(at, min(at + batch, last + 1))
            for partition in range(3):
                publish(names.OHLCV_RAW, partition, [trade_of(partition, n) for n in numbers])
            publish(names.OHLCV_AGG, at // batch % 3, [candle_of(at // batch % 3, at)])

    return send


@pytest.fixture
def published(topics: CreatedTopics) -> Callable[..., list[tuple[str, int, int]]]:
    """(topic, partition, offset) of every record a read_committed reader sees in the topics, sorted."""

    def read(*plain: str) -> list[tuple[str, int, int]]:
        return sorted(
            (topics[name], message.partition() or 0, message.offset() or 0)
            for name in plain
            for message in read_all(topics.bootstrap, topics[name])
        )

    return read
