"""The local warehouse: fakesnow's HTTP server with what a stack that runs for days needs of a Snowflake.

That is: data, stages and stage files that survive a restart or a crash, errors that come back at once instead
of as a 500 that the connector repeats, and an end for transactions whose client is gone. It must not pretend
to more SQL than fakesnow has. Run as `python -m marketflow_stack.warehouse --port P --data DIR`; `GET /health`
answers 200 once statements are served.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import logging
import signal
import sys
import threading
import time
import warnings
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import duckdb
import fakesnow.server
import uvicorn
from fakesnow import info_schema
from fakesnow.conn import FakeSnowflakeConnection
from fakesnow.cursor import FakeSnowflakeCursor
from fakesnow.instance import FakeSnow
from fakesnow.transforms import show, stage
from snowflake.connector.errors import OperationalError, ProgrammingError
from sqlglot import exp
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from marketflow_stack.errors import StackError
from marketflow_stack.processes import port_is_free, who_holds

_log = logging.getLogger("marketflow.warehouse")
with suppress(OSError):
    Path(stage.LOCAL_BUCKET_PATH).rmdir()  # fakesnow makes it on import, for every start one; ours lies with the data

GLOBAL = "_fs_global"  # fakesnow's database of what spans databases: stages, file formats, users
IDLE_TRANSACTION = 10.0  # seconds; Snowflake rolls back after 5 min if somebody waits for the lock
IDLE_SESSION = 4 * 3600.0  # seconds, as Snowflake's sessions without keep-alive
RESULTS_KEPT = 32  # results that RESULT_SCAN and get_results_from_sfqid can still see
LOCKED = 625  # Snowflake's error number for a lock that could not be had
ABORTED = 90232  # for a statement in a transaction that the server has rolled back meanwhile
UNSUPPORTED = 2140  # for what fakesnow or DuckDB cannot do


class Results(OrderedDict[str, Any]):
    """fakesnow keeps every result of every statement for ever; here the oldest go."""

    def __setitem__(self, key: str, value: Any) -> None:
        super().__setitem__(key, value)
        while len(self) > RESULTS_KEPT:
            self.popitem(last=False)


class Cursor(FakeSnowflakeCursor):  # type: ignore[misc]  # fakesnow is not followed by mypy
    """A statement of one session, by itself, with errors that a client can act on."""

    def execute(self, command: str, params: Any = None, *args: Any, **kwargs: Any) -> Any:
        session: Session = self._conn
        with session.busy:
            session.used = time.monotonic()
            try:
                if session.rolled_back:
                    # The client learns that its transaction is gone before it can do anything outside of one; and again
                    # if it sends the statement once more, because the answer was lost.
                    if not command.strip().upper().startswith(("ROLLBACK", "BEGIN", "START TRANSACTION")):
                        raise ProgrammingError(
                            msg="the transaction was rolled back by the server because its session was idle for "
                            "too long, or a statement of it failed; ROLLBACK, or start it again",
                            errno=ABORTED,
                            sqlstate="40000",
                        )
                    session.rolled_back = False
                if session.failed and command.strip().upper().startswith("COMMIT"):
                    session.refuse_commit_if_aborted()
                return super().execute(command, params, *args, **kwargs)
            except (ProgrammingError, OperationalError):
                session.failed = True
                raise
            except duckdb.TransactionException as error:
                session.failed = True
                raise ProgrammingError(msg=_first_line(error), errno=LOCKED, sqlstate="57014") from error
            except Exception as error:  # a 500 would be repeated by the connector until its timeout
                session.failed = True
                _log.exception("fakesnow cannot run %s", command)
                what = f"{type(error).__name__}: {_first_line(error)}"
                raise ProgrammingError(msg=what, errno=UNSUPPORTED, sqlstate="0A000") from error
            finally:
                session.used = time.monotonic()

    def _execute(self, transformed: Any, params: Any = None) -> Any:
        result = super()._execute(transformed, params)
        if isinstance(transformed, exp.Transaction):
            self._conn.explicit = True
            self._conn.failed = False
        elif isinstance(transformed, exp.Commit | exp.Rollback):
            self._conn.explicit = False
        return result


class Session(FakeSnowflakeConnection):  # type: ignore[misc]
    """A client's session, which knows since when its client has been silent."""

    _in_transaction: bool  # fakesnow's own, for sessions with AUTOCOMMIT=FALSE

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.busy = threading.RLock()
        self.used = time.monotonic()
        self.explicit = False
        self.failed = False
        self.rolled_back = False
        super().__init__(*args, **kwargs)

    def cursor(self, cursor_class: Any = None) -> Cursor:
        return Cursor(conn=self, duck_conn=self._duck_conn)

    def refuse_commit_if_aborted(self) -> None:
        """DuckDB answers COMMIT with success in a transaction that an error has aborted: then say the truth."""
        try:
            self._duck_conn.execute("SELECT 1")
        except duckdb.TransactionException as error:
            self._roll_back()
            self.rolled_back = True
            raise ProgrammingError(
                msg="nothing was committed: an earlier statement of this transaction failed, which aborts it here",
                errno=ABORTED,
                sqlstate="40000",
            ) from error

    def _roll_back(self) -> None:
        with suppress(duckdb.TransactionException):  # none is open
            self._duck_conn.rollback()
        self.explicit = self._in_transaction = False

    def end_silent_transaction(self, limit: float) -> bool:
        """Roll back if the client has said nothing for `limit` seconds inside a transaction."""
        if not self.busy.acquire(blocking=False):
            return False  # a statement is running
        try:
            if not (self.explicit or self._in_transaction) or time.monotonic() - self.used < limit:
                return False
            self._roll_back()
            self.rolled_back = True
            return True
        finally:
            self.busy.release()


