"""Rows for the warehouse: the columns of infra/snowflake-schema.sql, every value exact, nothing dropped."""

from __future__ import annotations

import base64
import re
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from marketflow_common import codec, topics
from marketflow_common.events import (
    AccountOpened,
    Candle,
    Event,
    Gap,
    Kline,
    OrderFilled,
    OrderIntended,
    Signal,
    Trade,
    TradingStateChanged,
    Watermark,
)
from marketflow_loader.tables import COORDINATES, REJECTS, TABLES, Landing, Records, Row, table_of

SQL_TYPES = {
    pa.decimal128(38, 18): "NUMBER(38,18)",
    pa.timestamp("us", tz="UTC"): "TIMESTAMP_LTZ",
    pa.int64(): "NUMBER(38,0)",
    pa.string(): "VARCHAR",
    pa.bool_(): "BOOLEAN",
}
TRADE = Trade("test", "ETHUSDT", 7, Decimal("2683.80000000"), Decimal("0E-8"), True, 1_723_075_200_000_001, 5)


def row(topic: str, event: Event | bytes | None, offset: int = 3) -> Row:
    value = codec.encode(event) if isinstance(event, Event) else event
    return Row(topic, f"x-{topic}", "topic-id", 1, offset, 1_723_075_200_123, b"key", value)


def landed(topic: str, *events: Event | bytes | None) -> dict[str, list[dict[str, Any]]]:
    landing = Landing(42)
    landing.add([row(topic, event, offset) for offset, event in enumerate(events)])
    return {name: table.to_pylist() for name, table in landing.tables().items()}


def declared(text: str) -> dict[str, dict[str, tuple[str, bool]]]:
    """Table's name to its columns: name to type and whether NOT NULL."""
    found = {}
    for name, body in re.findall(r"CREATE TABLE IF NOT EXISTS ([A-Z_.]+) \(\n(.*?)\n\);", text, re.S):
        columns = re.findall(r"^    ([A-Z_0-9]+) ([A-Z_]+(?:\([0-9,]+\))?)( NOT NULL)?,?$", body, re.M)
        found[name] = {column: (kind, bool(required)) for column, kind, required in columns}
    return found


def test_the_schema_file_declares_exactly_the_columns_that_land(pytestconfig: pytest.Config) -> None:
    text = Path(pytestconfig.rootpath, "infra", "snowflake-schema.sql").read_text()
    tables = declared(text)
    start = {name: (SQL_TYPES[kind], True) for name, kind in COORDINATES}
    for table in TABLES:
        columns = {c.name: (SQL_TYPES[c.type], c.required) for c in table.columns}
        assert tables.pop(table.name) == start | columns, table.name
    reasons = {"REASON": ("VARCHAR", True), "KEY_BASE64": ("VARCHAR", False), "VALUE_BASE64": ("VARCHAR", False)}
    assert tables.pop(REJECTS) == start | reasons
    assert list(tables) == ["RAW.LOAD_OFFSETS", "RAW.TRADES_BACKFILL"]


def test_every_event_of_every_topic_has_a_table() -> None:
    for topic, union in codec.TOPIC_EVENTS.items():
        for kind in getattr(union, "__args__", (union,)):
            assert table_of(kind).topic == topic


def test_a_trade_lands_with_its_coordinates_and_exact_values() -> None:
    [found] = landed(topics.OHLCV_RAW, TRADE)["RAW.TRADES"]
    assert {name: found[name] for name in ("KAFKA_TOPIC", "KAFKA_TOPIC_ID", "KAFKA_PARTITION", "KAFKA_OFFSET")} == {
        "KAFKA_TOPIC": "x-ohlcv_raw", "KAFKA_TOPIC_ID": "topic-id", "KAFKA_PARTITION": 1, "KAFKA_OFFSET": 0,
    }  # fmt: skip
    assert found["KAFKA_APPENDED_AT"].isoformat() == "2024-08-08T00:00:00.123000+00:00"
    assert found["TRADED_AT"].isoformat() == "2024-08-08T00:00:00.000001+00:00"
    assert found["LANDED_AT"].isoformat() == "1970-01-01T00:00:00.000042+00:00"
    assert (found["PRICE"], found["QTY"], found["TRADE_ID"]) == (TRADE.price, Decimal(0), 7)
    assert found["BUYER_IS_MAKER"] is True


@given(st.decimals(allow_nan=False, allow_infinity=False, places=18, min_value=-(10**19), max_value=10**19))
def test_no_digit_of_a_number_is_lost(price: Decimal) -> None:
    [found] = landed(topics.OHLCV_RAW, Trade("t", "S", 1, price, price, False, 1, 1))["RAW.TRADES"]
    assert found["PRICE"] == price


