"""The fault matrix, connections to the exchange: cut, announced to be closed, dead, without market data.

Every case ends with the audit's market part clean.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from marketflow_stack.testing import eventually

pytestmark = pytest.mark.broker
Make = Callable[..., Any]
SECOND = 1_000_000
START = 1_704_067_200_000_000


def test_a_connection_cut_in_mid_minute_leaves_no_trace(chain: Make, clean: Make) -> None:
    one = chain(minutes=4, speed=30)
    one.exchange.fault("disconnect", at_us=START + 93 * SECOND)
    one.exchange.start()
    found = clean(one.exchange)
    assert one.exchange.done("disconnect")[0]["happened_us"] >= START + 93 * SECOND
    assert one.ingestor.metric("ingestor_reconnects_total") >= 1
    assert not found.gaps()
    assert not found.revised


def test_an_announced_shutdown_is_left_before_it_comes(chain: Make, clean: Make) -> None:
    one = chain(speed=30)
    one.exchange.fault("server_shutdown", at_us=START + 70 * SECOND, seconds=5)
    one.exchange.start()
    # A second connection is confirmed before the first one is left: nothing is ever disconnected.
    eventually(lambda: one.ingestor.metric('ingestor_handovers_total{why="shutdown"') == 1)
    one.exchange.end()
    found = clean(one.exchange)
    assert one.exchange.done("server_shutdown")[0]["used"] == 1
    assert one.ingestor.metric("ingestor_reconnects_total") == 0
    assert not found.gaps()
    assert not found.revised


def test_a_socket_that_is_dead_without_being_closed_is_left(chain: Make, clean: Make) -> None:
    one = chain({"stall_floor_s": 1}, speed=30)
    one.exchange.fault("stall", at_us=START + 150 * SECOND, seconds=3_000)
    one.exchange.start()
    eventually(lambda: one.ingestor.metric('ingestor_handovers_total{why="stall"') >= 1)
    one.exchange.end()
    found = clean(one.exchange)
    # All this was long before the socket would have come back to life.
    assert one.exchange.done("stall")[0]["used"] == 1
    assert not found.revised


def test_market_data_that_stops_while_pings_go_on_is_noticed(chain: Make, clean: Make) -> None:
    one = chain({"stall_floor_s": 1}, speed=30)
    one.exchange.fault("stall", at_us=START + 150 * SECOND, seconds=3_000, pings=True)
    one.exchange.start()
    eventually(lambda: one.ingestor.metric('ingestor_handovers_total{why="stall"') >= 1)
    one.exchange.end()
    found = clean(one.exchange)
    assert one.exchange.done("stall")[0]["used"] == 1
    assert not found.revised
