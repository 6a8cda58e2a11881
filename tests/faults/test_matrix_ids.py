"""The fault matrix, ids: missing, repeated, out of order, missing while REST is away.

Every case ends with the audit's market part clean.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

pytestmark = pytest.mark.broker
Make = Callable[..., Any]
SECOND = 1_000_000
START = 1_704_067_200_000_000


@pytest.mark.parametrize(("count", "minutes", "speed"), [(1, 3, 30), (10, 3, 30), (5_000, 15, 90)])
def test_missing_ids_are_filled(chain: Make, clean: Make, count: int, minutes: int, speed: int) -> None:
    one = chain(minutes=minutes, speed=speed)
    first = one.exchange.first_id() + 250
    one.exchange.fault("skip", symbol="ETHUSDT", from_id=first, count=count)
    one.exchange.start()
    found = clean(one.exchange)
    assert one.exchange.done("skip")[0]["used"] == count
    assert one.ingestor.metric("ingestor_filled_total") >= count
    assert not found.gaps()
    assert not found.revised


def test_repeated_ids_are_dropped(chain: Make, clean: Make) -> None:
    one = chain(minutes=3, speed=30)
    one.exchange.fault("repeat", count=50, at_us=START + 45 * SECOND)
    one.exchange.start()
    found = clean(one.exchange)
    assert one.exchange.done("repeat")[0]["used"] == 50
    assert one.ingestor.metric("ingestor_duplicates_total") >= 50
    assert not found.revised


def test_reordered_ids_are_put_in_order(chain: Make, clean: Make) -> None:
    one = chain(minutes=3, speed=30)
    one.exchange.fault("reorder", count=40, at_us=START + 55 * SECOND)
    one.exchange.start()
    found = clean(one.exchange)
    assert one.exchange.done("reorder")[0]["used"] == 40
    ids = [trade.trade_id for trade in found.trades()]
    assert ids == sorted(ids)
    assert not found.revised


def test_ids_that_are_missing_while_rest_is_away_for_a_minute_are_filled_when_it_is_back(
    chain: Make, clean: Make
) -> None:
    one = chain(minutes=4, speed=15)
    one.exchange.fault("skip", symbol="ETHUSDT", at_us=START + 50 * SECOND, count=20)
    one.exchange.fault("rest_away", at_us=START + 45 * SECOND, seconds=60, status=0)
    one.exchange.start()
    found = clean(one.exchange)
    assert one.exchange.done("rest_away")[0]["used"] >= 1
    assert one.ingestor.metric("ingestor_filled_total") >= 20
    assert not found.gaps()
    assert not found.revised
