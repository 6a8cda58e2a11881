"""The skimmer takes in what Python would, to the last digit, and leaves whatever is in doubt."""

from __future__ import annotations

import shutil
import sysconfig
from collections.abc import Sequence
from decimal import Decimal
from functools import reduce
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from marketflow_aggregator import candles as core
from marketflow_aggregator.folds import EMPTY, Fold, fold_of, fold_of_run, merge
from marketflow_common import codec, topics
from marketflow_common.events import Gap, Trade
from marketflow_common.intervals import MINUTE

T0 = 1_723_161_240_000_000
FIRST = 11

HEADER = Path(sysconfig.get_paths()["include"], "Python.h")
pytestmark = pytest.mark.skipif(
    core.Skimmer is None and not ((shutil.which("cc") or shutil.which("gcc")) and HEADER.exists()),
    reason="NOT RUN: no C compiler or no Python.h here, so the aggregator does all in Python",
)


def trade(trade_id: int = FIRST, price: str = "10", qty: str = "1", symbol: str = "S", at: int = T0) -> Trade:
    return Trade("sim", symbol, trade_id, Decimal(price), Decimal(qty), trade_id % 3 == 0, at, at + 1)


def skimmer(*symbols: str) -> Any:
    """One that waits for trade FIRST of each symbol."""
    made = core.Skimmer()
    for symbol in symbols or ("S",):
        assert made.arm(symbol, FIRST, T0, T0 + MINUTE)
    return made


def encoded(trades: Sequence[Any]) -> list[bytes]:
    return [codec.encode(one) for one in trades]


def taken(one: Any, symbol: str = "S") -> Fold:
    run = one.take(symbol)
    return EMPTY if run is None else fold_of_run(run)


amounts = st.builds(
    lambda whole, decimals: f"{whole}.{decimals}" if decimals else str(whole),
    st.integers(0, 10**10 - 1),
    st.text("0123456789", max_size=8),
) | st.decimals("0", "9999999999.99999999", places=8).map(lambda d: format(d, "f"))


@given(st.lists(st.tuples(amounts, amounts, st.booleans(), st.integers(0, MINUTE - 1)), min_size=1, max_size=40))
def test_what_it_takes_is_the_fold_of_the_trades(rows: list[tuple[str, str, bool, int]]) -> None:
    trades = [
        Trade("sim", "S", FIRST + i, Decimal(price), Decimal(qty), maker, T0 + after, T0)
        for i, (price, qty, maker, after) in enumerate(rows)
    ]
    one = skimmer()
    assert one.skim(encoded(trades)) == []
    assert taken(one) == reduce(merge, map(fold_of, trades), EMPTY)
    assert one.take("S") is None


PLAIN = codec.encode(trade(FIRST, "2683.80000000", "0.01000000"))
edits = st.lists(
    st.tuples(
        st.sampled_from(("replace", "insert", "delete", "copy")),
        st.integers(0, len(PLAIN)),
        st.binary(min_size=1, max_size=3)
        | st.sampled_from([b'"', b"\\u0053", b" ", b"0", b"-", b".", b"e1", b"}", b","]),
    ),
    max_size=3,
)


@settings(max_examples=2_000, deadline=None)
@given(edits)
@example([("replace", PLAIN.index(b"11,"), b"011")])
@example([("copy", PLAIN.index(b',"symbol"'), b"x" * 3)])
def test_it_takes_no_bytes_that_are_read_otherwise_or_not_at_all(changes: list[tuple[str, int, bytes]]) -> None:
    data = PLAIN
    for kind, at, some in changes:
        piece = data[at : at + 13 * len(some)]
        data = {
            "replace": data[:at] + some + data[at + len(some) :],
            "insert": data[:at] + some + data[at:],
            "delete": data[:at] + data[at + len(some) :],
            "copy": data[:at] + piece + data[at:],
        }[kind]
    one = skimmer()
    if one.skim([data]):
        assert taken(one) == EMPTY
        return
    read = codec.decode(topics.OHLCV_RAW, data)
    assert (read.symbol, read.trade_id, T0 <= read.traded_at < T0 + MINUTE) == ("S", FIRST, True)
    assert taken(one) == fold_of(read)
    assert codec.decode_wire([data]) is not None


