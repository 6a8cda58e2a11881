"""Nothing is asked beyond the exchange's limits, and what the live stream waits for goes first."""

from __future__ import annotations

from marketflow_ingestor.budget import FILL, HOUSEKEEPING, LATE, Connects, Weight

MINUTE = 1_700_000_040.0 // 60 * 60


def test_the_exchanges_own_count_decides() -> None:
    weight = Weight(0.8, 1_000)
    assert weight.wait(25, FILL, MINUTE) == 0
    weight.done(25, MINUTE + 1, 790)
    assert weight.wait(25, FILL, MINUTE + 20) == 40
    assert weight.wait(10, FILL, MINUTE + 20) == 0
    assert weight.wait(25, FILL, MINUTE + 60) == 0, "a new minute"


def test_requests_under_way_count() -> None:
    weight = Weight(1.0, 100)
    assert [weight.wait(25, FILL, MINUTE) for _ in range(5)] == [0, 0, 0, 0, 60]
    weight.done(25, MINUTE, None)
    assert weight.used == 25
    assert weight.wait(25, FILL, MINUTE) == 60


def test_a_reserve_is_left_for_filling_holes() -> None:
    weight = Weight(1.0, 100)
    weight.done(0, MINUTE, 60)
    assert weight.wait(2, HOUSEKEEPING, MINUTE) > 0
    assert weight.wait(20, LATE, MINUTE) == 0
    assert weight.wait(2, LATE, MINUTE) > 0
    assert weight.wait(20, FILL, MINUTE) == 0


def test_a_limit_below_one_request_stops_nobody_for_ever() -> None:
    assert Weight(0.8, 10).wait(25, HOUSEKEEPING, MINUTE) == 0


def test_a_refusal_holds_for_everybody_until_it_is_over() -> None:
    weight = Weight(1.0)
    weight.refused(10, 100)
    weight.refused(2, 101)
    assert weight.blocked(105) == 5
    assert weight.blocked(110) == 0


def test_new_connections_are_spread_over_five_minutes() -> None:
    connects = Connects(3)
    assert [connects.wait(at) for at in (0, 1, 2, 3)] == [0, 0, 0, 297]
    assert connects.wait(300) == 0
    assert connects.wait(300) == 1
