"""What the exchange sends becomes events; what it should not send does not."""

from __future__ import annotations

import json
import warnings
from decimal import Decimal
from typing import Any

import pytest
from marketflow_common.events import Kline, Trade
from marketflow_ingestor.binance import Closed, Doubtful, Opened, Other, Unreadable, streams_of
from marketflow_ingestor.binance import read as read_message

with warnings.catch_warnings():  # python-binance imports a deprecated part of websockets, unused here
    warnings.simplefilter("ignore", DeprecationWarning)
    from marketflow_ingestor.rest import Rest, RestError

TRADE = {
    "e": "trade", "E": 1723161255612, "s": "ETHUSDT", "t": 1520538925, "p": "2683.80000000", "q": "0.00200000",
    "T": 1723161255611, "m": True, "M": True,
}  # fmt: skip
KLINE = {
    "t": 1723161240000, "T": 1723161299999, "s": "ETHUSDT", "i": "1m", "f": 7, "L": 9, "o": "3.10000000",
    "c": "2.00000000", "h": "4.00000000", "l": "1.00000000", "v": "5.00000000", "n": 3, "x": True,
    "q": "6.00000000", "V": "2.50000000", "Q": "2.75000000", "B": "0",
}  # fmt: skip


LATEST = 1 << 60


def read(text: bytes, received_at: int, latest: int = LATEST) -> Any:
    return read_message(text, received_at, 1_000_000, latest)


def message(data: Any) -> bytes:
    return json.dumps({"stream": "ethusdt@trade", "data": data}).encode()


def kline_message(**changes: Any) -> bytes:
    return message({"e": "kline", "E": 1, "s": "ETHUSDT", "k": KLINE | changes})


def test_a_trade_keeps_its_digits_and_its_time_in_microseconds() -> None:
    assert read(message(TRADE), 42) == Trade(
        "binance", "ETHUSDT", 1520538925, Decimal("2683.80000000"), Decimal("0.00200000"), True, 1723161255611000, 42
    )
    assert str(read(message(TRADE), 42).price) == "2683.80000000"


def test_times_that_come_in_microseconds_are_kept() -> None:
    trade = read(message(TRADE | {"T": 1723161255611123, "E": 1723161255612000}), 0)
    assert isinstance(trade, Trade)
    assert trade.traded_at == 1723161255611123
    closed = read(kline_message(t=1723161240000000, T=1723161299999999), 0)
    assert isinstance(closed, Closed)
    assert (closed.kline.open_time, closed.kline.close_time) == (1723161240000000, 1723161299999999)


def test_a_closed_kline_keeps_every_field() -> None:
    numbers = [Decimal(text) for text in ("3.10000000", "4.00000000", "1.00000000", "2.00000000", "5.00000000")]
    assert read(kline_message(), 0) == Closed(
        "ETHUSDT",
        Kline(
            1723161240000000, 1723161299999999, *numbers, Decimal("6.00000000"), 3, Decimal("2.50000000"),
            Decimal("2.75000000"), 7, 9,
        ),
    )  # fmt: skip


def test_an_open_kline_names_the_first_trade_of_its_minute() -> None:
    assert read(kline_message(x=False), 0) == Opened("ETHUSDT", 1723161240000000, 7)


@pytest.mark.parametrize(
    ("text", "event"),
    [
        ('{"result":null,"id":1}', ""),
        ('{"stream":"x","data":{"e":"aggTrade","s":"ETHUSDT"}}', "aggTrade"),
        ('{"stream":"x","data":{"e":"serverShutdown","E":1}}', "serverShutdown"),
        ('{"e":"serverShutdown","E":1}', "serverShutdown"),
    ],
)
def test_other_messages_are_told_apart(text: str, event: str) -> None:
    assert read(text.encode(), 0) == Other(event)


@pytest.mark.parametrize(
    "bad",
    [
        b"",
        b"{",
        b"\xff\xfe",
        b"[]",
        message(TRADE | {"p": "NaN"}),
        message(TRADE | {"p": "1E+9"}),
        message(TRADE | {"q": " 1_0 "}),
        message(TRADE | {"q": 0.002}),
        message(TRADE | {"q": "0." + "0" * 18 + "1"}),
        message(TRADE | {"p": "1" * 21}),
        message(TRADE | {"t": "7"}),
        message({k: v for k, v in TRADE.items() if k != "T"}),
        message({k: v for k, v in TRADE.items() if k != "E"}),
        kline_message(o="Infinity"),
        kline_message(t=1723161240001),
        kline_message(T=1723161300000),
    ],
)
def test_what_is_not_as_documented_is_refused(bad: bytes) -> None:
    with pytest.raises(Unreadable):
        read(bad, 0)


def test_a_trade_ahead_of_its_own_event_or_of_the_exchanges_clock_is_doubted() -> None:
    at = TRADE["T"] * 1_000  # type: ignore[operator]
    assert isinstance(read(message(TRADE | {"T": TRADE["E"] + 1_000}), 0), Trade)  # type: ignore[operator]
    hour = message(TRADE | {"T": TRADE["T"] + 3_600_000})  # type: ignore[operator]
    assert read(hour, 0) == Doubtful("ETHUSDT", 1520538925, at + 3_600_000_000, at + 1_000)
    assert isinstance(read(message(TRADE), 0, latest=at - 1), Doubtful)
    assert isinstance(read(message(TRADE), 0, latest=at), Trade)


def test_a_trade_whose_time_steps_back_is_a_trade() -> None:
    assert isinstance(read(message(TRADE | {"T": TRADE["T"] - 60_000}), 0), Trade)  # type: ignore[operator]


def test_each_symbol_has_a_trade_and_a_kline_stream() -> None:
    assert streams_of(["ETHUSDT", "BTCUSDT"]) == [
        "ethusdt@trade", "ethusdt@kline_1m", "btcusdt@trade", "btcusdt@kline_1m",
    ]  # fmt: skip


async def test_rest_that_is_not_there_is_an_error_that_names_it() -> None:
    rest = Rest("http://127.0.0.1:1", "", 0.8)
    try:
        with pytest.raises(RestError, match=r"127\.0\.0\.1:1"):
            await rest.trades("ETHUSDT", 1)
    finally:
        await rest.close()
