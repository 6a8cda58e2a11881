"""Stalls, shutdowns, limits and wrong times of the exchange, between the simulator and a real broker."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from marketflow_stack.testing import eventually

pytestmark = pytest.mark.broker
Make = Callable[..., Any]


@pytest.mark.parametrize("pings", [False, True], ids=["dead", "answering_pings"])
def test_a_connection_that_falls_silent_is_replaced_and_what_it_kept_back_is_filled(
    pings: bool, simulator: Make, ingestor: Make, capture: Make, whole: Make
) -> None:
    exchange = simulator(replay=capture(12_000, every_ms=100), speed=60)
    one = ingestor(exchange, stall_floor_s=1).wait_ready()
    exchange.start()
    eventually(lambda: exchange.published() > 2_000, interval=0.05)
    exchange.fault(kind="stall", seconds=300, pings=pings)
    eventually(lambda: one.metric('ingestor_handovers_total{why="stall"}') == 1)
    found = whole(exchange)
    assert not found.gaps
    assert one.metric("ingestor_reconnects_total") == 1


def test_a_second_connection_takes_over_before_the_exchange_shuts_down(
    simulator: Make, ingestor: Make, capture: Make, whole: Make
) -> None:
    exchange = simulator(replay=capture(6_000), speed=30)
    one = ingestor(exchange).wait_ready()
    exchange.start()
    eventually(lambda: exchange.published() > 500, interval=0.05)
    exchange.fault(kind="server_shutdown", seconds=30)
    eventually(lambda: one.metric('ingestor_handovers_total{why="shutdown"}') == 1)
    found = whole(exchange)
    assert not found.gaps
    assert one.metric("ingestor_reconnects_total") == 0


def test_an_old_connection_is_replaced_without_a_hole(
    simulator: Make, ingestor: Make, capture: Make, whole: Make
) -> None:
    exchange = simulator(replay=capture(6_000), speed=30)
    one = ingestor(exchange, connection_age_s=2).wait_ready()
    exchange.start()
    found = whole(exchange)
    assert not found.gaps
    assert one.metric('ingestor_handovers_total{why="age"}') >= 2
    assert one.metric("ingestor_reconnects_total") == 0


def test_a_silent_market_costs_little_and_connections_stay(
    simulator: Make, ingestor: Make, capture: Make, whole: Make
) -> None:
    exchange = simulator(replay=capture(3_000, pause_at=2_000), speed=15)
    one = ingestor(exchange, stall_floor_s=1).wait_ready()
    exchange.start()
    whole(exchange)
    eventually(lambda: one.metric("ingestor_suspicions_total") >= 2, timeout=60)
    assert one.metric("ingestor_handovers_total") == 0
    assert one.metric("ingestor_reconnects_total") == 0
    assert one.metric("ingestor_rest_requests_total") < 40


def test_a_trade_an_hour_ahead_is_published_as_rest_has_it(
    simulator: Make, ingestor: Make, capture: Make, whole: Make
) -> None:
    exchange = simulator(replay=capture(2_400), speed=60)
    one = ingestor(exchange).wait_ready()
    exchange.fault(kind="time_shift", from_id=1_500, count=3, ms=3_600_000)
    exchange.start()
    found = whole(exchange)
    assert not found.gaps
    assert one.metric('ingestor_time_ahead_total{symbol="ETHUSDT"}') == 3


@pytest.mark.parametrize(("kind", "status"), [("rate_limit", "429"), ("ban", "418")])
def test_who_is_told_to_wait_waits_and_fills_later(
    kind: str, status: str, simulator: Make, ingestor: Make, capture: Make, whole: Make
) -> None:
    exchange = simulator(replay=capture(6_000), speed=60)
    one = ingestor(exchange).wait_ready()
    exchange.fault(kind="skip", from_id=2_000, count=50)
    # By the market's own time: what the test sees of it may be late by more than the ban lasts.
    exchange.fault(kind=kind, seconds=3, symbol="ETHUSDT", from_id=1_990)
    exchange.start()
    found = whole(exchange)
    assert not found.gaps
    # Nobody asked on: a few requests were under way, the others waited.
    refused = one.metric(f'ingestor_rest_requests_total{{outcome="{status}",path="historicalTrades"}}')
    assert 1 <= refused <= 4
    assert one.metric("ingestor_rest_blocked_seconds") == 0


def test_the_exchanges_weight_limit_is_kept(simulator: Make, ingestor: Make, capture: Make, feed: Make) -> None:
    exchange = simulator(replay=capture(6_000), speed=60, weight_limit=300)
    one = ingestor(exchange).wait_ready()
    exchange.fault(kind="skip", from_id=1_100, count=4_500)
    exchange.start()
    eventually(lambda: feed().ids[-1:] == [6_999], timeout=150, interval=0.5)
    assert feed().ids == list(range(1_000, 7_000))
    assert one.metric('ingestor_rest_requests_total{outcome="429"') == 0
    assert one.metric("ingestor_rest_weight_limit") == 300


def test_the_exchanges_clock_is_measured(simulator: Make, ingestor: Make, capture: Make) -> None:
    exchange = simulator(replay=capture(100), speed=60)
    exchange.fault(kind="clock_skew", ms=-20_000)
    one = ingestor(exchange, clock_every_s=1).wait_ready()
    eventually(lambda: abs(one.metric("ingestor_clock_offset_seconds") + 20) < 1)
    assert "clock_off" in one.log.read_text()
    exchange.heal()
    eventually(lambda: abs(one.metric("ingestor_clock_offset_seconds")) < 1)


def test_a_hole_is_filled_from_aggregates_of_one_trade_where_the_trades_themselves_cannot_be_had(
    simulator: Make, ingestor: Make, capture: Make, whole: Make
) -> None:
    exchange = simulator(replay=capture(2_400), speed=60)
    one = ingestor(exchange).wait_ready()
    exchange.fault(kind="skip", from_id=1_700, count=40)
    exchange.start()
    eventually(lambda: exchange.published() > 500, interval=0.02)
    exchange.fault(kind="rest_error", path="historicalTrades", count=10_000)
    found = whole(exchange)
    assert not found.gaps
    assert one.metric("ingestor_filled_total") >= 40
