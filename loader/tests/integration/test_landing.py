"""What a read_committed reader sees is what has landed: every record once, with its origin and its exact values."""

from __future__ import annotations

from collections.abc import Callable
from decimal import Decimal
from typing import Any

import pytest
from confluent_kafka import Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic  # type: ignore[attr-defined]
from marketflow_common import codec, service
from marketflow_common import topics as names
from marketflow_common.events import AccountOpened, Command, Gap, Signal
from marketflow_common.kafka import client
from marketflow_stack.testing import eventually

pytestmark = [pytest.mark.broker]
Published = Callable[..., list[tuple[str, int, int]]]


@pytest.fixture
def landed(start_loader: Callable[..., Any], feed: Callable[..., None]) -> Callable[..., Any]:
    """Starts a loader and waits until the sixty trades of a small feed have landed."""

    def start(tables: Any, **settings: object) -> Any:
        feed(1, 20)
        loader = start_loader(tables, **settings).wait_ready()
        eventually(lambda: len(tables.offsets("RAW.TRADES")) >= 60, timeout=120)
        return loader

    return start


def test_records_land_once_with_topic_partition_and_offset(
    tables: Any, start_loader: Callable[..., Any], feed: Callable[..., None], published: Published, kafka: Any
) -> None:
    feed(1, 100)
    loader = start_loader(tables).wait_ready()
    # A transaction that is aborted leaves records and markers behind that no reader sees.
    aborting = client.producer(kafka, "aborting")
    aborting.init_transactions(30)
    aborting.begin_transaction()
    aborting.produce(kafka.topic(names.OHLCV_RAW), b"{}", partition=0)
    aborting.flush(10)
    aborting.abort_transaction(30)
    feed(101, 200)
    eventually(lambda: len(tables.offsets("RAW.TRADES")) >= 600, timeout=120)
    eventually(lambda: len(tables.offsets("STAGING.OHLCV_STREAM")) >= 10, timeout=120)
    assert loader.metric("rows_landed_total{") == 610
    assert loader.metric("warehouse_up") == 1
    assert loader.stop() == 0
    assert tables.offsets("RAW.TRADES") == published(names.OHLCV_RAW)
    assert tables.offsets("STAGING.OHLCV_STREAM") == published(names.OHLCV_AGG)
    ids = tables.ask("SELECT DISTINCT KAFKA_TOPIC, KAFKA_TOPIC_ID FROM RAW.LOAD_OFFSETS")
    assert len(ids) == 4
    assert set(tables.ask("SELECT DISTINCT KAFKA_TOPIC, KAFKA_TOPIC_ID FROM RAW.TRADES")) <= set(ids)


def test_every_kind_of_record_lands_in_its_table_and_poison_in_rejects(
    tables: Any, start_loader: Callable[..., Any], publish: Callable[..., None], trade: Any, topics: Any
) -> None:
    one = Decimal("0.000000000000000001")
    signal = Signal("id", "levels", "{}", "S0", "1m", 0, one, one, -one, "SELL", 1, {"low": one}, ("a",))
    publish(names.OHLCV_RAW, 0, [trade(0, 1), Gap("test", "S0", 2, 3, "lost", True), trade(0, 4)])
    publish(names.TRADING_SIGNALS, 1, [signal, Command("c", "main", "halt", "chat", 5, None, "sig")])
    publish(names.ORDER_EVENTS, 2, [AccountOpened("main", "paper", {"USDT": one}, 5)])
    poison = Producer({"bootstrap.servers": topics.bootstrap})
    poison.produce(topics["ohlcv_agg"], value=b"\xff not a candle", key=b"S1", partition=1)
    poison.produce(topics["ohlcv_agg"], value=None, key=b"S1", partition=1)
    poison.flush(10)
    loader = start_loader(tables).wait_ready()
    eventually(lambda: tables.ask("SELECT SUM(NEXT_OFFSET) FROM RAW.LOAD_OFFSETS") == [(8,)], timeout=120)
    assert loader.stop() == 0
    assert [o for _, _, o in tables.offsets("RAW.TRADES")] == [0, 2]
    assert tables.ask("SELECT EVENT_TYPE, FINAL, KAFKA_OFFSET FROM RAW.FEED_EVENTS") == [("gap", True, 1)]
    [(momentum, levels)] = tables.ask("SELECT MOMENTUM, LEVELS FROM ANALYTICS.SIGNALS_STREAM")
    assert (momentum, levels) == (-one, '{"low":"0.000000000000000001"}')
    assert tables.ask("SELECT ACTION, KAFKA_PARTITION, EXPIRES_AT IS NULL FROM ANALYTICS.COMMANDS") == [
        ("halt", 1, True)
    ]
    assert tables.ask("SELECT EVENT_TYPE, BALANCES FROM ANALYTICS.ORDER_EVENTS") == [
        ("account_opened", '{"USDT":"0.000000000000000001"}')
    ]
    rejects = tables.ask("SELECT KAFKA_TOPIC, KAFKA_PARTITION, KAFKA_OFFSET, VALUE_BASE64 FROM RAW.REJECTS ORDER BY 3")
    assert rejects == [(topics["ohlcv_agg"], 1, 0, "/yBub3QgYSBjYW5kbGU="), (topics["ohlcv_agg"], 1, 1, None)]


