"""Yardstick: PUT and COPY of Parquet files that are there, one after the other, and nothing else; or executemany.

python bare_copy.py copy|executemany HOST PORT DATABASE FOLDER ROWS. FOLDER holds files NUMBER-TABLE.parquet; the same
connector, statements and settings as the loader's, each statement committed by itself. `executemany` inserts the first
ROWS rows of the trades, a thousand at a time. Prints one line of JSON: rows, wall seconds.
"""

from __future__ import annotations

import io
import json
import sys
import time
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import snowflake.connector

TABLE = "RAW.TRADES"


def copy(cursor: Any, files: list[Path]) -> tuple[int, float]:
    loads = [(path.stem.partition("-")[2], path.name, path.read_bytes()) for path in files]
    begun, rows = time.monotonic(), 0
    for table, name, data in loads:
        folder = f"RAW.LANDING/bare/{table.lower().replace('.', '/')}"
        cursor.execute(f"PUT file://{name} @{folder} AUTO_COMPRESS=FALSE OVERWRITE=TRUE", file_stream=io.BytesIO(data))
        cursor.execute(
            f"COPY INTO {table} FROM @{folder}/{name} FILE_FORMAT=(TYPE=PARQUET USE_LOGICAL_TYPE=TRUE) "
            "MATCH_BY_COLUMN_NAME=CASE_INSENSITIVE FORCE=TRUE PURGE=TRUE"
        )
        names = [column.name.lower() for column in cursor.description]
        rows += sum(int(row[names.index("rows_loaded")]) for row in cursor.fetchall())
    return rows, time.monotonic() - begun


def insert(cursor: Any, files: list[Path], count: int) -> tuple[int, float]:
    rows: list[dict[str, Any]] = []
    for path in files:
        if path.stem.endswith(TABLE) and len(rows) < count:
            rows += pq.read_table(path).slice(0, count - len(rows)).to_pylist()
    columns = ", ".join(rows[0])
    marks = ", ".join(["%s"] * len(rows[0]))
    values = [[v.isoformat() if hasattr(v, "isoformat") else v for v in row.values()] for row in rows]
    begun = time.monotonic()
    for start in range(0, len(values), 1_000):
        cursor.executemany(f"INSERT INTO {TABLE} ({columns}) VALUES ({marks})", values[start : start + 1_000])
    return len(rows), time.monotonic() - begun


def main(how: str, host: str, port: str, database: str, folder: str, count: str) -> None:
    connection = snowflake.connector.connect(
        account="local", user="bench", password="x", host=host, port=int(port), protocol="http", database=database,
        platform_detection_timeout_seconds=0, session_parameters={"TIMEZONE": "UTC", "CLIENT_TELEMETRY_ENABLED": False},
    )  # fmt: skip
    files = sorted(Path(folder).glob("*.parquet"))
    cursor = connection.cursor()
    rows, wall = copy(cursor, files) if how == "copy" else insert(cursor, files, int(count))
    connection.close()
    sys.stdout.write(json.dumps({"rows": rows, "wall": wall}) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
