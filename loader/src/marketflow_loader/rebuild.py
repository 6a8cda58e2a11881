"""Lands one table again from Kafka: ``python -m marketflow_loader.rebuild RAW.TRADES``; ``marketflow rebuild`` runs it.

Must never take out a row that cannot be landed again, nor move a position: what comes after it is the loader's to land.
"""

from __future__ import annotations

import argparse
import difflib
import logging
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from secrets import token_hex
from typing import Any, Final, NamedTuple

import pyarrow as pa
import snowflake.connector
from confluent_kafka import KafkaError, KafkaException, Message, TopicPartition
from marketflow_common import clock, topics
from marketflow_common.kafka import client
from marketflow_common.settings import InvalidSettings, KafkaSettings, SnowflakeSettings, load
from snowflake.connector.errors import Error

from .broker import Broker, NoAnswer
from .tables import REJECTS, TABLES, Landing, Row
from .warehouse import STAGE, Place, Step, nothing, parquet, put

__all__ = ["Plan", "Rebuild", "Refused", "WrongTable", "main", "table_named"]

DONE: Final = 0
REFUSED: Final = 1
USAGE: Final = 2
CANNOT: Final = 3
INTERRUPTED: Final = 130
PIECE: Final = 200_000
"""Rows of one file on the stage: what is held in memory at a time."""
LOCKED: Final = 625
"""Snowflake's error number for a lock that could not be had; the local warehouse has the same."""
LOCK_SECONDS: Final = 60.0
"""How long to try to get in between two flushes of the loader, or behind another rebuild."""
STATEMENT_SECONDS: Final = 600
"""What one statement over a whole table may take, unless the settings allow more; so long an outage is not noticed."""
SILENCE: Final = 30.0
"""Seconds without any record after which Kafka is said not to answer."""
Say = Callable[[str], None]


class WrongTable(Exception):
    """There is no such table, or it is not landed from Kafka; the text says what there is."""


class Refused(Exception):
    """It must not be done; the text says why and what to do. Nothing was changed."""


class Away(Exception):
    """Warehouse or broker did not answer; nothing was changed, unless the text says otherwise."""


class Part(NamedTuple):
    """What of a partition is landed again: its records from ``first`` up to ``end``, which is not among them."""

    topic: str
    """plain name, without prefix"""
    place: Place
    first: int
    end: int


class Plan(NamedTuple):
    """What a rebuild will do: ``rows`` are taken out, ``kept`` stay because Kafka has their records no more."""

    table: str
    parts: tuple[Part, ...]
    rows: int
    kept: int

    @property
    def records(self) -> int:
        """Offsets to be read, at most as many records."""
        return sum(part.end - part.first for part in self.parts)


def table_named(text: str) -> str:
    """The landed table that is meant, with or without its schema. Raises WrongTable."""
    known = [*(table.name for table in TABLES), REJECTS]
    found = [name for name in known if text.upper() in (name, name.partition(".")[2])]
    if found:
        return found[0]
    near = difflib.get_close_matches(text.upper(), known, n=1, cutoff=0.7)
    raise WrongTable(
        f"{text} is no table that is landed from Kafka; "
        + (f"did you mean {near[0]}?" if near else f"there are {', '.join(known)}.")
        + " What dbt builds is built anew by `dbt build --full-refresh`, RAW.TRADES_BACKFILL is loaded by "
        "`marketflow backfill`"
    )


