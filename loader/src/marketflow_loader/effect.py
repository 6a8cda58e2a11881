"""The sink's effect: records land in the warehouse, and the warehouse says from where to go on.

Must never land a record twice or pass one over: the position in the warehouse decides, not Kafka's commit.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from functools import partial
from operator import methodcaller
from typing import Any, Final, NamedTuple, Protocol

import pyarrow as pa
from confluent_kafka import Message
from marketflow_common import clock, logs, metrics
from marketflow_common.health import Health
from marketflow_common.kafka import client
from marketflow_common.kafka.client import Committed, FatalKafkaError
from marketflow_common.kafka.sink import Batches, Marks, Retry, Slot
from marketflow_common.settings import KafkaSettings
from prometheus_client import Counter, Gauge, Histogram

from .broker import Broker, NoAnswer
from .tables import REJECTS, Landing, Records
from .warehouse import Away, Moved, Place, Position, Step, nothing

__all__ = ["Backend", "PositionGone", "Rows", "TopicMadeAnew", "columns_of"]

ROWS_LANDED: Final = Counter("rows_landed_total", "Rows committed to the warehouse", ["table"])
FILES_LANDED: Final = Counter("files_landed_total", "Parquet files loaded and committed", ["table"])
FLUSH_SECONDS: Final = Histogram(
    "flush_seconds", "Reading the records' bytes to the warehouse's COMMIT", buckets=metrics.LATENCY_BUCKETS
)
BEHIND_SECONDS: Final = Gauge(
    "landed_behind_seconds",
    "At the last flush: now minus the broker's append time of the last landed record",
    ["topic"],
)
THROUGH: Final = Gauge(
    "landed_through_timestamp_seconds",
    "Append time of the last landed record, by the broker's clock, in seconds since the epoch",
    ["topic", "partition"],
)
LAST_FLUSH: Final = Gauge("last_flush_timestamp_seconds", "When rows were last committed, in seconds since the epoch")
WAREHOUSE_UP: Final = Gauge("warehouse_up", "Whether the warehouse took what it was last asked for")
RETRY_SECONDS: Final = 1.0
"""Between two attempts while the warehouse is away: its restart takes seconds, and a reconnect costs little."""
_log = logs.get("loader")


class TopicMadeAnew(FatalKafkaError):
    """A topic has another id than the one whose records have landed."""


class PositionGone(FatalKafkaError):
    """The warehouse's position was removed or set back under a running loader."""


class Backend(Protocol):
    """A way into the warehouse: Warehouse (files and COPY) or Streaming (channels). All but pack raise Away."""

    @property
    def connected(self) -> bool:
        """Whether the positions held are those of a session that is still open, as far as is known."""

    def positions(self, topics: Collection[str]) -> list[Position]: ...

    def start(self, position: Position) -> None: ...

    def pack(self, name: str, tables: Mapping[str, pa.Table]) -> Any:
        """The rows as ``land`` takes them; waits for nobody. ``name`` is used once."""

    def land(self, packed: Any, moves: Sequence[tuple[Position, int]]) -> None:
        """Make the rows appear and move each position, once whatever happens. Raises Moved."""

    def close(self, wait_seconds: float = 0.0) -> None: ...


class Range(NamedTuple):
    """The records of one partition in a flush."""

    slot: Slot
    begins: int
    """where the flush before it ended, or the position held"""
    first: int
    following: int
    """the last one's successor"""
    appended_ms: int
    """when the broker appended the last one"""
    rejected: int


class Load(NamedTuple):
    """A flush that is ready to land."""

    ranges: Sequence[Range]
    packed: Any
    counts: dict[str, int]
    """rows by table"""


