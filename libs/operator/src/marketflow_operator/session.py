"""One session with the warehouse: questions, files to the stage, and rows that appear all or not at all.

Must never guess what a lost answer said: whoever asks finds out by asking again.
"""

from __future__ import annotations

import logging
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final

import snowflake.connector
from marketflow_common.settings import SnowflakeSettings
from snowflake.connector.errors import Error

from .audit.model import Row
from .audit.topics import CannotRead

__all__ = ["STAGE", "Session"]

STAGE: Final = "RAW.LANDING"
STATEMENT_SECONDS: Final = 600
"""What a statement that loads or deletes may take, unless the settings allow more; others have the settings' limit."""
NO_TABLE: Final = 2003
"""Snowflake's error number for what does not exist or may not be seen."""


class Session:
    """Opened when needed. Every method raises CannotRead when the warehouse does not answer, or refuses."""

    def __init__(self, settings: SnowflakeSettings, part: str) -> None:
        """``part``: the last word of the query tag."""
        self._settings, self._part, self._long = settings, part, max(STATEMENT_SECONDS, settings.network_timeout)
        self._connection: Any = None
        logging.getLogger("snowflake.connector").setLevel(logging.CRITICAL)

    def close(self) -> None:
        """End the session; an open transaction is rolled back."""
        connection, self._connection = self._connection, None
        if connection is not None:
            with suppress(Error, OSError):
                connection.close()

    def rows(self, statement: str, *values: Any) -> Sequence[Row]:
        """What a question answers, as rows by upper-case column."""
        with self._speaking(), self._open().cursor() as cursor:
            cursor.execute(statement, values or None)
            names = [column.name for column in cursor.description]
            return [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]

    def run(self, statement: str, *values: Any) -> int:
        """The number of rows that a statement has changed."""
        with self._speaking(), self._open().cursor() as cursor:
            cursor.execute(statement, values or None, timeout=self._long)
            return int(cursor.rowcount or 0)

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """BEGIN, then COMMIT, or after any error ROLLBACK: by ending the session, where it cannot be said."""
        self.rows("BEGIN")
        try:
            yield
            self.rows("COMMIT")
        except BaseException:
            self.close()
            raise

    def put(self, file: Path, folder: str) -> None:
        """Bring a file to a folder of the stage."""
        statement = f"PUT file://{file.name} @{STAGE}/{folder} AUTO_COMPRESS=FALSE OVERWRITE=TRUE"
        with file.open("rb") as data, self._speaking(), self._open().cursor() as cursor:
            cursor.execute(statement, file_stream=data, timeout=self._long)

    def copy(self, table: str, path: str, expected: int) -> None:
        """Load a Parquet file of the stage, which is gone then. Raises CannotRead if it has not ``expected`` rows."""
        statement = (
            f"COPY INTO {table} FROM @{STAGE}/{path} FILE_FORMAT=(TYPE=PARQUET USE_LOGICAL_TYPE=TRUE) "
            "MATCH_BY_COLUMN_NAME=CASE_INSENSITIVE FORCE=TRUE PURGE=TRUE"
        )
        with self._speaking(), self._open().cursor() as cursor:
            cursor.execute(statement, timeout=self._long)
            names = [column.name.lower() for column in cursor.description]
            at = names.index("rows_loaded") if "rows_loaded" in names else None
            loaded = sum(int(row[at]) for row in cursor.fetchall()) if at is not None else 0
        if loaded != expected:
            raise CannotRead(f"COPY INTO {table} loaded {loaded} rows of {expected} in {path}; nothing was committed")

    @contextmanager
    def _speaking(self) -> Iterator[None]:
        settings = self._settings
        place = f"{settings.host}:{settings.port}" if settings.host else settings.account
        try:
            yield
        except Error as error:
            self.close()
            line = str(error.msg or error).splitlines()[0]
            missing = "; python -m marketflow_loader.schema makes the tables" if error.errno == NO_TABLE else ""
            raise CannotRead(f"the warehouse at {place}: {line}{missing}") from None
        except OSError as error:
            self.close()
            raise CannotRead(f"no warehouse answers at {place} ({error}); start the stack") from None

    def _open(self) -> Any:
        settings = self._settings
        if self._connection is None:
            if settings.host:
                # Asked before the connector is, which would try again for half a minute.
                socket.create_connection((settings.host, settings.port), timeout=3).close()
            self._connection = snowflake.connector.connect(**settings.connect_arguments(self._part))
        return self._connection