def test_what_waits_is_landed_before_the_loader_leaves(
    tables: Any, start_loader: Callable[..., Any], feed: Callable[..., None], published: Published
) -> None:
    loader = start_loader(tables, LOADER_FLUSH_SECONDS="3600").wait_ready()
    feed(1, 40)
    eventually(lambda: loader.metric("messages_in_total{") >= 122, timeout=120)
    assert tables.offsets("RAW.TRADES") == []
    assert loader.stop() == 0
    assert tables.offsets("RAW.TRADES") == published(names.OHLCV_RAW)


def remake(kafka: Any, name: str) -> None:
    """Delete the topic and make one of the same name."""
    admin, topic = AdminClient({"bootstrap.servers": kafka.bootstrap_servers}), kafka.topic(name)
    admin.delete_topics([topic])[topic].result()

    def made() -> bool:
        future = admin.create_topics([NewTopic(topic, num_partitions=3, replication_factor=1)])[topic]
        return future.exception() is None

    eventually(made)


def test_a_topic_made_anew_stops_the_loader_with_what_to_do(
    tables: Any, landed: Callable[..., Any], start_loader: Callable[..., Any], kafka: Any, trade: Any
) -> None:
    loader = landed(tables)
    before = tables.offsets("RAW.TRADES")
    assert loader.stop() == 0
    remake(kafka, names.OHLCV_RAW)
    plain = Producer({"bootstrap.servers": kafka.bootstrap_servers})
    for number in range(1, 41):
        plain.produce(kafka.topic(names.OHLCV_RAW), codec.encode(trade(0, number)), partition=0)
    assert plain.flush(30) == 0
    again = start_loader(tables)
    assert again.wait() == service.EXIT_UNAVAILABLE
    said = again.log.read_text()
    topic = kafka.topic(names.OHLCV_RAW)
    assert "the topic was deleted and made anew" in said
    remedy = said[said.index("DELETE FROM RAW.LOAD_OFFSETS") :].split(";")[0]
    assert tables.offsets("RAW.TRADES") == before
    # The remedy, to the letter, and the new topic lands beside the old one's rows.
    tables.ask(remedy)
    start_loader(tables).wait_ready()
    eventually(lambda: len(tables.offsets("RAW.TRADES")) >= 100, timeout=120)
    counts = tables.ask(f"SELECT COUNT(*) FROM RAW.TRADES WHERE KAFKA_TOPIC = '{topic}' GROUP BY KAFKA_TOPIC_ID")
    assert sorted(counts) == [(40,), (60,)]


def test_records_deleted_before_they_landed_stop_the_loader(
    tables: Any, landed: Callable[..., Any], start_loader: Callable[..., Any], feed: Callable[..., None], kafka: Any
) -> None:
    loader = landed(tables)
    assert loader.stop() == 0
    before = tables.offsets("RAW.TRADES")
    feed(21, 60)
    admin = AdminClient({"bootstrap.servers": kafka.bootstrap_servers})
    [gone] = admin.delete_records([TopicPartition(kafka.topic(names.OHLCV_RAW), 0, 30)]).values()
    gone.result()
    again = start_loader(tables)
    assert again.wait() == service.EXIT_UNAVAILABLE
    assert "records were deleted before they were read" in again.log.read_text()
    assert tables.offsets("RAW.TRADES") == before


def test_a_topic_made_anew_under_a_running_loader_stops_it_with_nothing_of_the_new_one_landed(
    tables: Any, landed: Callable[..., Any], kafka: Any, trade: Any
) -> None:
    loader = landed(tables)
    before = tables.offsets("RAW.TRADES")
    remake(kafka, names.OHLCV_RAW)
    # More than the former one had, so that the loader's position is an offset of the new one too.
    plain = Producer({"bootstrap.servers": kafka.bootstrap_servers})
    for number in range(1, 301):
        plain.produce(kafka.topic(names.OHLCV_RAW), codec.encode(trade(0, number)), partition=number % 3)
    assert plain.flush(30) == 0
    assert loader.wait() == service.EXIT_UNAVAILABLE
    said = loader.log.read_text()
    assert "made anew while it was read" in said or "nothing was reset" in said
    assert tables.offsets("RAW.TRADES") == before


def test_records_deleted_behind_a_loader_that_could_not_fetch_them_stop_it(
    own_warehouse: Any,
    own_tables: Any,
    landed: Callable[..., Any],
    feed: Callable[..., None],
    kafka: Any,
) -> None:
    """The retention of a topic has run out while the warehouse was away."""
    loader = landed(own_tables, LOADER_FLUSH_ROWS="20")
    own_warehouse.kill()
    feed(21, 200)
    eventually(lambda: loader.metric("fetching_paused") == 1, timeout=120)
    admin, topic = AdminClient({"bootstrap.servers": kafka.bootstrap_servers}), kafka.topic(names.OHLCV_RAW)
    for future in admin.delete_records([TopicPartition(topic, partition, 180) for partition in range(3)]).values():
        future.result()
    own_warehouse.launch().wait_for("/health")
    assert loader.wait() == service.EXIT_UNAVAILABLE
    assert "cannot_go_on" in loader.log.read_text()
    # What it had fetched may have landed; of what was not deleted nothing has, for that would hide the hole.
    assert max(offset for _, _, offset in own_tables.offsets("RAW.TRADES")) < 180
