"""The sink's effect: records land in the warehouse, and the warehouse says from where to go on.

Must never land a record twice or pass one over: the position in the warehouse decides, not Kafka's commit.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Mapping, Sequence
from typing import Final

from confluent_kafka import Message
from marketflow_common import clock, logs, metrics
from marketflow_common.health import Health
from marketflow_common.kafka.client import Committed, FatalKafkaError
from marketflow_common.kafka.sink import Batches, Retry, Slot
from marketflow_common.settings import KafkaSettings
from prometheus_client import Counter, Gauge, Histogram

from .broker import Broker, NoAnswer
from .tables import REJECTS, Landing, Row
from .warehouse import Away, Moved, Place, Position, Step, Warehouse, nothing

__all__ = ["PositionGone", "Rows", "TopicMadeAnew"]

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
WAREHOUSE_UP: Final = Gauge("warehouse_up", "Whether the warehouse took what it was last asked for")
RETRY_SECONDS: Final = 1.0
"""Between two attempts while the warehouse is away: its restart takes seconds, and a reconnect costs little."""
_log = logs.get("loader")


class TopicMadeAnew(FatalKafkaError):
    """A topic has another id than the one whose records have landed."""


class PositionGone(FatalKafkaError):
    """The warehouse's position was removed or set back under a running loader."""


class Rows:
    """Lands batches of records; an Effect of marketflow_common.kafka.sink."""

    def __init__(
        self,
        kafka: KafkaSettings,
        warehouse: Warehouse,
        broker: Broker,
        health: Health,
        patience: float,
        step: Step = nothing,
    ) -> None:
        self._kafka, self._warehouse, self._broker = kafka, warehouse, broker
        self._health, self._patience, self._step = health, patience, step
        self._held: dict[Slot, Position] = {}

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
        self._held.pop(slot, None)

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

    def write(self, batches: Batches) -> Mapping[Slot, Mapping[str, int]]:
        """Land every record of the batches that has not landed. Raises Retry while that cannot be done."""
        begun = time.monotonic()
        try:
            if not self._warehouse.connected:
                self._read_again(batches)
            self._same_topics(batches)
            try:
                landed = self._land(batches)
            except Moved as moved:
                _log.warning("position_moved", detail=str(moved), remedy="reading the positions, landing the rest")
                self._read_again(batches)
                landed = self._land(batches)
        except (Away, NoAnswer) as error:
            self._up(False, str(error))
            raise Retry(str(error), RETRY_SECONDS) from error
        except Moved as error:
            raise Retry(f"another loader works on the same partitions: {error}", RETRY_SECONDS) from error
        self._up(True)
        FLUSH_SECONDS.observe(time.monotonic() - begun)
        _log.info("landed", rows=landed, seconds=round(time.monotonic() - begun, 3))
        return {}

    def _land(self, batches: Batches) -> dict[str, int]:
        """One transaction. Returns the number of rows by table."""
        landing = Landing(clock.now_us())
        moves, ranges = [], []
        for slot, messages in batches.items():
            held = self._held[slot]
            # All are fresh but after somebody else has landed some of them; in order they are in any case.
            late = held.next_offset > _offset(messages[0])
            fresh = [m for m in messages if _offset(m) >= held.next_offset] if late else messages
            if not fresh:
                continue
            rejected = landing.add(self._rows(slot, held.place, fresh))
            if rejected:
                metrics.UNREADABLE.labels(slot.topic).inc(rejected)
            # Markers of transactions leave holes in the offsets: the next one is the last one's successor, and
            # the first one is not always the position held.
            moves.append((held, _offset(fresh[-1]) + 1))
            ranges.append((slot, fresh))
        if not moves:
            return {}
        tables = landing.tables()
        for name, rows in tables.items():
            if name == REJECTS:
                _log.error("rejected", rows=rows.num_rows, first=rows.slice(0, 1).to_pylist()[0])
        self._warehouse.land(_file_name(moves), tables, moves)
        for (slot, fresh), (held, following) in zip(ranges, moves, strict=True):
            self._held[slot] = held._replace(next_offset=following)
            appended_ms = fresh[-1].timestamp()[1]
            BEHIND_SECONDS.labels(slot.topic).set(max(0.0, clock.now_ms() - appended_ms) / 1_000)
        counts = {name: rows.num_rows for name, rows in tables.items()}
        for name, count in counts.items():
            ROWS_LANDED.labels(name).inc(count)
            FILES_LANDED.labels(name).inc()
        return counts

    def _rows(self, slot: Slot, place: Place, messages: Sequence[Message]) -> list[Row]:
        topic, (name, topic_id, partition) = slot.topic, place
        return [
            Row(topic, name, topic_id, partition, m.offset(), m.timestamp()[1], m.key(), m.value())  # type: ignore[arg-type]
            for m in messages
        ]

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


def _offset(message: Message) -> int:
    offset = message.offset()
    assert offset is not None
    return offset


def _file_name(moves: Sequence[tuple[Position, int]]) -> str:
    """Says which records are inside, for people; its end makes it the only one of its name."""
    parts = [
        f"{held.place.topic_id}-{held.place.partition}-{held.next_offset}-{following}" for held, following in moves
    ]
    if len(parts) > 4:
        parts[4:] = [f"and-{len(parts) - 4}-more"]
    # A topic's id is base64: a slash would make folders, and two dashes in its place begin a comment in SQL.
    return f"{'.'.join(parts)}.{secrets.token_hex(6)}".replace("/", "_").replace("+", "_")
