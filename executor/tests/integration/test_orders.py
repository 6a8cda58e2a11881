"""Signals become filled orders on a real broker and the real exchange simulator."""

from __future__ import annotations

from typing import Any


def test_signals_become_filled_orders_and_the_books_equal_the_exchange(stage: Any) -> None:
    stage.start()
    signals = [stage.signal("BTCUSDT", "BUY"), stage.signal("ETHUSDT", "BUY"), stage.signal("SOLUSDT", "BUY")]
    stage.signal("BTCUSDT", "HOLD")
    signals += [stage.signal("BTCUSDT", "SELL"), stage.signal("ETHUSDT", "SELL")]
    stage.answered(*signals)
    assert stage.of(signals[0]) == ["order_intended", "order_accepted", "order_filled"]
    stage.check_one_each(*signals)
    stage.check_books()
