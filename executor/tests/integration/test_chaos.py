"""Hundreds of signals while processes die and the exchange misbehaves, all of it by a seed.

MARKETFLOW_CHAOS_SEEDS names the seeds (``make chaos`` takes twenty); the seed is in the test's name. With an even
seed each position has a stop and a target at the exchange, the price jumps so that they are hit, and the executor
hears the user-data stream.
"""

from __future__ import annotations

import os
from collections import Counter
from decimal import Decimal
from random import Random
from typing import Any

import pytest
from confluent_kafka import Consumer, TopicPartition
from marketflow_common import codec
from marketflow_common.events import OrderIntended, Signal, SignalSkipped
from marketflow_stack.testing import eventually

SEEDS = [int(seed) for seed in os.environ.get("MARKETFLOW_CHAOS_SEEDS", "1,2,3").split(",")]
SIGNALS = 500
LIVES = 5
FAULTS = 12
STEPS = ("decided", "intended", "posting", "posted", "recorded")
SYMBOLS = ("BTCUSDT", "ETHUSDT", "SOLUSDT")
KINDS: tuple[dict[str, Any], ...] = (
    {"kind": "order_lost_answer", "status": 503},
    {"kind": "order_lost_answer", "status": 0},
    {"kind": "order_lost_request"},
    {"kind": "order_late", "seconds": 0.7},
    {"kind": "order_429", "count": 2},
    {"kind": "reject"},
    {"kind": "not_found", "seconds": 1},
    {"kind": "partial_fill", "parts": 3, "count": 4},
    {"kind": "partial_fill", "parts": 2, "expire": True},
    {"kind": "late_answer", "path": "/api/v3/order", "seconds": 2},
    {"kind": "rest_error", "path": "/api/v3/order", "status": 400, "code": -1007},
    {"kind": "rest_error", "path": "/api/v3/myTrades", "status": 503, "count": 3},
    {"kind": "rate_limit", "seconds": 1},
    {"kind": "clock_skew", "ms": 5_000, "count": 100_000},
)

JUMPS: tuple[dict[str, Any], ...] = tuple(
    {"kind": "burst", "symbol": symbol, "count": 1, "percent": percent} for symbol in SYMBOLS for percent in (-1.5, 1.5)
)
PROTECTED = {"protect": "oco", "stop_distance_pct": 1, "stop_slip_pct": 5, "target_pct": 1}
DUST = Decimal(10)
"""Quote worth of a position for which no order may be placed any more."""


def ends(stage: Any) -> int:
    """How far order_events has come."""
    consumer = Consumer({"bootstrap.servers": stage.kafka.bootstrap_servers, "group.id": "chaos", "log_level": 0})
    try:
        here = [TopicPartition(stage.kafka.topic("order_events"), partition) for partition in range(3)]
        return sum(consumer.get_watermark_offsets(one, timeout=10)[1] for one in here)
    finally:
        consumer.close()


def died(executor: Any) -> bool:
    return executor.process.poll() is not None


def all_answered(stage: Any, signals: list[Signal]) -> None:
    """Each signal was skipped, or all its orders have ended."""
    unseen, open_orders = {signal.id for signal in signals}, dict[str, str]()
    for event in stage.events():
        if isinstance(event, SignalSkipped):
            unseen.discard(event.signal_id)
        elif isinstance(event, OrderIntended):
            unseen.discard(event.signal_id)
            if not stage.protects(event.order_id):
                open_orders[event.order_id] = event.signal_id
        elif codec.schema_of(event) in {"order_rejected", "order_canceled", "order_expired"} or (
            codec.schema_of(event) == "order_filled" and event.complete
        ):
            open_orders.pop(event.order_id, None)
    assert not unseen, f"{len(unseen)} signals have no answer yet: {sorted(unseen)[:5]}"
    assert not open_orders, f"orders that have not ended: {sorted(open_orders)[:5]}"


