"""The fault matrix, trades: lost for good, late, stepped back, from the future, a thousand at once.

Every case ends with the audit's market part clean.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest

pytestmark = pytest.mark.broker
Make = Callable[..., Any]
SECOND = 1_000_000
START = 1_704_067_200_000_000


def test_what_comes_after_the_deadline_is_published_late_and_its_candle_is_stated_again(
    chain: Make, clean: Make
) -> None:
    one = chain({"fill_deadline_s": 0.5, "late_pause_s": 1}, minutes=4, speed=20)
    first = one.exchange.first_id() + 150
    one.exchange.fault("skip", symbol="ETHUSDT", from_id=first, count=7)
    one.exchange.fault("rest_away", symbol="ETHUSDT", from_id=first, seconds=60)
    one.exchange.start()
    found = clean(one.exchange)
    assert [(gap.first_trade_id, gap.last_trade_id, gap.final) for gap in found.gaps()] == [(first, first + 6, False)]
    assert [trade.trade_id for trade in found.trades() if first <= trade.trade_id < first + 7] == [
        *range(first, first + 7)
    ]
    minute = next(trade.traded_at for trade in found.trades() if trade.trade_id == first) // 60_000_000 * 60_000_000
    again = found.revised
    assert [candle.open_time for candle in again] == [minute]
    assert again[0].missing == ()


def test_a_trade_whose_time_steps_back_across_the_minute_is_kept_and_counted_where_the_exchange_does(
    chain: Make, clean: Make
) -> None:
    one = chain(minutes=4, speed=30)
    happened = one.exchange.fault("step_back", symbol="ETHUSDT", at_us=START + 20 * SECOND)["happened_us"]
    one.exchange.start()
    found = clean(one.exchange)
    trades = found.trades()
    back = [b for a, b in pairwise(trades) if b.traded_at < a.traded_at]
    assert [trade.traded_at for trade in back] == [START + 60 * SECOND - 1_000]
    assert happened > START + 60 * SECOND
    assert not found.revised


def test_a_timestamp_an_hour_ahead_changes_no_candle(chain: Make, clean: Make) -> None:
    one = chain(minutes=4, speed=30)
    one.exchange.fault("time_shift", symbol="ETHUSDT", at_us=START + 75 * SECOND, ms=3_600_000)
    one.exchange.start()
    found = clean(one.exchange)
    assert one.exchange.done("time_shift")[0]["used"] == 1
    assert not found.revised


def test_a_thousand_trades_in_one_millisecond(chain: Make, clean: Make) -> None:
    one = chain(minutes=3, speed=30)
    at_us = START + 80 * SECOND
    one.exchange.fault("burst", symbol="ETHUSDT", at_us=at_us, count=1_000)
    one.exchange.start()
    found = clean(one.exchange)
    assert sum(trade.traded_at == at_us for trade in found.trades()) >= 1_000
    assert not found.revised


def test_a_trade_lost_for_good_is_declared_by_a_final_gap(chain: Make, clean: Make) -> None:
    one = chain(minutes=3, speed=30)
    first = one.exchange.first_id() + 100
    one.exchange.fault("lost", symbol="ETHUSDT", from_id=first, count=3)
    one.exchange.start()
    found = clean(one.exchange)
    assert [(gap.first_trade_id, gap.last_trade_id, gap.final) for gap in found.gaps()] == [(first, first + 2, True)]
    assert [candle.missing for candle in found.candles() if candle.missing] == [((first, first + 2),)]
    assert not found.revised