class Rebuild:
    """One table, one rebuild. Every method raises Away where the warehouse or the broker does not answer."""

    def __init__(self, kafka: KafkaSettings, snowflake: SnowflakeSettings, table: str, step: Step = nothing) -> None:
        self._kafka, self._settings, self._table, self._step = kafka, snowflake, table, step
        self._connection: Any = None
        self._long = max(STATEMENT_SECONDS, snowflake.network_timeout)
        self._consumer = client.reader(kafka, "rebuild", log_level=0)
        fed = [table_.topic for table_ in TABLES if table_.name == table]
        self._plain = {kafka.topic(name): name for name in fed or topics.ALL}

    def close(self) -> None:
        """Give up session and consumer; an open transaction is rolled back."""
        self._consumer.close()
        self._forget()

    def _forget(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            with suppress(Error, OSError):
                connection.close()

    # --- what is to be done --------------------------------------------------------------------------

    def plan(self, *, partly: bool) -> Plan:
        """What would be done now. Raises Refused where rows could not be landed again, unless ``partly``."""
        ids = self._topic_ids()
        held = self._positions()
        landed = self._landed()
        parts, gone, rows, kept = list[Part](), list[str](), 0, 0
        for place, (count, _) in landed.items():
            if place.topic_id != ids[self._plain[place.topic]]:
                kept += count
                gone.append(f"{count:,} rows of {_name(place)} are of a topic that was deleted (id {place.topic_id})")
            elif place not in held:
                raise Refused(
                    f"{count:,} rows of {_name(place)} have landed, and RAW.LOAD_OFFSETS has no position of it; start "
                    "the loader, which makes one, and see what `marketflow audit` says"
                )
        for place, following in sorted(held.items()):
            plain = self._plain[place.topic]
            if place.topic_id != ids[plain]:
                continue
            low, high = self._bounds(place)
            if following > high:
                raise Refused(
                    f"{_name(place)} has landed up to offset {following - 1:,}, and Kafka ends at {high - 1:,}: it has "
                    "lost records that are in the warehouse"
                )
            count, oldest = landed.get(place, (0, following))
            if oldest < low:
                older = self._count_below(place, low)
                kept += older
                count -= older
                gone.append(f"Kafka begins at offset {low:,} of {_name(place)}, and {older:,} rows are of before")
            rows += count
            if low < following:
                parts.append(Part(plain, place, low, following))
        if gone and not partly:
            raise Refused(
                f"{'; '.join(gone)}. They could not be landed again. With --partly they stay as they are, and the "
                "others are landed again"
            )
        return Plan(self._table, tuple(parts), rows, kept)

    def _topic_ids(self) -> dict[str, str]:
        try:
            return Broker(self._kafka).topic_ids(list(self._plain.values()))
        except NoAnswer as error:
            raise Away(f"Kafka at {self._kafka.bootstrap_servers}: {error}") from None

    def _bounds(self, place: Place) -> tuple[int, int]:
        try:
            return client.watermarks(self._consumer, place.topic, place.partition)
        except KafkaException as error:
            raise Away(f"Kafka at {self._kafka.bootstrap_servers}: {error.args[0].str()}") from None

    def _positions(self) -> dict[Place, int]:
        found = self._ask(
            "SELECT KAFKA_TOPIC, KAFKA_TOPIC_ID, KAFKA_PARTITION, NEXT_OFFSET FROM RAW.LOAD_OFFSETS "
            f"WHERE KAFKA_TOPIC IN ({self._marks()})",
            *self._plain,
        )
        return {Place(topic, topic_id, int(p)): int(offset) for topic, topic_id, p, offset in found}

    def _landed(self) -> dict[Place, tuple[int, int]]:
        """By partition, how many rows there are, and the offset of the oldest."""
        found = self._ask(
            f"SELECT KAFKA_TOPIC, KAFKA_TOPIC_ID, KAFKA_PARTITION, COUNT(*), MIN(KAFKA_OFFSET) FROM {self._table} "
            f"WHERE KAFKA_TOPIC IN ({self._marks()}) GROUP BY KAFKA_TOPIC, KAFKA_TOPIC_ID, KAFKA_PARTITION",
            *self._plain,
        )
        return {Place(topic, topic_id, int(p)): (int(n), int(oldest)) for topic, topic_id, p, n, oldest in found}

    def _marks(self) -> str:
        return ", ".join(["%s"] * len(self._plain))

    def _count_below(self, place: Place, offset: int) -> int:
        [(count,)] = self._ask(
            f"SELECT COUNT(*) FROM {self._table} WHERE KAFKA_TOPIC = %s AND KAFKA_TOPIC_ID = %s "
            "AND KAFKA_PARTITION = %s AND KAFKA_OFFSET < %s",
            *place,
            offset,
        )
        return int(count)

    # --- doing it ------------------------------------------------------------------------------------

    def run(self, plan: Plan, say: Say = lambda _: None) -> tuple[int, int]:
        """Take the rows out and land them again, all or nothing; how many were taken out and how many landed.

        Everything is on the stage before the transaction begins. Raises Refused if a position was set back meanwhile.
        """
        landed_us = clock.now_us()
        folder = f"{self._table.lower().replace('.', '/')}/rebuild-{token_hex(6)}"
        pieces: list[tuple[str, int]] = []
        try:
            for number, rows in enumerate(self._pieces(plan, landed_us, say)):
                path = f"{folder}/{number}.parquet"
                self._put(path, rows)
                pieces.append((path, rows.num_rows))
            self._step("staged")
            say(f"{sum(count for _, count in pieces):,} rows are on the stage; changing {self._table}")
            return self._swap(plan, pieces, landed_us)
        except BaseException:
            self._forget()
            # What is on the stage is of no use to anybody. Where a stage knows no REMOVE it stays, and does no harm.
            if pieces:
                with suppress(Away):
                    self._ask(f"REMOVE @{STAGE}/{folder}")
            raise

    def _pieces(self, plan: Plan, landed_us: int, say: Say) -> Iterator[pa.Table]:
        """The table's rows as they have to be, in pieces of bounded size."""
        waiting, count, read = list[pa.Table](), 0, 0
        for part in plan.parts:
            for messages in self._messages(part):
                landing = Landing(landed_us)
                landing.add(
                    Row(part.topic, *part.place, m.offset() or 0, m.timestamp()[1], _bytes(m.key()), _bytes(m.value()))
                    for m in messages
                )
                rows = landing.tables().get(plan.table)
                if rows is not None:
                    waiting.append(rows)
                    count += rows.num_rows
                if count >= PIECE:
                    yield pa.concat_tables(waiting)
                    waiting, count = [], 0
                at = read + (messages[-1].offset() or 0) + 1 - part.first
                say(f"read {at:,} of {plan.records:,} offsets ({100 * at // plan.records} %)")
            read += part.end - part.first
        if waiting:
            yield pa.concat_tables(waiting)

    def _messages(self, part: Part) -> Iterator[list[Message]]:
        """The committed records of a part. Raises Refused if they are deleted while they are read."""
        self._consumer.assign([TopicPartition(part.place.topic, part.place.partition, part.first)])
        at, until = part.first, time.monotonic() + SILENCE
        while at < part.end:
            messages = self._consumer.consume(10_000, 0.2)
            good = []
            for message in messages:
                error = message.error()
                if error is None:
                    at = (message.offset() or 0) + 1
                    if at <= part.end:
                        good.append(message)
                elif error.code() == KafkaError._PARTITION_EOF:
                    at = max(at, message.offset() or 0)
                elif error.code() in (KafkaError._AUTO_OFFSET_RESET, KafkaError.OFFSET_OUT_OF_RANGE):
                    raise Refused(f"records of {_name(part.place)} were deleted while they were read: {error.str()}")
                elif not error.retriable():
                    raise Away(f"Kafka at {self._kafka.bootstrap_servers}: {error.str()}")
            if good:
                yield good
            if messages:
                until = time.monotonic() + SILENCE
            elif time.monotonic() > until:
                raise Away(f"Kafka gave nothing of {_name(part.place)} from offset {at:,} on for {SILENCE:g} s")

    def _put(self, path: str, rows: pa.Table) -> None:
        try:
            put(self._session().cursor(), path, parquet(rows))
        except (Error, OSError) as error:
            raise self._away(error) from None

    def _swap(self, plan: Plan, pieces: Sequence[tuple[str, int]], landed_us: int) -> tuple[int, int]:
        """The one transaction: readers see the old rows until its COMMIT, and the new ones from then on."""
        taken = 0
        try:
            cursor = self._alone(plan)
            self._step("alone")
            for part in plan.parts:
                cursor.execute(
                    f"DELETE FROM {self._table} WHERE KAFKA_TOPIC = %s AND KAFKA_TOPIC_ID = %s "
                    "AND KAFKA_PARTITION = %s AND KAFKA_OFFSET >= %s AND KAFKA_OFFSET < %s",
                    (*part.place, part.first, part.end),
                    timeout=self._long,
                )
                taken += int(cursor.rowcount or 0)
            self._step("deleted")
            for path, expected in pieces:
                self._copy(cursor, path, expected)
            self._step("copied")
            cursor.execute("COMMIT")
        except (Error, OSError) as error:
            away = self._away(error)
            count = sum(count for _, count in pieces)
            if not count or not self._took_effect(landed_us):
                raise away from None
        self._step("committed")
        return taken, sum(count for _, count in pieces)

    def _alone(self, plan: Plan) -> Any:
        """Begin, and hold the positions: no flush and no other rebuild of these partitions commits in between.

        Raises Refused if a position is not where it was planned with, or beyond.
        """
        until = time.monotonic() + LOCK_SECONDS
        wheres = " OR ".join(
            ["(KAFKA_TOPIC = %s AND KAFKA_TOPIC_ID = %s AND KAFKA_PARTITION = %s AND NEXT_OFFSET >= %s)"]
            * len(plan.parts)
        )
        values = [value for part in plan.parts for value in (*part.place, part.end)]
        while True:
            cursor = self._session().cursor()
            cursor.execute("BEGIN")
            try:
                cursor.execute(
                    f"UPDATE RAW.LOAD_OFFSETS SET UPDATED_AT = CURRENT_TIMESTAMP() WHERE {wheres}", tuple(values)
                )
                if cursor.rowcount != len(plan.parts):
                    raise Refused("a position in RAW.LOAD_OFFSETS was set back or removed meanwhile")
                return cursor
            except Error as error:
                # The loader is in the middle of a flush, which takes a moment.
                if error.errno != LOCKED or time.monotonic() > until:
                    raise
                cursor.execute("ROLLBACK")
                time.sleep(0.1)

    def _copy(self, cursor: Any, path: str, expected: int) -> None:
        cursor.execute(
            f"COPY INTO {self._table} FROM @{STAGE}/{path} FILE_FORMAT=(TYPE=PARQUET USE_LOGICAL_TYPE=TRUE) "
            "MATCH_BY_COLUMN_NAME=CASE_INSENSITIVE FORCE=TRUE PURGE=TRUE",
            timeout=self._long,
        )
        names = [column.name.lower() for column in cursor.description]
        loaded = sum(int(row[names.index("rows_loaded")]) for row in cursor.fetchall()) if "rows_loaded" in names else 0
        if loaded != expected:
            self._forget()
            raise Away(f"COPY INTO {self._table} loaded {loaded} rows of {expected} in {path}; nothing was changed")

    def _took_effect(self, landed_us: int) -> bool:
        """Whether a transaction whose end is not known has been committed: its rows tell, by when they landed."""
        moment = datetime.fromtimestamp(landed_us // 1_000_000, UTC).replace(microsecond=landed_us % 1_000_000)
        [(count,)] = self._ask(
            f"SELECT COUNT(*) FROM {self._table} WHERE LANDED_AT = %s::TIMESTAMP_LTZ", moment.isoformat()
        )
        return bool(count)

    # --- the session ---------------------------------------------------------------------------------

    def _ask(self, statement: str, *values: Any) -> list[tuple[Any, ...]]:
        try:
            return list(self._session().cursor().execute(statement, values or None).fetchall())
        except (Error, OSError) as error:
            raise self._away(error) from None

    def _session(self) -> Any:
        if self._connection is None:
            self._connection = snowflake.connector.connect(**self._settings.connect_arguments("rebuild"))
        return self._connection

    def _away(self, error: BaseException) -> Away:
        self._forget()
        settings = self._settings
        place = f"{settings.host}:{settings.port}" if settings.host else settings.account
        line = (str(error).strip().splitlines() or [type(error).__name__])[0]
        return Away(f"the warehouse at {place}: {line}; check MARKETFLOW_SNOWFLAKE_*. Nothing was changed")


def _bytes(data: bytes | str | None) -> bytes | None:
    return data.encode() if isinstance(data, str) else data


def _name(place: Place) -> str:
    return f"{place.topic}/{place.partition}"


# --- the command line ----------------------------------------------------------------------------------


def main(arguments: Sequence[str] | None = None, step: Step = nothing) -> int:
    """Exit status 0 when it is done, 1 if it is refused, 2 for wrong usage, 3 if something does not answer."""
    parser = argparse.ArgumentParser(
        prog="marketflow rebuild",
        description="Empty one landed table and land it again from Kafka, in one transaction.",
    )
    parser.add_argument("table", help=f"{', '.join(table.name for table in TABLES)} or {REJECTS}")
    parser.add_argument("--yes", action="store_true", help="do not ask")
    parser.add_argument("--partly", action="store_true", help="keep rows whose records Kafka has no more")
    options = parser.parse_args(arguments)
    logging.getLogger("snowflake.connector").setLevel(logging.CRITICAL)  # the lines below say it
    try:
        return _work(table_named(options.table), options.yes, options.partly, step)
    except (WrongTable, InvalidSettings) as error:
        return _fail(str(error), USAGE)
    except Refused as error:
        return _fail(f"{options.table} is not rebuilt: {error}. Nothing was changed", REFUSED)
    except Away as error:
        return _fail(str(error), CANNOT)
    except KeyboardInterrupt:
        return _fail("interrupted; nothing was changed", INTERRUPTED)


def _work(table: str, yes: bool, partly: bool, step: Step) -> int:
    work = Rebuild(load(KafkaSettings), load(SnowflakeSettings), table, step)
    try:
        plan = work.plan(partly=partly)
        if not plan.parts:
            print(f"{table}: nothing has landed that Kafka still has; there is nothing to rebuild.")  # noqa: T201
            return DONE
        print(_told(plan))  # noqa: T201
        if not yes and not _agreed(table):
            return _fail("not agreed to; nothing was changed", REFUSED)
        step("planned")
        begun = time.monotonic()
        progress = _Progress()
        try:
            taken, landed = work.run(plan, progress.say)
        finally:
            progress.end()
        seconds = time.monotonic() - begun
        print(f"{table}: {taken:,} rows taken out, {landed:,} landed, in {seconds:.1f} s.")  # noqa: T201
        return DONE
    finally:
        work.close()


def _told(plan: Plan) -> str:
    places = ", ".join(f"{_name(part.place)} (offsets {part.first:,} to {part.end - 1:,})" for part in plan.parts)
    stay = f" {plan.kept:,} rows stay as they are: Kafka has their records no more." if plan.kept else ""
    return (
        f"{plan.table}: {plan.rows:,} rows are taken out, and what Kafka has of {places} is landed again, in one "
        f"transaction: readers see either the old rows or the new.{stay} Loaders may go on running; they wait while it "
        "is being committed."
    )


def _agreed(table: str) -> bool:
    if not sys.stdin.isatty():
        _fail("nobody can be asked here; say --yes", REFUSED)
        return False
    return input(f"Rebuild {table}? [y/N] ").strip().lower() in ("y", "yes")


def _fail(text: str, code: int) -> int:
    print(f"rebuild: {text}", file=sys.stderr)  # noqa: T201
    return code


class _Progress:
    """A line on stderr that is written over; without a terminal, one every ten seconds."""

    def __init__(self) -> None:
        self._terminal, self._due = sys.stderr.isatty(), 0.0

    def say(self, text: str) -> None:
        if time.monotonic() < self._due:
            return
        self._due = time.monotonic() + (0.2 if self._terminal else 10.0)
        sys.stderr.write(f"\r\x1b[K{text}" if self._terminal else f"{text}\n")
        sys.stderr.flush()

    def end(self) -> None:
        if self._terminal:
            sys.stderr.write("\r\x1b[K")


if __name__ == "__main__":
    sys.exit(main())
