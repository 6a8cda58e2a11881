"""Symbols that come and go while the ingestor runs, between the simulator and a real broker."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from marketflow_stack.testing import eventually

pytestmark = pytest.mark.broker
Make = Callable[..., Any]


def test_a_delisted_symbol_of_a_pattern_is_closed_and_goes_on_when_it_trades_again(
    simulator: Make, ingestor: Make, feed: Make
) -> None:
    exchange = simulator(symbols="BTCUSDT,ETHUSDT,SOLUSDT", speed=30)
    one = ingestor(exchange, "*USDT", symbols_every_s=1).wait_ready()
    exchange.start()
    eventually(lambda: feed("SOLUSDT").watermarks, interval=0.5)
    exchange.fault(kind="delist", symbol="SOLUSDT")
    eventually(lambda: feed("SOLUSDT").gaps, interval=0.5)
    found = feed("SOLUSDT")
    closing = found.gaps[-1]
    assert (closing.first_trade_id, closing.last_trade_id, closing.final) == (found.ids[-1] + 1, found.ids[-1], True)
    assert found.watermarks[-1].through > found.trades[-1].traded_at, "its last minute is proven"
    assert found.events[-1] == closing
    assert one.metric("ingestor_symbols_ended_total") == 1
    last = found.ids[-1]
    assert one.stop() == 0
    two = ingestor(exchange, "*USDT", symbols_every_s=1).wait_ready()
    exchange.fault(kind="list", symbol="SOLUSDT")
    eventually(lambda: feed("SOLUSDT").ids[-1] > last and feed("SOLUSDT").events[-1] != closing, interval=0.5)
    through = found.watermarks[-1].through
    eventually(lambda: feed("SOLUSDT").watermarks[-1].through > through, interval=0.5)
    assert two.stop() == 0
    found = feed("SOLUSDT")
    assert found.gaps == [closing]
    found.check_trades(exchange, found.ids[0], found.ids[-1])
    found.check_watermarks()


def test_a_symbol_that_begins_to_trade_is_added_to_a_pattern(simulator: Make, ingestor: Make, feed: Make) -> None:
    exchange = simulator(symbols="BTCUSDT,ETHUSDT", speed=30)
    exchange.fault(kind="delist", symbol="BTCUSDT")
    exchange.start()
    eventually(lambda: exchange.status("BTCUSDT") == "BREAK")
    one = ingestor(exchange, "*USDT", symbols_every_s=1).wait_ready()
    eventually(lambda: feed("ETHUSDT").watermarks, interval=0.5)
    assert not feed("BTCUSDT").events
    exchange.fault(kind="list", symbol="BTCUSDT")
    eventually(lambda: feed("BTCUSDT").watermarks, interval=0.5)
    assert one.stop() == 0
    found = feed("BTCUSDT")
    found.check_trades(exchange, found.ids[0], found.ids[-1])
    found.check_watermarks()
