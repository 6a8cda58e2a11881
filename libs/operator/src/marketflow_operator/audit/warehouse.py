"""Reads the landed rows and the loader's positions from the warehouse.

Edge of the audit. Read-only: it must never create, repair or lock anything.
"""

from __future__ import annotations

import logging
import socket
from collections.abc import Sequence
from typing import Any

import snowflake.connector
from marketflow_common.settings import SnowflakeSettings
from snowflake.connector.errors import Error

from .delivery import REJECTS, TABLES
from .model import Position, Row, Warehouse
from .topics import CannotRead

__all__ = ["WarehouseReader"]


class WarehouseReader:
    """One session for the length of an audit. Every method raises CannotRead when the warehouse does not answer."""

    def __init__(self, settings: SnowflakeSettings) -> None:
        self._settings = settings
        self._connection: Any = None
        logging.getLogger("snowflake.connector").setLevel(logging.CRITICAL)

    def close(self) -> None:
        """End the session."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def positions(self) -> list[Position]:
        """How far every partition has landed."""
        rows = self._rows("SELECT KAFKA_TOPIC, KAFKA_TOPIC_ID, KAFKA_PARTITION, NEXT_OFFSET FROM RAW.LOAD_OFFSETS")
        return [
            Position(r["KAFKA_TOPIC"], r["KAFKA_TOPIC_ID"], int(r["KAFKA_PARTITION"]), int(r["NEXT_OFFSET"]))
            for r in rows
        ]

    def read(self) -> Warehouse:
        """All rows of all tables, then the positions: while rows go on landing, none read here may be past them."""
        tables = {table: self._rows(f"SELECT * FROM {table}") for table in (*TABLES, REJECTS)}
        return Warehouse(tables, self.positions())

    def _rows(self, statement: str) -> Sequence[Row]:
        settings = self._settings
        place = f"{settings.host}:{settings.port}" if settings.host else settings.account
        try:
            if self._connection is None:
                if settings.host:
                    # Asked before the connector is, which would try again for half a minute.
                    socket.create_connection((settings.host, settings.port), timeout=3).close()
                self._connection = snowflake.connector.connect(**settings.connect_arguments("audit"))
            with self._connection.cursor() as cursor:
                cursor.execute(statement)
                names = [column.name for column in cursor.description]
                return [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]
        except OSError as error:
            raise CannotRead(f"no warehouse answers at {place} ({error}); start the stack") from None
        except Error as error:
            self.close()
            raise CannotRead(f"the warehouse at {place}: {str(error.msg or error).splitlines()[0]}") from None