@pytest.mark.parametrize(
    "value",
    [
        None,
        b"",
        PLAIN[:-1],
        PLAIN + b" ",
        PLAIN.replace(b'"S"', b'"S","symbol":"T"'),
        PLAIN.replace(b'"sim"', b'"\xc3\xa9"'),
        PLAIN.replace(b'"sim"', b'"\\n"'),
        PLAIN.replace(b":11,", b":011,"),
        PLAIN.replace(b":11,", b":-11,"),
        PLAIN.replace(b"2683.8", b"-2683.8"),
        PLAIN.replace(b"2683.8", b"2683.8e1"),
        PLAIN.replace(b"2683.8", b".8"),
        PLAIN.replace(b"false", b"null"),
        codec.encode(Gap("sim", "S", 8, 9, "", False)),
    ],
)
def test_after_what_is_no_trade_to_the_letter_it_takes_nothing_more(value: bytes | None) -> None:
    one = skimmer("S", "T")
    assert value != PLAIN
    assert one.skim([value, PLAIN, *encoded([trade(symbol="T")])]) == [0, 1, 2]
    assert (taken(one), taken(one, "T")) == (EMPTY, EMPTY)


@pytest.mark.parametrize(
    "left",
    [
        trade(FIRST + 1),
        trade(FIRST - 1),
        trade(at=T0 - 1),
        trade(at=T0 + MINUTE),
        trade(price="12345678901"),
        trade(qty="0.000000001"),
        trade(symbol="unknown"),
    ],
)
def test_after_what_does_not_go_on_it_takes_no_more_of_that_symbol_and_goes_on_with_others(left: Trade) -> None:
    one = skimmer("S", "T")
    others = encoded([trade(symbol="T"), trade(FIRST + 1, symbol="T")])
    mine = [0, 1] if left.symbol == "S" else [0]
    assert one.skim([*encoded([left]), PLAIN, *others]) == mine
    assert taken(one).trade_count == (0 if left.symbol == "S" else 1)
    assert taken(one, "T").trade_count == 2


def test_a_sum_that_does_not_fit_is_left_to_python_and_what_was_taken_before_is_right() -> None:
    trades = [trade(FIRST + i, "9999999999.99999999", "9999999999.99999999") for i in range(400)]
    one = skimmer()
    rest = one.skim(encoded(trades))
    assert 0 < len(rest) < len(trades)
    assert rest == list(range(rest[0], len(trades)))
    assert taken(one) == reduce(merge, map(fold_of, trades[: rest[0]]), EMPTY)


def test_what_it_has_taken_in_is_not_lost_by_a_second_loan() -> None:
    one = skimmer()
    assert one.skim([PLAIN]) == []
    with pytest.raises(ValueError, match="taken out first"):
        one.arm("S", FIRST + 1, T0, T0 + MINUTE)
    assert taken(one) == fold_of(codec.decode(topics.OHLCV_RAW, PLAIN))


def test_it_keeps_thousands_of_symbols_apart() -> None:
    symbols = [f"X{number}USDT" for number in range(5_000)]
    one = skimmer(*symbols)
    values = encoded([trade(symbol=symbol, price=str(number)) for number, symbol in enumerate(symbols)])
    assert one.skim(values) == []
    assert [taken(one, symbol).close for symbol in symbols] == [Decimal(number) for number in range(5_000)]


def test_a_name_that_is_too_long_for_it_is_left_to_python() -> None:
    assert not core.Skimmer().arm("S" * 33, FIRST, T0, T0 + MINUTE)
    one = skimmer("S" * 32)
    assert one.skim(encoded([trade(symbol="S" * 33), trade(symbol="S" * 32)])) == [0]


@pytest.mark.parametrize(("next_id", "start"), [(2**63, T0), (-(2**63) - 1, T0), (FIRST, 2**63 - MINUTE)])
def test_numbers_of_more_than_64_bits_are_left_to_python(next_id: int, start: int) -> None:
    assert not core.Skimmer().arm("S", next_id, start, start + MINUTE)


@pytest.mark.parametrize(("first", "start"), [(2**63 - 2, T0), (FIRST, 2**63 // MINUTE * MINUTE)])
def test_ids_and_times_at_the_end_of_64_bits_stop_nobody(first: int, start: int) -> None:
    book = core.Candles()
    made = []
    for after, at in enumerate((start - 1, start, start + 1, start + 2, start + MINUTE)):
        value = codec.encode(trade(first + after, at=at))
        assert book.skim([value]) == [0]
        events = codec.decode_wire([value])
        assert events is not None
        made += [candle for candle, _ in book.take(events, lambda index, one=events: (index, 0, one[index]))]
    assert [(candle.trade_count, candle.first_trade_id) for candle in made] == [(3, first + 1)]


@pytest.mark.parametrize("values", [None, (), b"", iter([PLAIN])])
def test_values_that_are_no_list_are_a_type_error(values: Any) -> None:
    with pytest.raises(TypeError, match="list"):
        skimmer().skim(values)
