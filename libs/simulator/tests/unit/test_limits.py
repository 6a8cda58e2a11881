"""The unfilled order count: intervals of the exchange's clock, and what takes an order off again."""

import pytest
from marketflow_simulator.errors import ApiError
from marketflow_simulator.limits import OrderCount


def test_orders_count_within_fixed_intervals_and_one_too_many_counts_nothing() -> None:
    now = [1_700_000_005.5]
    counts = OrderCount(lambda: now[0], 3)
    assert counts.add(2) == {"X-MBX-ORDER-COUNT-10S": "2", "X-MBX-ORDER-COUNT-1D": "2"}
    with pytest.raises(ApiError) as error:
        counts.add(2)
    assert (error.value.code, error.value.status, error.value.retry_after) == (-1015, 429, 5)
    assert error.value.message == "Too many new orders; current limit is 3 orders per 10 SECOND."
    assert counts.add(1)["X-MBX-ORDER-COUNT-10S"] == "3"
    now[0] += 5
    assert counts.add(1) == {"X-MBX-ORDER-COUNT-10S": "1", "X-MBX-ORDER-COUNT-1D": "4"}


def test_a_first_fill_takes_an_order_off_but_gives_no_credit() -> None:
    counts = OrderCount(lambda: 0.0, 3)
    counts.add(1)
    counts.take_back()
    counts.take_back()
    assert [entry["count"] for entry in counts.listing()] == [0, 0]


def test_without_a_limit_orders_are_counted_all_the_same() -> None:
    for counts in (OrderCount(lambda: 0.0, 0), OrderCount(lambda: 0.0, 2, limited=False)):
        assert counts.add(500)["X-MBX-ORDER-COUNT-10S"] == "500"
    assert [limit["limit"] for limit in OrderCount(lambda: 0.0, 0).limits()] == [100, 200000]
