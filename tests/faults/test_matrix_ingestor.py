"""The fault matrix, processes of the ingestor: stopped, killed, frozen.

Every case ends with the audit's market part clean.
"""

from __future__ import annotations

import signal
from collections.abc import Callable
from typing import Any

import pytest
from marketflow_common import service
from marketflow_stack.testing import eventually

pytestmark = pytest.mark.broker
Make = Callable[..., Any]
SYMBOLS = "BTCUSDT,ETHUSDT,SOLUSDT"


def test_an_ingestor_that_was_stopped_for_ten_minutes_catches_up(chain: Make, ingestor: Make, clean: Make) -> None:
    one = chain(speed=60)
    one.exchange.start()
    one.exchange.reach(130)
    one.ingestor.signal(signal.SIGTERM)
    assert one.ingestor.wait() == 0
    one.exchange.reach(730)
    again = ingestor(one.exchange).wait_ready()
    one.exchange.end()
    found = clean(one.exchange)
    assert again.metric("ingestor_filled_total") > 1_000
    assert not found.gaps()
    assert not found.revised


def test_when_one_of_two_ingestors_is_killed_the_other_takes_over(
    exchange: Make, ingestor: Make, aggregator: Make, clean: Make
) -> None:
    one = exchange(symbols=SYMBOLS, speed=20)
    both, candles = [ingestor(one), ingestor(one)], aggregator()
    eventually(lambda: sorted(map(len, [each.owned() for each in both])) == [1, 2])
    for each in (*both, candles):
        each.wait_ready()
    one.start()
    one.reach(70)
    victim, other = both if len(both[0].owned()) == 2 else both[::-1]
    victim.kill()
    eventually(lambda: other.owned() == [0, 1, 2])
    other.wait_ready()
    one.end()
    found = clean(one)
    assert not found.all_gaps
    assert not found.revised


def test_when_one_of_two_ingestors_is_frozen_for_30_seconds_the_other_takes_over_and_it_writes_nothing_more(
    exchange: Make, ingestor: Make, aggregator: Make, clean: Make, elapsed: Callable[[], float]
) -> None:
    one = exchange(symbols=SYMBOLS, speed=15)
    both, candles = [ingestor(one), ingestor(one)], aggregator()
    eventually(lambda: sorted(map(len, [each.owned() for each in both])) == [1, 2])
    for each in (*both, candles):
        each.wait_ready()
    one.start()
    one.reach(70)
    victim, other = both if len(both[0].owned()) == 2 else both[::-1]
    victim.signal(signal.SIGSTOP)
    frozen_at = elapsed()
    eventually(lambda: other.owned() == [0, 1, 2])
    eventually(lambda: elapsed() - frozen_at >= 30)
    victim.signal(signal.SIGCONT)
    # It notices the rebalance and joins again, or meets the fence of its successor and leaves.
    eventually(lambda: victim.process.poll() or sorted(map(len, [each.owned() for each in both])) == [1, 2])
    assert victim.process.poll() in (None, service.EXIT_FENCED)
    eventually(lambda: other.answers("/readyz") and (victim.process.poll() or victim.answers("/readyz")))
    one.end()
    found = clean(one)
    assert not found.all_gaps
    assert not found.revised
