"""dbt on landed data: what it builds, what it says of damage, and that running it again changes nothing."""

from __future__ import annotations

from typing import Any


def test_a_build_passes_all_its_tests_and_makes_the_four_models(market: Any, dbt: Any) -> None:
    dbt.passes("build")
    assert market.tables.ask("SELECT COUNT(*) FROM STAGING.OHLCV_AGG") == [(12,)]
    assert market.tables.ask("SELECT COUNT(*) FROM ANALYTICS.TRADING_SIGNALS") == [(12,)]
    assert market.tables.ask("SELECT COUNT(*) FROM ANALYTICS.PORTFOLIO_PNL") == [(4,)]
    assert market.tables.ask("SELECT COUNT(*) FROM MONITORING.METRICS") == [(4,)]
