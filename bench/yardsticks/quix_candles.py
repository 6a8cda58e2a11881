"""Yardstick: one-minute OHLCV candles in quixstreams, a tumbling window per symbol, exactly once.

python quix_candles.py BOOTSTRAP TOPIC RECORDS OUT_TOPIC STATE_DIR, in an environment of its own (requirements.txt).
Written as its documentation does it: event time from the payload, built-in window, changelog, floats (its state and
its messages are JSON; exact numbers would cost it more). Same client settings as ours where there are any.
Prints one line of JSON: records, processor seconds from the first record to the last commit, wall seconds, candles.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

from quixstreams import Application


def start(trade: dict[str, Any]) -> dict[str, Any]:
    price, qty = float(trade["price"]), float(trade["qty"])
    taker = 0.0 if trade["buyer_is_maker"] else qty
    return {
        "open": price, "high": price, "low": price, "close": price, "volume": qty, "quote": price * qty, "count": 1,
        "taker": taker, "taker_quote": taker * price, "first": trade["trade_id"], "last": trade["trade_id"],
    }  # fmt: skip


def add(candle: dict[str, Any], trade: dict[str, Any]) -> dict[str, Any]:
    price, qty = float(trade["price"]), float(trade["qty"])
    if price > candle["high"]:
        candle["high"] = price
    elif price < candle["low"]:
        candle["low"] = price
    candle["close"] = price
    candle["volume"] += qty
    candle["quote"] += price * qty
    candle["count"] += 1
    if not trade["buyer_is_maker"]:
        candle["taker"] += qty
        candle["taker_quote"] += price * qty
    candle["last"] = trade["trade_id"]
    return candle


def main(bootstrap: str, topic: str, records: int, out: str, state: str) -> None:
    began: list[float] = []
    candles = seen = 0

    def event_time(value: Any, headers: Any, timestamp: float, kind: Any) -> int:
        nonlocal seen
        if not began:
            began.extend((time.process_time(), time.monotonic()))
        seen += 1
        if seen == records:
            app.stop()  # after this record, with its commit
        return int(value.get("traded_at", 0)) // 1000

    def count(value: Any) -> None:
        nonlocal candles
        candles += 1

    app = Application(
        broker_address=bootstrap,
        consumer_group=f"{out}-group",
        auto_offset_reset="earliest",
        processing_guarantee="exactly-once",
        state_dir=state,
        loglevel="WARNING",
        consumer_extra_config={"fetch.queue.backoff.ms": 2, "fetch.wait.max.ms": 20},
        producer_extra_config={"compression.type": "lz4", "linger.ms": 0},
    )
    trades = app.topic(topic, value_deserializer="json", timestamp_extractor=event_time)
    target = app.topic(out, value_serializer="json")
    frame = app.dataframe(trades).filter(lambda value: value["type"] == "trade")
    frame = frame.tumbling_window(60_000).reduce(reducer=add, initializer=start).final()
    frame.update(count).to_topic(target)
    app.run()
    cpu, wall = time.process_time() - began[0], time.monotonic() - began[1]
    sys.stdout.write(json.dumps({"records": seen, "cpu": cpu, "wall": wall, "candles": candles}) + "\n")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4], sys.argv[5])
