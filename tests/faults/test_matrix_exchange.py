"""The fault matrix, the exchange itself: silent, refusing, dropping a symbol; and the broker away.

Every case ends with the audit's market part clean.
"""

from __future__ import annotations

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
SECOND = 1_000_000
START = 1_704_067_200_000_000


@pytest.mark.parametrize("kind", ["rate_limit", "ban"])
def test_who_is_asked_to_wait_waits_and_then_fills(chain: Make, clean: Make, kind: str) -> None:
    one = chain(minutes=5, speed=30)
    one.exchange.fault("skip", symbol="ETHUSDT", at_us=START + 60 * SECOND, count=30)
    one.exchange.fault(kind, at_us=START + 55 * SECOND, seconds=4)
    one.exchange.start()
    found = clean(one.exchange)
    status = {"rate_limit": "429", "ban": "418"}[kind]
    # Asked once, or twice where two questions were on their way; never asked on.
    assert 1 <= one.exchange.answered(status) <= 2
    assert one.exchange.answered("418") <= (1 if kind == "ban" else 0)
    assert one.ingestor.metric("ingestor_filled_total") >= 30
    assert not found.gaps()
    assert not found.revised


def test_a_symbol_that_is_removed_in_mid_window_ends_with_the_candle_of_that_window(chain: Make, clean: Make) -> None:
    one = chain({"symbols_every_s": 1}, speed=30, symbols="ETHUSDT,BTCUSDT")
    one.exchange.fault("delist", symbol="BTCUSDT", at_us=START + 100 * SECOND)
    one.exchange.start()
    eventually(lambda: one.ingestor.metric('ingestor_symbols_ended_total{symbol="BTCUSDT"') == 1)
    one.exchange.end()
    found = clean(one.exchange)
    last = found.trades("BTCUSDT")[-1]
    assert last.traded_at < START + 100 * SECOND
    assert [(g.first_trade_id, g.last_trade_id, g.final) for g in found.gaps("BTCUSDT")] == [
        (last.trade_id + 1, last.trade_id, True)
    ]
    assert [candle.open_time for candle in found.candles("BTCUSDT")] == [START, START + 60 * SECOND]
    assert found.candles("BTCUSDT")[-1].last_trade_id == last.trade_id
    assert not found.gaps()
    assert not found.revised


def test_nothing_is_lost_while_the_broker_is_restarted(
    exchange: Make, ingestor: Make, aggregator: Make, clean: Make, topics: CreatedTopics, tmp_path: Path
) -> None:
    broker = KafkaBroker(tmp_path / "kafka", free_port(), free_port())
    broker.prepare()
    broker.start()
    try:
        ensure_topics(broker.bootstrap, topics.specs, prefix=topics.prefix)
        one = exchange(speed=20)
        feed = ingestor(one, KAFKA_BOOTSTRAP_SERVERS=broker.bootstrap, KAFKA_TRANSACTION_TIMEOUT_MS=4_000)
        candles = aggregator(KAFKA_BOOTSTRAP_SERVERS=broker.bootstrap)
        feed.wait_ready()
        candles.wait_ready()
        one.start()
        one.reach(80)
        broker.kill()
        one.reach(140)
        proven, closed = feed.metric("ingestor_watermarks_total"), candles.metric("candles_closed_total")
        broker.start()
        eventually(lambda: feed.metric("ingestor_watermarks_total") > proven)
        eventually(lambda: candles.process.poll() or candles.metric("candles_closed_total") > closed)
        if candles.process.poll() is not None:
            # The broker has ended a transaction that was open for too long, which looks like a successor's fence.
            assert candles.wait() == service.EXIT_FENCED
            aggregator(KAFKA_BOOTSTRAP_SERVERS=broker.bootstrap).wait_ready()
        one.end()
        found = clean(one, broker.bootstrap)
        assert feed.process.poll() is None
        assert not found.gaps()
        assert not found.revised
    finally:
        broker.kill()


def test_one_symbol_that_is_silent_for_three_minutes_has_flat_candles(chain: Make, clean: Make) -> None:
    one = chain(minutes=6, speed=40, symbols="ETHUSDT,BTCUSDT")
    one.exchange.fault("silence", symbol="ETHUSDT", at_us=START + 40 * SECOND, seconds=180)
    one.exchange.start()
    found = clean(one.exchange)
    assert [candle.trade_count == 0 for candle in found.candles()] == [False, True, True, False, False, False]
    assert all(candle.trade_count for candle in found.candles("BTCUSDT"))
    assert len(found.marks()) == 6
    assert not found.revised


def test_a_market_without_any_trade_for_three_minutes_has_flat_candles(chain: Make, clean: Make) -> None:
    one = chain(minutes=6, speed=40, symbols="ETHUSDT,BTCUSDT")
    one.exchange.fault("silence", at_us=START + 100 * SECOND, seconds=180)
    one.exchange.start()
    found = clean(one.exchange)
    for symbol in ("ETHUSDT", "BTCUSDT"):
        flat = [candle.trade_count == 0 for candle in found.candles(symbol)]
        assert flat == [False, False, True, True, False, False]
    assert not found.revised
