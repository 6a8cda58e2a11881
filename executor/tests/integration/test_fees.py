"""A fee in a third asset, with what it was worth."""

from __future__ import annotations

from collections.abc import Callable
from decimal import Decimal
from typing import Any

from marketflow_common.events import OrderFilled
from marketflow_stack.testing import CreatedTopics, Programs


def test_a_fee_in_bnb_is_kept_in_bnb_and_valued_in_quote(
    topics: CreatedTopics, programs: Programs, make_stage: Callable[..., Any]
) -> None:
    stage = make_stage(
        topics,
        programs,
        symbols="BTCUSDT,ETHUSDT,SOLUSDT,BNBUSDT",
        bnb_discount="0.25",
        balances="USDT:100000,BNB:10",
    )
    stage.exchange.wait_for("/api/v3/ticker/price?symbol=BNBUSDT")
    stage.start()
    before = stage.exchange.price("BNBUSDT")
    signal = stage.signal("BTCUSDT", "BUY")
    stage.settled(signal)
    [filled] = [e for e in stage.events() if isinstance(e, OrderFilled)]
    assert filled.commission_asset == "BNB"
    assert filled.commission_price is not None
    assert abs(filled.commission_price / before - 1) < Decimal("0.05")
