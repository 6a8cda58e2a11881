"""What a flush does with positions: what is fresh, what is moved, and what it says when somebody else was faster."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any

import pyarrow as pa
import pytest
from marketflow_common import codec
from marketflow_common.events import Trade
from marketflow_common.health import Health
from marketflow_common.kafka.client import Committed, FatalKafkaError
from marketflow_common.kafka.sink import Retry, Slot
from marketflow_common.settings import KafkaSettings
from marketflow_loader.broker import NoAnswer
from marketflow_loader.effect import PositionGone, Rows, TopicMadeAnew
from marketflow_loader.warehouse import Away, Moved, Place, Position, compare_and_set
from prometheus_client import REGISTRY

RAW = Slot("ohlcv_raw", 0)
PLACE = Place("ohlcv_raw", "id-1", 0)


class Message:
    """As much of a confluent_kafka.Message as a flush looks at."""

    def __init__(self, offset: int) -> None:
        self._offset = offset

    def offset(self) -> int:
        return self._offset

    def timestamp(self) -> tuple[int, int]:
        return 2, 1_000

    def key(self) -> bytes:
        return b"S"

    def value(self) -> bytes:
        return codec.encode(Trade("t", "S", self._offset, Decimal(1), Decimal(1), False, 1, 1))


class Memory:
    """A warehouse that keeps offsets, with answers that can be lost: the contract of Warehouse, without SQL."""

    def __init__(self) -> None:
        self.held: dict[Place, int] = {}
        self.landed: list[int] = []
        self.connected = True
        self.fail = ""

    def positions(self, topics: Sequence[str]) -> list[Position]:
        if self.fail == "away":
            raise Away("away")
        self.connected = True
        return [Position(place, offset) for place, offset in self.held.items() if place.topic in topics]

    def start(self, position: Position) -> None:
        self.held.setdefault(position.place, position.next_offset)

    def pack(self, name: str, tables: Mapping[str, pa.Table]) -> list[int]:
        return [offset for table in tables.values() for offset in table["KAFKA_OFFSET"].to_pylist()]

    def land(self, packed: list[int], moves: Sequence[tuple[Position, int]]) -> None:
        fail, self.fail = self.fail, ""
        if fail == "before":
            self.connected = False
            raise Away("the connection broke")
        if any(self.held[held.place] != held.next_offset for held, _ in moves):
            raise Moved("somebody else")
        for held, following in moves:
            self.held[held.place] = following
        self.landed += packed
        if fail == "answer lost":
            self.connected = False
            raise Away("the connection broke")


class Broker:
    def __init__(self) -> None:
        self.id, self.first = "id-1", 0

    def topic_ids(self, names: Sequence[str]) -> dict[str, str]:
        if not self.id:
            raise NoAnswer("away")
        return dict.fromkeys(names, self.id)

    def oldest(self, name: str, partition: int) -> int:
        return self.first


@pytest.fixture
def memory() -> Memory:
    return Memory()


@pytest.fixture
def broker() -> Broker:
    return Broker()


@pytest.fixture
def rows(memory: Memory, broker: Broker) -> Any:
    with Health("loader") as health:
        found: Any = Rows(KafkaSettings(), memory, broker, health, 0.05)  # type: ignore[arg-type]
        found.health = health
        yield found


def batch(*offsets: int) -> Any:
    return {RAW: [Message(offset) for offset in offsets]}


def write(rows: Any, batches: Any) -> None:
    """As the sink does it when nothing else is under way."""
    rows.prepare(batches)()


def test_a_new_partition_starts_at_its_oldest_record(rows: Any, memory: Memory, broker: Broker) -> None:
    broker.first = 17
    assert rows.opened(RAW, Committed(-1, {})) == 17
    assert memory.held == {PLACE: 17}


def test_the_warehouse_says_where_to_start_whatever_was_committed_to_kafka(rows: Any, memory: Memory) -> None:
    memory.held[PLACE] = 5
    assert rows.opened(RAW, Committed(9, {})) == 5
    assert rows.opened(RAW, Committed(2, {})) == 5


def test_holes_in_the_offsets_are_passed_over_and_the_position_is_the_last_records_successor(
    rows: Any, memory: Memory
) -> None:
    rows.opened(RAW, Committed(-1, {}))
    write(rows, batch(2, 3, 7))
    assert (memory.landed, memory.held) == ([2, 3, 7], {PLACE: 8})


def test_what_another_loader_has_landed_is_not_landed_again(rows: Any, memory: Memory) -> None:
    rows.opened(RAW, Committed(-1, {}))
    memory.held[PLACE] = 3
    write(rows, batch(0, 1, 2, 3, 4))
    assert (memory.landed, memory.held) == ([3, 4], {PLACE: 5})
    write(rows, batch(4, 5))
    assert memory.landed == [3, 4, 5]


def test_a_flush_made_ready_ahead_lands_after_the_one_before_it_and_never_in_its_place(
    rows: Any, memory: Memory
) -> None:
    rows.opened(RAW, Committed(-1, {}))
    first, second = rows.prepare(batch(0, 1)), rows.prepare(batch(3, 4))
    with pytest.raises(Retry, match="the flush before this one has not landed"):
        second()
    assert (memory.landed, memory.held) == ([], {PLACE: 0})
    first()
    second()
    assert (memory.landed, memory.held) == ([0, 1, 3, 4], {PLACE: 5})


def test_what_another_loader_lands_after_a_flush_was_made_ready_is_left_out_of_it(rows: Any, memory: Memory) -> None:
    rows.opened(RAW, Committed(-1, {}))
    ready = rows.prepare(batch(0, 1, 2, 3))
    memory.held[PLACE] = 2
    ready()
    assert (memory.landed, memory.held) == ([2, 3], {PLACE: 4})


def test_flushes_that_failed_are_made_ready_again_as_one(rows: Any, memory: Memory) -> None:
    rows.opened(RAW, Committed(-1, {}))
    first = rows.prepare(batch(0, 1))
    rows.prepare(batch(2, 3))
    memory.fail = "answer lost"
    with pytest.raises(Retry):
        first()
    write(rows, batch(0, 1, 2, 3, 4))
    assert (memory.landed, memory.held) == ([0, 1, 2, 3, 4], {PLACE: 5})


def test_freshness_is_told_by_the_append_time_of_the_last_landed_record_until_the_partition_is_given_up(
    rows: Any, memory: Memory
) -> None:
    labels = {"topic": RAW.topic, "partition": str(RAW.partition)}
    rows.opened(RAW, Committed(-1, {}))
    write(rows, batch(0, 1))
    assert REGISTRY.get_sample_value("landed_through_timestamp_seconds", labels) == 1.0
    assert (REGISTRY.get_sample_value("last_flush_timestamp_seconds") or 0) > 0
    rows.closed(RAW)
    assert REGISTRY.get_sample_value("landed_through_timestamp_seconds", labels) is None


def test_nothing_is_written_when_all_of_it_is_there(rows: Any, memory: Memory) -> None:
    rows.opened(RAW, Committed(-1, {}))
    memory.held[PLACE] = 3
    write(rows, batch(0, 1, 2))
    assert (memory.landed, memory.held) == ([], {PLACE: 3})


@pytest.mark.parametrize(("fail", "after_first"), [("before", []), ("answer lost", [0, 1])])
def test_an_unknown_outcome_is_settled_by_reading_the_position(
    rows: Any, memory: Memory, fail: str, after_first: list[int]
) -> None:
    rows.opened(RAW, Committed(-1, {}))
    memory.fail = fail
    with pytest.raises(Retry):
        write(rows, batch(0, 1))
    assert memory.landed == after_first
    assert rows.health.state()["ready"] is False
    write(rows, batch(0, 1, 2))
    assert memory.landed == [0, 1, 2]
    assert rows.health.state()["ready"] is True


def test_a_topic_made_anew_stops_the_loader_and_says_what_to_do(rows: Any, memory: Memory, broker: Broker) -> None:
    memory.held[PLACE] = 5
    broker.id = "id-2"
    with pytest.raises(TopicMadeAnew, match=r"DELETE FROM RAW\.LOAD_OFFSETS WHERE KAFKA_TOPIC = 'ohlcv_raw'"):
        rows.opened(RAW, Committed(-1, {}))
    assert memory.held == {PLACE: 5}


def test_a_topic_made_anew_under_a_running_loader_lands_nothing(rows: Any, memory: Memory, broker: Broker) -> None:
    rows.opened(RAW, Committed(-1, {}))
    broker.id = "id-2"
    with pytest.raises(TopicMadeAnew):
        write(rows, batch(0, 1))
    assert memory.landed == []


def test_an_unknown_topic_id_is_waited_for(rows: Any, memory: Memory, broker: Broker) -> None:
    rows.opened(RAW, Committed(-1, {}))
    broker.id = ""
    with pytest.raises(Retry):
        write(rows, batch(0))
    broker.id = "id-1"
    write(rows, batch(0))
    assert memory.landed == [0]


@pytest.mark.parametrize("now", [None, 1])
def test_a_position_that_was_taken_away_or_set_back_stops_the_loader(
    rows: Any, memory: Memory, now: int | None
) -> None:
    rows.opened(RAW, Committed(-1, {}))
    write(rows, batch(0, 1, 2))
    del memory.held[PLACE]
    if now is not None:
        memory.held[PLACE] = now
    memory.connected = False
    with pytest.raises(PositionGone, match=r"was 3 and is (gone|back at 1)"):
        write(rows, batch(3))


def test_a_partition_that_cannot_be_opened_in_time_makes_the_loader_leave(rows: Any, memory: Memory) -> None:
    memory.fail = "away"
    with pytest.raises(FatalKafkaError, match="leaving the group"):
        rows.opened(RAW, Committed(-1, {}))


def test_one_statement_moves_all_positions_each_from_where_it_is_held() -> None:
    statement, values = compare_and_set([(Position(PLACE, 5), 9), (Position(Place("b", "id-2", 2), 0), 3)])
    assert statement == (
        "UPDATE RAW.LOAD_OFFSETS SET NEXT_OFFSET = CASE WHEN KAFKA_TOPIC_ID = %s AND KAFKA_PARTITION = %s THEN %s "
        "WHEN KAFKA_TOPIC_ID = %s AND KAFKA_PARTITION = %s THEN %s END, UPDATED_AT = CURRENT_TIMESTAMP() "
        "WHERE (KAFKA_TOPIC = %s AND KAFKA_TOPIC_ID = %s AND KAFKA_PARTITION = %s AND NEXT_OFFSET = %s) "
        "OR (KAFKA_TOPIC = %s AND KAFKA_TOPIC_ID = %s AND KAFKA_PARTITION = %s AND NEXT_OFFSET = %s)"
    )
    assert values == ("id-1", 0, 9, "id-2", 2, 3, "ohlcv_raw", "id-1", 0, 5, "b", "id-2", 2, 0)
