"""The ingestor as a process, between the exchange simulator and a real broker."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from marketflow_common import service
from marketflow_stack.kafka import KafkaBroker
from marketflow_stack.testing import CreatedTopics, eventually, free_port
from marketflow_stack.topics import ensure_topics

pytestmark = pytest.mark.broker
Make = Callable[..., Any]


def test_a_replay_at_full_speed_is_published_once_and_in_order(
    simulator: Make, ingestor: Make, capture: Make, whole: Make
) -> None:
    exchange = simulator(replay=capture(3_000, pause_at=1_500, lost=frozenset({700, 701})), speed="max")
    one = ingestor(exchange).wait_ready()
    exchange.start()
    found = whole(exchange)
    assert [(g.first_trade_id, g.last_trade_id, g.final) for g in found.gaps] == [(1_700, 1_701, True)]
    # All closed minutes, the cut first one and the empty one included, are proven.
    assert len(found.watermarks) == found.trades[-1].traded_at // 60_000_000 - found.trades[0].traded_at // 60_000_000
    assert 0 in [mark.kline.trade_count for mark in found.watermarks]
    begin = time.monotonic()
    assert one.stop() == 0
    assert time.monotonic() - begin < 15


def test_the_first_minute_of_a_running_market_is_filled_back_to_its_start(
    simulator: Make, ingestor: Make, feed: Make
) -> None:
    exchange = simulator(symbols="ETHUSDT", speed=10)
    exchange.start()
    one = ingestor(exchange)
    eventually(lambda: len(feed().watermarks) >= 2, timeout=90, interval=0.5)
    assert one.stop() == 0
    found = feed()
    found.check_trades(exchange, found.ids[0], found.ids[-1])
    found.check_watermarks()
    # One trade of the minute before says that nothing of the first minute is missing.
    minutes = [trade.traded_at // 60_000_000 for trade in found.trades]
    assert minutes[0] < minutes[1]
    assert found.watermarks[0].kline.open_time // 60_000_000 == minutes[1]


def test_skipped_repeated_and_reordered_ids_and_a_lost_connection_leave_no_trace(
    simulator: Make, ingestor: Make, capture: Make, whole: Make
) -> None:
    exchange = simulator(replay=capture(2_400), speed=60)
    one = ingestor(exchange).wait_ready()
    for fault in (
        {"kind": "skip", "from_id": 1_200, "count": 1},
        {"kind": "skip", "from_id": 1_400, "count": 120},
        {"kind": "repeat", "from_id": 1_600, "count": 20},
        {"kind": "reorder", "from_id": 1_700, "count": 10},
    ):
        exchange.fault(**fault)
    exchange.start()
    eventually(lambda: exchange.published() > 900, interval=0.01)
    exchange.fault(kind="disconnect")
    found = whole(exchange)
    assert not found.gaps
    assert one.metric("ingestor_filled_total") >= 121
    assert one.metric("ingestor_duplicates_total") >= 20
    assert one.metric("ingestor_reconnects_total") == 1


def test_what_rest_does_not_give_in_time_becomes_a_gap_and_comes_late_even_after_a_kill(
    simulator: Make, ingestor: Make, capture: Make, feed: Make
) -> None:
    exchange = simulator(replay=capture(1_200, lost=frozenset({303})), speed=20)
    one = ingestor(exchange, fill_deadline_s=0.5).wait_ready()
    exchange.fault(kind="skip", from_id=1_300, count=6)
    exchange.start()
    eventually(lambda: exchange.published() > 100, interval=0.01)
    exchange.fault(kind="rest_error", count=10_000)
    eventually(lambda: feed().ids[-1:] == [2_199], interval=0.5)
    found = feed()
    assert found.ids == [*range(1_000, 1_300), *range(1_307, 2_200)]
    assert [(g.first_trade_id, g.last_trade_id, g.final) for g in found.gaps] == [(1_300, 1_306, False)]
    assert "503" in found.gaps[0].reason
    assert one.metric("ingestor_gaps_total") == 1
    one.kill()
    exchange.heal()
    two = ingestor(exchange)
    eventually(lambda: two.answers("/healthz") and two.metric("ingestor_late_total") == 6)
    eventually(lambda: two.metric("ingestor_open_gaps") == 0)
    assert two.stop() == 0
    found = feed()
    assert found.ids[-6:] == [1_300, 1_301, 1_302, 1_304, 1_305, 1_306]
    assert [(g.first_trade_id, g.last_trade_id) for g in found.gaps if g.final] == [(1_303, 1_303)]
    three = ingestor(exchange).wait_ready()
    assert three.stop() == 0
    assert feed().events == found.events


def test_a_kill_in_mid_stream_leaves_no_hole_and_no_repeat(
    simulator: Make, ingestor: Make, capture: Make, whole: Make, feed: Make
) -> None:
    exchange = simulator(replay=capture(6_000), speed=30)
    one = ingestor(exchange).wait_ready()
    exchange.start()
    eventually(lambda: len(feed().watermarks) >= 1, interval=0.2)
    one.kill()
    ingestor(exchange)
    found = whole(exchange)
    # The minutes that closed while nobody listened are proven by REST.
    minutes = found.trades[-1].traded_at // 60_000_000 - found.trades[0].traded_at // 60_000_000
    assert len(found.watermarks) == minutes


def test_two_replicas_share_the_partitions_and_one_takes_over_when_the_other_is_killed(
    simulator: Make, ingestor: Make, whole: Make, feed: Make
) -> None:
    symbols = "BTCUSDT,ETHUSDT,SOLUSDT"
    exchange = simulator(symbols=symbols, minutes=8, speed=15)
    both = [ingestor(exchange, symbols), ingestor(exchange, symbols)]
    eventually(lambda: sorted(map(len, [one.owned() for one in both])) == [1, 2], timeout=90)
    for one in both:
        one.wait_ready()
    exchange.start()
    # A symbol of which nothing was ever published would begin anew where the survivor joins the stream.
    eventually(lambda: all(feed(symbol).ids for symbol in symbols.split(",")), interval=0.2)
    victim = next(one for one in both if 2 in one.owned())
    victim.signal(signal.SIGKILL)
    survivor = next(one for one in both if one is not victim)
    eventually(lambda: survivor.owned() == [0, 1, 2], timeout=30)
    for symbol in symbols.split(","):
        whole(exchange, symbol)


def test_a_replica_that_was_frozen_for_half_a_minute_is_fenced_and_writes_nothing(
    simulator: Make, ingestor: Make, capture: Make, whole: Make, feed: Make
) -> None:
    exchange = simulator(replay=capture(6_000), speed=6)
    frozen = ingestor(exchange, KAFKA_TRANSACTION_TIMEOUT_MS=4_000).wait_ready()
    other = ingestor(exchange, KAFKA_TRANSACTION_TIMEOUT_MS=4_000)
    eventually(lambda: frozen.owned() and other.owned(), timeout=90)
    if 2 in other.owned():
        frozen, other = other, frozen
    frozen.wait_ready()
    exchange.start()
    eventually(lambda: len(feed().ids) > 100, interval=0.1)
    frozen.signal(signal.SIGSTOP)
    asleep = time.monotonic()
    eventually(lambda: 2 in other.owned(), timeout=30)
    last = feed().ids[-1]
    eventually(lambda: feed().ids[-1] > last + 200, interval=0.2)
    eventually(lambda: time.monotonic() > asleep + 30, timeout=40)
    frozen.signal(signal.SIGCONT)
    found = whole(exchange)
    assert found.ids == list(range(1_000, 7_000))
    assert not found.gaps
    if frozen.process.poll() is not None:
        assert frozen.wait() == service.EXIT_FENCED


def test_nothing_is_lost_while_the_broker_is_away(
    simulator: Make, ingestor: Make, capture: Make, feed: Make, whole: Make, topics: CreatedTopics, tmp_path: Path
) -> None:
    broker = KafkaBroker(tmp_path / "kafka", free_port(), free_port())
    broker.prepare()
    broker.start()
    try:
        ensure_topics(broker.bootstrap, topics.specs, prefix=topics.prefix)
        exchange = simulator(replay=capture(6_000), speed=15)
        one = ingestor(
            exchange, KAFKA_BOOTSTRAP_SERVERS=broker.bootstrap, KAFKA_TRANSACTION_TIMEOUT_MS=4_000
        ).wait_ready()
        exchange.start()
        eventually(lambda: len(feed("ETHUSDT", broker.bootstrap).ids) > 200, interval=0.2)
        broker.kill()
        eventually(lambda: exchange.published() > 4_000, interval=0.2)
        broker.start()
        whole(exchange, bootstrap=broker.bootstrap)
        assert one.process.poll() is None
    finally:
        broker.kill()


def test_an_unknown_symbol_is_named_with_its_closest_match(simulator: Make, ingestor: Make) -> None:
    exchange = simulator(symbols="ETHUSDT,BTCUSDT", minutes=1)
    one = ingestor(exchange, "BTCUSDT,ETHUSD")
    assert one.wait() == service.EXIT_CONFIG
    assert "ETHUSD (did you mean ETHUSDT?)" in one.log.read_text()