class Sessions(dict[str, Session]):
    """By token. fakesnow forgets a session that its client closes; its transaction must end too."""

    def __delitem__(self, token: str) -> None:
        session = self[token]
        super().__delitem__(token)
        session.close()


class Warehouse(FakeSnow):  # type: ignore[misc]
    """fakesnow's instance over the files of one folder: `<DATABASE>.db`, `_fs_global.db`, `stages/`."""

    def __init__(self, folder: Path) -> None:
        super().__init__(db_path=folder)
        self.results_cache = Results()
        # fakesnow keeps the names of stages in memory, and files in a temporary folder: both go to the disk.
        self.duck_conn.execute(f"DETACH {GLOBAL}")
        self.duck_conn.execute(f"ATTACH '{folder / GLOBAL}.db' AS {GLOBAL}")
        self.duck_conn.execute(info_schema.fs_global_creation_sql())
        self.duck_conn.execute(show.fs_global_creation_sql())
        stages = folder / "stages"
        stages.mkdir(exist_ok=True)
        stage.LOCAL_BUCKET_PATH = str(stages)
        for file in sorted(folder.glob("*.db")):
            if file.stem != GLOBAL:
                self.connect(database=file.stem).close()

    def connect(
        self, database: str | None = None, schema: str | None = None, nop_regexes: Any = None, **kwargs: Any
    ) -> Session:
        return Session(
            self.duck_conn.cursor(),
            self.results_cache,
            database,
            schema,
            create_database=self.create_database_on_connect,
            create_schema=self.create_schema_on_connect,
            db_path=self.db_path,
            nop_regexes=nop_regexes or self.nop_regexes,
            **kwargs,
        )

    def close(self) -> None:
        """Bring what is committed from the write-ahead logs into the database files, and let them go."""
        for (name,) in self.duck_conn.execute(
            "SELECT database_name FROM duckdb_databases() WHERE NOT internal AND path IS NOT NULL"
        ).fetchall():
            with suppress(duckdb.Error):  # the log is read at the next start just as well
                self.duck_conn.execute(f'CHECKPOINT "{name}"')
        self.duck_conn.close()


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def tidy(sessions: Sessions, idle_transaction: float) -> None:
    """End transactions and sessions whose client is gone, or frozen."""
    for token, session in list(sessions.items()):
        if session.end_silent_transaction(idle_transaction):
            _log.warning("rolled back a transaction whose client was silent for %g s", idle_transaction)
        if time.monotonic() - session.used > IDLE_SESSION:
            _log.warning("ended a session that was silent for %g h", IDLE_SESSION / 3600)
            with suppress(KeyError):  # its client came back to close it
                del sessions[token]


