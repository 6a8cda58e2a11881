"""The aggregator as processes on a real broker: the same candles as a plain fold, whatever dies, freezes or joins."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from decimal import Decimal
from typing import Any

import pytest
from marketflow_common.events import Event, Trade
from marketflow_common.intervals import MINUTE, window_start
from marketflow_stack.testing import eventually

pytestmark = pytest.mark.broker

Market = list[tuple[str, Event]]
Read = Callable[[], dict[str, list[bytes]]]


def folded(market: Market, minutes: int = 1) -> dict[str, list[dict[str, Any]]]:
    """The whole windows of each symbol by plain sums, and nothing of the suite."""
    length = minutes * MINUTE
    result: dict[str, list[dict[str, Any]]] = {}
    for symbol in {symbol for symbol, _ in market}:
        trades = [e for s, e in market if s == symbol and isinstance(e, Trade)]
        end = max(window_start(t.traded_at) for t in trades) + MINUTE
        begin, rows = -(-(window_start(trades[0].traded_at) + MINUTE) // length) * length, []
        last = [t for t in trades if t.traded_at < begin][-1]
        for start in range(begin, end - length + 1, length):
            mine = [t for t in trades if start <= t.traded_at < start + length]
            buys = [t for t in mine if not t.buyer_is_maker]
            prices = [t.price for t in mine] or [last.price]
            last_id = mine[-1].trade_id if mine else last.trade_id
            rows.append(
                {
                    "open_time": start,
                    "close_time": start + length - 1,
                    "open": eight(prices[0]),
                    "high": eight(max(prices)),
                    "low": eight(min(prices)),
                    "close": eight(prices[-1]),
                    "volume": eight(sum((t.qty for t in mine), Decimal(0))),
                    "quote_volume": eight(sum((t.qty * t.price for t in mine), Decimal(0))),
                    "trade_count": len(mine),
                    "taker_buy_volume": eight(sum((t.qty for t in buys), Decimal(0))),
                    "taker_buy_quote_volume": eight(sum((t.qty * t.price for t in buys), Decimal(0))),
                    "first_trade_id": mine[0].trade_id if mine else last.trade_id + 1,
                    "last_trade_id": last_id,
                }
            )
            last = mine[-1] if mine else last
        result[symbol] = rows
    return result


def eight(value: Decimal) -> str:
    return format(value.quantize(Decimal("1E-8")), "f")


def same(read: Read, market: Market) -> None:
    """Every candle once, in order, at revision 0, equal to the fold in every field."""
    wanted = {
        symbol: [
            {"type": "candle", "symbol": symbol, "interval": "1m"} | row | {"missing": [], "revision": 0}
            for row in rows
        ]
        for symbol, rows in folded(market).items()
    }

    def all_there() -> bool:
        found = read()
        assert {s: len(c) for s, c in found.items()} == {s: len(rows) for s, rows in wanted.items()}
        return True

    eventually(all_there, timeout=60)
    assert {s: [json.loads(c) for c in found] for s, found in read().items()} == wanted
    for symbol, rows in wanted.items():
        assert read()[symbol] == [json.dumps(row, separators=(",", ":")).encode() for row in rows]


def test_candles_equal_a_plain_fold_of_the_trades(aggregator: Any, publish: Any, market: Market, candles: Read) -> None:
    one = aggregator()
    publish(market)
    same(candles, market)
    assert one.metric("candles_closed_total") == sum(len(found) for found in candles().values())
    assert one.metric("agg_latency_seconds_count") == one.metric("candles_closed_total")
    assert one.metric("trades_duplicate_total") == 0
    assert one.stop(15) == 0


def test_killed_in_mid_minute_again_and_again_it_states_the_same_bytes(
    aggregator: Any, publish: Any, market: Market, candles: Read
) -> None:
    parts = 4
    for i in range(parts):
        one = aggregator()
        publish(market[len(market) * i // parts : len(market) * (i + 1) // parts])
        if i < parts - 1:
            eventually(lambda one=one: one.metric("candles_closed_total") > 0)
            one.kill()
    same(candles, market)


def test_longer_candles_survive_a_kill_in_the_middle_of_their_window(
    aggregator: Any, publish: Any, market: Market, candles: Read
) -> None:
    def longer() -> dict[str, list[dict[str, Any]]]:
        found = {symbol: [json.loads(c) for c in rows] for symbol, rows in candles().items()}
        return {symbol: [row for row in rows if row["interval"] == "5m"] for symbol, rows in found.items()}

    begin = -(-market[0][1].traded_at // (5 * MINUTE)) * 5 * MINUTE  # type: ignore[union-attr]
    middle = next(i for i, (_, e) in enumerate(market) if isinstance(e, Trade) and e.traded_at > begin + 7.5 * MINUTE)
    one = aggregator("5m, 1h")
    publish(market[:middle])
    eventually(lambda: one.metric("candles_closed_total") >= 6 * len(folded(market)))
    one.kill()
    aggregator("5m,1h")
    publish(market[middle:])
    wanted = {
        symbol: [
            {"type": "candle", "symbol": symbol, "interval": "5m"} | row | {"missing": [], "revision": 0}
            for row in rows
        ]
        for symbol, rows in folded(market, 5).items()
    }
    eventually(lambda: sum(map(len, longer().values())) == sum(map(len, wanted.values())) > 0, timeout=60)
    assert longer() == wanted


def test_one_that_was_frozen_while_another_took_over_changes_nothing_when_it_wakes_up(
    aggregator: Any, publish: Any, market: Market, candles: Read
) -> None:
    frozen = aggregator()
    third = len(market) // 3
    publish(market[:third])
    eventually(lambda: frozen.metric("candles_closed_total") > 0)
    other = aggregator()
    publish(market[third : third + 50])
    frozen.signal(signal.SIGSTOP)
    publish(market[third + 50 : 2 * third])
    eventually(lambda: other.metric("owned_partitions") == 3, timeout=60)
    frozen.signal(signal.SIGCONT)
    publish(market[2 * third :])
    same(candles, market)
