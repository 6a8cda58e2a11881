"""The fault matrix, processes of the aggregator: killed at every step of its loop, and rebalanced in mid-window.

Every case ends with the audit's market part clean, and without any revision: what died had stated nothing twice.
"""

from __future__ import annotations

import signal
from collections.abc import Callable
from typing import Any

import pytest
from marketflow_stack.testing import eventually

pytestmark = pytest.mark.broker
Make = Callable[..., Any]
STEPS = ("consumed", "processed", "produced", "offsets_sent", "committed")


@pytest.mark.parametrize("step", STEPS)
def test_killed_at_any_step_it_states_every_candle_once(
    exchange: Make, ingestor: Make, aggregator: Make, clean: Make, step: str
) -> None:
    one = exchange(minutes=4, speed=40)
    feed = ingestor(one).wait_ready()
    # Output, and with it the later steps, comes once a minute: the third time lies in the market's third minute.
    # On a busy machine there may be no more than a few dozen batches.
    dying = aggregator(die_at=step, times=12 if step in ("consumed", "processed") else 2).wait_ready()
    one.start()
    assert dying.wait() == -signal.SIGKILL
    aggregator()
    found = clean(one)
    assert feed.process.poll() is None
    assert not found.revised


def test_a_group_that_is_rebalanced_in_mid_window_states_every_candle_once(
    exchange: Make, ingestor: Make, aggregator: Make, clean: Make
) -> None:
    one = exchange(symbols="BTCUSDT,ETHUSDT,SOLUSDT", speed=30)
    ingestor(one).wait_ready()
    first = aggregator().wait_ready()
    one.start()
    one.reach(90)
    second = aggregator().wait_ready()
    eventually(lambda: sorted([len(first.owned()), len(second.owned())]) == [1, 2])
    at = one.market()["market_time_us"]
    eventually(lambda: first.metric("candles_closed_total") and second.metric("candles_closed_total"))
    first.signal(signal.SIGTERM)
    assert first.wait() == 0
    eventually(lambda: second.owned() == [0, 1, 2])
    assert one.market()["market_time_us"] > at
    one.end(10)
    found = clean(one)
    assert not found.revised
