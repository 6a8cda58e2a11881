"""The audit holds where nothing went wrong, and names what was damaged, wherever it lies."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from decimal import Decimal
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from marketflow_common import events
from marketflow_operator.audit.judge import judge
from marketflow_operator.audit.market import minute_text
from marketflow_operator.audit.model import Evidence, Message, Seen, Where, some_of

Build = Callable[..., Evidence]
Edit = Callable[..., Evidence]


def kind(of: type, **fields: Any) -> Callable[[Seen], bool]:
    return lambda seen: type(seen.event) is of and all(getattr(seen.event, k) == v for k, v in fields.items())


def changed(**fields: Any) -> Callable[[Seen], Seen]:
    return lambda seen: seen._replace(event=msgspec.structs.replace(seen.event, **fields))


def add(evidence: Evidence, topic: str, event: Any, partition: int | None = None, key: str | None = None) -> Evidence:
    """One more record at the end of a partition."""
    like = next(s for s in evidence.records[topic] if s.key == (key or getattr(event, "symbol", "main")))
    last = max(s.where.offset for s in evidence.records[topic] if s.where.partition == like.where.partition)
    where = Where(topic, like.where.partition if partition is None else partition, last + 1)
    seen = Seen(where, like.appended_ms + 1, like.key, event)
    records = sorted([*evidence.records[topic], seen], key=lambda s: s.where)
    return replace(
        evidence,
        records={**evidence.records, topic: records},
        ends={**evidence.ends, where[:2]: max(evidence.ends[where[:2]], where.offset + 1)},
    )


def first(evidence: Evidence, topic: str, which: Callable[[Seen], bool]) -> Seen:
    return next(seen for seen in evidence.records[topic] if which(seen))


# --- it holds ----------------------------------------------------------------------------------------


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 10_000), minutes=st.integers(1, 8), cut_first=st.booleans(), ended=st.booleans())
def test_a_run_without_damage_holds_in_every_check(
    world: Build, seed: int, minutes: int, cut_first: bool, ended: bool
) -> None:
    verdict = judge(world(seed=seed, minutes=minutes, cut_first=cut_first, ended=ended))
    assert [(check.name, check.detail) for check in (*verdict.failed.values(), *verdict.not_run)] == []
    assert verdict.ok
    assert len(verdict.checks) >= 20


def test_the_cut_first_minute_and_the_open_last_one_are_named(world: Build) -> None:
    verdict = judge(world(cut_first=True))
    detail = next(check.detail for check in verdict.checks if check.name == "candles_equal_klines")
    assert "ETHUSDT 2024-08-08 23:55 is the cut first minute" in detail
    assert "ETHUSDT 2024-08-08 23:59 is the open last minute" in detail


def test_of_a_thousand_remarks_the_first_are_shown_and_the_rest_counted() -> None:
    assert some_of(["a", "b"]) == "a; b"
    assert some_of([str(n) for n in range(2000)]) == "0; 1; 2; 3; 4; and 1,995 more"
    assert some_of([]) == ""


def test_a_late_trade_of_a_recorded_gap_is_neither_lost_nor_out_of_order(world: Build, edit: Edit) -> None:
    evidence = world(ended=False)
    late = first(evidence, "ohlcv_raw", kind(events.Trade, trade_id=2001))
    gap = events.Gap("sim", "ETHUSDT", 2001, 2001, "timeout", False)
    evidence = edit(evidence, "ohlcv_raw", lambda s: s is late, lambda s: s._replace(event=gap))
    evidence = add(evidence, "ohlcv_raw", late.event)
    assert not judge(evidence).failed.keys() & {"trades_once", "trades_in_order", "gaps_resolved", "watermarks_true"}


def test_a_trade_declared_lost_for_good_is_named_but_does_not_offend(world: Build, edit: Edit) -> None:
    evidence = world()
    gap = events.Gap("sim", "ETHUSDT", 2001, 2001, "delisted", True)
    evidence = edit(evidence, "ohlcv_raw", kind(events.Trade, trade_id=2001), lambda s: s._replace(event=gap))
    verdict = judge(evidence)
    once = next(check for check in verdict.checks if check.name == "trades_once")
    assert once.ok
    assert once.detail == "1 declared lost for good by a final gap record"


def test_records_after_the_ends_that_were_read_are_no_offence_in_warehouse_and_channels(world: Build) -> None:
    evidence = world()
    assert evidence.warehouse is not None
    trades = list(evidence.warehouse.tables["RAW.TRADES"])
    later = {**trades[-1], "KAFKA_OFFSET": 10**6}
    warehouse = replace(
        evidence.warehouse,
        tables={**evidence.warehouse.tables, "RAW.TRADES": [*trades, later]},
        positions=[p._replace(next_offset=10**6 + 1) for p in evidence.warehouse.positions],
    )
    told = [*(evidence.recorded or ()), Message("telegram", "order_events/0@1000000")]
    assert judge(replace(evidence, warehouse=warehouse, recorded=told)).ok


# --- market data -------------------------------------------------------------------------------------


def test_a_lost_trade_is_named(world: Build, edit: Edit) -> None:
    evidence = edit(world(), "ohlcv_raw", kind(events.Trade, trade_id=2001), lambda _: None)
    found = judge(evidence).failed
    assert found["trades_once"].detail.startswith("ETHUSDT trade 2001 lost")
    assert found["trades_once"].expected == int(found["trades_once"].actual) + 1


def test_the_very_first_trade_is_due_when_the_feed_waited_for_all_services(world: Build, edit: Edit) -> None:
    evidence = edit(world(), "ohlcv_raw", kind(events.Trade, trade_id=2000), lambda _: None)
    assert "2000 lost" in judge(evidence).failed["trades_once"].detail


def test_a_repeated_trade_is_named_with_its_coordinates(world: Build) -> None:
    evidence = world()
    trade = first(evidence, "ohlcv_raw", kind(events.Trade, trade_id=2001)).event
    evidence = add(evidence, "ohlcv_raw", trade)
    last = max(s.where for s in evidence.records["ohlcv_raw"] if s.key == "ETHUSDT")
    assert judge(evidence).failed["trades_once"].detail == f"ETHUSDT trade 2001 repeated at {last}"


def test_an_invented_trade_is_named(world: Build, edit: Edit) -> None:
    evidence = world()
    assert evidence.exchange is not None
    feed = evidence.exchange.feeds["ETHUSDT"]
    trades = [t for t in feed.trades if t.trade_id != 2001]
    feeds = {**evidence.exchange.feeds, "ETHUSDT": replace(feed, trades=trades)}
    evidence = replace(evidence, exchange=replace(evidence.exchange, feeds=feeds))
    assert "ETHUSDT trade 2001" in judge(evidence).failed["trades_once"].detail
    assert "none of the exchange's" in judge(evidence).failed["trades_once"].detail


def test_trades_out_of_order_are_named(world: Build) -> None:
    evidence = world()
    two = [s for s in evidence.records["ohlcv_raw"] if kind(events.Trade, symbol="ETHUSDT")(s)][:2]
    swapped = {two[0].where: two[1].event, two[1].where: two[0].event}
    records = [s._replace(event=swapped.get(s.where, s.event)) for s in evidence.records["ohlcv_raw"]]
    found = judge(replace(evidence, records={**evidence.records, "ohlcv_raw": records})).failed
    assert found["trades_in_order"].detail == f"ETHUSDT trade 2000 at {two[1].where} comes after 2001"


@pytest.mark.parametrize(
    ("field", "value"),
    [("price", Decimal("1.5")), ("qty", Decimal("9")), ("traded_at", 7), ("buyer_is_maker", None)],
)
def test_a_trade_that_differs_from_the_exchange_is_named(world: Build, edit: Edit, field: str, value: Any) -> None:
    evidence = world()
    seen = first(evidence, "ohlcv_raw", kind(events.Trade, trade_id=2001))
    value = (not seen.event.buyer_is_maker) if value is None else value
    evidence = edit(evidence, "ohlcv_raw", lambda s: s is seen, changed(**{field: value}))
    assert f"ETHUSDT trade 2001 at {seen.where}: {field} {value}" in judge(evidence).failed["trades_equal"].detail


def test_a_gap_that_nobody_filled_is_named(world: Build) -> None:
    evidence = add(world(), "ohlcv_raw", events.Gap("sim", "ETHUSDT", 2900, 2910, "timeout", False))
    assert "ETHUSDT 2900 to 2910 (11) missing since" in judge(evidence).failed["gaps_resolved"].detail


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    gap=st.tuples(st.integers(1990, 2020), st.integers(0, 30)),
    finals=st.lists(st.tuples(st.integers(1990, 2030), st.integers(0, 9)), max_size=3),
    dropped=st.sets(st.integers(2000, 2020)),
)
def test_of_a_gap_exactly_the_ids_neither_published_nor_declared_lost_are_named(
    world: Build, gap: tuple[int, int], finals: list[tuple[int, int]], dropped: set[int]
) -> None:
    evidence = world(minutes=2)
    kept = [s for s in evidence.records["ohlcv_raw"] if getattr(s.event, "trade_id", None) not in dropped]
    evidence = replace(evidence, records={**evidence.records, "ohlcv_raw": kept})
    evidence = add(evidence, "ohlcv_raw", events.Gap("sim", "ETHUSDT", gap[0], sum(gap), "timeout", False))
    for final in finals:
        evidence = add(evidence, "ohlcv_raw", events.Gap("sim", "ETHUSDT", final[0], sum(final), "lost", True))
    held = {t.trade_id for _, t in evidence.of(events.Trade) if t.symbol == "ETHUSDT"}
    held |= {number for final in finals for number in range(final[0], sum(final) + 1)}
    open_ids = [number for number in range(gap[0], sum(gap) + 1) if number not in held]
    check = next(check for check in judge(evidence).checks if check.name == "gaps_resolved")
    begins = [number for number in open_ids if number - 1 not in open_ids]
    # A final gap record is a gap too, whose ids are all declared lost.
    assert check.actual == len(begins)
    assert all(f"ETHUSDT {number}" in check.detail for number in begins[:5])


def test_a_gap_of_more_ids_than_could_be_counted_is_named_at_once(world: Build) -> None:
    evidence = add(world(), "ohlcv_raw", events.Gap("sim", "ETHUSDT", 2900, 2**62, "timeout", False))
    assert f"ETHUSDT 2900 to {2**62} ({2**62 - 2899}) missing since" in judge(evidence).failed["gaps_resolved"].detail
    evidence = add(evidence, "ohlcv_raw", events.Gap("sim", "ETHUSDT", 2900, 2**62, "lost", True))
    assert "gaps_resolved" not in judge(evidence).failed


def test_a_watermark_with_another_kline_than_the_exchange_is_named(world: Build, edit: Edit) -> None:
    evidence = world()
    seen = first(evidence, "ohlcv_raw", kind(events.Watermark, symbol="ETHUSDT"))
    kline = msgspec.structs.replace(seen.event.kline, trade_count=99)
    evidence = edit(evidence, "ohlcv_raw", lambda s: s is seen, changed(kline=kline))
    assert "trade_count 99 instead of" in judge(evidence).failed["watermarks_true"].detail


@pytest.mark.parametrize(
    "field",
    [
        "open",
        "high",
        "low",
        "close",
        "volume",
        "quote_volume",
        "taker_buy_volume",
        "taker_buy_quote_volume",
        "trade_count",
        "close_time",
        "first_trade_id",
        "last_trade_id",
    ],
)
def test_a_candle_that_differs_in_one_digit_is_named(world: Build, edit: Edit, field: str) -> None:
    evidence = world()
    seen = first(evidence, "ohlcv_agg", kind(events.Candle, symbol="ETHUSDT"))
    value = getattr(seen.event, field)
    value = value + (Decimal("1e-8") if isinstance(value, Decimal) else 1)
    evidence = edit(evidence, "ohlcv_agg", lambda s: s is seen, changed(**{field: value}))
    detail = judge(evidence).failed["candles_equal_klines"].detail
    assert detail.startswith(f"ETHUSDT 2024-08-08 23:55 at {seen.where}: {field} {value}")


def five_minutes(evidence: Evidence, symbol: str = "ETHUSDT") -> tuple[Evidence, events.Candle]:
    """The world with the first five minutes of a symbol as one more candle and kline, by plain sums."""
    assert evidence.exchange is not None
    feed = evidence.exchange.feeds[symbol]
    start = min(feed.klines)
    trades = [t for t in feed.trades if start <= t.traded_at < start + 300_000_000]
    taker = [t for t in trades if not t.buyer_is_maker]
    numbers = (
        trades[0].price, max(t.price for t in trades), min(t.price for t in trades), trades[-1].price,
        sum(t.qty for t in trades), sum(t.qty * t.price for t in trades), len(trades),
        sum(t.qty for t in taker), sum(t.qty * t.price for t in taker), trades[0].trade_id, trades[-1].trade_id,
    )  # fmt: skip
    kline = events.Kline(start, start + 299_999_999, *numbers)  # type: ignore[arg-type]
    candle = events.Candle(symbol, "5m", start, start + 299_999_999, *numbers)  # type: ignore[arg-type]
    feeds = {**evidence.exchange.feeds, symbol: replace(feed, longer={"5m": {start: kline}})}
    return replace(evidence, exchange=replace(evidence.exchange, feeds=feeds)), candle


def test_a_longer_candle_is_compared_with_the_exchanges_kline_of_its_interval(world: Build) -> None:
    evidence, candle = five_minutes(world(minutes=5))
    before = {check.name: check for check in judge(evidence).checks}["candles_equal_klines"]
    right = {check.name: check for check in judge(add(evidence, "ohlcv_agg", candle)).checks}["candles_equal_klines"]
    assert right.ok
    assert int(right.expected) == int(before.expected) + 1
    wrong = msgspec.structs.replace(candle, volume=candle.volume + Decimal("1e-8"))
    detail = judge(add(evidence, "ohlcv_agg", wrong)).failed["candles_equal_klines"].detail
    assert detail.startswith("ETHUSDT 5m 2024-08-08 23:55 at ohlcv_agg/")
    assert f"volume {wrong.volume} instead of {candle.volume}" in detail
    unknown = msgspec.structs.replace(candle, interval="1h")
    assert (
        "ETHUSDT 1h 2024-08-08 23:55"
        in judge(add(evidence, "ohlcv_agg", unknown)).failed["candles_equal_klines"].detail
    )


def test_a_missing_candle_is_named_as_missing_and_as_a_hole(world: Build, edit: Edit) -> None:
    evidence = world(minutes=5)
    minute = first(evidence, "ohlcv_agg", kind(events.Candle, symbol="ETHUSDT")).event.open_time + 60_000_000
    evidence = edit(evidence, "ohlcv_agg", kind(events.Candle, symbol="ETHUSDT", open_time=minute), lambda _: None)
    found = judge(evidence).failed
    assert "ETHUSDT 2024-08-08 23:56: no candle" in found["candles_equal_klines"].detail
    assert "no candle between 2024-08-08 23:55 and 2024-08-08 23:57" in found["candles_once"].detail


def test_a_candle_said_twice_is_named(world: Build) -> None:
    evidence = world()
    seen = first(evidence, "ohlcv_agg", kind(events.Candle, symbol="ETHUSDT"))
    assert "revisions [0, 0]" in judge(add(evidence, "ohlcv_agg", seen.event)).failed["candles_once"].detail


def test_a_revision_that_follows_its_candle_is_counted_and_compared(world: Build, edit: Edit) -> None:
    evidence = world()
    seen = first(evidence, "ohlcv_agg", kind(events.Candle, symbol="ETHUSDT"))
    right = msgspec.structs.replace(seen.event, revision=1)
    evidence = edit(evidence, "ohlcv_agg", lambda s: s is seen, changed(high=Decimal("1e9")))
    checks = {check.name: check for check in judge(add(evidence, "ohlcv_agg", right)).checks}
    assert checks["candles_equal_klines"].ok
    assert checks["candles_once"].ok
    assert checks["candles_once"].detail == "1 revised"


def test_a_symbol_in_the_wrong_partition_is_named(world: Build) -> None:
    evidence = world()
    seen = first(evidence, "trading_signals", kind(events.Signal, symbol="ETHUSDT"))
    wrong = (seen.where.partition + 1) % 3
    records = [
        s._replace(where=s.where._replace(partition=wrong, offset=9_999)) if s is seen else s
        for s in evidence.records["trading_signals"]
    ]
    evidence = replace(evidence, records={**evidence.records, "trading_signals": records})
    assert f"belongs in partition {seen.where.partition}" in judge(evidence).failed["partitions_agree"].detail


# --- signals and orders ------------------------------------------------------------------------------


def test_a_missing_signal_is_named_with_its_strategy(world: Build, edit: Edit) -> None:
    evidence = edit(
        world(), "trading_signals", kind(events.Signal, symbol="ETHUSDT", strategy="weak_levels"), lambda _: None
    )
    assert "weak_levels ETHUSDT 2024-08-08 23:55: no signal" in judge(evidence).failed["signals_one_per_candle"].detail


def test_no_signals_at_all_is_no_success(world: Build) -> None:
    evidence = world()
    silent = replace(evidence, records={**evidence.records, "trading_signals": []})
    assert judge(silent).failed["signals_one_per_candle"].detail == "no strategy has said anything"


def test_a_signal_with_numbers_of_another_candle_is_named(world: Build, edit: Edit) -> None:
    evidence = edit(world(), "trading_signals", kind(events.Signal, symbol="ETHUSDT"), changed(close=Decimal("0.5")))
    assert "close 0.5 instead of" in judge(evidence).failed["signals_one_per_candle"].detail


def test_a_signal_without_an_answer_is_named(world: Build, edit: Edit) -> None:
    evidence = world()
    bought = first(evidence, "order_events", kind(events.OrderIntended, symbol="ETHUSDT"))
    ours = (events.OrderIntended, events.OrderAccepted, events.OrderFilled)
    records = [
        s
        for s in evidence.records["order_events"]
        if not (isinstance(s.event, ours) and s.event.signal_id == bought.event.signal_id)
    ]
    found = judge(replace(evidence, records={**evidence.records, "order_events": records})).failed
    assert "BUY ETHUSDT 2024-08-08 23:56" in found["signals_answered"].detail
    assert "no answer" in found["signals_answered"].detail
    assert "that nobody intended" in found["orders_equal_exchange"].detail
    assert "is not recorded" in found["fills_equal_exchange"].detail
    assert "folded" in found["balances_equal_fold"].detail


def test_what_a_flatten_says_answers_its_command_and_no_signal(world: Build) -> None:
    skip = events.SignalSkipped("main", "command:c-1:ETHUSDT", "ETHUSDT", "SELL", "below_min_notional", "dust")
    evidence = add(world(), "order_events", skip)
    assert "command:c-1:ETHUSDT, which does not exist" in judge(evidence).failed["signals_answered"].detail
    command = events.Command("c-1", "main", "flatten", "alice", 1, None, "")
    assert "signals_answered" not in judge(add(evidence, "trading_signals", command, key="ETHUSDT")).failed


def protected(evidence: Evidence, attempt: int, status: str = "NEW") -> Evidence:
    """With a stop and a target that stand at the exchange after the first fill of a symbol."""
    filled = first(evidence, "order_events", kind(events.OrderFilled, symbol="ETHUSDT")).event
    intent = first(evidence, "order_events", kind(events.OrderIntended, order_id=filled.order_id)).event
    signal_id = f"protect:ETHUSDT:{filled.fill_id}"
    orders = list(evidence.exchange.orders)
    for leg, of in (("s", "STOP_LOSS_LIMIT"), ("t", "LIMIT_MAKER")):
        name, number = f"mf-{signal_id}-{attempt}{leg}", 900 + 10 * attempt + (leg == "t")
        stands = {"order_type": "LIMIT", "exchange_type": of, "price": Decimal(1), "list_id": f"list-{attempt}"}
        stop = msgspec.structs.replace(
            intent, order_id=name, signal_id=signal_id, side="SELL", attempt=attempt, **stands
        )
        evidence = add(evidence, "order_events", stop)
        evidence = add(evidence, "order_events", events.OrderAccepted("main", name, signal_id, "ETHUSDT", number, 1))
        like = next(entry for entry in orders if entry.client_order_id == filled.order_id)
        fields = {"client_order_id": name, "order_type": of, "side": "SELL", "status": status}
        orders.append(like._replace(**fields, executed_qty=Decimal(0)))
    return replace(evidence, exchange=replace(evidence.exchange, orders=orders))


ORDER_CHECKS = {"signals_answered", "orders_equal_exchange", "orders_sent_once", "unresolved_orders"}


def test_a_stop_and_a_target_that_stand_are_no_offence_and_a_second_pair_is(world: Build) -> None:
    evidence = protected(world(), 1)
    assert not judge(evidence).failed.keys() & ORDER_CHECKS
    twice = judge(protected(evidence, 2)).failed
    assert "protection of ETHUSDT was traded by 2 orders" in twice["orders_sent_once"].detail


def test_an_order_that_stands_here_and_has_ended_there_is_named(world: Build) -> None:
    found = judge(protected(world(), 1, status="CANCELED")).failed
    assert "no end is known, the exchange says CANCELED" in found["orders_equal_exchange"].detail
    assert "has no end" in found["unresolved_orders"].detail


def test_a_signal_filled_and_skipped_is_named(world: Build) -> None:
    evidence = world()
    filled = first(evidence, "order_events", kind(events.OrderFilled, symbol="ETHUSDT")).event
    skip = events.SignalSkipped("main", filled.signal_id, "ETHUSDT", "BUY", "limit", "too much")
    assert "and skipped at" in judge(add(evidence, "order_events", skip)).failed["signals_answered"].detail


def test_an_order_without_an_end_is_unresolved(world: Build, edit: Edit) -> None:
    evidence = world()
    filled = first(evidence, "order_events", kind(events.OrderFilled, symbol="ETHUSDT")).event
    unknown = events.OrderUnresolved("main", filled.order_id, filled.signal_id, "ETHUSDT", "no answer")
    evidence = edit(evidence, "order_events", kind(events.OrderFilled, symbol="ETHUSDT"), changed(complete=False))
    found = judge(add(evidence, "order_events", unknown)).failed
    assert f"order {filled.order_id}" in found["unresolved_orders"].detail
    assert "is unresolved since" in found["unresolved_orders"].detail


def test_a_second_order_of_a_signal_is_named(world: Build) -> None:
    evidence = world()
    assert evidence.exchange is not None
    order = evidence.exchange.orders[0]
    intent = first(evidence, "order_events", kind(events.OrderIntended, order_id=order.client_order_id)).event
    again = msgspec.structs.replace(intent, order_id="mf-again", attempt=2)
    orders = [*evidence.exchange.orders, order._replace(client_order_id="mf-again", order_id=99)]
    evidence = replace(add(evidence, "order_events", again), exchange=replace(evidence.exchange, orders=orders))
    assert f"signal {intent.signal_id} was traded by 2 orders" in judge(evidence).failed["orders_sent_once"].detail


def test_an_order_that_ended_otherwise_at_the_exchange_is_named(world: Build) -> None:
    evidence = world()
    assert evidence.exchange is not None
    orders = [evidence.exchange.orders[0]._replace(status="CANCELED"), *evidence.exchange.orders[1:]]
    evidence = replace(evidence, exchange=replace(evidence.exchange, orders=orders))
    assert "filled here, CANCELED at the exchange" in judge(evidence).failed["orders_equal_exchange"].detail


def test_a_fill_that_the_exchange_does_not_know_is_named(world: Build) -> None:
    evidence = world()
    assert evidence.exchange is not None
    evidence = replace(evidence, exchange=replace(evidence.exchange, fills=evidence.exchange.fills[1:]))
    assert "is none of the exchange's" in judge(evidence).failed["fills_equal_exchange"].detail


@pytest.mark.parametrize("field", ["price", "qty", "quote_qty", "commission"])
def test_a_fill_that_differs_in_one_digit_is_named(world: Build, edit: Edit, field: str) -> None:
    evidence = world()
    seen = first(evidence, "order_events", kind(events.OrderFilled, symbol="ETHUSDT"))
    value = getattr(seen.event, field) + Decimal("1e-8")
    evidence = edit(evidence, "order_events", lambda s: s is seen, changed(**{field: value}))
    detail = judge(evidence).failed["fills_equal_exchange"].detail
    assert detail.startswith(f"ETHUSDT fill {seen.event.fill_id} at {seen.where}: {field.replace('_', ' ')} {value}")


@pytest.mark.parametrize("field", ["position_qty", "position_cost", "realized_pnl"])
def test_books_that_say_something_else_than_the_fold_are_named(world: Build, edit: Edit, field: str) -> None:
    evidence = world()
    seen = first(evidence, "order_events", kind(events.OrderFilled, symbol="ETHUSDT"))
    value = getattr(seen.event, field) + Decimal("1e-8")
    evidence = edit(evidence, "order_events", lambda s: s is seen, changed(**{field: value}))
    assert f"{field} {value} instead of" in judge(evidence).failed["positions_and_pnl"].detail


def test_a_balance_that_differs_in_the_last_digit_is_named(world: Build) -> None:
    evidence = world()
    assert evidence.exchange is not None
    usdt = evidence.exchange.balances["USDT"]
    balances = {**evidence.exchange.balances, "USDT": usdt + Decimal("1e-8")}
    evidence = replace(evidence, exchange=replace(evidence.exchange, balances=balances))
    assert judge(evidence).failed["balances_equal_fold"].detail.startswith(f"USDT: {usdt:f} folded")


# --- records that nobody foresaw ---------------------------------------------------------------------


@pytest.mark.parametrize("at", [2**62, -(2**62), 2**63 - 1])
def test_a_record_with_a_time_that_no_calendar_has_is_judged_like_any_other(world: Build, edit: Edit, at: int) -> None:
    assert minute_text(at) == f"{at} µs"
    evidence = world()
    seen = first(evidence, "ohlcv_agg", kind(events.Candle, symbol="ETHUSDT"))
    evidence = edit(evidence, "ohlcv_agg", lambda s: s is seen, changed(open_time=at))
    found = judge(evidence)
    assert not [check for check in found.not_run if "failed" in check.detail]
    assert f"{at} µs at {seen.where}: the exchange has closed no such kline" in str(found.failed)


def test_a_check_that_raises_is_not_run_and_the_others_go_on(world: Build, edit: Edit) -> None:
    evidence = edit(world(), "order_events", kind(events.OrderFilled), changed(qty="three"))
    found = judge(evidence)
    assert not found.ok
    assert {check.name for check in found.not_run} >= {"positions_and_pnl"}
    assert all(check.detail.startswith("the check itself failed: ") for check in found.not_run)
    assert next(check for check in found.checks if check.name == "notifications_delivered").ok


# --- what could not be checked -----------------------------------------------------------------------


@pytest.mark.parametrize("part", ["exchange", "warehouse", "recorded"])
def test_what_could_not_be_checked_does_not_hold(world: Build, part: str) -> None:
    name = "recorder" if part == "recorded" else part
    evidence = replace(world(), **{part: None}, missing={name: "nobody answers at 127.0.0.1:1"})
    verdict = judge(evidence)
    assert not verdict.ok
    assert verdict.not_run
    assert {check.detail for check in verdict.not_run} == {"nobody answers at 127.0.0.1:1"}
    assert not verdict.failed


def test_what_is_still_pending_after_the_waiting_does_not_hold(world: Build) -> None:
    evidence = replace(world(), pending=("the loader stands at 3 of 7 in ohlcv_raw/1",))
    assert judge(evidence).failed["drained"].detail == "the loader stands at 3 of 7 in ohlcv_raw/1"
