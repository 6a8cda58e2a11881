"""Fixtures: the aggregator as real processes on the test's topics, and a market to publish."""

from __future__ import annotations

from collections.abc import Callable
from decimal import Decimal
from random import Random

import pytest
from marketflow_common import topics as names
from marketflow_common.events import Event, Kline, Trade, Watermark
from marketflow_common.intervals import MINUTE, window_start
from marketflow_common.kafka.source import Publisher
from marketflow_common.settings import KafkaSettings
from marketflow_stack.testing import CreatedTopics, Program, read_all

SYMBOLS = ("ETHUSDT", "BTCUSDT", "BNBUSDT", "SOLUSDT")
T0 = 1_723_161_240_000_000


@pytest.fixture
def aggregator(service: Callable[..., Program]) -> Callable[..., Program]:
    """Starts one more process; it is ready when it is returned."""
    return lambda intervals="1m": service("aggregator", AGGREGATOR_INTERVALS=intervals).wait_ready()


@pytest.fixture
def market() -> list[tuple[str, Event]]:
    """Twelve minutes of four symbols with watermarks, in the order of time; each begins with a cut minute."""
    random, events = Random(7), list[tuple[int, str, Event]]()
    for symbol in SYMBOLS:
        at, trade_id, price = T0 + 40_000_000, 1000, Decimal("2683.80")
        trades: list[Trade] = []
        while at < T0 + 12 * MINUTE:
            at += random.choice((0, 1_000, 400_000, 2_000_000, 90_000_000 if random.random() < 0.02 else 1_000_000))
            price += Decimal(random.randint(-20, 20)).scaleb(-2)
            qty = Decimal(random.randint(1, 50_000)).scaleb(-4)
            trade_id += 1
            trades.append(Trade("sim", symbol, trade_id, price, qty, random.random() < 0.5, at, at))
        end = window_start(at)
        trades = [t for t in trades if t.traded_at < end]
        events += [(t.traded_at, symbol, t) for t in trades]
        for start in range(T0, end, MINUTE):
            last = max(t.trade_id for t in trades if t.traded_at < start + MINUTE)
            zero = Decimal(0)
            kline = Kline(start, start + MINUTE - 1, zero, zero, zero, zero, zero, zero, 0, zero, zero, -1, -1)
            events.append((start + MINUTE, symbol, Watermark("sim", symbol, start + MINUTE, last, kline)))
    events.sort(key=lambda row: row[0])
    return [(symbol, event) for _, symbol, event in events]


@pytest.fixture
def publish(topics: CreatedTopics) -> Callable[[list[tuple[str, Event]]], None]:
    """Publishes events as the ingestor does: in order, in small transactions, each symbol in its partition."""
    kafka = KafkaSettings(bootstrap_servers=topics.bootstrap, topic_prefix=topics.prefix)
    publishers: dict[int, Publisher] = {}

    def send(events: list[tuple[str, Event]]) -> None:
        for at in range(0, len(events), 200):
            batches: dict[int, list[Event]] = {}
            for symbol, event in events[at : at + 200]:
                batches.setdefault(names.partition_of(symbol, 3), []).append(event)
            for partition, batch in batches.items():
                if partition not in publishers:
                    publishers[partition] = Publisher(kafka, "feed", names.OHLCV_RAW, partition)
                    publishers[partition].open()
                publishers[partition].publish(batch)

    return send


@pytest.fixture
def candles(topics: CreatedTopics) -> Callable[[], dict[str, list[bytes]]]:
    """What is on ohlcv_agg: the records' bytes by symbol, in order."""

    def read() -> dict[str, list[bytes]]:
        found: dict[str, list[bytes]] = {}
        for message in read_all(topics.bootstrap, topics["ohlcv_agg"]):
            key, value = message.key(), message.value()
            assert key is not None
            assert value is not None
            found.setdefault(key.decode() if isinstance(key, bytes) else key, []).append(
                value if isinstance(value, bytes) else value.encode()
            )
        return found

    return read
