"""The one transaction of a flush against a real warehouse process: all or nothing, once, whoever else loads."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pytest
from marketflow_common import codec, topics
from marketflow_common.events import Gap
from marketflow_loader import schema
from marketflow_loader.tables import Landing, Row
from marketflow_loader.warehouse import Away, Moved, Place, Position, Warehouse

PLACE = Place("ohlcv_raw", "id-1", 0)


def tables_of(first: int, last: int, make: Any) -> dict[str, pa.Table]:
    landing = Landing(1)
    landing.add(
        Row(topics.OHLCV_RAW, *PLACE, offset, 1_000, b"S", codec.encode(make(0, offset + 1)))
        for offset in range(first, last + 1)
    )
    return landing.tables()


@pytest.fixture
def warehouse(tables: Any) -> Iterator[Warehouse]:
    found = Warehouse(tables.settings)
    found.start(Position(PLACE, 0))
    yield found
    found.close()


def landed(tables: Any) -> list[int]:
    return [offset for _, _, offset in tables.offsets("RAW.TRADES")]


def test_rows_and_position_appear_together(tables: Any, warehouse: Warehouse, trade: Any) -> None:
    warehouse.land(warehouse.pack("one", tables_of(0, 9, trade)), [(Position(PLACE, 0), 12)])
    assert landed(tables) == list(range(10))
    assert warehouse.positions([PLACE.topic]) == [Position(PLACE, 12)]
    values = tables.ask("SELECT TRADE_ID, PRICE, QTY, BUYER_IS_MAKER, TRADED_AT FROM RAW.TRADES WHERE KAFKA_OFFSET = 6")
    [(trade_id, price, qty, maker, traded_at)] = values
    expected = trade(0, 7)
    assert (trade_id, price, qty, maker) == (7, expected.price, expected.qty, expected.buyer_is_maker)
    assert traded_at.isoformat() == "1970-01-01T00:00:00.007000+00:00"
    assert tables.ask("LIST @RAW.LANDING") == []


def test_a_position_that_moved_lands_nothing(tables: Any, warehouse: Warehouse, trade: Any) -> None:
    warehouse.land(warehouse.pack("one", tables_of(0, 4, trade)), [(Position(PLACE, 0), 5)])
    with pytest.raises(Moved):
        warehouse.land(warehouse.pack("two", tables_of(0, 6, trade)), [(Position(PLACE, 0), 7)])
    assert landed(tables) == [0, 1, 2, 3, 4]
    warehouse.land(warehouse.pack("three", tables_of(5, 6, trade)), [(Position(PLACE, 5), 7)])
    assert landed(tables) == [0, 1, 2, 3, 4, 5, 6]


def test_files_are_uploaded_while_the_flush_before_them_is_in_its_transaction(tables: Any, trade: Any) -> None:
    second: list[Any] = []

    def step(name: str) -> None:
        if name == "compared" and not second:
            second.extend(warehouse.pack("two", tables_of(5, 6, trade)))
            second[0].uploaded.result(30)

    warehouse = Warehouse(tables.settings, step)
    warehouse.start(Position(PLACE, 0))
    warehouse.land(warehouse.pack("one", tables_of(0, 4, trade)), [(Position(PLACE, 0), 5)])
    assert landed(tables) == [0, 1, 2, 3, 4]
    warehouse.land(second, [(Position(PLACE, 5), 7)])
    assert landed(tables) == [0, 1, 2, 3, 4, 5, 6]
    warehouse.close()


def test_what_waits_to_be_uploaded_is_dropped_with_the_session(tables: Any, trade: Any) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:  # takes connections, and never answers
        port = silent.getsockname()[1]
        far = Warehouse(tables.settings.model_copy(update={"port": port, "network_timeout": 2}))
        silent.settimeout(60)
        files = [far.pack(f"try-{i}", tables_of(0, 4, trade)) for i in range(5)]
        with silent.accept()[0]:  # the first is under way
            far.close()
        assert files[-1][0].uploaded.cancelled()
        with pytest.raises(Away, match="given up with its session"):
            far.land(files[-1], [(Position(PLACE, 0), 5)])
        assert files[0][0].uploaded.exception(120) is not None


def test_a_position_is_started_once(warehouse: Warehouse) -> None:
    warehouse.start(Position(PLACE, 5))
    assert warehouse.positions([PLACE.topic, "another"]) == [Position(PLACE, 0)]


def test_one_of_two_loaders_that_race_lands_and_the_other_is_told(
    tables: Any, warehouse: Warehouse, trade: Any
) -> None:
    reached, go_on = threading.Event(), threading.Event()

    def step(name: str) -> None:
        if name == "compared":
            reached.set()
            assert go_on.wait(30)

    slow = Warehouse(tables.settings, step)
    outcome: list[str] = []

    def race() -> None:
        try:
            slow.land(slow.pack("slow", tables_of(0, 4, trade)), [(Position(PLACE, 0), 5)])
            outcome.append("landed")
        except (Away, Moved) as error:
            outcome.append(type(error).__name__)

    thread = threading.Thread(target=race)
    thread.start()
    assert reached.wait(30)
    # The slow one has changed the position and holds it: nobody else gets past it until it has ended.
    with pytest.raises((Away, Moved)):
        warehouse.land(warehouse.pack("fast", tables_of(0, 4, trade)), [(Position(PLACE, 0), 5)])
    go_on.set()
    thread.join(30)
    slow.close()
    count = 1 if outcome == ["landed"] else 0
    assert landed(tables) == list(range(5)) * count
    assert warehouse.positions([PLACE.topic]) == [Position(PLACE, 5 * count)]


def test_a_table_that_refuses_its_rows_keeps_all_others_back(tables: Any, warehouse: Warehouse, trade: Any) -> None:
    landing = Landing(1)
    gap = Gap("test", "S0", 1, 2, "lost", True)
    landing.add([Row(topics.OHLCV_RAW, *PLACE, 5, 1, b"S", codec.encode(gap))])
    both = tables_of(0, 4, trade) | landing.tables()
    feed = both["RAW.FEED_EVENTS"]
    refused = feed.set_column(feed.schema.get_field_index("SYMBOL"), "SYMBOL", pa.array([None], pa.string()))
    with pytest.raises(Away, match="SYMBOL"):
        warehouse.land(warehouse.pack("one", both | {"RAW.FEED_EVENTS": refused}), [(Position(PLACE, 0), 6)])
    assert landed(tables) == []
    assert warehouse.positions([PLACE.topic]) == [Position(PLACE, 0)]
    warehouse.land(warehouse.pack("two", both), [(Position(PLACE, 0), 6)])
    assert landed(tables) == [0, 1, 2, 3, 4]
    assert [offset for _, _, offset in tables.offsets("RAW.FEED_EVENTS")] == [5]


# The connector's own thread that cancels a statement after its timeout fails like the statement does.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_the_position_tells_after_the_answer_to_commit_was_lost(tables: Any, cable: Any, trade: Any) -> None:
    def step(name: str) -> None:
        if name == "copied":
            cable.break_at_the_next_answer()

    far = Warehouse(tables.settings.model_copy(update={"port": cable.port, "network_timeout": 2}), step)
    far.start(Position(PLACE, 0))
    with pytest.raises(Away):
        far.land(far.pack("one", tables_of(0, 4, trade)), [(Position(PLACE, 0), 5)])
    assert not far.connected
    with pytest.raises(Away):
        far.positions([PLACE.topic])
    cable.mend()
    assert far.positions([PLACE.topic]) == [Position(PLACE, 5)]
    far.close()
    assert landed(tables) == [0, 1, 2, 3, 4]


def test_the_schema_applied_again_changes_nothing(tables: Any, warehouse: Warehouse, trade: Any) -> None:
    warehouse.land(warehouse.pack("one", tables_of(0, 4, trade)), [(Position(PLACE, 0), 5)])
    count = schema.apply(tables.settings, schema.schema_text(), 30)
    assert count > 10
    assert landed(tables) == [0, 1, 2, 3, 4]
    assert warehouse.positions([PLACE.topic]) == [Position(PLACE, 5)]
