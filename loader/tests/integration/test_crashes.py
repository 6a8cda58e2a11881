"""Whatever is killed or frozen, and when: every record lands once."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from marketflow_common import topics as names
from marketflow_common.kafka.source import Publisher
from marketflow_common.settings import KafkaSettings
from marketflow_stack.kafka import KafkaBroker
from marketflow_stack.testing import CreatedTopics, eventually, free_port, read_all
from marketflow_stack.topics import ensure_topics

pytestmark = [pytest.mark.broker]
Published = Callable[..., list[tuple[str, int, int]]]
STEPS = ("parquet_written", "put", "begun", "compared", "copied", "committed", "landed")
"""of a flush; what comes after the last one is the commit to Kafka"""


@pytest.fixture
def all_landed(published: Published) -> Callable[..., None]:
    """Waits until everything published has landed, and checks that nothing has twice."""

    def check(tables: Any) -> None:
        trades, candles = published(names.OHLCV_RAW), published(names.OHLCV_AGG)
        eventually(lambda: len(tables.offsets("RAW.TRADES")) >= len(trades), timeout=120, interval=0.3)
        eventually(lambda: len(tables.offsets("STAGING.OHLCV_STREAM")) >= len(candles), timeout=120, interval=0.3)
        assert tables.offsets("RAW.TRADES") == trades
        assert tables.offsets("STAGING.OHLCV_STREAM") == candles

    return check


@pytest.mark.timeout(600)  # a group waits six seconds for each member that was killed
def test_a_loader_killed_at_any_step_of_a_flush_lands_each_record_once(
    tables: Any,
    start_loader: Callable[..., Any],
    feed: Callable[..., None],
    all_landed: Callable[..., None],
    tmp_path: Path,
) -> None:
    feed(1, 200)
    told = tmp_path / "steps"
    small = {"LOADER_FLUSH_ROWS": "50"}
    loader = start_loader(tables, "--die-at", ",".join(STEPS), "--tell", str(told), **small)

    def reached() -> list[str]:
        assert loader.process.poll() is None, loader.log.read_text()
        return told.read_text().split() if told.exists() else []

    eventually(lambda: reached() == list(STEPS), timeout=400)
    feed(201, 300)
    all_landed(tables)
    assert loader.stop() == 0


@pytest.fixture
def freeze(start_loader: Callable[..., Any], tmp_path: Path) -> Callable[..., Any]:
    """Starts a loader and waits until it has stopped itself at a step; SIGCONT lets it go on."""

    def start(tables: Any, step: str, **settings: object) -> Any:
        told = tmp_path / "frozen"
        loader = start_loader(tables, "--freeze-at", step, "--tell", str(told), **settings)
        eventually(told.exists, timeout=120)
        return loader

    return start


@pytest.mark.parametrize("step", ["put", "compared", "copied"])
def test_a_loader_that_wakes_up_after_another_took_over_lands_nothing_twice(
    tables: Any,
    start_loader: Callable[..., Any],
    freeze: Callable[..., Any],
    feed: Callable[..., None],
    all_landed: Callable[..., None],
    step: str,
) -> None:
    feed(1, 100)
    frozen = freeze(tables, step)
    taking_over = start_loader(tables)
    all_landed(tables)
    frozen.signal(signal.SIGCONT)
    feed(101, 200)
    all_landed(tables)
    # Whichever of the two was last, nothing more may come.
    frozen.stop()
    all_landed(tables)
    assert taking_over.stop() == 0
    all_landed(tables)


def shown(loader: Any, metric: str, at_least: float) -> bool:
    found = loader.metric(metric)
    assert found >= at_least, f"{metric} is {found}"
    return True


def test_a_warehouse_that_dies_in_mid_transaction_is_waited_for_with_a_bounded_number_of_records(
    own_warehouse: Any,
    own_tables: Any,
    freeze: Callable[..., Any],
    feed: Callable[..., None],
    all_landed: Callable[..., None],
) -> None:
    feed(1, 100)
    loader = freeze(own_tables, "copied", LOADER_FLUSH_ROWS="50")
    own_warehouse.kill()
    loader.signal(signal.SIGCONT)
    eventually(lambda: loader.health().get("ready") is False, timeout=120)
    feed(101, 300)
    eventually(lambda: "outside_away" in loader.log.read_text(), timeout=120)
    # Nothing more is fetched, what waits is counted, and how stale the tables are is told and grows.
    eventually(lambda: loader.metric("fetching_paused") == 1, timeout=120)
    assert 50 <= loader.metric("records_waiting") <= 150
    eventually(lambda: shown(loader, "consumer_lag_records{", at_least=700), timeout=60)
    assert loader.metric("warehouse_up") == 0
    stale = loader.metric('oldest_waiting_seconds{topic="ohlcv_raw"')
    eventually(lambda: shown(loader, 'oldest_waiting_seconds{topic="ohlcv_raw"', at_least=stale + 0.1), timeout=60)
    own_warehouse.launch().wait_for("/health")
    all_landed(own_tables)
    eventually(lambda: loader.metric("records_waiting") == 0 == loader.metric("fetching_paused"), timeout=120)
    assert loader.wait_ready().stop() == 0


def test_a_commit_that_is_carried_out_long_after_its_client_gave_up_is_found_and_not_repeated(
    own_warehouse: Any,
    own_tables: Any,
    freeze: Callable[..., Any],
    feed: Callable[..., None],
    all_landed: Callable[..., None],
) -> None:
    feed(1, 100)
    loader = freeze(own_tables, "copied", SNOWFLAKE_NETWORK_TIMEOUT="2")
    own_warehouse.signal(signal.SIGSTOP)
    loader.signal(signal.SIGCONT)
    feed(101, 200)
    eventually(lambda: "outside_away" in loader.log.read_text(), timeout=120)
    own_warehouse.signal(signal.SIGCONT)
    all_landed(own_tables)
    assert loader.wait_ready().stop() == 0
    all_landed(own_tables)


def test_a_loader_waits_for_a_warehouse_that_is_not_there_yet(
    own_warehouse: Any,
    own_tables: Any,
    start_loader: Callable[..., Any],
    feed: Callable[..., None],
    all_landed: Callable[..., None],
) -> None:
    own_warehouse.stop()
    feed(1, 40)
    loader = start_loader(own_tables)
    eventually(lambda: "warehouse_away" in loader.log.read_text(), timeout=120)
    assert loader.health()["ready"] is False
    own_warehouse.launch().wait_for("/health")
    all_landed(own_tables)
    assert loader.wait_ready().stop() == 0


@pytest.fixture
def own_broker(tmp_path: Path, topics: CreatedTopics) -> Iterator[KafkaBroker]:
    """A broker to break, with topics of the same names as the test's."""
    broker = KafkaBroker(tmp_path / "kafka", free_port(), free_port())
    broker.prepare()
    broker.start()
    ensure_topics(broker.bootstrap, topics.specs, prefix=topics.prefix)
    yield broker
    broker.kill()


