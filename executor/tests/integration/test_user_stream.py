"""What the exchange tells by itself is heard, and its silence costs nothing but time."""

from __future__ import annotations

from typing import Any

from marketflow_common.events import TradingStateChanged


def listens(executor: Any) -> bool:
    return bool(executor.metric("user_stream_connected"))


def start(stage: Any, **settings: object) -> Any:
    executor = stage.start(ws_url=stage.exchange.url.replace("http", "ws"), **settings)
    stage.wait(lambda: listens(executor))
    return executor


def test_a_balance_that_is_changed_from_outside_halts_at_once(stage: Any) -> None:
    # Without the stream the next comparison would be an hour away.
    start(stage, reconcile_s=3_600)
    stage.exchange.transfer("USDT", "-100")
    changed = stage.wait(lambda: [e for e in stage.events() if isinstance(e, TradingStateChanged)])
    assert [(e.state, e.changed_by) for e in changed] == [("HALTED", "reconciliation")]
    assert "USDT" in changed[0].reason


def test_orders_end_as_they_should_while_the_stream_is_silent_or_cut(stage: Any) -> None:
    executor = start(stage)
    stage.exchange.fault("user_stream_silent", seconds=3)
    stage.exchange.fault("partial_fill", parts=3)
    first = stage.signal("BTCUSDT", "BUY")
    stage.answered(first)
    stage.exchange.fault("user_stream_cut")
    stage.exchange.fault("order_lost_answer", status=0)
    second = stage.signal("ETHUSDT", "BUY")
    stage.settled(first, second)
    stage.wait(lambda: listens(executor))
    assert "not_listening" in executor.log.read_text()


def test_a_stream_that_refuses_is_tried_again_and_orders_go_on(stage: Any) -> None:
    executor = stage.start(ws_url="ws://127.0.0.1:9")
    stage.settled(stage.signal("SOLUSDT", "BUY"))
    assert not listens(executor)
