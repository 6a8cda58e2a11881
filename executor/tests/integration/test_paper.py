"""Paper trading on a real broker: fills come from ohlcv_raw, and a restart finds the same ones."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

from marketflow_common.events import AccountOpened, OrderFilled

PAPER = {"mode": "paper", "rest_url": "", "api_key": "", "api_secret": ""}


def fills(stage: Any) -> list[OrderFilled]:
    return [e for e in stage.events() if isinstance(e, OrderFilled)]


def test_a_paper_order_fills_at_the_first_trade_that_its_signal_has_not_seen(stage: Any) -> None:
    stage.start(**PAPER)
    for trade_id, price in enumerate(["100", "101", "102"], start=1):
        stage.trade("BTCUSDT", trade_id, price)
    stage.trade("ETHUSDT", 3, "7")
    signal = stage.signal("BTCUSDT", "BUY", close=Decimal(101), last_trade_id=2)
    stage.answered(signal)
    (fill,) = fills(stage)
    assert (fill.fill_id, fill.price, fill.qty) == (3, Decimal(102), Decimal("1.98019801"))
    assert (fill.commission, fill.commission_asset) == (Decimal("0.00198019"), "BTC")
    assert fill.position_qty == Decimal("1.97821782")
    assert stage.exchange.posts() == 0
    (opened,) = [e for e in stage.events() if isinstance(e, AccountOpened)]
    assert opened.balances == {"USDT": Decimal(10_000)}


def test_a_paper_order_rests_until_there_is_a_trade_also_while_nobody_is_there(stage: Any) -> None:
    executor = stage.start(**PAPER)
    stage.trade("BTCUSDT", 1, "100")
    signal = stage.signal("BTCUSDT", "BUY", close=Decimal(100), last_trade_id=1)
    stage.wait(lambda: stage.of(signal) == ["order_intended", "order_accepted"])
    other = stage.signal("BTCUSDT", "BUY", close=Decimal(100), last_trade_id=1)
    stage.answered(other)
    assert stage.of(other) == ["signal_skipped"]
    executor.kill()
    stage.trade("BTCUSDT", 2, "99")
    stage.trade("BTCUSDT", 3, "98")
    stage.start(**PAPER)
    stage.answered(signal)
    (fill,) = fills(stage)
    assert (fill.fill_id, fill.price, fill.complete) == (2, Decimal(99), True)
    sold = stage.signal("BTCUSDT", "SELL", close=Decimal(98), last_trade_id=3)
    stage.wait(lambda: "order_accepted" in stage.of(sold))
    stage.trade("BTCUSDT", 4, "110")
    stage.answered(sold)
    _, sale = fills(stage)
    assert sale.price == Decimal(110)
    assert sale.realized_pnl > 0
    assert sale.profit_pct is not None