def test_a_watermark_carries_its_kline_and_a_gap_has_none() -> None:
    one = Decimal(1)
    kline = Kline(60_000_000, 119_999_999, one, one, one, one, one, one, 3, one, one, 11, 13)
    mark, gap = landed(
        topics.OHLCV_RAW,
        Watermark("test", "S", 120_000_000, 13, kline),
        Gap("test", "S", 14, 15, "not in time", True),
    )["RAW.FEED_EVENTS"]
    assert (mark["EVENT_TYPE"], mark["KLINE_FIRST_TRADE_ID"], mark["LAST_TRADE_ID"]) == ("watermark", 11, 13)
    assert mark["THROUGH"].isoformat() == "1970-01-01T00:02:00+00:00"
    assert (mark["FIRST_TRADE_ID"], mark["FINAL"], mark["INTERVAL"]) == (None, None, None)
    assert (gap["EVENT_TYPE"], gap["FIRST_TRADE_ID"], gap["LAST_TRADE_ID"], gap["FINAL"]) == ("gap", 14, 15, True)
    assert gap["KLINE_OPEN"] is None


def test_lists_and_maps_land_as_json_with_amounts_in_fixed_point() -> None:
    one = Decimal(1)
    candle = Candle("S", "1m", 0, 59_999_999, one, one, one, one, one, one, 1, one, one, 1, 5, ((2, 3), (5, 5)), 1)
    signal = Signal(
        "id", "levels", "{}", "S", "1m", 0, one, one, one, "BUY", 1, {"low": Decimal("0E-8"), "high": one}, ("a", "b")
    )
    opened = AccountOpened("main", "paper", {"USDT": Decimal("10000.00000000")}, 5)
    assert landed(topics.OHLCV_AGG, candle)["STAGING.OHLCV_STREAM"][0]["MISSING"] == "[[2,3],[5,5]]"
    [found] = landed(topics.TRADING_SIGNALS, signal)["ANALYTICS.SIGNALS_STREAM"]
    assert (found["LEVELS"], found["REASONS"]) == ('{"low":"0.00000000","high":"1"}', '["a","b"]')
    [found] = landed(topics.ORDER_EVENTS, opened)["ANALYTICS.ORDER_EVENTS"]
    assert found["BALANCES"] == '{"USDT":"10000.00000000"}'


def test_order_events_share_a_table_and_leave_what_they_do_not_have_empty() -> None:
    one = Decimal(1)
    intended = OrderIntended(
        "main", "o1", "s1", 1, "S", "BUY", "MARKET", None, one, None, 1_723_075_200_000, 5_000, "paper", one, 9
    )
    filled = OrderFilled(
        "main",
        "o1",
        "s1",
        "S",
        "BUY",
        5,
        6,
        one,
        one,
        one,
        one,
        "BNB",
        one,
        None,
        one,
        one,
        1_723_075_200_000_000,
        True,
    )
    state = TradingStateChanged("main", "HALTED", "asked", "chat", 7)
    rows = landed(topics.ORDER_EVENTS, intended, filled, state)["ANALYTICS.ORDER_EVENTS"]
    assert [r["EVENT_TYPE"] for r in rows] == ["order_intended", "order_filled", "trading_state_changed"]
    assert [r["QUOTE_QTY"] for r in rows] == [one, one, None]
    assert [r["TIMESTAMP_MS"] for r in rows] == [1_723_075_200_000, None, None]
    assert [r["SYMBOL"] for r in rows] == ["S", "S", None]
    assert [r["COMPLETE"] for r in rows] == [None, True, None]
    assert [r["STATE"] for r in rows] == [None, None, "HALTED"]


@pytest.mark.parametrize("value", [b"not json", b"", b"\xff\xfe", b'{"type":"unheard of"}', b'{"type":"candle"}'])
def test_bytes_that_are_no_event_become_a_reject_with_their_coordinates(value: bytes) -> None:
    found = landed(topics.OHLCV_RAW, TRADE, value, TRADE)
    assert [r["KAFKA_OFFSET"] for r in found["RAW.TRADES"]] == [0, 2]
    [reject] = found[REJECTS]
    assert reject["KAFKA_OFFSET"] == 1
    assert base64.b64decode(reject["VALUE_BASE64"]) == value
    assert base64.b64decode(reject["KEY_BASE64"]) == b"key"
    assert reject["REASON"]


def test_a_tombstone_becomes_a_reject_without_bytes() -> None:
    [reject] = landed(topics.OHLCV_RAW, None)[REJECTS]
    assert reject["VALUE_BASE64"] is None
    assert "no value" in reject["REASON"]


