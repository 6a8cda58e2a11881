"""Brings infra/snowflake-schema.sql to the warehouse: ``python -m marketflow_loader.schema``.

That file is the only declaration of the tables; nothing here may know one of them.
"""

from __future__ import annotations

import argparse
import logging
import re
import sys
import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import snowflake.connector
from marketflow_common import service
from marketflow_common.settings import InvalidSettings, SnowflakeSettings, load
from snowflake.connector.errors import Error

__all__ = ["SchemaError", "apply", "declared", "ensure", "main", "schema_text"]

FILE = "snowflake-schema.sql"
DECLARED = "MARKETFLOW"
"""The database that the file names; another name in the settings takes its place."""
_RETRY_SECONDS = 0.5


class SchemaError(Exception):
    """The schema cannot be found or applied; the text says what to do."""


def schema_text(path: Path | None = None) -> str:
    """The declaration in ``path``, by default infra/ of this checkout. Raises SchemaError if it cannot be read."""
    source = path or Path(__file__).resolve().parents[3] / "infra" / FILE
    try:
        return source.read_text(encoding="utf-8")
    except OSError as error:
        raise SchemaError(f"cannot read {source}: {error.strerror}; name the file with --file") from None


def for_database(text: str, database: str) -> str:
    """The declaration with another database in its two statements that name one."""
    return re.sub(
        rf"^((?:CREATE DATABASE IF NOT EXISTS|USE DATABASE) ){DECLARED};", rf"\g<1>{database};", text, flags=re.M
    )


def declared(text: str) -> set[str]:
    """``SCHEMA.TABLE.COLUMN`` of every column in the declaration."""
    found = set()
    for table, body in re.findall(r"^CREATE TABLE IF NOT EXISTS ([A-Z_.]+) \(\n(.*?)^\);", text, re.M | re.S):
        found |= {
            f"{table}.{column}" for column in re.findall(r"^    ([A-Z_0-9]+) [A-Z]", body, re.M) if column != "PRIMARY"
        }
    return found


def apply(settings: SnowflakeSettings, text: str, timeout: float) -> int:
    """Apply the declaration; returns the number of statements. Waits up to ``timeout`` s for the warehouse."""
    with closing(_connected(settings, timeout)) as connection:
        return _run(connection, settings, text)


def ensure(settings: SnowflakeSettings, text: str, timeout: float) -> int:
    """apply(), unless every table is there with its columns: then a role that may create nothing will do.

    Returns the number of statements that were run. Raises SchemaError where a table stays behind its declaration.
    """
    with closing(_connected(settings, timeout)) as connection:
        if not _missing(connection, settings, text):
            return 0
        count = _run(connection, settings, text)
        missing = sorted(_missing(connection, settings, text))
    if missing:
        raise SchemaError(
            f"{settings.database} has a table of another version, without {', '.join(missing[:5])}, and a table that "
            "is there stays as it is; add what is missing with ALTER TABLE ... ADD COLUMN, or rename the table"
        )
    return count


def _missing(connection: Any, settings: SnowflakeSettings, text: str) -> set[str]:
    """Declared columns that this role does not see."""
    try:
        rows = (
            connection.cursor()
            .execute(
                f"SELECT TABLE_SCHEMA, TABLE_NAME, COLUMN_NAME FROM {settings.database}.INFORMATION_SCHEMA.COLUMNS"
            )
            .fetchall()
        )
    except Error:  # no such database, or none that it may use
        rows = []
    return declared(text) - {f"{schema}.{table}.{column}" for schema, table, column in rows}


def _connected(settings: SnowflakeSettings, timeout: float) -> Any:
    deadline = time.monotonic() + timeout
    while True:
        try:
            return snowflake.connector.connect(**settings.connect_arguments("schema", database=False))
        except Error as error:
            if time.monotonic() > deadline:
                where = f"{settings.protocol}://{settings.host}:{settings.port}" if settings.host else settings.account
                raise SchemaError(
                    f"no warehouse answered at {where} within {timeout:g} s: {_first_line(error)}; "
                    "start it, or check MARKETFLOW_SNOWFLAKE_*"
                ) from None
            time.sleep(_RETRY_SECONDS)


def _run(connection: Any, settings: SnowflakeSettings, text: str) -> int:
    try:
        return len(list(connection.execute_string(for_database(text, settings.database), remove_comments=True)))
    except Error as error:
        raise SchemaError(
            f"the warehouse refused the schema: {_first_line(error)}; the role needs CREATE DATABASE, as SYSADMIN "
            "has it: see loader/README.md"
        ) from None


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status 0 when all is there, 69 or 78 (as services have them) with one line on stderr otherwise."""
    parser = argparse.ArgumentParser(
        prog="python -m marketflow_loader.schema",
        description="Create what is missing of MarketFlow's warehouse. MARKETFLOW_SNOWFLAKE_* says where.",
    )
    parser.add_argument("--file", type=Path, help=f"the declaration; default: infra/{FILE} of this checkout")
    parser.add_argument("--timeout", type=float, default=60, help="seconds to wait for the warehouse (60)")
    options = parser.parse_args(arguments)
    logging.getLogger("snowflake.connector").setLevel(logging.CRITICAL)  # the error below says it in one line
    try:
        settings = load(SnowflakeSettings)
        count = ensure(settings, schema_text(options.file), options.timeout)
    except InvalidSettings as error:
        print(f"schema: {error}", file=sys.stderr)  # noqa: T201
        return service.EXIT_CONFIG
    except SchemaError as error:
        print(f"schema: {error}", file=sys.stderr)  # noqa: T201
        return service.EXIT_UNAVAILABLE
    done = f"({count} statements)" if count else "already"
    print(f"schema: {settings.database} has everything {done}")  # noqa: T201
    return 0


if __name__ == "__main__":
    sys.exit(main())
