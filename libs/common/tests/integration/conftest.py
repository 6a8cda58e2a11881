"""Fixtures for the loops' tests: a settings object for the test's topics, a publisher of trades, real processes."""

from __future__ import annotations

import time
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path

import pytest
from marketflow_common import codec
from marketflow_common import topics as names
from marketflow_common.events import Candle, Trade
from marketflow_common.kafka.source import Publisher
from marketflow_common.settings import KafkaSettings
from marketflow_stack.testing import CreatedTopics, Program, Programs, eventually, free_port, read_all

RUNNER = Path(__file__).with_name("runner.py")


@pytest.fixture
def kafka(topics: CreatedTopics) -> KafkaSettings:
    return KafkaSettings(bootstrap_servers=topics.bootstrap, topic_prefix=topics.prefix)


@pytest.fixture
def start(topics: CreatedTopics, programs: Programs) -> Callable[..., Program]:
    """``start("transform", "--batch", "5")``: a runner of the loop on the test's topics."""

    def start_one(loop: str, *arguments: str) -> Program:
        port = free_port()
        place = ["--bootstrap", topics.bootstrap, "--prefix", topics.prefix, "--port", str(port)]
        return programs.start(Program, loop, [RUNNER, loop, *place, *arguments], {}, port)

    return start_one


@pytest.fixture
def feed(kafka: KafkaSettings) -> Callable[..., None]:
    """``feed(first, last)`` publishes trades with these ids, qty = id, to each of the three partitions."""
    publishers: dict[int, Publisher] = {}

    def publish(first: int, last: int, batch: int = 20) -> None:
        for partition in range(3):
            if partition not in publishers:
                publishers[partition] = Publisher(kafka, "feed", names.OHLCV_RAW, partition)
                publishers[partition].open()
            for at in range(first, last + 1, batch):
                publishers[partition].publish(
                    [
                        Trade("test", f"S{partition}", i, Decimal(1), Decimal(i), False, i, i)
                        for i in range(at, min(at + batch, last + 1))
                    ]
                )

    return publish


@pytest.fixture
def totals(topics: CreatedTopics) -> Callable[[], dict[int, list[tuple[int, Decimal]]]]:
    """What the transform has published: partition to (trade id, running total), in order."""

    def read() -> dict[int, list[tuple[int, Decimal]]]:
        found: dict[int, list[tuple[int, Decimal]]] = {0: [], 1: [], 2: []}
        for message in read_all(topics.bootstrap, topics["ohlcv_agg"]):
            candle: Candle = codec.decode(names.OHLCV_AGG, message.value())
            found[message.partition() or 0].append((candle.last_trade_id, candle.volume))
        return found

    return read


@pytest.fixture
def expect_totals(totals: Callable[[], dict[int, list[tuple[int, Decimal]]]]) -> Callable[[int], None]:
    """Waits until each partition's outputs are complete, and checks that each is there once, in order, and right."""

    def expect(last: int) -> None:
        eventually(lambda: all(len(rows) >= last for rows in totals().values()), timeout=60)
        exact = [(i, Decimal(i * (i + 1) // 2)) for i in range(1, last + 1)]
        assert totals() == {0: exact, 1: exact, 2: exact}

    return expect


@pytest.fixture
def elapsed() -> Callable[[], float]:
    begin = time.monotonic()
    return lambda: time.monotonic() - begin