class Rows:
    """Lands batches of records; an Effect of marketflow_common.kafka.sink."""

    def __init__(
        self,
        kafka: KafkaSettings,
        warehouse: Backend,
        broker: Broker,
        health: Health,
        patience: float,
        step: Step = nothing,
    ) -> None:
        self._kafka, self._warehouse, self._broker = kafka, warehouse, broker
        self._health, self._patience, self._step = health, patience, step
        self._held: dict[Slot, Position] = {}
        self._ready: dict[Slot, int] = {}  # where the last prepared flush ends

    # --- assignment ----------------------------------------------------------------------------------

    def opened(self, slot: Slot, committed: Committed) -> int:
        """The warehouse's position of the partition, made at the oldest record if there is none.

        Raises TopicMadeAnew; Away or NoAnswer (after ``patience`` seconds) as FatalKafkaError.
        """
        deadline = time.monotonic() + self._patience
        while True:
            try:
                self._held[slot] = self._open(slot)
                break
            except (Away, NoAnswer) as error:
                if time.monotonic() > deadline:
                    raise FatalKafkaError(
                        f"{slot.topic}/{slot.partition} cannot be opened for {self._patience:g} s: {error}; "
                        "leaving the group, start again once that answers"
                    ) from error
                self._health.ready(False, str(error))
                self._health.beat()
                time.sleep(min(RETRY_SECONDS, self._patience))
        start = self._held[slot].next_offset
        if committed.offset > start:
            _log.warning(
                "behind_kafka", topic=slot.topic, partition=slot.partition, warehouse=start, kafka=committed.offset,
                detail="the warehouse has less than was committed to Kafka; going on from the warehouse's position",
            )  # fmt: skip
        return start

    def closed(self, slot: Slot) -> None:
        """Somebody else may load the partition from now on."""
        self._ready.pop(slot, None)
        if self._held.pop(slot, None) is not None:
            with suppress(KeyError):  # nothing has landed yet
                THROUGH.remove(slot.topic, str(slot.partition))

    def _open(self, slot: Slot) -> Position:
        topic = self._kafka.topic(slot.topic)
        place = Place(topic, self._broker.topic_ids([slot.topic])[slot.topic], slot.partition)
        found = self._position(place)
        if found is None:
            oldest = self._broker.oldest(slot.topic, slot.partition)
            if oldest > 0:
                _log.warning(
                    "starts_late", topic=topic, partition=slot.partition, oldest=oldest,
                    detail="nothing had landed yet, and the records before this offset are deleted",
                )  # fmt: skip
            self._warehouse.start(Position(place, oldest))
            found = self._position(place)
        if found is None:
            raise Away(f"RAW.LOAD_OFFSETS does not show the position of {topic}/{slot.partition} just written")
        return found

    def _position(self, place: Place) -> Position | None:
        """The place's one position. Raises TopicMadeAnew if the topic has others, PositionGone if it has two."""
        of_topic = self._warehouse.positions([place.topic])
        other = sorted({position.place.topic_id for position in of_topic} - {place.topic_id})
        if other:
            raise TopicMadeAnew(
                f"topic {place.topic} has the id {place.topic_id}, but what has landed in the warehouse came from "
                f"{', '.join(other)}: the topic was deleted and made anew. Nothing of the new one was landed. "
                "Records of the former one beyond its NEXT_OFFSET are gone, its landed rows stay. To go on with the "
                f"new topic: DELETE FROM RAW.LOAD_OFFSETS WHERE KAFKA_TOPIC = '{place.topic}' AND KAFKA_TOPIC_ID <> "
                f"'{place.topic_id}'; then start the loader"
            )
        mine = [position for position in of_topic if position.place == place]
        if len(mine) > 1:
            raise PositionGone(
                f"RAW.LOAD_OFFSETS has {len(mine)} rows for {place.topic}/{place.partition} ({place.topic_id}), with "
                f"NEXT_OFFSET {', '.join(str(p.next_offset) for p in mine)}; delete all but the greatest"
            )
        return mine[0] if mine else None

    # --- work ----------------------------------------------------------------------------------------

    def prepare(self, batches: Batches) -> Callable[[], Marks]:
        """Read the records' bytes into files; the result lands them. Raises Retry while the broker does not answer.

        Nothing here asks the warehouse: it is done while the flush before this one is loaded there.
        """
        begun = time.monotonic()
        try:
            self._same_topics(batches)
        except NoAnswer as error:
            raise Retry(str(error), RETRY_SECONDS) from error
        load = self._load(batches)
        self._ready.update((one.slot, one.following) for one in load.ranges)
        return partial(self._write, batches, load, begun)

    def _write(self, batches: Batches, load: Load, begun: float) -> Marks:
        """Land every record of the batches that has not landed. Raises Retry while that cannot be done."""
        try:
            if not self._warehouse.connected:
                self._read_again(batches)
            try:
                landed = self._land(batches, load)
            except Moved as moved:
                _log.warning("position_moved", detail=str(moved), remedy="reading the positions, landing the rest")
                self._read_again(batches)
                landed = self._land(batches, load)
        except Away as error:
            self._up(False, str(error))
            raise Retry(str(error), RETRY_SECONDS) from error
        except Moved as error:
            raise Retry(f"another loader works on the same partitions: {error}", RETRY_SECONDS) from error
        self._up(True)
        FLUSH_SECONDS.observe(time.monotonic() - begun)
        _log.info("landed", rows=landed, seconds=round(time.monotonic() - begun, 3))
        self._step("landed")
        return {}

    def _load(self, batches: Batches) -> Load:
        """The rows of all records beyond the positions held, as the backend takes them."""
        landing, ranges = Landing(clock.now_us()), list[Range]()
        for slot, messages in batches.items():
            held = self._held[slot]
            # All are fresh but after somebody else has landed some of them; in order they are in any case.
            late = held.next_offset > _offset(messages[0])
            fresh = [m for m in messages if _offset(m) >= held.next_offset] if late else messages
            if not fresh:
                continue
            rejected = 0
            for start in range(0, len(fresh), client.CHUNK):
                rejected += landing.take(columns_of(slot, held.place, fresh[start : start + client.CHUNK]))
            # Markers of transactions leave holes in the offsets: the next one is the last one's successor, and
            # the first one is not always the position held.
            first, ready = _offset(fresh[0]), self._ready.get(slot, 0)
            begins = ready if held.next_offset < ready <= first else held.next_offset
            appended_ms = fresh[-1].timestamp()[1]
            ranges.append(Range(slot, begins, first, _offset(fresh[-1]) + 1, appended_ms, rejected))
        tables = landing.tables()
        if REJECTS in tables:
            rows = tables[REJECTS]
            _log.error("rejected", rows=rows.num_rows, first=rows.slice(0, 1).to_pylist()[0])
        counts = {name: rows.num_rows for name, rows in tables.items()}
        name = _file_name([(self._held[one.slot].place, one.begins, one.following) for one in ranges])
        return Load(ranges, self._warehouse.pack(name, tables), counts)

    def _land(self, batches: Batches, load: Load) -> dict[str, int]:
        """One transaction. Returns the number of rows by table."""
        if any(self._held[one.slot].next_offset > one.first for one in load.ranges):
            load = self._load(batches)  # somebody else has landed some of them meanwhile
        if any(self._held[one.slot].next_offset < one.begins for one in load.ranges):
            raise Retry("the flush before this one has not landed", 0)
        if not load.ranges:
            return {}
        moves = [(self._held[one.slot], one.following) for one in load.ranges]
        self._warehouse.land(load.packed, moves)
        for one, (held, following) in zip(load.ranges, moves, strict=True):
            self._held[one.slot] = held._replace(next_offset=following)
            topic = one.slot.topic
            BEHIND_SECONDS.labels(topic).set(max(0.0, clock.now_ms() - one.appended_ms) / 1_000)
            THROUGH.labels(topic, str(one.slot.partition)).set(one.appended_ms / 1_000)
            if one.rejected:
                metrics.UNREADABLE.labels(topic).inc(one.rejected)
        for name, count in load.counts.items():
            ROWS_LANDED.labels(name).inc(count)
            FILES_LANDED.labels(name).inc()
        LAST_FLUSH.set_to_current_time()
        return load.counts

    def _same_topics(self, batches: Batches) -> None:
        """The records at hand are of the topics whose ids are held.

        An id never comes back: as it was held when the partition was opened and is the same now, everything that
        was fetched in between came from it.
        """
        ids = self._broker.topic_ids(sorted({slot.topic for slot in batches}))
        for slot in batches:
            held = self._held[slot].place
            if ids[slot.topic] != held.topic_id:
                raise TopicMadeAnew(
                    f"topic {held.topic} was deleted and made anew while it was read (id {held.topic_id} before, "
                    f"{ids[slot.topic]} now). Nothing of the new one was landed; start the loader to be told what to do"
                )

    def _read_again(self, batches: Batches) -> None:
        """Find out how far the warehouse is, after a session was lost or somebody else has loaded."""
        for slot in batches:
            held = self._held[slot]
            found = self._position(held.place)
            if found is None or found.next_offset < held.next_offset:
                now = "gone" if found is None else f"back at {found.next_offset}"
                raise PositionGone(
                    f"the position of {held.place.topic}/{slot.partition} in RAW.LOAD_OFFSETS was {held.next_offset} "
                    f"and is {now}: somebody has changed it. Leaving, to start from what it says"
                )
            self._held[slot] = found

    def _up(self, up: bool, reason: str = "") -> None:
        WAREHOUSE_UP.set(up)
        self._health.ready(up, reason)


def columns_of(slot: Slot, place: Place, messages: Sequence[Message]) -> Records:
    """Records of a slot, in order, as Landing takes them."""
    return Records(
        slot.topic,
        *place,
        list(map(_OFFSET, messages)),
        [message.timestamp()[1] for message in messages],
        list(map(_KEY, messages)),
        list(map(_VALUE, messages)),
    )


_OFFSET, _KEY, _VALUE = methodcaller("offset"), methodcaller("key"), methodcaller("value")


def _offset(message: Message) -> int:
    offset = message.offset()
    assert offset is not None
    return offset


def _file_name(ranges: Sequence[tuple[Place, int, int]]) -> str:
    """Says which records are inside, for people; its end makes it the only one of its name."""
    parts = [f"{place.topic_id}-{place.partition}-{begins}-{following}" for place, begins, following in ranges]
    if len(parts) > 4:
        parts[4:] = [f"and-{len(parts) - 4}-more"]
    # A topic's id is base64: a slash would make folders, and two dashes in its place begin a comment in SQL.
    return f"{'.'.join(parts)}.{secrets.token_hex(6)}".replace("/", "_").replace("+", "_")
