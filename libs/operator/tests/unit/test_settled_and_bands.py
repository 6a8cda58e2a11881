"""What the audit waits for before it judges, and its own reading of the band rule."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from decimal import Decimal
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from marketflow_common import events
from marketflow_operator.audit.bands import signals_recomputed
from marketflow_operator.audit.cuts import cuts_of
from marketflow_operator.audit.market import candles_equal_klines
from marketflow_operator.audit.model import Evidence, Exchange, Seen, Where
from marketflow_operator.audit.settled import closed_until, pending_channels, pending_topics, pending_warehouse

Build = Callable[..., Evidence]
MINUTE = 60_000_000


def lacking(evidence: Evidence) -> list[str]:
    assert evidence.exchange is not None
    assert evidence.warehouse is not None
    upstream = pending_topics(replace(evidence, until=evidence.until or closed_until(evidence.exchange.feeds)))
    return upstream + pending_warehouse(evidence, evidence.warehouse) + pending_channels(evidence)


def without(evidence: Evidence, topic: str, which: Callable[[Any], bool]) -> Evidence:
    records = [seen for seen in evidence.records[topic] if not which(seen.event)]
    return replace(evidence, records={**evidence.records, topic: records})


@pytest.mark.parametrize("ended", [True, False])
def test_nothing_is_pending_once_everything_has_come_through(world: Build, ended: bool) -> None:
    assert lacking(world(ended=ended)) == []


def test_a_minute_that_the_exchange_has_closed_is_waited_for(world: Build) -> None:
    last = max(s.event.through for s in world().records["ohlcv_raw"] if isinstance(s.event, events.Watermark))
    evidence = without(
        world(), "ohlcv_raw", lambda e: isinstance(e, events.Watermark) and e.through == last and e.symbol == "ETHUSDT"
    )
    assert lacking(evidence)[0].startswith("the watermark of ETHUSDT has not reached")


def test_the_last_trade_of_an_ended_feed_is_waited_for(world: Build) -> None:
    evidence = world(ended=True)
    assert evidence.exchange is not None
    last = evidence.exchange.feeds["ETHUSDT"].trades[-1].trade_id
    evidence = without(evidence, "ohlcv_raw", lambda e: getattr(e, "trade_id", 0) == last)
    assert f"of {last}" in lacking(evidence)[0]


def test_candles_signals_and_answers_are_waited_for(world: Build) -> None:
    evidence = world()
    symbol, start = "ETHUSDT", 1_723_161_300_000_000 + MINUTE
    no_candle = without(evidence, "ohlcv_agg", lambda e: e.symbol == symbol and e.open_time == start)
    assert any("no candle of ETHUSDT 2024-08-08 23:56 yet" in text for text in lacking(no_candle))
    no_signal = without(
        evidence, "trading_signals", lambda e: e.symbol == symbol and e.open_time == start and e.strategy == "cycle"
    )
    assert any("no signal of cycle (1m) for ETHUSDT" in text for text in lacking(no_signal))
    no_answer = without(evidence, "order_events", lambda e: getattr(e, "symbol", "") == symbol)
    assert any("is not answered yet" in text for text in lacking(no_answer))
    assert any("is not recorded yet" in text for text in lacking(no_answer))


def test_a_minute_closed_after_the_audit_began_is_neither_waited_for_nor_judged(world: Build) -> None:
    symbol, later = "ETHUSDT", 1_723_161_300_000_000 + 2 * MINUTE
    on_the_way = without(
        world(ended=False),
        "ohlcv_agg",
        lambda e: isinstance(e, events.Candle) and e.symbol == symbol and e.open_time >= later,
    )
    assert on_the_way.exchange is not None
    assert candles_equal_klines(on_the_way, on_the_way.exchange, cuts_of(on_the_way)).ok is False
    bounded = replace(on_the_way, until={symbol: later})
    assert not [text for text in lacking(bounded) if "candle" in text]
    assert cuts_of(bounded)[symbol].windows[-1] == later - MINUTE
    assert candles_equal_klines(bounded, on_the_way.exchange, cuts_of(bounded)).ok is True


def test_a_fill_newer_than_the_ledger_makes_the_audit_look_again(world: Build) -> None:
    evidence = world()
    assert evidence.exchange is not None
    older = replace(evidence.exchange, fills=evidence.exchange.fills[:-1])
    assert "newer than the ledger" in lacking(replace(evidence, exchange=older))[0]


def test_the_loader_and_the_channels_are_waited_for(world: Build) -> None:
    evidence = world()
    assert evidence.warehouse is not None
    behind = replace(evidence.warehouse, positions=[p._replace(next_offset=0) for p in evidence.warehouse.positions])
    assert "the loader stands at 0 of" in lacking(replace(evidence, warehouse=behind))[0]
    silent = [message for message in evidence.recorded or () if message.channel == "telegram"]
    assert "discord was told of 0 of" in lacking(replace(evidence, recorded=silent))[0]


# --- the band rule -----------------------------------------------------------------------------------


def candle(minute: int, low: str, high: str, close: str, missing: tuple[tuple[int, int], ...] = ()) -> events.Candle:
    one = Decimal(1)
    start = minute * MINUTE
    prices = (Decimal(close), Decimal(high), Decimal(low), Decimal(close))
    numbers = (one, one, 1, one, one, 1, 1)
    return events.Candle("ETHUSDT", "1m", start, start + MINUTE - 1, *prices, *numbers, missing=missing)


def said(minute: int, kind: Any, momentum: str = "0", window: int = 1) -> events.Signal:
    parameters = f'{{"buy_factor":"1.01","momentum_window":{window},"sell_factor":"0.99"}}'
    one = Decimal(1)
    return events.Signal(
        str(minute), "band", parameters, "ETHUSDT", "1m", minute * MINUTE, one, one, Decimal(momentum), kind, 1, {}, ()
    )


def recomputed(*given: events.Event) -> tuple[bool | None, str]:
    records: dict[str, list[Seen]] = {"ohlcv_agg": [], "trading_signals": []}
    for number, event in enumerate(given):
        topic = "ohlcv_agg" if isinstance(event, events.Candle) else "trading_signals"
        records[topic].append(Seen(Where(topic, 0, number), 0, "ETHUSDT", event))
    evidence = Evidence(records=records, partitions=3, ends={})
    check = signals_recomputed(evidence, Exchange({}, True, 0), {})
    return check.ok, check.detail


@pytest.mark.parametrize(
    ("close", "kind", "momentum"),
    [
        ("100.99", "BUY", "-0.00980392"),  # below 100 * 1.01
        ("101", "HOLD", "-0.00970692"),  # at the edge is not below it
        ("108.90", "HOLD", None),
        ("108.91", "SELL", None),  # above 110 * 0.99 = 108.9
    ],
)
def test_the_band_rule_is_read_from_its_text(close: str, kind: str, momentum: str | None) -> None:
    before = candle(1, "100", "110", "102")
    exact = (Decimal(close) - 102) / 102
    expected = str(exact.quantize(Decimal("1e-8")))
    assert recomputed(before, candle(2, "1", "999", close), said(2, kind, expected)) == (True, "")
    other = "SELL" if kind != "SELL" else "BUY"
    ok, detail = recomputed(before, candle(2, "1", "999", close), said(2, other, expected))
    assert ok is False
    assert f"{other} instead of {kind}" in detail


def test_without_the_candles_it_looks_at_the_rule_says_hold() -> None:
    assert recomputed(candle(1, "100", "110", "1"), said(1, "HOLD"))[0]
    assert recomputed(candle(1, "100", "110", "105"), candle(3, "1", "9", "1"), said(3, "HOLD"))[0]
    holed = candle(1, "100", "110", "105", missing=((4, 5),))
    assert recomputed(holed, candle(2, "1", "9", "1"), said(2, "HOLD"))[0]
    assert (
        recomputed(candle(1, "100", "110", "105"), candle(2, "1", "9", "1"), said(2, "HOLD", "-0.99047619"))[0] is False
    )


@given(st.integers(1, 5))
def test_momentum_is_measured_over_the_strategys_window(window: int) -> None:
    candles = [candle(minute, "100", "200", str(100 + minute)) for minute in range(1, window + 2)]
    change = (Decimal(window) / Decimal(101)).quantize(Decimal("1e-8"))
    signal = said(window + 1, "HOLD", str(change), window)
    assert recomputed(*candles, signal)[1].count("momentum") == 0
    wrong = msgspec.structs.replace(signal, momentum=change + Decimal("1e-8"))
    assert "momentum" in recomputed(*candles, wrong)[1]


@pytest.mark.parametrize("declared", [True, False])
def test_what_is_before_the_first_trade_is_due_unless_the_ingestor_declares_that_it_does_not_know(
    world: Build, declared: bool
) -> None:
    evidence, symbol = world(ended=False), "ETHUSDT"
    trades = [trade for _, trade in evidence.of(events.Trade) if trade.symbol == symbol]
    begin = trades[3]
    evidence = without(
        evidence,
        "ohlcv_raw",
        lambda e: isinstance(e, events.Trade) and e.symbol == symbol and e.trade_id < begin.trade_id,
    )
    gap = events.Gap("sim", symbol, begin.trade_id, begin.trade_id - 1, "not asked", True)
    if declared:
        mine = next(s for s in evidence.records["ohlcv_raw"] if s.event is begin)
        records = [s._replace(event=gap) if s is mine else s for s in evidence.records["ohlcv_raw"]]
        evidence = replace(evidence, records={**evidence.records, "ohlcv_raw": [*records, mine]})
    minute = begin.traded_at // MINUTE * MINUTE
    cut = cuts_of(evidence)[symbol]
    assert (cut.first_id == begin.trade_id) == declared
    assert cut.cut_window == (minute if declared else None)
    assert (minute in cut.windows) != declared
