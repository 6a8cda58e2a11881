"""Fixtures of the loader's tests: a real warehouse process, its database for one test, real loader processes."""

from __future__ import annotations

import secrets
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
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
from marketflow_stack.testing import CreatedTopics, Program, free_port, read_all

RUNNER = Path(__file__).with_name("runner.py")
IDLE_TRANSACTION = 1.0
"""Seconds after which the test warehouse rolls back what a killed loader left open."""


def begin_warehouse(folder: Path) -> Program:
    """``python -m marketflow_stack.warehouse``, which can be killed and launched again over the same folder."""
    port = free_port()
    place = ["--port", str(port), "--data", str(folder), "--idle-transaction", str(IDLE_TRANSACTION)]
    return Program(["-m", "marketflow_stack.warehouse", *place], {}, port, folder.with_suffix(".log"))


@pytest.fixture(scope="session")
def shared_warehouse(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Program]:
    """One warehouse for all tests that do not break it; each has a database of its own."""
    warehouse = begin_warehouse(tmp_path_factory.mktemp("warehouse") / "data")
    yield warehouse.wait_for("/health")
    warehouse.stop()


@pytest.fixture(scope="session")
def fragile_warehouse(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Program]:
    """One warehouse for all tests that break it: they run one after the other, and mend it."""
    warehouse = begin_warehouse(tmp_path_factory.mktemp("fragile") / "data")
    yield warehouse
    if warehouse.process.poll() is None:
        warehouse.kill()


@pytest.fixture
def own_warehouse(fragile_warehouse: Program) -> Program:
    """A warehouse to break, in any state that it was left in by the test before."""
    if fragile_warehouse.process.poll() is not None:
        fragile_warehouse.launch()
    fragile_warehouse.signal(signal.SIGCONT)
    return fragile_warehouse.wait_for("/health")


class Cable:
    """Carries bytes to the warehouse; told so, it breaks once the next request has taken effect there."""

    def __init__(self, port: int) -> None:
        self._to, self._breaking, self.broken = port, False, False
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._server.getsockname()[1])
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()

    def break_at_the_next_answer(self) -> None:
        self._breaking = True

    def mend(self) -> None:
        self._breaking = self.broken = False

    def close(self) -> None:
        self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()
        self._thread.join(10)

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                near, _ = self._server.accept()
                threading.Thread(target=self._carry, args=(near,), daemon=True).start()

    def _carry(self, near: socket.socket) -> None:
        with near, suppress(OSError):
            if self.broken:
                return
            with socket.create_connection(("127.0.0.1", self._to)) as far:
                threading.Thread(target=self._answers, args=(near, far), daemon=True).start()
                while data := near.recv(65_536):
                    far.sendall(data)

    def _answers(self, near: socket.socket, far: socket.socket) -> None:
        with suppress(OSError):
            while data := far.recv(65_536):
                if self._breaking or self.broken:
                    self.broken = True
                    break
                near.sendall(data)
        # Whoever waits for an answer is told that there will be none.
        with suppress(OSError):
            near.shutdown(socket.SHUT_RDWR)


@pytest.fixture
def lay_cable() -> Iterator[Callable[[Program], Cable]]:
    """``lay_cable(warehouse)`` lays one."""
    laid: list[Cable] = []

    def lay(warehouse: Program) -> Cable:
        laid.append(Cable(warehouse.port))
        return laid[-1]

    yield lay
    for cable in laid:
        cable.close()


@pytest.fixture
def cable(shared_warehouse: Program, lay_cable: Callable[[Program], Cable]) -> Cable:
    return lay_cable(shared_warehouse)


def settings_for(warehouse: Program) -> SnowflakeSettings:
    return SnowflakeSettings(
        account="local", user="loader", password="x", host="127.0.0.1", port=warehouse.port, protocol="http",
        database=f"T_{secrets.token_hex(4).upper()}",
    )  # fmt: skip


class Tables:
    """A test's database."""

    def __init__(self, warehouse: Program) -> None:
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
def tables(shared_warehouse: Program) -> Tables:
    return Tables(shared_warehouse)


@pytest.fixture
def own_tables(own_warehouse: Program) -> Tables:
    return Tables(own_warehouse)


@pytest.fixture
def kafka(topics: CreatedTopics) -> KafkaSettings:
    return KafkaSettings(bootstrap_servers=topics.bootstrap, topic_prefix=topics.prefix)


@pytest.fixture
def start_loader(service: Callable[..., Program], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Program]:
    """``start_loader(tables, "--die-at", "copied")`` starts one."""
    # The runner forks: a thread of Arrow's allocator would be missing in the child, which may then hang.
    monkeypatch.setenv("JE_ARROW_MALLOC_CONF", "background_thread:false")

    def start(tables: Tables, *arguments: str | Path, **more: str) -> Program:
        settings = {
            "SNOWFLAKE_ACCOUNT": "local",
            "SNOWFLAKE_USER": "loader",
            "SNOWFLAKE_PASSWORD": "x",
            "SNOWFLAKE_HOST": "127.0.0.1",
            "SNOWFLAKE_PORT": tables.settings.port,
            "SNOWFLAKE_PROTOCOL": "http",
            "SNOWFLAKE_DATABASE": tables.settings.database,
            "SNOWFLAKE_NETWORK_TIMEOUT": 5,
            "LOADER_FLUSH_SECONDS": 0.2,
            "LOG_FORMAT": "text",
        }
        return service("loader", RUNNER, *arguments, **(settings | more))

    return start


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
def candle() -> Callable[[int, int], Candle]:
    """``candle(partition, number)``: the minute of that number."""
    return candle_of


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
