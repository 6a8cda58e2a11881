"""How fast records land: the loader's process beside a bare PUT and COPY of the same files, and beside executemany.

Must never report a figure of rows that were not counted in the warehouse.
"""

from __future__ import annotations

import math
import secrets
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from contextlib import closing
from datetime import datetime
from pathlib import Path
from typing import Any

import snowflake.connector
from confluent_kafka import Message, TopicPartition
from marketflow_common import topics
from marketflow_common.kafka import client
from marketflow_common.kafka.sink import Slot
from marketflow_common.settings import KafkaSettings, SnowflakeSettings
from marketflow_loader import schema
from marketflow_loader.effect import columns_of
from marketflow_loader.settings import LoaderSettings
from marketflow_loader.tables import Landing
from marketflow_loader.warehouse import Place, parquet
from marketflow_stack.processes import free_port

from .feed import PARTITIONS, Feed
from .parts import Plan, Row, yardstick
from .stand import Measured, Stand, TookTooLong, wait

__all__ = ["loading"]

ROWS = 300_000
BLOCK = 60_000
"""Trades that are made once and published again and again, ids and times moved on."""
INSERTED = 3_000
"""Rows for executemany, which takes a second for a thousand."""
TABLES = ("RAW.TRADES", "RAW.FEED_EVENTS")


