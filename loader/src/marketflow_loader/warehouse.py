"""The warehouse's side of a flush: positions, files to the stage, and the one transaction that makes rows appear.

Must never commit rows without moving the positions they belong to, nor guess what a lost answer said.
"""

from __future__ import annotations

import io
import logging
import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import CancelledError, Future, wait
from contextlib import suppress
from queue import SimpleQueue
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
import snowflake.connector
from marketflow_common import logs
from marketflow_common.settings import SnowflakeSettings
from snowflake.connector.errors import Error

__all__ = ["Away", "File", "Moved", "Place", "Position", "Step", "Warehouse", "nothing"]

STAGE = "RAW.LANDING"
_log = logs.get("warehouse")
Step = Callable[[str], None]


def nothing(_: str) -> None:
    """The step hook of a process that is not under test."""


class Away(Exception):
    """The warehouse did not answer, or refused; what was being done may or may not have happened."""


class Moved(Exception):
    """A position is not where this loader left it: somebody else has loaded. Nothing was written."""


class Place(NamedTuple):
    """A partition of a topic that is told apart from one of the same name made later."""

    topic: str
    """full name"""
    topic_id: str
    partition: int


class Position(NamedTuple):
    """How far a place has landed: the offset of the next record."""

    place: Place
    next_offset: int


class File(NamedTuple):
    """A table's rows on their way to the stage."""

    table: str
    path: str
    rows: int
    uploaded: Future[None]


class Warehouse:
    """Sessions that are opened when needed: one for statements, and one that uploads files meanwhile.

    Every method but ``pack`` raises Away when the warehouse is; call it again later.
    """

    def __init__(self, settings: SnowflakeSettings, step: Step = nothing) -> None:
        self._step = step
        self._statements, self._uploads = _Session(settings, "loader"), _Session(settings, "loader-uploads")
        self._uploader = _Uploader()
        self._pending: list[Future[None]] = []
        # The connector logs each failed attempt with a traceback; Away carries what matters.
        logging.getLogger("snowflake.connector").setLevel(logging.CRITICAL)

    @property
    def connected(self) -> bool:
        """Whether a session is open, as far as is known."""
        return self._statements.open

    def warm(self) -> None:
        """Open the session that uploads, so that the first flush does not wait for it."""
        self._pending.append(self._uploader.submit(self._uploads.get))

    def close(self, wait_seconds: float = 0.0) -> None:
        """Give the sessions up; an open transaction, if any, is rolled back by the warehouse.

        The session that uploads is given up behind the upload under way, for which this waits so long at most.
        """
        self._statements.close()
        # Whoever packed what still waits to be uploaded packs it anew: it must not pile up while the warehouse is away.
        for upload in self._pending:
            upload.cancel()
        # By the thread that uses it, behind the upload that is under way.
        self._pending = [self._uploader.submit(self._uploads.close)]
        if wait_seconds:
            wait(self._pending, wait_seconds)

    def positions(self, topics: Collection[str]) -> list[Position]:
        """All positions of topics (full names), those of former topics of the same name too."""
        rows = self._ask(
            "SELECT KAFKA_TOPIC, KAFKA_TOPIC_ID, KAFKA_PARTITION, NEXT_OFFSET FROM RAW.LOAD_OFFSETS "
            f"WHERE KAFKA_TOPIC IN ({', '.join(['%s'] * len(topics))})",
            tuple(sorted(topics)),
        )
        return [Position(Place(topic, topic_id, int(p)), int(offset)) for topic, topic_id, p, offset in rows]

    def start(self, position: Position) -> None:
        """Hold a position for a place that has none; one that is there already stays."""
        place = position.place
        self._ask(
            "INSERT INTO RAW.LOAD_OFFSETS (KAFKA_TOPIC, KAFKA_TOPIC_ID, KAFKA_PARTITION, NEXT_OFFSET, UPDATED_AT) "
            "SELECT %s, %s, %s, %s, CURRENT_TIMESTAMP() WHERE NOT EXISTS (SELECT 1 FROM RAW.LOAD_OFFSETS "
            "WHERE KAFKA_TOPIC = %s AND KAFKA_TOPIC_ID = %s AND KAFKA_PARTITION = %s)",
            (*place, position.next_offset, *place),
        )

    def pack(self, name: str, tables: Mapping[str, pa.Table]) -> list[File]:
        """A Parquet file of each table, with decimals as DECIMAL(38,18), for ``land``.

        ``name`` names the files and is used once only. They are on their way to the stage when this returns, while
        the flush before this one is being loaded: a PUT is no part of a transaction.
        """
        files = []
        for table, rows in tables.items():
            data = parquet(rows)
            self._step("parquet_written")
            path = f"{table.lower().replace('.', '/')}/{name}.parquet"
            files.append(File(table, path, rows.num_rows, self._uploader.submit(self._put, path, data)))
        self._pending = [one for one in self._pending if not one.done()] + [file.uploaded for file in files]
        return files

    def land(self, files: Sequence[File], moves: Sequence[tuple[Position, int]]) -> None:
        """Make the files' rows appear and move each position to its new offset, all or nothing.

        Raises Moved if a position is not where ``moves`` says (nothing is written then), Away if the outcome is
        unknown: read the positions again to learn it.
        """
        try:
            for file in files:
                file.uploaded.result()
            self._step("put")
            cursor = self._statements.get().cursor()
            cursor.execute("BEGIN")
            self._step("begun")
            statement, values = compare_and_set(moves)
            cursor.execute(statement, values)
            if cursor.rowcount != len(moves):
                cursor.execute("ROLLBACK")
                raise Moved(f"{cursor.rowcount} of {len(moves)} positions were where this loader left them")
            self._step("compared")
            for file in files:
                self._copy(cursor, file)
            self._step("copied")
            cursor.execute("COMMIT")
            self._step("committed")
        except CancelledError:
            self.close()
            raise Away("the upload was given up with its session") from None
        except (Error, OSError) as error:
            self.close()
            raise Away(_first_line(error)) from error

    def _put(self, path: str, data: bytes) -> None:
        try:
            put(self._uploads.get().cursor(), path, data)
        except (Error, OSError):
            self._uploads.close()
            raise

    def _copy(self, cursor: Any, file: File) -> None:
        # FORCE: whether the file was loaded before is no question, its name is new; the load history is bypassed.
        # PURGE: the file goes once it is loaded. A rolled back flush puts its rows again under another name.
        cursor.execute(copy_statement(file.table, file.path))
        names = [column.name.lower() for column in cursor.description]
        at = names.index("rows_loaded") if "rows_loaded" in names else None
        loaded = sum(int(row[at]) for row in cursor.fetchall()) if at is not None else 0
        if loaded != file.rows:
            cursor.execute("ROLLBACK")
            raise Away(
                f"COPY INTO {file.table} loaded {loaded} rows of {file.rows} in {file.path}; nothing was committed"
            )

    def _ask(self, statement: str, values: tuple[Any, ...]) -> list[tuple[Any, ...]]:
        try:
            return list(self._statements.get().cursor().execute(statement, values).fetchall())
        except (Error, OSError) as error:
            self.close()
            raise Away(_first_line(error)) from error