@pytest.mark.timeout(900)
@pytest.mark.parametrize("seed", SEEDS)
def test_whatever_happens_each_signal_has_one_answer_and_the_books_equal_the_account(stage: Any, seed: int) -> None:
    random = Random(seed)
    signals: list[Signal] = []
    terms: dict[str, object] = {"recv_window_ms": 1_600, "rest_timeout_s": 1.5, "reconcile_s": 2}
    misfortunes = KINDS
    if seed % 2 == 0:
        terms |= {**PROTECTED, "ws_url": stage.exchange.url.replace("http", "ws")}
        misfortunes += JUMPS
    # Asked for once: who goes on asking while the exchange wants to be left alone is banned.
    closes = {symbol: stage.exchange.price(symbol) for symbol in SYMBOLS}
    faults = sorted(random.sample(range(SIGNALS), FAULTS))
    lives, executor = 0, None
    while len(signals) < SIGNALS:
        if executor is None or died(executor):
            lives += 1
            often = random.randint(1, 2 * SIGNALS // LIVES)
            step = (random.choice(STEPS), "kill", str(often)) if lives <= LIVES else ()
            executor = stage.start(*step, leads=False, **terms)
        before = ends(stage)
        for _ in range(random.randint(1, 12)):
            while faults and len(signals) >= faults[0]:
                faults.pop(0)
                stage.exchange.fault(**random.choice(misfortunes))
            symbol = random.choice(SYMBOLS)
            signals.append(stage.signal(symbol, random.choice(("BUY", "SELL")), close=closes[symbol]))
        # What comes next is to meet an executor at work, not one that is still starting.
        stage.wait(lambda executor=executor, before=before: died(executor) or ends(stage) > before)
    stage.exchange.heal()

    def done() -> bool:
        if died(stage.executors[-1]):
            stage.start(**terms)
        all_answered(stage, signals)
        return True

    eventually(done, timeout=300, interval=1)
    if seed % 2 == 0:
        stage.wait(lambda: all_protected(stage))
        held = {o["symbol"] for o in stage.standing()}
        assert held, "nothing is held that could be protected"
        for symbol in held:
            stage.exchange.fault("burst", symbol=symbol, count=1, percent=random.choice((-1.5, 1.5)))
        stage.wait(lambda: held <= {o["symbol"] for o in stage.orders("FILLED") if stage.protects(o["clientOrderId"])})
        stage.wait(lambda: all_protected(stage))
        stage.check_standing()
    check(stage, signals)


def all_protected(stage: Any) -> bool:
    """What is held, but dust, has a stop that stands."""
    stops = {o["symbol"]: Decimal(o["origQty"]) for o in stage.standing() if o["type"] == "STOP_LOSS_LIMIT"}
    for symbol in SYMBOLS:
        bare = (stage.position(symbol) - stops.get(symbol, Decimal(0))) * stage.exchange.price(symbol)
        assert bare < DUST, f"{symbol}: {bare} of it has no stop"
    return True


def check(stage: Any, signals: list[Signal]) -> None:
    events, ledger = stage.events(), stage.exchange.ledger()
    intents = Counter(event.order_id for event in events if isinstance(event, OrderIntended))
    assert all(times == 1 for times in intents.values()), "an order was intended twice"
    skipped = Counter(event.signal_id for event in events if isinstance(event, SignalSkipped))
    assert all(times == 1 for times in skipped.values()), "a signal was skipped twice"
    signal_of = {event.order_id: event.signal_id for event in events if isinstance(event, OrderIntended)}
    at_exchange = Counter(order["clientOrderId"] for order in ledger["orders"])
    assert set(at_exchange) <= set(intents), "the exchange has an order that nobody intended"
    assert all(times == 1 for times in at_exchange.values()), "the exchange has an order twice"
    per_signal = Counter(signal_of[order] for order in at_exchange if not stage.protects(order))
    assert all(times == 1 for times in per_signal.values()), "two orders for one signal"
    assert not set(per_signal) & set(skipped), "a signal was traded and skipped"
    answered = {signal_id for order, signal_id in signal_of.items() if not stage.protects(order)} | set(skipped)
    assert {signal.id for signal in signals} == answered
    assert len(per_signal) > SIGNALS // 20, f"only {len(per_signal)} of {SIGNALS} signals were traded"
    stage.check_books()
