"""Paper trading on a real broker: fills come from ohlcv_raw, and a restart finds the same ones."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

from marketflow_common import topics as topic_names
from marketflow_common.events import AccountOpened, OrderFilled, Signal, SignalSkipped, Trade

SYMBOLS = ("BTCUSDT", "ETHUSDT", "SOLUSDT")
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


def test_paper_and_an_exchange_that_fills_by_the_same_rule_keep_the_same_books(
    make_stage: Any, topics: Any, programs: Any
) -> None:
    stage = make_stage(topics, programs, fill="after_id", balances="USDT:10000", seed=11)
    stage.start(account="real", send_last_trade_id="true")
    stage.start(account="paper", **(PAPER | {"rest_url": stage.exchange.url}))
    fed = dict.fromkeys(SYMBOLS, 0)

    def feed(symbol: str) -> int:
        """Publish what has been traded since; returns the last id."""
        rows = stage.exchange.trades(symbol, fed[symbol])
        stage.publish(topic_names.OHLCV_RAW, symbol, *(traded(symbol, row) for row in rows))
        fed[symbol] = rows[-1]["id"] + 1 if rows else fed[symbol]
        return fed[symbol] - 1

    def answered(signal: Signal) -> bool:
        feed(signal.symbol)
        ends = [e for e in stage.events() if getattr(e, "signal_id", "") == signal.id]
        done = {e.account for e in ends if isinstance(e, SignalSkipped) or (isinstance(e, OrderFilled) and e.complete)}
        return done == {"real", "paper"}

    signals = []
    for number in range(12):
        symbol = SYMBOLS[number % 3]
        last = stage.wait(lambda symbol=symbol: feed(symbol))
        signals.append(stage.signal(symbol, "SELL" if number in (6, 7, 10) else "BUY", last_trade_id=last))
        stage.wait(lambda signal=signals[-1]: answered(signal))

    def books(account: str) -> list[tuple[Any, ...]]:
        return [
            (e.signal_id, e.side, e.price, e.qty, e.quote_qty, e.commission, e.commission_asset, e.realized_pnl,
             e.profit_pct, e.position_qty, e.position_cost)
            for e in stage.events() if isinstance(e, OrderFilled) and e.account == account
        ]  # fmt: skip

    assert sorted(books("real"), key=str) == sorted(books("paper"), key=str)
    assert {row[0] for row in books("real")} == {signal.id for signal in signals}


def traded(symbol: str, row: dict[str, Any]) -> Trade:
    at, maker = row["time_us"], row["is_buyer_maker"]
    return Trade("binance", symbol, row["id"], Decimal(row["price"]), Decimal(row["qty"]), maker, at, at)