def test_a_broker_that_dies_before_the_commit_to_it_is_waited_for(
    own_broker: KafkaBroker,
    tables: Any,
    freeze: Callable[..., Any],
    topics: CreatedTopics,
    trade: Any,
) -> None:
    kafka = KafkaSettings(bootstrap_servers=own_broker.bootstrap, topic_prefix=topics.prefix)

    def feed(first: int, last: int) -> None:
        for partition in range(3):
            publisher = Publisher(kafka, f"test-{first}", names.OHLCV_RAW, partition)
            publisher.open()
            publisher.publish([trade(partition, number) for number in range(first, last + 1)])
            publisher.close()

    feed(1, 50)
    loader = freeze(tables, "copied", KAFKA_BOOTSTRAP_SERVERS=own_broker.bootstrap)
    own_broker.kill()
    loader.signal(signal.SIGCONT)
    # It lands what it has, and cannot tell the broker.
    eventually(lambda: len(tables.offsets("RAW.TRADES")) >= 1, timeout=120)
    own_broker.start()
    feed(51, 80)
    eventually(lambda: len(tables.offsets("RAW.TRADES")) >= 240, timeout=180)
    assert loader.wait_ready().stop() == 0
    records = read_all(own_broker.bootstrap, topics[names.OHLCV_RAW])
    expected = [(topics[names.OHLCV_RAW], record.partition(), record.offset()) for record in records]
    assert tables.offsets("RAW.TRADES") == sorted(expected)
