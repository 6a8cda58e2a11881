"""How long an order takes: from the signal's append to the exchange's own time of the order, beside a bare POST."""

from __future__ import annotations

import time
from decimal import Decimal
from typing import Any

from marketflow_common import topics
from marketflow_common.events import Signal
from marketflow_common.intervals import MINUTE, window_start
from marketflow_common.kafka.client import read_range
from marketflow_common.kafka.source import Publisher
from marketflow_common.settings import KafkaSettings
from marketflow_operator.latency import percentile

from .parts import Plan, Row, get, yardstick
from .stand import Stand, TookTooLong, wait

__all__ = ["orders"]

SYMBOL = "BTCUSDT"
ORDERS = 200


def orders(stand: Stand, plan: Plan) -> list[Row]:
    """Signals one after the other, each an order; then the same number of signed requests by themselves."""
    ours: dict[int, list[tuple[float, float | None]]] = {50: [], 99: []}
    for run in range(plan.runs):
        prefix = f"orders-{run}-"
        stand.topics(prefix)
        exchange = stand.simulator(SYMBOLS=SYMBOL, AUTOSTART="true", BALANCES="USDT:100000,BTC:10")
        wait("the market has a price", lambda url=exchange.url: bool(_price(url)), exchange)
        executor = stand.service(
            "executor", prefix, MODE="testnet", REST_URL=exchange.url, API_KEY="simulator",
            API_SECRET="simulator-secret", MAX_SIGNAL_AGE_S=0,
        )  # fmt: skip
        try:
            wait("the executor leads", lambda one=executor: one.ready() and one.metric("leader") == 1, executor)
            appended = _trade(stand, prefix, exchange.url)
            placed = {order["clientOrderId"]: order["time"] for order in get(f"{exchange.url}/sim/ledger")["orders"]}
            took = [placed[f"mf-{signal}-1"] - at for signal, at in appended.items()]
            bare = yardstick("bare_post.py", exchange.url, SYMBOL, ORDERS)["ms"]
        finally:
            executor.stop()
            exchange.stop()
        for rank, rows in ours.items():
            mine, other = percentile(took, rank), percentile(bare, rank)
            assert mine is not None
            assert other is not None
            rows.append((float(mine), float(other)))
        plan.say(
            f"orders, run {run + 1}: signal to order p50 {ours[50][-1][0]:g} ms, p99 {ours[99][-1][0]:g} ms; "
            f"bare POST p50 {ours[50][-1][1]:.1f} ms"
        )
    note = f"{ORDERS} orders in each of {plan.runs} runs; yardstick: a signed POST and its answer"
    return [
        Row("signal_to_order_ms_p50", "ms", [(mine, None) for mine, _ in ours[50]], note),
        Row("signal_to_order_ms_p99", "ms", [(mine, None) for mine, _ in ours[99]], note),
        Row("order_vs_bare_post", "ms, p50", ours[50], note),
    ]


def _price(url: str) -> Decimal:
    rows = get(f"{url}/sim/trades?symbol={SYMBOL}&from_id=0&limit=1")
    return Decimal(rows[0]["price"]) if rows else Decimal(0)


def _trade(stand: Stand, prefix: str, url: str) -> dict[str, int]:
    """Publish the signals; returns the broker's time of each, in ms, by signal."""
    kafka = KafkaSettings(bootstrap_servers=stand.bootstrap, topic_prefix=prefix)
    partition = topics.partition_of(SYMBOL, 3)
    publisher = Publisher(kafka, "bench", topics.TRADING_SIGNALS, partition)
    publisher.open()
    price = _price(url)
    for number in range(ORDERS):
        publisher.publish([_signal(number, price)])
        sent = number + 1
        deadline = time.monotonic() + 20
        while _posts(url) < sent:
            if time.monotonic() > deadline:
                raise TookTooLong(f"order {sent} has not come")
            time.sleep(0.02)
    records = list(read_range(kafka, topics.TRADING_SIGNALS, partition, 0))
    return {record.event.id: record.appended_ms for record in records}


def _posts(url: str) -> int:
    return sum(get(f"{url}/sim/ledger")["requests"].get("POST /api/v3/order", {}).values())


def _signal(number: int, price: Decimal) -> Signal:
    values: dict[str, Any] = {
        "id": f"bench-{number:04d}", "strategy": "bench", "parameters": "", "symbol": SYMBOL, "interval": "1m",
        "open_time": window_start(time.time_ns() // 1_000) - MINUTE, "close": price, "volume": Decimal(1),
        "momentum": Decimal(0), "signal_type": "SELL" if number % 2 else "BUY", "last_trade_id": 0, "levels": {},
        "reasons": (),
    }  # fmt: skip
    return Signal(**values)