def loading(stand: Stand, plan: Plan) -> list[Row]:
    """Rows per second into a local warehouse, by the wall clock: loader and yardsticks in turn, a database for each."""
    prefix = "loading-"
    stand.topics(prefix)
    kafka = KafkaSettings(bootstrap_servers=stand.bootstrap, topic_prefix=prefix)
    feed = Feed(min(plan.trades, BLOCK), plan.replay)
    # Whole flushes: the rest would wait for flush_seconds, which is no work.
    flush = LoaderSettings.model_fields["flush_rows"].default
    most = max(flush, min(plan.trades, ROWS) // flush * flush)
    rounds = math.ceil(most / feed.trades)
    records = feed.publish(stand.bootstrap, kafka.topic(topics.OHLCV_RAW), rounds, most=most)
    plan.say(f"loader: {records:,} records are on the topic")
    messages = _read(kafka, records)
    warehouse = _warehouse(stand)
    bare, single, cpu = list[tuple[float, float | None]](), list[tuple[float, float | None]](), 0.0
    for run in range(plan.runs):
        settings = _database(warehouse)
        rate, seconds = _land(stand, prefix, settings, records)
        cpu += seconds / plan.runs
        flushes = _flushes(settings)
        folder = stand.folder / f"bare-{run}"
        _files(folder, flushes, messages, kafka)
        other = _database(warehouse)
        copied = _yardstick("copy", other, folder)
        _counted(other, records)
        inserted = _yardstick("executemany", _database(warehouse), folder)
        bare.append((rate, copied))
        single.append((rate, inserted))
        plan.say(
            f"loader, run {run + 1}: {rate:,.0f} rows per second in {len(flushes)} flushes, "
            f"bare PUT and COPY {copied:,.0f}, executemany {inserted:,.0f}"
        )
    note = f"{records:,} rows; {cpu / records * 1e6:.1f} us of the loader's CPU for each"
    return [
        Row("loader_vs_bare_copy", "rows per second", bare, note),
        Row("loader_vs_executemany", "rows per second", single, f"executemany over {INSERTED:,} rows"),
    ]


def _warehouse(stand: Stand) -> Measured:
    port = free_port()
    data = ["--port", str(port), "--data", str(stand.folder / "warehouse")]
    argv = [sys.executable, "-m", "marketflow_stack.warehouse", *data]
    one = stand.process("warehouse", argv, {}, f"http://127.0.0.1:{port}")

    def answers() -> bool:
        try:
            with urllib.request.urlopen(one.url + "/health", timeout=2) as answer:
                return bool(answer.status == 200)
        except (urllib.error.URLError, OSError):
            return False

    wait("the warehouse answers", answers, one)
    return one


def _database(warehouse: Measured) -> SnowflakeSettings:
    """A new database with all tables."""
    settings = SnowflakeSettings(
        account="local", user="bench", password="x", host="127.0.0.1", port=int(warehouse.url.rpartition(":")[2]),
        protocol="http", database=f"B_{secrets.token_hex(4).upper()}",
    )  # fmt: skip
    schema.apply(settings, schema.schema_text(), 30)
    return settings


def _ask(settings: SnowflakeSettings, statement: str) -> list[tuple[Any, ...]]:
    with closing(snowflake.connector.connect(**settings.connect_arguments("bench"))) as connection:
        return list(connection.cursor().execute(statement).fetchall())


def _counted(settings: SnowflakeSettings, records: int) -> None:
    union = " UNION ALL ".join(f"SELECT KAFKA_PARTITION AS P, KAFKA_OFFSET AS O FROM {table}" for table in TABLES)
    [(rows, different)] = _ask(settings, f"SELECT COUNT(*), COUNT(DISTINCT P * 1000000000 + O) FROM ({union})")
    if (rows, different) != (records, records):
        raise TookTooLong(f"{records:,} records, but {rows:,} rows of {different:,} of them in {settings.database}")


def _land(stand: Stand, prefix: str, settings: SnowflakeSettings, records: int) -> tuple[float, float]:
    """Rows per second from the loader's being ready to its last commit, and its CPU seconds in between."""
    port = free_port()
    environment = {
        "MARKETFLOW_KAFKA_BOOTSTRAP_SERVERS": stand.bootstrap,
        "MARKETFLOW_KAFKA_TOPIC_PREFIX": prefix,
        "MARKETFLOW_LOADER_HTTP_PORT": str(port),
        "MARKETFLOW_SNOWFLAKE_PASSWORD": "x",
        **{
            f"MARKETFLOW_SNOWFLAKE_{name.upper()}": str(getattr(settings, name))
            for name in ("account", "user", "host", "port", "protocol", "database")
        },
    }
    argv = [sys.executable, "-m", "marketflow_loader"]
    one = stand.process("loader", argv, environment, f"http://127.0.0.1:{port}")
    try:
        wait("the loader is ready", one.ready, one, pause=0.02)
        begin, cpu = time.time(), one.cpu_seconds()
        # Not asked often: each answer costs the loader some milliseconds.
        landed = "rows_landed_total{"
        wait("all has landed", lambda: one.metric(landed) >= records, one, seconds=300, pause=0.5)
        took = one.metric("last_flush_timestamp_seconds") - begin
        cpu = one.cpu_seconds() - cpu
    finally:
        one.stop()
    _counted(settings, records)
    return records / took, cpu


def _flushes(settings: SnowflakeSettings) -> dict[datetime, list[tuple[Place, int, int]]]:
    """The loader's flushes by their time, each with its ranges of offsets, both ends included."""
    union = " UNION ALL ".join(
        f"SELECT LANDED_AT, KAFKA_TOPIC, KAFKA_TOPIC_ID, KAFKA_PARTITION, KAFKA_OFFSET FROM {table}" for table in TABLES
    )
    rows = _ask(
        settings,
        "SELECT LANDED_AT, KAFKA_TOPIC, KAFKA_TOPIC_ID, KAFKA_PARTITION, MIN(KAFKA_OFFSET), MAX(KAFKA_OFFSET) "
        f"FROM ({union}) GROUP BY LANDED_AT, KAFKA_TOPIC, KAFKA_TOPIC_ID, KAFKA_PARTITION "
        "ORDER BY LANDED_AT, KAFKA_PARTITION",
    )
    found: dict[datetime, list[tuple[Place, int, int]]] = {}
    for landed_at, topic, topic_id, partition, first, last in rows:
        found.setdefault(landed_at, []).append((Place(topic, topic_id, int(partition)), int(first), int(last)))
    return found


def _read(kafka: KafkaSettings, records: int) -> dict[int, list[Message]]:
    """Everything on the topic, by partition; its offsets have no holes, because the feed needs no transaction."""
    reader, topic = client.consumer(kafka, "bench-read"), kafka.topic(topics.OHLCV_RAW)
    found: dict[int, list[Message]] = {partition: [] for partition in range(PARTITIONS)}
    try:
        reader.assign([TopicPartition(topic, partition, 0) for partition in found])
        deadline = time.monotonic() + 120
        while sum(map(len, found.values())) < records:
            for message in filter(client.is_record, reader.consume(10_000, 0.5)):
                found[message.partition() or 0].append(message)
            if time.monotonic() > deadline:
                raise TookTooLong("the topic cannot be read back")
    finally:
        reader.close()
    return found


def _files(
    folder: Path,
    flushes: dict[datetime, list[tuple[Place, int, int]]],
    messages: dict[int, list[Message]],
    kafka: KafkaSettings,
) -> None:
    """The Parquet files that the loader has put, once more."""
    folder.mkdir()
    for number, (landed_at, ranges) in enumerate(flushes.items()):
        landing = Landing(round(landed_at.timestamp() * 1e6))
        for place, first, last in ranges:
            part: Sequence[Message] = messages[place.partition][first : last + 1]
            landing.take(columns_of(Slot(topics.OHLCV_RAW, place.partition), place, part))
        for table, rows in landing.tables().items():
            (folder / f"{number:05d}-{table}.parquet").write_bytes(parquet(rows))


def _yardstick(how: str, settings: SnowflakeSettings, folder: Path) -> float:
    """Rows per second."""
    found = yardstick("bare_copy.py", how, settings.host, settings.port, settings.database, folder, INSERTED)
    return float(found["rows"] / found["wall"])