class _Uploader:
    """A thread that does one thing after the other.

    No pool: at exit Python waits for a pool's threads, for as long as a warehouse that stands still keeps them.
    """

    def __init__(self) -> None:
        self._waiting: SimpleQueue[tuple[Future[None], Callable[..., None], tuple[Any, ...]]] = SimpleQueue()
        threading.Thread(target=self._run, name="uploader", daemon=True).start()

    def submit(self, do: Callable[..., None], *values: Any) -> Future[None]:
        future: Future[None] = Future()
        self._waiting.put((future, do, values))
        return future

    def _run(self) -> None:
        while True:
            future, do, values = self._waiting.get()
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(do(*values))
                except BaseException as error:  # noqa: BLE001 - raised where the result is asked for
                    future.set_exception(error)


class _Session:
    """A connection that is opened when it is asked for."""

    def __init__(self, settings: SnowflakeSettings, name: str) -> None:
        self._settings, self._name = settings, name
        self._connection: Any = None

    @property
    def open(self) -> bool:
        return self._connection is not None

    def get(self) -> Any:
        if self._connection is None:
            # The connector cancels a statement that takes too long, but goes on waiting for its answer, by default for
            # a minute: from a warehouse that stands still none comes.
            limit = self._settings.network_timeout + 1
            self._connection = snowflake.connector.connect(
                **self._settings.connect_arguments(self._name), socket_timeout=limit
            )
            _log.info("connected", session=self._name, account=self._settings.account, database=self._settings.database)
        return self._connection

    def close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            with suppress(Error, OSError):
                connection.close()


_REPEATING = ["KAFKA_TOPIC", "KAFKA_TOPIC_ID", "SOURCE", "SYMBOL", "EVENT_TYPE", "INTERVAL", "ACCOUNT"]
"""Columns that are worth a dictionary; the others hardly repeat."""


def parquet(rows: pa.Table) -> bytes:
    """A table's rows as a Parquet file."""
    sink = pa.BufferOutputStream()
    pq.write_table(rows.combine_chunks(), sink, compression="zstd", compression_level=1, use_dictionary=_REPEATING)
    return bytes(sink.getvalue())


def put(cursor: Any, path: str, data: bytes) -> None:
    """Upload a file to the stage, from memory: nothing is left on this machine's disk."""
    folder, _, name = path.rpartition("/")
    # The file's name is given by the URL; its bytes come from the stream.
    statement = f"PUT file://{name} @{STAGE}/{folder} AUTO_COMPRESS=FALSE OVERWRITE=TRUE"
    cursor.execute(statement, file_stream=io.BytesIO(data))


def copy_statement(table: str, path: str) -> str:
    """The COPY of a staged file into its table, columns by their names."""
    return (
        f"COPY INTO {table} FROM @{STAGE}/{path} FILE_FORMAT=(TYPE=PARQUET USE_LOGICAL_TYPE=TRUE) "
        "MATCH_BY_COLUMN_NAME=CASE_INSENSITIVE FORCE=TRUE PURGE=TRUE"
    )


def compare_and_set(moves: Sequence[tuple[Position, int]]) -> tuple[str, tuple[Any, ...]]:
    """One UPDATE that moves every position, each only from where it is held; its row count tells."""
    cases, wheres = [], []
    case_values: list[Any] = []
    where_values: list[Any] = []
    for (place, held), following in moves:
        cases.append("WHEN KAFKA_TOPIC_ID = %s AND KAFKA_PARTITION = %s THEN %s")
        case_values += [place.topic_id, place.partition, following]
        wheres.append("(KAFKA_TOPIC = %s AND KAFKA_TOPIC_ID = %s AND KAFKA_PARTITION = %s AND NEXT_OFFSET = %s)")
        where_values += [*place, held]
    return (
        f"UPDATE RAW.LOAD_OFFSETS SET NEXT_OFFSET = CASE {' '.join(cases)} END, UPDATED_AT = CURRENT_TIMESTAMP() "
        f"WHERE {' OR '.join(wheres)}",
        (*case_values, *where_values),
    )


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
