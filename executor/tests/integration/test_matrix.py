"""Orders in flight while something breaks: each case ends with ledger, log and balances equal."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from signal import SIGCONT
from typing import Any

import pytest
from marketflow_common.events import OrderCanceled, OrderFilled, OrderIntended
from marketflow_stack.kafka import KafkaBroker
from marketflow_stack.testing import CreatedTopics, Programs, free_port
from marketflow_stack.topics import ensure_topics


def died(executor: Any) -> bool:
    return executor.process.poll() is not None


def quantities(stage: Any, signal: Any) -> list[str]:
    return [f"{e.qty:f}" for e in stage.events() if isinstance(e, OrderFilled) and e.signal_id == signal.id]


@pytest.mark.parametrize("step", ["posted", "recorded"])
def test_a_crash_after_a_part_of_an_order_has_filled(stage: Any, step: str) -> None:
    executor = stage.start(step, "kill", "1")
    stage.exchange.fault("partial_fill", parts=3)
    signal = stage.signal("BTCUSDT", "BUY")
    stage.wait(lambda: died(executor))
    stage.start()
    stage.settled(signal)
    assert len(quantities(stage, signal)) == 3


def test_an_order_that_the_exchange_takes_after_its_executor_has_died_is_found(stage: Any) -> None:
    executor = stage.start("posted", "kill", "1")
    stage.exchange.fault("order_late", seconds=1)
    signal = stage.signal("ETHUSDT", "BUY")
    stage.wait(lambda: died(executor))
    stage.start()
    stage.settled(signal)
    assert stage.exchange.posts() == 1


def test_what_is_left_of_an_order_that_expires_is_not_sent_again(stage: Any) -> None:
    stage.start()
    stage.exchange.fault("partial_fill", parts=2, expire=True)
    signal = stage.signal("SOLUSDT", "BUY")
    stage.settled(signal)
    assert stage.of(signal) == ["order_intended", "order_accepted", "order_filled", "order_expired"]
    sold = stage.signal("SOLUSDT", "SELL")
    stage.settled(signal, sold)


def test_an_order_that_is_cancelled_from_outside_keeps_what_it_has_filled(stage: Any) -> None:
    stage.start()
    stage.exchange.fault("partial_fill", parts=900)
    signal = stage.signal("BTCUSDT", "BUY")
    order = stage.wait(lambda: [e for e in stage.events() if isinstance(e, OrderIntended)])[0]
    stage.wait(lambda: stage.exchange.ledger()["fills"])
    stage.exchange.cancel("BTCUSDT", order.order_id)
    stage.settled(signal)
    assert [type(e) for e in stage.events() if getattr(e, "signal_id", "") == signal.id][-1] is OrderCanceled


@pytest.mark.parametrize("kind", ["order_429", "rate_limit"])
def test_a_storm_of_429_delays_orders_and_loses_none(stage: Any, kind: str) -> None:
    stage.start()
    details = {"seconds": 2} if kind == "rate_limit" else {"count": 3, "retry_after": 1}
    closes = {symbol: stage.exchange.price(symbol) for symbol in ("BTCUSDT", "ETHUSDT", "SOLUSDT")}
    stage.exchange.fault(kind, **details)
    signals = [stage.signal(symbol, "BUY", close=close) for symbol, close in closes.items()]
    stage.settled(*signals)


def test_an_order_that_its_question_does_not_find_for_a_while_is_not_sent_again(stage: Any) -> None:
    stage.start()
    stage.exchange.fault("not_found", seconds=2)
    stage.exchange.fault("order_lost_answer", status=503)
    signal = stage.signal("ETHUSDT", "BUY")
    stage.settled(signal)
    assert stage.exchange.posts() == 1


# --- the broker --------------------------------------------------------------------------------------


@pytest.fixture
def own_broker(tmp_path: Path, topic_prefix: str, topics_file: Path) -> Iterator[KafkaBroker]:
    broker = KafkaBroker(tmp_path / "kafka", free_port(), free_port())
    broker.prepare()
    broker.start()
    yield broker
    broker.kill()


@pytest.mark.parametrize("step", ["posting", "posted"])
def test_a_broker_that_restarts_while_an_order_is_in_flight(
    own_broker: KafkaBroker, topics: CreatedTopics, programs: Programs, make_stage: Callable[..., Any], step: str
) -> None:
    ensure_topics(own_broker.bootstrap, topics.specs, prefix=topics.prefix)
    stage = make_stage(CreatedTopics(own_broker.bootstrap, topics.prefix, topics.specs), programs)
    executor = stage.start(step, "freeze", "1")
    signal = stage.signal("BTCUSDT", "BUY")
    stage.wait(executor.frozen)
    own_broker.kill()
    # The order goes out, or its answer is taken in, and what it led to cannot be recorded.
    executor.signal(SIGCONT)
    stage.wait(lambda: stage.exchange.posts() == 1)
    own_broker.start()
    stage.settled(signal)
    assert stage.exchange.posts() == 1
