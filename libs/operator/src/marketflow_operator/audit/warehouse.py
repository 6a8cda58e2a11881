"""Reads the landed rows and the loader's positions from the warehouse.

Edge of the audit. Read-only: it must never create, repair or lock anything.
"""

from __future__ import annotations

from marketflow_common.settings import SnowflakeSettings

from ..session import Session
from .delivery import REJECTS, TABLES
from .model import Position, Warehouse

__all__ = ["WarehouseReader"]


class WarehouseReader:
    """One session for the length of an audit. Every method raises CannotRead when the warehouse does not answer."""

    def __init__(self, settings: SnowflakeSettings) -> None:
        self._session = Session(settings, "audit")

    def close(self) -> None:
        """End the session."""
        self._session.close()

    def positions(self) -> list[Position]:
        """How far every partition has landed."""
        rows = self._session.rows(
            "SELECT KAFKA_TOPIC, KAFKA_TOPIC_ID, KAFKA_PARTITION, NEXT_OFFSET FROM RAW.LOAD_OFFSETS"
        )
        return [
            Position(r["KAFKA_TOPIC"], r["KAFKA_TOPIC_ID"], int(r["KAFKA_PARTITION"]), int(r["NEXT_OFFSET"]))
            for r in rows
        ]

    def read(self) -> Warehouse:
        """All rows of all tables, then the positions: while rows go on landing, none read here may be past them."""
        tables = {table: self._session.rows(f"SELECT * FROM {table}") for table in (*TABLES, REJECTS)}
        return Warehouse(tables, self.positions())
