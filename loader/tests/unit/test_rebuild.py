"""Which tables are landed again, and which are somebody else's."""

from __future__ import annotations

import pytest
from marketflow_loader.rebuild import USAGE, WrongTable, main, table_named


def test_a_table_is_named_with_or_without_its_schema() -> None:
    assert table_named("RAW.TRADES") == table_named("trades") == "RAW.TRADES"
    assert table_named("ohlcv_stream") == "STAGING.OHLCV_STREAM"
    assert table_named("raw.rejects") == "RAW.REJECTS"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("RAW.TRADE", "did you mean RAW.TRADES?"),
        ("PORTFOLIO", "there are RAW.TRADES, RAW.FEED_EVENTS, "),
        ("RAW.TRADES_BACKFILL", "`marketflow backfill`"),
        ("STAGING.OHLCV_AGG", "`dbt build --full-refresh`"),
    ],
)
def test_what_is_not_landed_from_kafka_is_told(text: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(WrongTable) as told:
        table_named(text)
    assert said in str(told.value)
    assert main([text, "--yes"]) == USAGE
    assert capsys.readouterr().err.startswith(f"rebuild: {text} is no table that is landed from Kafka; ")
