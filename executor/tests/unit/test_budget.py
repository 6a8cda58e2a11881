"""The exchange's own counts decide how much is asked of it."""

from __future__ import annotations

from marketflow_executor.budget import HOUSEKEEPING, OUTCOMES, Budget

NOW = 1_700_000_060.0  # 20 s into its minute, at the start of ten seconds


def test_orders_may_use_what_questions_and_housekeeping_leave() -> None:
    budget = Budget()
    budget.heard(NOW, [("X-MBX-USED-WEIGHT-1M", "3590")])
    assert budget.wait(NOW, 20, HOUSEKEEPING) == 40.0
    assert budget.wait(NOW, 4, OUTCOMES) == 0.0
    budget.heard(NOW, [("x-mbx-used-weight-1m", "5400")])
    assert budget.wait(NOW, 4, OUTCOMES) == 40.0
    assert budget.wait(NOW, 1) == 0.0
    budget.heard(NOW, [("x-mbx-used-weight-1m", "6000")])
    assert budget.wait(NOW, 1) == 40.0
    assert budget.wait(NOW + 40, 20, HOUSEKEEPING) == 0.0


def test_too_many_orders_wait_for_the_next_interval_and_questions_do_not() -> None:
    budget = Budget()
    budget.allow([{"rateLimitType": "ORDERS", "interval": "SECOND", "intervalNum": 10, "limit": 2}])
    assert budget.wait(NOW, 1, orders=1) == 0.0
    assert budget.wait(NOW, 1, orders=2) == 10.0
    assert budget.wait(NOW, 1, orders=1) == 0.0
    assert budget.wait(NOW + 4, 1, orders=1) == 6.0
    assert budget.wait(NOW + 4, 4, OUTCOMES) == 0.0
    budget.heard(NOW + 4, [("X-MBX-ORDER-COUNT-10S", "1"), ("X-MBX-ORDER-COUNT-1D", "200000")])
    assert budget.wait(NOW + 4, 1, orders=1) == 86_400 - (NOW + 4) % 86_400


def test_what_no_header_counts_is_counted_here_until_one_does() -> None:
    budget = Budget()
    budget.allow([{"rateLimitType": "REQUEST_WEIGHT", "interval": "MINUTE", "intervalNum": 1, "limit": 50}])
    assert [budget.wait(NOW, 20) for _ in range(3)] == [0.0, 0.0, 40.0]
    budget.heard(NOW, [("X-MBX-USED-WEIGHT-1M", "20")])
    assert budget.wait(NOW, 20) == 0.0
    assert budget.used()["REQUEST_WEIGHT", 60] == (40, 50)


def test_a_request_larger_than_its_share_is_sent_in_an_interval_that_has_used_nothing() -> None:
    budget = Budget()
    budget.allow([{"rateLimitType": "REQUEST_WEIGHT", "interval": "MINUTE", "intervalNum": 1, "limit": 20}])
    assert budget.wait(NOW, 20, HOUSEKEEPING) == 0.0
    assert budget.wait(NOW, 20, HOUSEKEEPING) == 40.0


def test_limits_and_headers_that_mean_nothing_to_us_change_nothing() -> None:
    budget = Budget()
    before = budget.used()
    budget.allow([{"rateLimitType": "RAW_REQUESTS", "interval": "MINUTE", "intervalNum": 5, "limit": 1}, {}])
    budget.heard(NOW, [("X-MBX-USED-WEIGHT", "99"), ("X-MBX-USED-WEIGHT-1M", "many"), ("Date", "now")])
    assert budget.used() == before
    # An interval that exchangeInfo has not named has a count and no limit.
    budget.heard(NOW, [("X-MBX-ORDER-COUNT-1H", "7")])
    assert budget.wait(NOW, 1, orders=1) == 0.0
