"""An order whose answer does not come, or comes wrong: its outcome is found out, and nothing is sent twice."""

from __future__ import annotations

from typing import Any

import pytest
from marketflow_common.events import OrderIntended, SignalSkipped

PATH = "/api/v3/order"


@pytest.mark.parametrize("status", [503, 0], ids=["answered 503", "connection cut"])
def test_a_lost_answer_is_found_out_by_asking(stage: Any, status: int) -> None:
    stage.start()
    stage.exchange.fault("order_lost_answer", status=status)
    signal = stage.signal("BTCUSDT", "BUY")
    stage.settled(signal)
    assert stage.of(signal) == ["order_intended", "order_unresolved", "order_accepted", "order_filled"]
    assert stage.exchange.posts() == 1


def test_a_lost_request_is_sent_anew_only_once_it_can_no_longer_arrive(stage: Any) -> None:
    stage.start()
    stage.exchange.fault("order_lost_request")
    signal = stage.signal("BTCUSDT", "BUY")
    stage.settled(signal)
    first = ["order_intended", "order_unresolved", "order_expired"]
    assert stage.of(signal) == [*first, "order_intended", "order_accepted", "order_filled"]
    before, after = [e for e in stage.events() if isinstance(e, OrderIntended)]
    assert after.order_id != before.order_id
    assert after.timestamp_ms > before.timestamp_ms + before.recv_window_ms + 500
    assert stage.exchange.posts() == 2


def test_a_request_that_is_lost_each_time_ends_with_the_attempts(stage: Any) -> None:
    stage.start(max_attempts=2, recv_window_ms=1_600, rest_timeout_s=1.5)
    stage.exchange.fault("order_lost_request", count=9)
    signal = stage.signal("BTCUSDT", "BUY")
    stage.answered(signal)
    skipped = stage.wait(lambda: [e for e in stage.events() if isinstance(e, SignalSkipped)])
    assert [e.reason for e in skipped] == ["attempts_exhausted"]
    assert stage.of(signal).count("order_expired") == 2
    assert stage.exchange.ledger()["orders"] == []


def test_an_answer_that_comes_too_late_is_asked_for(stage: Any) -> None:
    stage.start(rest_timeout_s=1.5)
    stage.exchange.fault("late_answer", path=PATH, seconds=2.5)
    signal = stage.signal("ETHUSDT", "BUY")
    stage.settled(signal)
    assert "order_unresolved" in stage.of(signal)
    # The exchange counts a request once it has answered it.
    stage.wait(stage.exchange.posts)
    assert stage.exchange.posts() == 1


def test_errors_of_the_server_leave_an_order_unknown_and_those_of_the_client_end_it(stage: Any) -> None:
    stage.start()
    stage.exchange.fault("rest_error", path=PATH, status=400, code=-1007)
    unknown = stage.signal("ETHUSDT", "BUY")
    stage.answered(unknown)
    assert stage.of(unknown)[:3] == ["order_intended", "order_unresolved", "order_expired"]
    stage.exchange.fault("rest_error", path=PATH, status=400, code=-1013)
    refused = stage.signal("SOLUSDT", "BUY")
    stage.answered(refused)
    assert stage.of(refused) == ["order_intended", "order_rejected"]
    stage.check_one_each(unknown)
    stage.check_books()


def test_a_throttled_order_is_sent_again_as_it_was_once_the_exchange_allows(stage: Any) -> None:
    stage.start()
    stage.exchange.fault("rest_error", path=PATH, status=429, retry_after=1)
    signal = stage.signal("BTCUSDT", "BUY")
    stage.settled(signal)
    assert stage.of(signal) == ["order_intended", "order_accepted", "order_filled"]
    assert stage.exchange.posts() == 2


def test_a_ban_longer_than_the_window_ends_the_attempt_and_the_next_waits_for_its_end(stage: Any) -> None:
    stage.start()
    stage.exchange.fault("rest_error", path=PATH, status=418, retry_after=4)
    signal = stage.signal("BTCUSDT", "BUY")
    stage.settled(signal)
    assert stage.of(signal) == ["order_intended", "order_expired", "order_intended", "order_accepted", "order_filled"]
    assert stage.exchange.posts() == 2


def test_an_exchange_whose_clock_jumps_refuses_once_and_then_takes_the_order(stage: Any) -> None:
    stage.start()
    stage.exchange.fault("clock_skew", ms=5_000)
    signal = stage.signal("BTCUSDT", "BUY")
    stage.settled(signal)
    assert stage.of(signal) == ["order_intended", "order_expired", "order_intended", "order_accepted", "order_filled"]


def test_an_exchange_that_is_away_keeps_signals_waiting_and_loses_none(stage: Any) -> None:
    executor = stage.start()
    stage.exchange.fault("rest_error", path="/api/v3/exchangeInfo", status=503, count=100_000)
    signal = stage.signal("SOLUSDT", "BUY")
    stage.wait(lambda: "waiting for the exchange" in str(executor.health().get("reason")))
    stage.exchange.heal()
    stage.settled(signal)
    stage.wait(executor.leads)


def test_a_balance_changed_from_outside_halts_trading(stage: Any) -> None:
    stage.start(reconcile_s=1)
    signal = stage.signal("BTCUSDT", "BUY")
    stage.settled(signal)
    stage.exchange.order("BTCUSDT", "BUY", "0.01")
    halted = stage.wait(lambda: [e for e in stage.events() if type(e).__name__ == "TradingStateChanged"])
    assert halted[0].state == "HALTED"
    # The order may come between the two questions, so that the first look shows one of both only.
    assert "BTC: the exchange has" in halted[0].reason or "and in no order of ours" in halted[0].reason
    later = stage.signal("BTCUSDT", "SELL")
    stage.answered(later)
    assert [e.reason for e in stage.events() if isinstance(e, SignalSkipped)] == ["halted"]
    stage.executors[0].stop(20)
    stage.start()
    again = stage.signal("ETHUSDT", "BUY")
    stage.answered(again)
    assert stage.of(again) == ["signal_skipped"]