def application(warehouse: Warehouse, sessions: Sessions) -> Starlette:
    """fakesnow's routes over this warehouse, and /health."""
    fakesnow.server.shared_fs = warehouse
    fakesnow.server.sessions = sessions

    def health(_: Request) -> JSONResponse:
        with warehouse.duck_conn.cursor() as cursor:
            cursor.execute("SELECT 1").fetchone()
        return JSONResponse({"status": "ok", "sessions": len(sessions)})

    async def login(request: Request) -> JSONResponse:
        answer = await fakesnow.server.login_request(request)
        said = json.loads(answer.body)
        # Without a master token the connector does not tell the server that it closes its session.
        said["data"]["masterToken"] = said["data"]["token"]
        return JSONResponse(said)

    own = [Route("/health", health), Route("/session/v1/login-request", login, methods=["POST"])]
    return Starlette(routes=[*own, *fakesnow.server.routes])


@contextmanager
def opened(folder: Path) -> Iterator[Warehouse]:
    """The warehouse of a folder, which no other process may have open."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StackError(f"cannot make {folder}: {error.strerror}", "name another --data folder") from None
    with (folder / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise StackError(
                f"another warehouse has {folder} open", "stop it (marketflow down) or name another --data folder"
            ) from None
        try:
            warehouse = Warehouse(folder)
        except duckdb.Error as error:
            raise StackError(
                f"cannot open the databases in {folder}: {_first_line(error)}", "move the folder away to start anew"
            ) from None
        try:
            yield warehouse
        finally:
            warehouse.close()


def serve(folder: Path, host: str, port: int, idle_transaction: float) -> None:
    """Serve until SIGTERM or SIGINT; StackError if the port or the folder is taken."""
    if not port_is_free(port, host):
        raise StackError(str(who_holds(port) or f"port {port} is taken"), "end that process or name another --port")
    with opened(folder.resolve()) as warehouse:
        sessions = Sessions()
        config = uvicorn.Config(
            application(warehouse, sessions),
            host=host,
            port=port,
            log_config=None,
            access_log=False,
            timeout_graceful_shutdown=5,
        )
        server = uvicorn.Server(config)
        done = threading.Event()

        def tidying() -> None:
            while not done.wait(0.5):
                tidy(sessions, idle_transaction)

        # uvicorn raises the signal that ended it once more, for whoever was there before: nobody.
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: None)
        thread = threading.Thread(target=tidying, name="tidy", daemon=True)
        thread.start()
        try:
            server.run()
        finally:
            done.set()
            thread.join()
            for token in list(sessions):
                del sessions[token]


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status 0 after SIGTERM, 1 with one line on stderr if it could not start."""
    parser = argparse.ArgumentParser(
        prog="python -m marketflow_stack.warehouse", description="A Snowflake on this machine, for local runs."
    )
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (127.0.0.1)")
    parser.add_argument("--data", type=Path, required=True, help="folder of databases and stages")
    parser.add_argument(
        "--idle-transaction",
        type=float,
        default=IDLE_TRANSACTION,
        metavar="SECONDS",
        help=f"roll back a transaction whose client is silent for so long ({IDLE_TRANSACTION:g})",
    )
    options = parser.parse_args(arguments)
    logging.basicConfig(
        level=logging.WARNING, format="%(asctime)s %(levelname)s %(name)s %(message)s", stream=sys.stderr
    )
    logging.getLogger("sqlglot").setLevel(logging.ERROR)  # it warns of every statement before that fails
    warnings.filterwarnings("ignore", message="Arrow output on a DB-API result", module="fakesnow")
    try:
        serve(options.data, options.host, options.port, options.idle_transaction)
    except StackError as error:
        print(f"warehouse: {error}", file=sys.stderr)  # noqa: T201
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