@pytest.mark.parametrize(
    ("field", "value", "named"),
    [("trade_id", 2**63, "TRADE_ID"), ("traded_at", -1, "TRADED_AT"), ("received_at", 10**18, "RECEIVED_AT")],
)
def test_a_number_that_no_column_holds_becomes_a_reject_and_the_others_land(field: str, value: int, named: str) -> None:
    bad = codec.encode(TRADE).replace(f'"{field}":{getattr(TRADE, field)}'.encode(), f'"{field}":{value}'.encode())
    found = landed(topics.OHLCV_RAW, TRADE, bad, TRADE)
    assert [r["KAFKA_OFFSET"] for r in found["RAW.TRADES"]] == [0, 2]
    [reject] = found[REJECTS]
    assert (reject["KAFKA_OFFSET"], base64.b64decode(reject["VALUE_BASE64"])) == (1, bad)
    assert named in reject["REASON"]
    assert str(value) in reject["REASON"]


def test_a_table_of_rejects_alone_makes_no_empty_table() -> None:
    bad = codec.encode(TRADE).replace(b'"trade_id":7', b'"trade_id":99999999999999999999')
    assert list(landed(topics.OHLCV_RAW, bad)) == [REJECTS]


def records(topic: str, values: list[bytes | None]) -> Records:
    keys: list[bytes | None] = [b"key"] * len(values)
    places = range(len(values))
    return Records(
        topic, f"x-{topic}", "topic-id", 1, list(places), [1_723_075_200_123 + i for i in places], keys, values
    )


def taken(topic: str, values: list[bytes | None]) -> dict[str, pa.Table]:
    landing = Landing(42)
    landing.take(records(topic, values))
    return landing.tables()


def one_by_one(topic: str, values: list[bytes | None], monkeypatch: pytest.MonkeyPatch) -> dict[str, pa.Table]:
    """The same by the decoder of single records, which knows each number as a Decimal."""
    with monkeypatch.context() as patch:
        patch.setattr(codec, "decode_wire", lambda _: None)
        return taken(topic, values)


@given(st.data())
def test_trades_read_as_a_batch_land_as_those_read_one_by_one(data: st.DataObject) -> None:
    number = st.decimals(allow_nan=False, allow_infinity=False, places=18, min_value=0, max_value=10**20 - 1)
    short = st.decimals(allow_nan=False, allow_infinity=False, places=8, min_value=0, max_value=10**11)
    trades = data.draw(
        st.lists(
            st.builds(
                Trade, st.text(max_size=3), st.sampled_from(["ETHUSDT", "é"]), st.integers(0, 2**63 - 1),
                number | short, number | short, st.booleans(), st.integers(0, 10**17), st.integers(0, 10**17),
            ),
            min_size=1,
            max_size=20,
        )
    )  # fmt: skip
    values: list[bytes | None] = [codec.encode(trade) for trade in trades]
    with pytest.MonkeyPatch.context() as patch:
        assert taken(topics.OHLCV_RAW, values) == one_by_one(topics.OHLCV_RAW, values, patch)
    prices = taken(topics.OHLCV_RAW, values)["RAW.TRADES"]["PRICE"].to_pylist()
    assert prices == [trade.price for trade in trades]


def test_a_batch_of_mixed_records_lands_as_those_read_one_by_one_each_with_its_coordinates(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    gap = codec.encode(Gap("test", "S", 14, 15, "not in time", True))
    values: list[bytes | None] = [codec.encode(TRADE), gap, codec.encode(TRADE), gap]
    found = taken(topics.OHLCV_RAW, values)
    assert found == one_by_one(topics.OHLCV_RAW, values, monkeypatch)
    assert found["RAW.TRADES"]["KAFKA_OFFSET"].to_pylist() == [0, 2]
    assert found["RAW.FEED_EVENTS"]["KAFKA_OFFSET"].to_pylist() == [1, 3]
    times = [moment.isoformat() for moment in found["RAW.FEED_EVENTS"]["KAFKA_APPENDED_AT"].to_pylist()]
    assert times == ["2024-08-08T00:00:00.124000+00:00", "2024-08-08T00:00:00.126000+00:00"]


@pytest.mark.parametrize(
    "price", ["-1.5", "1E+3", "1e3", '"1"', "NaN", "", " 1", "1.", ".5", "1" * 21, "0." + "1" * 19, "1_0", "+1", "٣"]
)
def test_a_batch_with_an_unusual_number_lands_as_its_records_do_one_by_one(
    price: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = codec.encode(TRADE)
    odd = good.replace(b'"price":"2683.80000000"', f'"price":"{price}"'.encode())
    assert odd != good
    assert taken(topics.OHLCV_RAW, [good, odd, good]) == one_by_one(topics.OHLCV_RAW, [good, odd, good], monkeypatch)


def test_what_no_column_holds_is_counted_among_the_rejects_of_a_batch() -> None:
    bad = codec.encode(TRADE).replace(b'"traded_at":1723075200000001', b'"traded_at":-1')
    landing = Landing(42)
    assert landing.take(records(topics.OHLCV_RAW, [codec.encode(TRADE), bad, b"\xff", None])) == 3
    assert {name: table.num_rows for name, table in landing.tables().items()} == {"RAW.TRADES": 1, REJECTS: 3}
    assert landing.tables() == {}
