"""Candles beside the exchange's REST klines: what is equal, what differs by one digit, and what is not there."""

from __future__ import annotations

from decimal import Decimal
from itertools import pairwise
from typing import Any

import httpx
import msgspec
import pytest
from marketflow_common.events import Candle, Kline
from marketflow_operator.audit.model import Where
from marketflow_operator.audit.topics import CannotRead
from marketflow_operator.klines import PAGE, RestKlines, compare, show
from rich.console import Console

MINUTE = 60_000_000
START = 1_723_161_300_000_000
FIELDS = ("open", "high", "low", "close", "volume", "quote_volume", "taker_buy_volume", "taker_buy_quote_volume")


def candle(number: int, **changes: Any) -> tuple[Where, Candle]:
    at = START + number * MINUTE
    one = Candle("ETHUSDT", "1m", at, at + MINUTE - 1, *map(Decimal, ("2.1", "2.3", "2.0", "2.2", "7.5", "16.1")),
                 3, Decimal("1.5"), Decimal("3.1"), number, number)  # fmt: skip
    return Where("ohlcv_agg", 0, number), msgspec.structs.replace(one, **changes)


def row(number: int) -> list[Any]:
    """As REST has it (Binance, "Kline/Candlestick data")."""
    ms = START // 1000 + number * 60_000
    return [ms, "2.10000000", "2.3", "2.0", "2.20", "7.5", ms + 59_999, "16.1", 3, "1.50", "3.1", "0"]


def klines(*numbers: int) -> dict[int, Kline]:
    rest = RestKlines("http://x", httpx.MockTransport(lambda _: httpx.Response(200, json=[row(n) for n in numbers])))
    return rest.between("ETHUSDT", "1m", START, START + 900 * MINUTE)


def candles(*numbers: int) -> dict[int, tuple[Where, Candle]]:
    return {START + n * MINUTE: candle(n) for n in numbers}


def test_equal_numbers_are_equal_however_many_zeros_they_end_with() -> None:
    found = compare("ETHUSDT", "1m", candles(0, 1, 2), klines(0, 1, 2))
    assert (found.compared, found.equal, found.ok) == (3, 3, True)


@pytest.mark.parametrize("field", FIELDS)
def test_one_digit_in_any_field_is_a_difference_that_names_candle_field_and_both_numbers(field: str) -> None:
    where, right = candle(1)
    wrong = msgspec.structs.replace(right, **{field: getattr(right, field) + Decimal("1E-8")})
    found = compare("ETHUSDT", "1m", candles(0) | {START + MINUTE: (where, wrong)}, klines(0, 1))
    assert not found.ok
    assert (found.equal, len(found.different)) == (1, 1)
    for part in ("ETHUSDT 1m 2024-08-08 23:56 at ohlcv_agg/0@1", f"{field} {getattr(wrong, field)} instead of"):
        assert part in found.different[0]


def test_a_wrong_count_an_absent_candle_and_one_that_nobody_has_are_named() -> None:
    held = candles(0, 4) | {START + 2 * MINUTE: candle(2, trade_count=4)}
    found = compare("ETHUSDT", "1m", held, klines(0, 1, 2, 3))
    assert found.absent == [START + MINUTE, START + 3 * MINUTE]
    assert ["trade_count 4 instead of 3" in line for line in found.different] == [True, False]
    assert "the exchange has no such kline" in found.different[1]


def test_a_candle_that_says_what_it_misses_is_told_apart_but_is_not_equal() -> None:
    found = compare("ETHUSDT", "1m", {START: candle(0, volume=Decimal(7), missing=((5, 6),))}, klines(0))
    assert not found.ok
    assert found.different == []
    assert "trades 5 to 6 are missing" in found.stated[0]


def test_long_stretches_are_asked_for_in_pages_that_cover_each_minute_once() -> None:
    asked: list[tuple[int, int]] = []

    def answer(request: httpx.Request) -> httpx.Response:
        first, last = (int(request.url.params[name]) for name in ("startTime", "endTime"))
        asked.append((first, last))
        begin = START // 1000
        return httpx.Response(200, json=[row((at - begin) // 60_000) for at in range(first, last + 1, 60_000)])

    rest = RestKlines("http://x", httpx.MockTransport(answer))
    count = 2 * PAGE + 5
    assert len(rest.between("ETHUSDT", "1m", START, START + (count - 1) * MINUTE)) == count
    assert len(asked) == 3
    assert all(after == before + 60_000 for (_, before), (after, _) in pairwise(asked))


def test_a_throttled_question_is_asked_again_after_the_time_that_the_exchange_names() -> None:
    answers = iter([httpx.Response(429, headers={"Retry-After": "0"}), httpx.Response(200, json=[row(0)])])
    rest = RestKlines("http://x", httpx.MockTransport(lambda _: next(answers)))
    assert list(rest.between("ETHUSDT", "1m", START, START)) == [START]


@pytest.mark.parametrize(
    "answer",
    [
        httpx.Response(418, headers={"Retry-After": "86400"}),
        httpx.Response(503, text="away"),
        httpx.Response(200, json={"code": -1121, "msg": "Invalid symbol."}),
        httpx.Response(200, json=[[1, "2"]]),
        httpx.Response(200, json=[[*row(0)[:1], "NaN", *row(0)[2:]]]),
    ],
)
def test_what_is_no_answer_is_said_and_never_taken_for_an_empty_one(answer: httpx.Response) -> None:
    rest = RestKlines("http://x", httpx.MockTransport(lambda _: answer))
    with pytest.raises(CannotRead, match="ETHUSDT 1m"):
        rest.between("ETHUSDT", "1m", START, START)


def test_the_table_ends_with_what_it_comes_to() -> None:
    out = Console(width=100, record=True, file=None, quiet=False, force_terminal=False)
    with out.capture() as capture:
        show(out, [compare("ETHUSDT", "1m", candles(0, 1), klines(0, 1))], "https://api.example")
        show(out, [compare("ETHUSDT", "1m", candles(0, 4), klines(0, 1, 2, 4))], "https://api.example")
        show(out, [], "https://api.example")
    text = " ".join(capture.get().split())
    assert "All 2 candles equal the klines of https://api.example in every field." in text
    assert "no candle of 2024-08-08 23:56 to 2024-08-08 23:57 (2)" in text
    assert "0 of 2 candles do not equal the klines of https://api.example, 2 are absent." in text
    assert "There is no candle to compare yet" in text
