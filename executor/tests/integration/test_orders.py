"""Signals become filled orders on a real broker and the real exchange simulator."""

from __future__ import annotations

from typing import Any

from marketflow_common import topics
from marketflow_common.events import Command, SignalSkipped, TradingStateChanged
from marketflow_common.service import EXIT_CONFIG, EXIT_UNAVAILABLE


def test_signals_become_filled_orders_and_the_books_equal_the_exchange(stage: Any) -> None:
    stage.start()
    signals = [stage.signal("BTCUSDT", "BUY"), stage.signal("ETHUSDT", "BUY"), stage.signal("SOLUSDT", "BUY")]
    stage.signal("BTCUSDT", "HOLD")
    signals += [stage.signal("BTCUSDT", "SELL"), stage.signal("ETHUSDT", "SELL")]
    stage.answered(*signals)
    assert stage.of(signals[0]) == ["order_intended", "order_accepted", "order_filled"]
    stage.check_one_each(*signals)
    stage.check_books()


def test_what_leads_to_no_order_is_answered_with_a_reason_and_holds_are_not_answered(stage: Any) -> None:
    executor = stage.start()
    held = stage.signal("BTCUSDT", "HOLD")
    sold = stage.signal("BTCUSDT", "SELL")
    unknown = stage.signal("NOPEUSDT", "BUY")
    command = Command("c", "other", "halt", "telegram:1", 1, None, "")
    stage.publish(topics.TRADING_SIGNALS, "other", command)
    stage.answered(sold, unknown)
    reasons = {e.signal_id: e.reason for e in stage.events() if isinstance(e, SignalSkipped)}
    assert reasons == {sold.id: "no_position", unknown.id: "unknown_symbol"}
    assert stage.of(held) == []
    assert executor.metric('signals_skipped_total{reason="no_position"}') == 1
    assert executor.health()["trading"] == "ACTIVE"


def test_a_signal_that_is_published_again_is_not_traded_again(stage: Any) -> None:
    stage.start()
    first = stage.signal("BTCUSDT", "BUY")
    stage.publish(topics.TRADING_SIGNALS, "BTCUSDT", first)
    last = stage.signal("BTCUSDT", "SELL")
    stage.settled(first, last)
    assert stage.of(first).count("order_intended") == 1


def test_limits_end_new_risk_in_the_transaction_of_the_signal_that_shows_it(stage: Any) -> None:
    stage.start(max_daily_loss_quote="1", sizing="equity_share", equity_share_pct="1", max_orders_per_minute=3)
    first = stage.signal("BTCUSDT", "BUY")
    stage.answered(first)
    falls = stage.signal("BTCUSDT", "BUY", close=stage.exchange.price("BTCUSDT") / 2)
    sold = stage.signal("BTCUSDT", "SELL")
    stage.answered(falls, sold)
    [change] = [e for e in stage.events() if isinstance(e, TradingStateChanged)]
    assert (change.state, change.changed_by) == ("REDUCE_ONLY", "risk:daily_loss")
    assert "limit 1" in change.reason
    reasons = {e.signal_id: e.reason for e in stage.events() if isinstance(e, SignalSkipped)}
    assert reasons == {falls.id: "daily_loss"}
    # Whoever leads next finds the state in the log.
    stage.executors[0].stop(20)
    stage.start(max_daily_loss_quote="1", sizing="equity_share", equity_share_pct="1", max_orders_per_minute=3)
    again = stage.signal("ETHUSDT", "BUY")
    stage.answered(again)
    assert stage.of(again) == ["signal_skipped"]
    stage.check_books()


def test_it_says_what_is_wrong_and_leaves(stage: Any) -> None:
    unconfirmed = stage.start(leads=False, mode="live")
    assert unconfirmed.wait(60) == EXIT_CONFIG
    assert "MARKETFLOW_EXECUTOR_LIVE_CONFIRMATION" in unconfirmed.log.read_text()
    assert "mode live trades with real money" in unconfirmed.log.read_text()
    wrong = stage.start(leads=False, api_key="somebody-elses")
    assert wrong.wait(60) == EXIT_UNAVAILABLE
    assert "refuses the API key" in wrong.log.read_text()
    stage.start().stop(20)
    paper = stage.start(leads=False, mode="paper")
    assert paper.wait(60) == EXIT_UNAVAILABLE
    assert "was opened in mode testnet and cannot go on in mode paper" in paper.log.read_text()
    fifo = stage.start(leads=False, lots="fifo")
    assert fifo.wait(60) == EXIT_UNAVAILABLE
    assert "are kept by convention average and cannot go on by fifo" in fifo.log.read_text()
    assert not any("simulator-secret" in executor.log.read_text() for executor in stage.executors)
