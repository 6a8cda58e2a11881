"""dbt on landed data: what it builds, that running it again changes nothing, and that it names what is damaged."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from marketflow_common import topics as names

pytestmark = pytest.mark.timeout(900)  # dbt takes ten seconds to start, on a busy machine a minute
MODELS = (
    "STAGING.TRADES", "STAGING.OHLCV_AGG", "ANALYTICS.TRADING_SIGNALS", "ANALYTICS.PORTFOLIO_PNL", "MONITORING.METRICS",
)  # fmt: skip
BUILD = ("build", "--exclude-resource-type", "unit_test")
"""Unit tests say the same whatever has landed: once is enough."""
CANDLES = "SELECT * FROM STAGING.OHLCV_AGG ORDER BY SYMBOL, OPEN_TIME"


def contents(market: Any) -> dict[str, list[str]]:
    return {model: sorted(map(repr, market.tables.ask(f"SELECT * FROM {model}"))) for model in MODELS}


def moment(micros: int) -> datetime:
    return datetime.fromtimestamp(0, UTC) + timedelta(microseconds=micros)


def test_incremental_runs_and_a_full_refresh_give_the_same_tables_also_after_a_late_trade(
    market: Any, dbt: Any
) -> None:
    dbt.passes("build")
    rows = {model: len(found) for model, found in contents(market).items()}
    # 280 trades less the forty of two minutes without any, and two that are missing.
    assert rows == dict(zip(MODELS, (238, 12, 12, 4, 4), strict=True))
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
    dbt.passes(*BUILD)
    amended_rows = "SELECT TRADE_COUNT, REVISION FROM STAGING.OHLCV_AGG WHERE REVISION > 0"
    assert market.tables.ask(amended_rows) == [(amended.trade_count, 1)]
    incremental = contents(market)
    assert {model: len(found) for model, found in incremental.items()} == rows | {"STAGING.TRADES": 239}
    dbt.passes("run", "--full-refresh")
    assert contents(market) == incremental


def test_runs_that_compute_the_newest_minutes_only_give_what_a_full_refresh_gives_and_history_repeats_nothing(
    tables: Any, dbt: Any, land_market: Any
) -> None:
    # Only what landed with or after the newest row of the run before: minutes whose first trades step back in time,
    # one without trades, and one with a trade that has waited for it since long before.
    candles = ("run", "--select", "+ohlcv_agg", "--vars", "{late_arrival_minutes: 0}")
    market = land_market(tables, minutes=2)
    dbt.passes(*candles)
    before = market.history("ETHUSDT", 3)
    # A dump of two minutes that ends a minute before the stream begins. It makes neither whole: of the first nobody
    # knows how it began, of the second how it ended.
    market.backfill("early.zip/early.csv", before[:40])
    for minutes in (1, 1, 1, 2):
        market.go_on(minutes)
        dbt.passes(*candles)
    assert tables.ask("SELECT COUNT(*) FROM STAGING.OHLCV_AGG WHERE REVISION IS NULL") == [(0,)]
    assert len(tables.ask(CANDLES)) == 12

    # One over all of it, with what the stream has and what it misses, and a part of that once more.
    market.backfill("all.zip/all.csv", [*before[40:], *market.trades["ETHUSDT"]])
    market.backfill("again.zip/again.csv", before)
    dbt.passes(*candles)
    incremental = tables.ask(CANDLES)
    assert len(incremental) == 14
    minute = 60_000_000
    for at, trades in ((2, before[20:40]), (1, before[40:])):
        [found] = tables.ask(
            "SELECT CLOSE_TIME, OPEN, HIGH, LOW, CLOSE, VOLUME, TRADE_COUNT, FIRST_TRADE_ID, LAST_TRADE_ID, MISSING, "
            "REVISION, BACKFILLED FROM STAGING.OHLCV_AGG WHERE SYMBOL = 'ETHUSDT' AND OPEN_TIME = %s::TIMESTAMP_LTZ",
            str(moment(market.start - at * minute)),
        )
        prices = [t.price for t in trades]
        assert found == (
            moment(market.start - (at - 1) * minute - 1), prices[0], max(prices), min(prices), prices[-1],
            sum(t.qty for t in trades), 20, trades[0].trade_id, trades[-1].trade_id, "[]", None, 20,
        )  # fmt: skip
    # The stream's minute with two missing trades is whole now; the others are as the stream has stated them.
    healed = (
        "SELECT TRADE_COUNT, MISSING, REVISION, BACKFILLED FROM STAGING.OHLCV_AGG WHERE BACKFILLED BETWEEN 1 AND 19"
    )
    assert tables.ask(healed) == [(20, "[]", 0, 2)]
    dbt.passes(*BUILD, "--full-refresh")
    assert tables.ask(CANDLES) == incremental
    origins = (
        "SELECT ORIGIN, COUNT(*), COUNT(DISTINCT TRADE_ID) FROM STAGING.TRADES WHERE SYMBOL = 'ETHUSDT' GROUP BY 1"
    )
    assert sorted(tables.ask(origins)) == [("backfill", 62, 62), ("stream", 118, 118)]


def test_damage_is_named_by_the_test_it_concerns(market: Any, dbt: Any) -> None:
    market.backfill("day.zip/day.csv", market.trades["BTCUSDT"][:20])
    dbt.passes("run")
    tables = market.tables
    digit = "0.000000000000000001"
    tables.ask(
        f"UPDATE STAGING.OHLCV_STREAM SET VOLUME = VOLUME + {digit} WHERE KAFKA_PARTITION = 1 AND KAFKA_OFFSET = 3"
    )
    tables.ask(f"UPDATE ANALYTICS.ORDER_EVENTS SET REALIZED_PNL = REALIZED_PNL + {digit} WHERE FILL_ID = 103")
    tables.ask("INSERT INTO RAW.TRADES SELECT * FROM RAW.TRADES WHERE KAFKA_PARTITION = 1 AND KAFKA_OFFSET = 5")
    tables.ask("DELETE FROM ANALYTICS.ORDER_EVENTS WHERE FILL_ID = 102 AND SYMBOL = 'ETHUSDT'")
    newest = "ID = (SELECT MAX_BY(ID, LAST_TRADE_ID) FROM ANALYTICS.TRADING_SIGNALS)"
    tables.ask(f"UPDATE ANALYTICS.TRADING_SIGNALS SET SIGNAL_TYPE = 'MAYBE', STRATEGY = 'other' WHERE {newest}")
    tables.ask(f"UPDATE ANALYTICS.TRADING_SIGNALS SET CLOSE = CLOSE + {digit} WHERE LAST_TRADE_ID = 1020")
    tables.ask(f"UPDATE RAW.TRADES_BACKFILL SET QTY = QTY + {digit} WHERE FILE_ROW = 7")
    failed = dbt.failures("test", "--exclude-resource-type", "unit_test")
    assert failed == {
        "parity_candles",
        "parity_pnl",
        "parity_band_signals",
        "portfolio_pnl_adds_up",
        "backfill_agrees_with_the_stream",
        "source_unique_together_raw_TRADES_KAFKA_TOPIC_ID__KAFKA_PARTITION__KAFKA_OFFSET",
        "source_unique_together_raw_TRADES_KAFKA_TOPIC_ID__SYMBOL__TRADE_ID",
        "accepted_values_trading_signals_signal_type__BUY__SELL__HOLD",
    }


def test_the_target_of_an_account_builds_an_empty_warehouse_takes_what_lands_and_documents_it(
    tables: Any, dbt: Any, land_market: Any
) -> None:
    account = ("--target", "prod")  # by key pair; the local warehouse takes any
    dbt.passes(*BUILD, *account)
    land_market(tables)
    dbt.passes(*BUILD, *account)
    assert tables.ask("SELECT COUNT(*) FROM STAGING.OHLCV_AGG") == [(12,)]
    assert tables.ask("SELECT COUNT(*) FROM ANALYTICS.PORTFOLIO_PNL") == [(4,)]

    tables.ask("UPDATE RAW.TRADES SET LANDED_AT = CURRENT_TIMESTAMP()")
    dbt("source", "freshness", *account)
    found = {one["unique_id"].split(".")[-1]: one["status"] for one in dbt.made("sources.json")["results"]}
    assert found == {"TRADES": "pass", "OHLCV_STREAM": "error", "SIGNALS_STREAM": "error"}

    dbt.passes("docs", "generate", "--static", *account)
    manifest = dbt.made("manifest.json")
    described = {name: set(node["columns"]) for name, node in manifest["nodes"].items() if name.startswith("model.")}
    assert described == {
        f"model.marketflow.{name.split('.')[1].lower()}": {
            column.lower()
            for (column,) in tables.ask(
                "SELECT COLUMN_NAME FROM INFORMATION_SCHEMA.COLUMNS WHERE TABLE_SCHEMA = %s AND TABLE_NAME = %s",
                *name.split("."),
            )
        }
        for name in MODELS
    }
    # The local warehouse lists no views.
    assert set(dbt.made("catalog.json")["nodes"]) == set(described) - {"model.marketflow.metrics"}
    statements = sorted((dbt.target / "compiled" / "marketflow" / "analyses").glob("*.sql"))
    assert len(statements) == 2
    assert all(len(tables.ask(statement.read_text())) == 4 for statement in statements)
    parents = manifest["parent_map"]
    reached = {name: ancestors(parents, name) for name in parents if name.startswith("exposure.")}
    assert reached
    assert all(any(parent.startswith("source.") for parent in parents_of) for parents_of in reached.values())
    everything = set().union(*reached.values())
    assert {name for name in parents if name.startswith(("model.", "source."))} <= everything
    page = (dbt.target / "static_index.html").read_text()
    assert all(name.split(".")[-1] in page for name in reached)


def ancestors(parents: dict[str, list[str]], name: str) -> set[str]:
    above = set(parents[name])
    return above.union(*(ancestors(parents, one) for one in above))
