"""Fees in a third asset get a price where the exchange has one now, and no fill waits for it."""

from __future__ import annotations

from decimal import Decimal
from types import SimpleNamespace
from typing import Any

from executor_builders import ETH, fill
from marketflow_executor.exchange import Unavailable
from marketflow_executor.fees import priced
from marketflow_executor.orders import Report, Unknown, Update

NOW_MS = 100_000


def exchange(price: str = "") -> Any:
    asked: list[str] = []

    def last_price(symbol: str) -> Decimal:
        asked.append(symbol)
        if not price:
            raise Unavailable("no such symbol")
        return Decimal(price)

    return SimpleNamespace(now_ms=lambda: NOW_MS, last_price=last_price, asked=asked)


def test_fees_in_bnb_are_priced_once_an_answer_and_others_are_not_asked_for() -> None:
    there = exchange("600")
    fills = tuple(
        fill(n, "100", "1", "0.001", asset, at=NOW_MS * 1_000) for n, asset in enumerate(("BNB", "ETH", "BNB"))
    )
    answer = priced(Report(1, "FILLED", Decimal(3), fills, 1), ETH, there)
    assert isinstance(answer, Report)
    assert [one.commission_price for one in answer.fills] == [Decimal(600), None, Decimal(600)]
    assert there.asked == ["BNBUSDT"]
    update = priced(Update(1, "FILLED", Decimal(1), 1, fills[0]), ETH, there)
    assert isinstance(update, Update)
    assert update.fill is not None
    assert update.fill.commission_price == Decimal(600)


def test_an_old_fill_and_an_asset_without_a_market_keep_their_fee_as_it_is() -> None:
    old = Update(1, "FILLED", Decimal(1), 1, fill(1, "100", "1", "0.001", "BNB", at=1_000))
    there = exchange("600")
    assert priced(old, ETH, there) == old
    assert there.asked == []
    new = Update(1, "FILLED", Decimal(1), 1, fill(1, "100", "1", "0.001", "BNB", at=NOW_MS * 1_000))
    assert priced(new, ETH, exchange()) == new
    assert priced(Unknown("x"), ETH, exchange()) == Unknown("x")
