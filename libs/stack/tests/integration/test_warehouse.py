"""The local warehouse, used as the loader, dbt and the audit use it: by Snowflake's own connector."""

import re
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import snowflake.connector
from marketflow_stack.processes import end, kill_group, spawn
from marketflow_stack.testing import eventually, free_port
from snowflake.connector.errors import ProgrammingError

COPY = (
    "COPY INTO RAW.TRADES FROM @RAW.LANDING/{path} FILE_FORMAT = (TYPE = PARQUET) "
    "MATCH_BY_COLUMN_NAME = CASE_INSENSITIVE FORCE = TRUE"
)
TAKE = "UPDATE RAW.LOAD_OFFSETS SET NEXT_OFFSET = {to} WHERE PART = 0 AND NEXT_OFFSET = {held}"


@dataclass
class Server:
    folder: Path
    port: int
    process: subprocess.Popen[bytes] | None = None
    connections: list[Any] = field(default_factory=list)

    def start(self) -> None:
        command = [sys.executable, "-m", "marketflow_stack.warehouse", "--port", str(self.port)]
        with (self.folder / "log").open("ab") as log:
            self.process = spawn([*command, "--data", str(self.folder / "data"), "--idle-transaction", "2"], output=log)
        eventually(self.healthy, timeout=60)

    def healthy(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/health", timeout=2) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    def stop(self) -> bool:
        assert self.process is not None
        for connection in self.connections:
            connection.close(retry=False)
        self.connections.clear()
        return end(self.process, deadline=20) and self.process.returncode == 0

    def kill(self) -> None:
        assert self.process is not None
        kill_group(self.process)

    def connect(self) -> Callable[..., list[Any]]:
        """A new session, as a function that runs a statement and returns its rows."""
        connection = snowflake.connector.connect(
            user="marketflow",
            password="local",
            account="local",
            host="127.0.0.1",
            port=self.port,
            protocol="http",
            database="MARKETFLOW",
            network_timeout=5,
            login_timeout=5,
            session_parameters={"TIMEZONE": "UTC", "LOCK_TIMEOUT": 5, "CLIENT_OUT_OF_BAND_TELEMETRY_ENABLED": False},
        )
        self.connections.append(connection)

        def run(statement: str) -> list[Any]:
            with connection.cursor() as cursor:
                return list(cursor.execute(statement).fetchall())

        return run


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(tmp_path_factory.mktemp("warehouse"), free_port())
    server.start()
    yield server
    server.kill()


@pytest.fixture
def run(server: Server, tmp_path: Path) -> Iterator[Callable[..., list[Any]]]:
    """A session on fresh tables, with 100 rows waiting in the stage as rows.parquet."""
    run = server.connect()
    run("CREATE SCHEMA IF NOT EXISTS MARKETFLOW.RAW")
    run("CREATE OR REPLACE TABLE RAW.TRADES (SYMBOL VARCHAR, PRICE NUMBER(38,18), KAFKA_OFFSET NUMBER(19,0))")
    run("CREATE OR REPLACE TABLE RAW.LOAD_OFFSETS (PART NUMBER(10,0), NEXT_OFFSET NUMBER(19,0))")
    run("INSERT INTO RAW.LOAD_OFFSETS VALUES (0, 0), (1, 0)")
    run("CREATE STAGE IF NOT EXISTS RAW.LANDING")
    price = pa.array([Decimal("2345.123456789012345678")] * 100, pa.decimal128(38, 18))
    rows = {"symbol": ["ETHUSDT"] * 100, "price": price, "kafka_offset": list(range(100))}
    pq.write_table(pa.table(rows), tmp_path / "rows.parquet")
    run(f"PUT file://{tmp_path / 'rows.parquet'} @RAW.LANDING AUTO_COMPRESS = FALSE OVERWRITE = TRUE")
    yield run
    for connection in server.connections:
        connection.close(retry=False)
    server.connections.clear()


def load(run: Callable[..., list[Any]], held: int, to: int) -> list[Any]:
    run("BEGIN")
    assert run(TAKE.format(held=held, to=to))[0][0] == 1
    return run(COPY.format(path="rows.parquet"))


def state(run: Callable[..., list[Any]]) -> tuple[int, int]:
    """Rows of RAW.TRADES and the position of partition 0."""
    (rows,) = run("SELECT COUNT(*) FROM RAW.TRADES")[0]
    (position,) = run("SELECT NEXT_OFFSET FROM RAW.LOAD_OFFSETS WHERE PART = 0")[0]
    return rows, position


def test_rows_and_position_are_committed_together_to_the_last_digit(run: Callable[..., list[Any]]) -> None:
    name, status, parsed, loaded, *_ = load(run, held=0, to=100)[0]
    assert (name, status, parsed, loaded) == ("landing/rows.parquet", "LOADED", 100, 100)
    run("COMMIT")
    assert state(run) == (100, 100)
    assert run("SELECT DISTINCT PRICE FROM RAW.TRADES") == [(Decimal("2345.123456789012345678"),)]


def test_a_rollback_takes_back_rows_and_position(run: Callable[..., list[Any]]) -> None:
    load(run, held=0, to=100)
    run("ROLLBACK")
    assert state(run) == (0, 0)


def test_a_position_that_another_holds_updates_no_row(run: Callable[..., list[Any]]) -> None:
    assert run(TAKE.format(held=7, to=8))[0][0] == 0


def test_two_transactions_on_one_position_conflict_at_once_and_the_first_wins(
    server: Server, run: Callable[..., list[Any]]
) -> None:
    other = server.connect()
    load(run, held=0, to=100)
    other("BEGIN")
    with pytest.raises(ProgrammingError, match="Conflict on update") as caught:
        other(TAKE.format(held=0, to=100))
    assert caught.value.errno == 625
    with pytest.raises(ProgrammingError, match="nothing was committed") as refused:
        other("COMMIT")
    assert refused.value.errno == 90232
    with pytest.raises(ProgrammingError, match="ROLLBACK"):  # asked again, as if the answer had been lost
        other("COMMIT")
    other("ROLLBACK")
    run("COMMIT")
    assert other(TAKE.format(held=0, to=100))[0][0] == 0
    assert state(other) == (100, 100)


def test_loaders_of_different_partitions_append_to_one_table_without_conflict(
    server: Server, run: Callable[..., list[Any]]
) -> None:
    other = server.connect()
    load(run, held=0, to=100)
    other("BEGIN")
    other("UPDATE RAW.LOAD_OFFSETS SET NEXT_OFFSET = 50 WHERE PART = 1 AND NEXT_OFFSET = 0")
    other(COPY.format(path="rows.parquet"))
    run("COMMIT")
    other("COMMIT")
    assert state(run) == (200, 100)


def test_a_reader_sees_what_was_committed_when_its_transaction_began(
    server: Server, run: Callable[..., list[Any]]
) -> None:
    audit = server.connect()
    audit("BEGIN")
    assert state(audit) == (0, 0)
    load(run, held=0, to=100)
    assert state(audit) == (0, 0)
    run("COMMIT")
    assert state(audit) == (0, 0)
    audit("COMMIT")
    assert state(audit) == (100, 100)


def test_the_transaction_of_a_silent_client_is_rolled_back_and_the_client_is_told(
    server: Server, run: Callable[..., list[Any]]
) -> None:
    load(run, held=0, to=100)
    successor = server.connect()

    def taken_over() -> bool:
        try:
            return bool(successor(TAKE.format(held=0, to=60))[0][0] == 1)
        except ProgrammingError as error:
            if error.errno != 625:
                raise
            return False

    assert eventually(taken_over, timeout=30)
    for _ in range(2):  # and told again, as one whose first answer was lost asks again
        with pytest.raises(ProgrammingError, match="rolled back by the server") as caught:
            run("COMMIT")
        assert caught.value.errno == 90232
    run("ROLLBACK")
    assert state(run) == (0, 60)


def test_a_connection_that_closes_inside_a_transaction_leaves_nothing_behind(
    server: Server, run: Callable[..., list[Any]]
) -> None:
    other = server.connect()
    load(other, held=0, to=100)
    server.connections.pop().close(retry=False)
    assert run(TAKE.format(held=0, to=10))[0][0] == 1
    assert state(run) == (0, 10)


def test_unsupported_sql_is_an_error_at_once_and_not_a_repeated_500(run: Callable[..., list[Any]]) -> None:
    with pytest.raises(ProgrammingError):
        run("CREATE TASK T SCHEDULE = '1 MINUTE' AS SELECT 1")
    assert run("SELECT 1") == [(1,)]


@pytest.mark.parametrize("crash", [False, True], ids=["SIGTERM", "SIGKILL"])
def test_what_was_committed_survives_and_what_was_not_does_not(
    server: Server, run: Callable[..., list[Any]], crash: bool
) -> None:
    load(run, held=0, to=100)
    run("COMMIT")
    load(run, held=100, to=200)
    if crash:
        server.kill()
    else:
        assert server.stop()
    server.start()
    again = server.connect()
    assert state(again) == (100, 100)
    # Stage and file are there too, so a load that was under way is simply done again.
    load(again, held=100, to=200)
    again("COMMIT")
    assert state(again) == (200, 200)


def test_a_folder_in_use_and_a_taken_port_are_named(server: Server) -> None:
    def said(*arguments: str) -> str:
        command = [sys.executable, "-m", "marketflow_stack.warehouse", *arguments]
        result = subprocess.run(command, capture_output=True, text=True, timeout=60)
        assert result.returncode == 1
        return result.stderr

    data = server.folder / "data"
    assert f"another warehouse has {data} open" in said("--port", str(free_port()), "--data", str(data))
    assert server.process is not None
    taken = said("--port", str(server.port), "--data", str(server.folder / "other"))
    assert re.search(rf"port {server.port} is taken by python.* \(pid {server.process.pid}\)", taken)
    assert not (server.folder / "other").exists()


def test_sigint_ends_it_as_cleanly_as_sigterm(server: Server) -> None:
    assert server.process is not None
    server.process.send_signal(signal.SIGINT)
    assert server.process.wait(60) == 0
    server.start()
