"""Dumps land in a real warehouse once and whole: from a folder and by HTTP, killed in the middle, two at a time."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from decimal import Decimal
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import snowflake.connector
from marketflow_operator import backfill as backfilling
from marketflow_operator import dumps
from marketflow_operator.cli import app
from marketflow_operator.fetching import Folder
from marketflow_operator.session import Session
from marketflow_operator.targets import local_warehouse
from marketflow_stack.testing import Program, Programs, free_port
from typer.testing import CliRunner

pytestmark = [pytest.mark.xdist_group("operator-backfill")]

BEGIN_MS = 1_723_075_200_000
DAYS = ("2024-08-08", "2024-08-09")
EACH = 3_000
Ask = Callable[..., list[tuple[Any, ...]]]
Run = Callable[..., tuple[int, dict[str, Any]]]
DYING = """
import os, signal
from marketflow_operator.session import Session
real = Session.copy
def copy(self, *about):
    real(self, *about)
    os.kill(os.getpid(), signal.SIGKILL)
Session.copy = copy
from marketflow_operator.cli import app
from marketflow_operator.fetching import Folder
app()
"""


def line(number: int) -> str:
    at = BEGIN_MS + number * 86_400_000 // EACH
    return f"{number},{61_000 + number}.12000000,0.00100000,61.00012000,{at},{'True' if number % 3 else 'False'},True\n"


def offer(folder: Path, day: str, lines: Sequence[str]) -> None:
    """The dump of a day, with its checksum."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"BTCUSDT-trades-{day}.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(f"BTCUSDT-trades-{day}.csv", "".join(lines))
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    path.with_name(f"{path.name}.CHECKSUM").write_text(f"{digest}  {path.name}\n")


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Program]:
    """A warehouse with the schema, for all tests here."""
    tmp_path, port = tmp_path_factory.mktemp("warehouse"), free_port()
    programs = Programs(tmp_path)
    place = ["-m", "marketflow_stack.warehouse", "--port", port, "--data", tmp_path / "data", "--idle-transaction", "1"]
    found = programs.start(Program, "warehouse", [str(word) for word in place], {}, port).wait_for("/health")
    settings = local_warehouse(port)
    names = ("account", "user", "host", "port", "protocol", "database")
    values = {f"MARKETFLOW_SNOWFLAKE_{name.upper()}": str(getattr(settings, name)) for name in names}
    values["MARKETFLOW_SNOWFLAKE_PASSWORD"] = settings.password.get_secret_value()
    done = subprocess.run(
        [sys.executable, "-m", "marketflow_loader.schema"], env=os.environ | values, capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr
    yield found
    programs.close()


@pytest.fixture
def warehouse(shared: Program, ask: Ask) -> Program:
    """The warehouse without any dump in it."""
    ask("DELETE FROM RAW.TRADES_BACKFILL")
    return shared


@pytest.fixture
def environment(warehouse: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command line finds the warehouse by its settings, and no stack runs."""
    monkeypatch.setenv("MARKETFLOW_STACK_STATE", str(tmp_path / "state"))
    for name, value in {"HOST": "127.0.0.1", "PORT": warehouse.port, "PROTOCOL": "http", "ACCOUNT": "local"}.items():
        monkeypatch.setenv(f"MARKETFLOW_SNOWFLAKE_{name}", str(value))
    monkeypatch.setenv("MARKETFLOW_SNOWFLAKE_USER", "test")
    monkeypatch.setenv("MARKETFLOW_SNOWFLAKE_PASSWORD", "x")
    monkeypatch.setenv("MARKETFLOW_SNOWFLAKE_DATABASE", local_warehouse(1).database)


@pytest.fixture
def ask(shared: Program) -> Ask:
    def run(statement: str) -> list[tuple[Any, ...]]:
        arguments = local_warehouse(shared.port).connect_arguments("test")
        with closing(snowflake.connector.connect(**arguments)) as connection:
            return list(connection.cursor().execute(statement).fetchall())

    return run


@pytest.fixture
def backfill(environment: None) -> Run:
    """``backfill("--dir", folder)``: both days; the exit code, and what it says as JSON."""

    def run(*more: str | Path) -> tuple[int, dict[str, Any]]:
        words = ["backfill", "--symbol", "btcusdt", "--from", DAYS[0], "--to", DAYS[1], "--json", *map(str, more)]
        done = CliRunner().invoke(app, words)
        assert done.exit_code in (0, 1, 3), done.output
        return done.exit_code, json.loads(done.stdout)

    return run


def states(found: dict[str, Any]) -> list[tuple[str, int]]:
    return [(file["state"], file["rows"]) for file in found["files"]]


def count(ask: Ask) -> tuple[int, int]:
    [(rows, ids)] = ask("SELECT COUNT(*), COUNT(DISTINCT TRADE_ID) FROM RAW.TRADES_BACKFILL")
    return int(rows), int(ids)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The dumps of two days, whose ids follow each other."""
    found = tmp_path / "dumps"
    offer(found, DAYS[0], [line(n) for n in range(1, EACH)])
    offer(found, DAYS[1], [line(n) for n in range(EACH, 2 * EACH)])
    return found


WHOLE = (2 * EACH - 1, 2 * EACH - 1)


def test_files_land_once_with_every_digit_and_say_where_a_row_is_from(
    backfill: Run, ask: Ask, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dumps, "BLOCK", 20_000)
    monkeypatch.setattr(backfilling, "PIECE", 1_000)  # several files on the stage
    code, found = backfill("--dir", folder)
    assert (code, states(found), found["gaps"]) == (0, [("landed", EACH - 1), ("landed", EACH)], [])
    assert count(ask) == WHOLE
    [row] = ask(
        "SELECT SOURCE, FILE, FILE_ROW, SYMBOL, PRICE, QTY, BUYER_IS_MAKER, TRADED_AT FROM RAW.TRADES_BACKFILL "
        f"WHERE TRADE_ID = {EACH + 1}"
    )
    assert row[:-1] == (
        "binance", f"BTCUSDT-trades-{DAYS[1]}.zip", 2, "BTCUSDT", Decimal(f"{61_001 + EACH}.12"), Decimal("0.001"), True
    )  # fmt: skip
    assert row[-1].isoformat() == "2024-08-09T00:00:28.800000+00:00"
    assert ask("SELECT COUNT(*) FROM RAW.TRADES_BACKFILL WHERE TRADE_ID <> FILE_ROW AND FILE LIKE '%-08.zip'") == [(0,)]
    code, found = backfill("--dir", folder)
    assert (code, states(found), count(ask)) == (0, [("there", EACH - 1), ("there", EACH)], WHOLE)
    code, found = backfill("--dir", folder, "--again")
    assert (code, states(found), count(ask)) == (0, [("landed", EACH - 1), ("landed", EACH)], WHOLE)
    assert ask("LIST @RAW.LANDING") == []


def test_nothing_of_a_file_lands_that_has_a_wrong_row_and_the_others_do(backfill: Run, ask: Ask, folder: Path) -> None:
    offer(folder, DAYS[0], [*(line(n) for n in range(1, EACH)), line(EACH).replace("0.00100000", "1E-3")])
    code, found = backfill("--dir", folder)
    assert (code, states(found)) == (1, [("wrong", 0), ("landed", EACH)])
    assert found["files"][0]["detail"] == (
        f"BTCUSDT-trades-{DAYS[0]}.zip line {EACH}: '1E-3' is not a decimal number in fixed point; expected "
        "id,price,qty,quoteQty,time,isBuyerMaker,isBestMatch. Nothing of it has landed"
    )
    assert count(ask) == (EACH, EACH)


def test_holes_in_a_file_and_between_files_are_told(backfill: Run, folder: Path) -> None:
    offer(folder, DAYS[0], [line(n) for n in range(1, EACH - 10) if n not in (7, 8)])
    code, found = backfill("--dir", folder)
    assert code == 0
    assert found["files"][0]["detail"] == "its ids have holes: 2 are missing (7 to 8)"
    assert found["gaps"] == [
        f"BTCUSDT-trades-{DAYS[1]}.zip begins with id {EACH}, and BTCUSDT-trades-{DAYS[0]}.zip ends with {EACH - 11}: "
        "10 ids are missing between them"
    ]


def test_killed_before_its_commit_nothing_has_landed_and_the_next_run_lands_it(
    backfill: Run, ask: Ask, folder: Path
) -> None:
    words = ["backfill", "--symbol", "BTCUSDT", "--from", DAYS[0], "--dir", str(folder)]
    killed = subprocess.run([sys.executable, "-c", DYING, *words], capture_output=True, check=False, timeout=120)
    assert (killed.returncode, count(ask)) == (-signal.SIGKILL, (0, 0))
    assert backfill("--dir", folder)[0] == 0
    assert count(ask) == WHOLE


def test_two_at_the_same_time_leave_each_trade_once(backfill: Run, ask: Ask, folder: Path, warehouse: Program) -> None:
    meet = threading.Barrier(2, timeout=60)

    class Meeting(Session):
        """Both have seen that nothing is there before either lands."""

        def put(self, file: Path, folder: str) -> None:
            meet.wait()
            super().put(file, folder)

    def land() -> None:
        session = Meeting(local_warehouse(warehouse.port), "test")
        work = backfilling.Backfill(session, Folder(folder), "BTCUSDT")
        done.append(work.load(dumps.dumps_between("BTCUSDT", DAYS[0], DAYS[0])[0]).state)
        session.close()

    done: list[str] = []
    both = [threading.Thread(target=land) for _ in range(2)]
    for one in both:
        one.start()
    for one in both:
        one.join(120)
    assert done == ["landed", "landed"]
    assert count(ask) == (EACH - 1, EACH - 1)


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: Any) -> None:
        """Nothing."""


@pytest.fixture
def site(tmp_path: Path) -> Iterator[str]:
    """An HTTP server over a folder: its address."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(tmp_path / "site")))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_files_are_fetched_by_http_and_one_that_is_not_there_yet_comes_later(
    backfill: Run, ask: Ask, site: str, tmp_path: Path
) -> None:
    place = tmp_path / "site" / "data" / "spot" / "daily" / "trades" / "BTCUSDT"
    offer(place, DAYS[0], [line(n) for n in range(1, EACH)])
    code, found = backfill("--url", site)
    assert (code, states(found)) == (3, [("landed", EACH - 1), ("absent", 0)])
    assert f"BTCUSDT-trades-{DAYS[1]}.zip.CHECKSUM does not exist" in found["files"][1]["detail"]
    offer(place, DAYS[1], [line(n) for n in range(EACH, 2 * EACH)])
    code, found = backfill("--url", site)
    assert (code, states(found), count(ask)) == (0, [("there", EACH - 1), ("landed", EACH)], WHOLE)
    assert list((tmp_path / "state" / "backfill").iterdir()) == []  # what was fetched is not kept
