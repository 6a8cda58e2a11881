"""Numbers at every entrance, exact arithmetic, and the codec."""

from __future__ import annotations

import decimal
from decimal import Decimal
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from marketflow_common import codec, topics
from marketflow_common.events import Event, Kline, Trade, Watermark, WireTrade
from marketflow_common.intervals import close_time, window_start
from marketflow_common.numbers import EXACT, NotANumber, check, divide, fixed, number

legal = st.decimals(min_value=Decimal("-1e19"), max_value=Decimal("1e19"), places=18, allow_nan=False)


@pytest.mark.parametrize(
    "text", ["NaN", "1E+999999", " 1_0 ", "1_0", "", "Infinity", "-", "1.", ".5", "１", "1e3", "0x1"]
)
def test_what_is_no_plain_number_is_refused_with_its_value(text: str) -> None:
    with pytest.raises(NotANumber):
        number(text)


@pytest.mark.parametrize("text", ["1" * 21, "0." + "1" * 19])
def test_what_the_warehouse_could_not_hold_is_refused(text: str) -> None:
    with pytest.raises(NotANumber):
        number(text)


@given(legal)
def test_every_legal_number_survives_text_and_back(value: Decimal) -> None:
    assert number(format(value, "f")) == value
    assert fixed(value) == value
    assert len(format(fixed(value), "f").partition(".")[2]) >= 8


def test_zeros_beyond_eighteen_places_are_not_digits() -> None:
    assert check(Decimal("1." + "0" * 25)) == 1
    assert str(fixed(Decimal("2.5" + "0" * 20))) == "2.50000000"


def test_sums_and_products_never_round_silently() -> None:
    with pytest.raises(decimal.Inexact):
        EXACT.multiply(Decimal("1" * 60), Decimal("3" * 60))


