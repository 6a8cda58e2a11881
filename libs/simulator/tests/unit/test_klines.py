"""Klines against a brute-force fold in Decimal."""

import json
from decimal import Decimal
from itertools import pairwise
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from marketflow_simulator.amounts import text8
from marketflow_simulator.klines import flat, fold, merge, rest_row, stream_payload
from marketflow_simulator.trades import Trade

trades = st.lists(
    st.tuples(st.integers(1, 10**13), st.integers(1, 10**13), st.booleans()), min_size=1, max_size=60
).map(lambda rows: [Trade(100 + i, p, q, 5, 5, maker, i) for i, (p, q, maker) in enumerate(rows)])


def brute(some: list[Trade]) -> dict[str, Any]:
    prices = [Decimal(text8(t.price)) for t in some]
    qtys = [Decimal(text8(t.qty)) for t in some]
    taken = [not t.buyer_is_maker for t in some]
    return {
        "open": prices[0],
        "high": max(prices),
        "low": min(prices),
        "close": prices[-1],
        "volume": sum(qtys),
        "quote": sum(p * q for p, q in zip(prices, qtys, strict=True)),
        "taker": sum(q for q, took in zip(qtys, taken, strict=True) if took),
        "taker_quote": sum(p * q for p, q, took in zip(prices, qtys, taken, strict=True) if took),
    }


@given(trades)
def test_a_kline_is_the_fold_of_its_trades(some: list[Trade]) -> None:
    kline = fold(some, 0, 60_000_000)
    assert kline is not None
    expected = brute(some)
    assert [Decimal(v) / 10**8 for v in (kline.open, kline.high, kline.low, kline.close)] == [
        expected[name] for name in ("open", "high", "low", "close")
    ]
    assert Decimal(kline.volume) / 10**8 == expected["volume"]
    assert Decimal(kline.quote_volume) / 10**16 == expected["quote"]
    assert Decimal(kline.taker_volume) / 10**8 == expected["taker"]
    assert Decimal(kline.taker_quote_volume) / 10**16 == expected["taker_quote"]
    assert (kline.count, kline.first_id, kline.last_id) == (len(some), some[0].id, some[-1].id)


@given(trades, st.lists(st.integers(0, 60), max_size=5))
def test_minutes_merge_to_the_kline_of_all_their_trades(some: list[Trade], cuts: list[int]) -> None:
    edges = [0, *sorted(min(cut, len(some)) for cut in cuts), len(some)]
    parts, close = [], some[0].price
    for first, end in pairwise(edges):
        part = fold(some[first:end], 0, 1)
        parts.append(part if part is not None else flat(0, 1, close))
        close = parts[-1].close
    assert merge(parts, 0, 60) == fold(some, 0, 60)


def test_a_minute_without_trades_repeats_the_close_and_has_no_ids() -> None:
    kline = flat(60_000_000, 120_000_000, 268_380_000_000)
    price, nothing = "2683.80000000", "0.00000000"
    row = [60_000, price, price, price, price, nothing, 119_999, nothing, 0, nothing, nothing, "0"]
    assert rest_row(kline) == row
    sent = json.loads(stream_payload(kline, "ETHUSDT", "1m", 120_000_000, True))
    assert (sent["k"]["n"], sent["k"]["f"], sent["k"]["L"], sent["k"]["x"]) == (0, -1, -1, True)


def test_the_stream_shows_a_kline_with_the_documented_fields() -> None:
    kline = fold([Trade(7, 268_380_000_000, 200_000, 61_000_000, 61_000_000, False, 1)], 60_000_000, 120_000_000)
    assert kline is not None
    assert json.loads(stream_payload(kline, "ETHUSDT", "1m", 62_000_000, False)) == {
        "e": "kline",
        "E": 62_000,
        "s": "ETHUSDT",
        "k": {
            "t": 60_000,
            "T": 119_999,
            "s": "ETHUSDT",
            "i": "1m",
            "f": 7,
            "L": 7,
            "o": "2683.80000000",
            "c": "2683.80000000",
            "h": "2683.80000000",
            "l": "2683.80000000",
            "v": "0.00200000",
            "n": 1,
            "x": False,
            "q": "5.36760000",
            "V": "0.00200000",
            "Q": "5.36760000",
            "B": "0",
        },
    }
