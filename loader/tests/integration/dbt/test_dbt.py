"""dbt on landed data: what it builds, that running it again changes nothing, and that it names what is damaged."""

from __future__ import annotations

from typing import Any

import pytest
from marketflow_common import topics as names

pytestmark = pytest.mark.timeout(900)  # dbt takes ten seconds to start, on a busy machine a minute
MODELS = ("STAGING.OHLCV_AGG", "ANALYTICS.TRADING_SIGNALS", "ANALYTICS.PORTFOLIO_PNL", "MONITORING.METRICS")


def contents(market: Any) -> dict[str, list[str]]:
    return {model: sorted(map(repr, market.tables.ask(f"SELECT * FROM {model}"))) for model in MODELS}


def test_incremental_runs_and_a_full_refresh_give_the_same_tables_also_after_a_late_trade(
    market: Any, dbt: Any
) -> None:
    dbt.passes("build")
    rows = {model: len(found) for model, found in contents(market).items()}
    assert rows == dict(zip(MODELS, (12, 12, 4, 4), strict=True))
    # The parity tests passed: what SQL folds equals what was published. One candle by hand, all the same.
    [candle] = [c for c in market.log[names.OHLCV_AGG, 1] if c.open_time == market.start]
    [found] = market.tables.ask(
        "SELECT OPEN, HIGH, LOW, CLOSE, VOLUME, QUOTE_VOLUME, TRADE_COUNT, TAKER_BUY_VOLUME, FIRST_TRADE_ID "
        "FROM STAGING.OHLCV_AGG WHERE SYMBOL = 'BTCUSDT' ORDER BY OPEN_TIME LIMIT 1"
    )
    assert found == (
        candle.open, candle.high, candle.low, candle.close, candle.volume, candle.quote_volume, candle.trade_count,
        candle.taker_buy_volume, candle.first_trade_id,
    )  # fmt: skip

    trade, amended = market.late
    market.publish(names.OHLCV_RAW, 0, trade)
    market.publish(names.OHLCV_AGG, 0, amended)
    market.land()
    dbt.passes("build")
    amended_rows = "SELECT TRADE_COUNT, REVISION FROM STAGING.OHLCV_AGG WHERE REVISION > 0"
    assert market.tables.ask(amended_rows) == [(amended.trade_count, 1)]
    incremental = contents(market)
    assert {model: len(found) for model, found in incremental.items()} == rows
    dbt.passes("build", "--full-refresh")
    assert contents(market) == incremental


def test_runs_that_compute_the_newest_minutes_only_give_what_a_full_refresh_gives(
    tables: Any, dbt: Any, land_market: Any
) -> None:
    # Only what landed with or after the newest row of the run before: minutes whose first trades step back in time,
    # one without trades, and one with a trade that has waited for it since long before.
    candles = ("run", "--select", "ohlcv_agg", "--vars", "{late_arrival_minutes: 0}")
    market = land_market(tables, minutes=2)
    dbt.passes(*candles)
    for minutes in (1, 1, 1, 2):
        market.go_on(minutes)
        dbt.passes(*candles)
    incremental = tables.ask("SELECT * FROM STAGING.OHLCV_AGG ORDER BY SYMBOL, OPEN_TIME")
    assert len(incremental) == 12
    dbt.passes("build", "--full-refresh")
    assert tables.ask("SELECT * FROM STAGING.OHLCV_AGG ORDER BY SYMBOL, OPEN_TIME") == incremental


def test_damage_is_named_by_the_test_it_concerns(market: Any, dbt: Any) -> None:
    dbt.passes("run")
    tables = market.tables
    digit = "0.000000000000000001"
    tables.ask(
        f"UPDATE STAGING.OHLCV_STREAM SET VOLUME = VOLUME + {digit} WHERE KAFKA_PARTITION = 1 AND KAFKA_OFFSET = 3"
    )
    tables.ask(f"UPDATE ANALYTICS.ORDER_EVENTS SET REALIZED_PNL = REALIZED_PNL + {digit} WHERE FILL_ID = 103")
    tables.ask("INSERT INTO RAW.TRADES SELECT * FROM RAW.TRADES WHERE KAFKA_PARTITION = 1 AND KAFKA_OFFSET = 5")
    tables.ask("DELETE FROM ANALYTICS.ORDER_EVENTS WHERE FILL_ID = 102 AND SYMBOL = 'ETHUSDT'")
    tables.ask("UPDATE ANALYTICS.TRADING_SIGNALS SET SIGNAL_TYPE = 'MAYBE' WHERE LAST_TRADE_ID > 2050")
    failed = dbt.failures("test")
    assert failed == {
        "parity_candles",
        "parity_pnl",
        "parity_band_signals",
        "portfolio_pnl_adds_up",
        "source_unique_together_raw_TRADES_KAFKA_TOPIC_ID__KAFKA_PARTITION__KAFKA_OFFSET",
        "source_unique_together_raw_TRADES_KAFKA_TOPIC_ID__SYMBOL__TRADE_ID",
        "accepted_values_trading_signals_signal_type__BUY__SELL__HOLD",
    }


def test_an_empty_warehouse_builds_and_later_takes_what_lands(tables: Any, dbt: Any, land_market: Any) -> None:
    dbt.passes("build")
    land_market(tables)
    dbt.passes("build")
    assert tables.ask("SELECT COUNT(*) FROM STAGING.OHLCV_AGG") == [(12,)]
    assert tables.ask("SELECT COUNT(*) FROM ANALYTICS.PORTFOLIO_PNL") == [(4,)]