@given(legal, legal.filter(bool), st.sampled_from(["ROUND_HALF_EVEN", "ROUND_DOWN", "ROUND_UP"]))
def test_a_division_rounds_once_as_it_says(a: Decimal, b: Decimal, rounding: str) -> None:
    got = Fraction(divide(a, b, scale=8, rounding=rounding)) * 10**8
    exact = Fraction(a) / Fraction(b) * 10**8
    assert got.denominator == 1
    if rounding == "ROUND_HALF_EVEN":
        assert got == round(exact)
    elif rounding == "ROUND_DOWN":
        assert got == int(exact)
    else:
        assert abs(got) == -(-abs(exact) // 1)


def _trade(price: Decimal) -> Trade:
    return Trade("binance", "ETHUSDT", 7, price, Decimal("1E-8"), True, 1, 2)


@given(legal)
def test_numbers_go_over_the_wire_in_fixed_point_and_come_back_equal(price: Decimal) -> None:
    data = codec.encode(_trade(price))
    assert b'"qty":"0.00000001"' in data
    assert codec.decode(topics.OHLCV_RAW, data).price == price


def test_a_batch_is_read_as_its_records_are_one_by_one() -> None:
    zero = Decimal(0)
    kline = Kline(1, 2, zero, zero, zero, zero, zero, zero, 0, zero, zero, -1, -1)
    records: list[Event] = [
        _trade(Decimal("2683.80000000")),
        Watermark("binance", "ETHUSDT", 3, 7, kline),
        _trade(Decimal("2683.8")),
        _trade(Decimal("9" * 20 + ".00000001")),
        _trade(Decimal("1E-18")),
    ]
    values = [codec.encode(record) for record in records]
    for part in (values, values[:1], values[1:2], []):
        wire = codec.decode_wire(part)
        assert wire is not None
        read = [event.read() if isinstance(event, WireTrade) else event for event in wire]
        assert read == [codec.decode(topics.OHLCV_RAW, v) for v in part]


@pytest.mark.parametrize("field", ["price", "qty", "close"])
@pytest.mark.parametrize(
    "text", ["NaN", "Infinity", "1E+30", "1E-19", "1" * 21 + ".00000000", "1." + "1" * 19, "1.0,2.0", ""]
)
def test_a_batch_with_one_illegal_number_is_left_to_be_read_one_by_one(field: str, text: str) -> None:
    kline = Kline(1, 2, *[Decimal("1.11111111")] * 6, 0, Decimal(0), Decimal(0), -1, -1)  # type: ignore[call-arg,arg-type]
    good = [_trade(Decimal("1.11111111")), Watermark("binance", "ETHUSDT", 3, 7, kline)]
    values = [codec.encode(record) for record in good]
    fields = {
        "price": (0, b'"price":"1.11111111"'),
        "qty": (0, b'"qty":"0.00000001"'),
        "close": (1, b'"close":"1.11111111"'),
    }
    at, old = fields[field]
    assert old in values[at]
    bad = values[at].replace(old, b'"%b":"%b"' % (field.encode(), text.encode()))
    assert codec.decode_wire([*values, bad]) is None
    with pytest.raises(codec.Unreadable):
        codec.decode(topics.OHLCV_RAW, bad)


@pytest.mark.parametrize("price", ["1_0", " 1", "1e0", "+1"])
def test_a_number_that_is_not_printed_as_the_exchange_does_is_left_to_be_read_alone(price: str) -> None:
    data = codec.encode(_trade(Decimal(1))).replace(b'"price":"1"', f'"price":"{price}"'.encode())
    assert codec.decode_wire([data]) is None
    assert codec.decode(topics.OHLCV_RAW, data).price == Decimal(price)


@pytest.mark.parametrize("price", ["NaN", "1E+30", "1E-19", "Infinity"])
def test_a_record_with_an_illegal_number_is_unreadable(price: str) -> None:
    data = codec.encode(_trade(Decimal(1))).replace(b'"price":"1"', f'"price":"{price}"'.encode())
    with pytest.raises(codec.Unreadable):
        codec.decode(topics.OHLCV_RAW, data)


@pytest.mark.parametrize("value", [None, b"", b"{", b'{"type":"candle"}', b"[]", b"\xff"])
def test_what_is_no_event_of_the_topic_is_unreadable(value: bytes | None) -> None:
    assert codec.decode_wire([value]) is None
    with pytest.raises(codec.Unreadable):
        codec.decode(topics.OHLCV_RAW, value)


def test_a_candle_or_signal_of_an_unknown_interval_is_unreadable() -> None:
    lines = (Path(__file__).parent / "samples-v1.jsonl").read_text().splitlines()
    for topic, name in ((topics.OHLCV_AGG, "candle"), (topics.TRADING_SIGNALS, "signal")):
        sample = next(line for line in lines if f'"type":"{name}"' in line).encode()
        assert codec.decode(topic, sample).interval == "1m"
        with pytest.raises(codec.Unreadable, match="2w"):
            codec.decode(topic, sample.replace(b'"interval":"1m"', b'"interval":"2w"'))


def test_a_field_of_a_later_version_is_passed_over() -> None:
    data = codec.encode(_trade(Decimal(1)))[:-1] + b',"venue":"XBIN"}'
    assert codec.decode(topics.OHLCV_RAW, data) == _trade(Decimal(1))


@pytest.mark.parametrize(
    ("key", "hashed"),
    # Vectors of Kafka's own UtilsTest.testMurmur2.
    [("21", -973932308), ("foobar", -790332482), ("a-little-bit-long-string", -985981536),
     ("a-little-bit-longer-string", -1486304829), ("lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8", -58897971),
     ("abc", 479470107)],
)  # fmt: skip
def test_a_key_has_the_partition_that_java_clients_give_it(key: str, hashed: int) -> None:
    assert topics.partition_of(key, 1_000_003) == (hashed & 0x7FFFFFFF) % 1_000_003


def test_windows_lie_on_the_grid_and_close_at_their_last_microsecond() -> None:
    assert window_start(119_999_999) == 60_000_000
    assert close_time(60_000_000) == 119_999_999
    assert window_start(3_600_000_000 * 5 + 1, "4h") == 4 * 3_600_000_000
