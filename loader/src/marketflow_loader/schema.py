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

import snowflake.connector
from marketflow_common import service
from marketflow_common.settings import InvalidSettings, SnowflakeSettings, load
from snowflake.connector.errors import Error

__all__ = ["SchemaError", "apply", "main", "schema_text"]

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


def apply(settings: SnowflakeSettings, text: str, timeout: float) -> int:
    """Apply the declaration; returns the number of statements. Waits up to ``timeout`` s for the warehouse."""
    deadline = time.monotonic() + timeout
    while True:
        try:
            connection = snowflake.connector.connect(**settings.connect_arguments("schema", database=False))
            break
        except Error as error:
            if time.monotonic() > deadline:
                where = f"{settings.protocol}://{settings.host}:{settings.port}" if settings.host else settings.account
                raise SchemaError(
                    f"no warehouse answered at {where} within {timeout:g} s: {_first_line(error)}; "
                    "start it, or check MARKETFLOW_SNOWFLAKE_*"
                ) from None
            time.sleep(_RETRY_SECONDS)
    with closing(connection):
        try:
            return len(list(connection.execute_string(for_database(text, settings.database), remove_comments=True)))
        except Error as error:
            raise SchemaError(
                f"the warehouse refused the schema: {_first_line(error)}; the role needs CREATE DATABASE and what "
                "loader/README.md grants"
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
        count = apply(settings, schema_text(options.file), options.timeout)
    except InvalidSettings as error:
        print(f"schema: {error}", file=sys.stderr)  # noqa: T201
        return service.EXIT_CONFIG
    except SchemaError as error:
        print(f"schema: {error}", file=sys.stderr)  # noqa: T201
        return service.EXIT_UNAVAILABLE
    print(f"schema: {settings.database} has everything ({count} statements)")  # noqa: T201
    return 0


if __name__ == "__main__":
    sys.exit(main())
