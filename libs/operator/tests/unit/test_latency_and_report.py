"""Latencies come from the broker's append times; the report says what the evidence says, exactly."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from decimal import Decimal
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from marketflow_common import events
from marketflow_operator.audit.judge import judge
from marketflow_operator.audit.model import Evidence, Seen
from marketflow_operator.latency import latencies, percentile
from marketflow_operator.report import build, encode

Build = Callable[..., Evidence]


@given(st.lists(st.integers(0, 10_000), min_size=1), st.sampled_from([50, 90, 99, 100]))
def test_a_percentile_is_a_value_that_enough_values_do_not_exceed(values: list[int], rank: int) -> None:
    found = percentile(values, rank)
    assert found in values
    assert sum(value <= found for value in values) * 100 >= rank * len(values)
    assert all(sum(v <= lower for v in values) * 100 < rank * len(values) for lower in values if lower < found)


def test_nothing_measured_has_no_percentile() -> None:
    assert percentile([], 50) is None


def moved(evidence: Evidence, topic: str, which: Callable[[Seen], bool], appended_ms: int) -> Evidence:
    records = [s._replace(appended_ms=appended_ms) if which(s) else s for s in evidence.records[topic]]
    return replace(evidence, records={**evidence.records, topic: records})


def test_a_candle_is_triggered_by_the_first_record_that_closes_its_window(world: Build) -> None:
    evidence = world(minutes=1)
    symbol = "ETHUSDT"
    mark = next(s for s in evidence.records["ohlcv_raw"] if s.key == symbol and isinstance(s.event, events.Watermark))
    later = [s for s in evidence.records["ohlcv_raw"] if s.key == symbol and s.where.offset > mark.where.offset]
    assert later, "the world has trades after the watermark"
    evidence = moved(evidence, "ohlcv_raw", lambda s: s is mark, 1_000)
    evidence = moved(evidence, "ohlcv_agg", lambda s: s.key == symbol, 1_017)
    evidence = replace(
        evidence,
        records={**evidence.records, "ohlcv_agg": [s for s in evidence.records["ohlcv_agg"] if s.key == symbol]},
    )
    assert latencies(evidence).trade_to_candle == [17]
    # Without the watermark, the next window's first trade is what closes it.
    without = [s for s in evidence.records["ohlcv_raw"] if s.event is not mark.event]
    evidence = replace(evidence, records={**evidence.records, "ohlcv_raw": without})
    evidence = moved(evidence, "ohlcv_raw", lambda s: s.event is later[0].event, 1_010)
    assert latencies(evidence).trade_to_candle == [7]


def test_an_order_is_measured_from_its_signals_candle_and_from_that_candles_trigger(world: Build) -> None:
    evidence = world(minutes=2)
    intents = [s for s in evidence.records["order_events"] if isinstance(s.event, events.OrderIntended)]
    one = intents[0]
    others = {id(s) for s in intents[1:]}
    records = {**evidence.records, "order_events": [s for s in evidence.records["order_events"] if id(s) not in others]}
    evidence = replace(evidence, records=records)
    signal = next(s.event for s in records["trading_signals"] if s.event.id == one.event.signal_id)
    end = signal.open_time + 60_000_000

    def closes(seen: Seen) -> bool:
        at = getattr(seen.event, "traded_at", None) or getattr(seen.event, "through", 0)
        return seen.key == signal.symbol and bool(at >= end)

    trigger = next(s for s in records["ohlcv_raw"] if closes(s))
    evidence = moved(evidence, "ohlcv_raw", lambda s: s is trigger, 5_000)
    evidence = moved(
        evidence, "ohlcv_agg", lambda s: s.key == signal.symbol and s.event.open_time == signal.open_time, 5_020
    )
    evidence = moved(evidence, "order_events", lambda s: s is one, 5_060)
    found = latencies(evidence)
    assert (list(found.candle_to_order), list(found.trade_to_order)) == ([40], [60])


def test_the_report_has_exactly_what_its_readers_expect(world: Build) -> None:
    evidence = world()
    report = json.loads(encode(build(evidence, judge(evidence))))
    assert {"sent", "published", "landed", "lost", "duplicated"} <= report["trades"].keys()
    assert report["trades"]["sent"] == report["trades"]["published"] == report["trades"]["landed"]
    assert report["trades"]["lost"] == report["trades"]["duplicated"] == 0
    assert (report["candles"]["closed"], report["candles"]["equal"], report["candles"]["different"]) == (12, 12, 0)
    assert {"BUY", "SELL", "HOLD"} <= report["signals"].keys()
    assert {"intended", "filled", "rejected", "skipped", "unresolved", "duplicated"} <= report["orders"].keys()
    assert report["pnl"].keys() == {"realized", "fees", "equity_error"}
    assert report["pnl"]["equity_error"] == 0
    assert report["notifications"]["due"] == report["notifications"]["delivered"] > 0
    assert report["notifications"]["lost"] == report["notifications"]["repeated"] == 0
    stages = report["latency_ms"]
    assert stages.keys() == {"trade_to_candle", "candle_to_order", "trade_to_order"}
    assert all(stage.keys() == {"p50", "p99"} for stage in stages.values())
    assert report["audit"]["ok"] is True
    assert all({"name", "expected", "actual", "ok"} <= check.keys() for check in report["audit"]["checks"])


def test_money_is_written_with_all_its_digits_and_never_as_a_float(world: Build) -> None:
    evidence = world()
    text = encode(build(evidence, judge(evidence)))
    report = json.loads(text, parse_float=Decimal, parse_int=Decimal)
    fills = [s.event for s in evidence.records["order_events"] if isinstance(s.event, events.OrderFilled)]
    assert report["pnl"]["realized"] == sum(fill.realized_pnl for fill in fills)
    assert b"E-" not in text


def test_damage_shows_in_the_reports_numbers(world: Build) -> None:
    evidence = world()
    assert evidence.exchange is not None
    trades = [s for s in evidence.records["ohlcv_raw"] if isinstance(s.event, events.Trade)]
    lost, again = trades[1], trades[2]
    candle = next(s for s in evidence.records["ohlcv_agg"])
    raw: list[Any] = [s for s in evidence.records["ohlcv_raw"] if s is not lost]
    raw.append(again._replace(where=again.where._replace(offset=10**6)))
    agg = [
        s._replace(event=msgspec.structs.replace(s.event, high=s.event.high + 1)) if s is candle else s
        for s in evidence.records["ohlcv_agg"]
    ]
    balances = {**evidence.exchange.balances, "USDT": evidence.exchange.balances["USDT"] + Decimal("0.00000001")}
    evidence = replace(
        evidence,
        records={**evidence.records, "ohlcv_raw": raw, "ohlcv_agg": agg},
        exchange=replace(evidence.exchange, balances=balances),
        recorded=(evidence.recorded or ())[1:],
    )
    report = build(evidence, judge(evidence))
    assert (report["trades"]["lost"], report["trades"]["duplicated"]) == (1, 1)
    assert report["candles"]["different"] == 1
    assert report["pnl"]["equity_error"] == Decimal("0.00000001")
    assert report["notifications"]["lost"] == 2
    assert report["audit"]["ok"] is False


@pytest.mark.parametrize("part", ["exchange", "warehouse", "recorded"])
def test_what_could_not_be_read_is_null_and_not_zero(world: Build, part: str) -> None:
    evidence = replace(world(), **{part: None}, missing={part: "away"})
    report = build(evidence, judge(evidence))
    nulls = {
        "exchange": report["trades"]["sent"],
        "warehouse": report["trades"]["landed"],
        "recorded": report["notifications"],
    }
    assert nulls[part] is None
    assert report["audit"]["ok"] is False
