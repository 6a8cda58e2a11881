"""Binance's trade dumps: what is in them is taken over exactly, and a row that is wrong is told with its line."""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from decimal import Decimal
from itertools import pairwise
from pathlib import Path

import pyarrow as pa
import pytest
from marketflow_operator import dumps
from marketflow_operator.dumps import BadDump, Dump, Reading, dumps_between

DAY = "2024-08-08"
BEGIN_MS = 1_723_075_200_000
EXPECTED = "expected id,price,qty,quoteQty,time,isBuyerMaker,isBestMatch"


def row(number: int, price: str = "61000.12000000", at: int | None = None) -> str:
    at = BEGIN_MS + number if at is None else at
    return f"{number},{price},0.00100000,61.00012000,{at},{'True' if number % 2 else 'False'},True"


@pytest.fixture
def dump() -> Dump:
    return dumps_between("BTCUSDT", DAY, DAY)[0]


@pytest.fixture
def packed(tmp_path: Path, dump: Dump) -> Callable[..., Path]:
    def pack(lines: Iterable[str], member: str = f"{dump.stem}.csv", end: str = "\n") -> Path:
        path = tmp_path / dump.name
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr(member, "".join(f"{line}{end}" for line in lines))
        return path

    return pack


def read(dump: Dump, path: Path) -> tuple[Reading, list[dict[str, object]]]:
    reading = Reading(dump)
    return reading, pa.concat_tables(list(reading.pieces(path))).to_pylist()


def test_days_and_months_have_the_names_that_binance_gives_them() -> None:
    days = dumps_between("BTCUSDT", "2024-02-28", "2024-03-01")
    assert [one.name for one in days] == [
        "BTCUSDT-trades-2024-02-28.zip", "BTCUSDT-trades-2024-02-29.zip", "BTCUSDT-trades-2024-03-01.zip"
    ]  # fmt: skip
    assert days[0].path == "data/spot/daily/trades/BTCUSDT/BTCUSDT-trades-2024-02-28.zip"
    assert [a.end_us == b.first_us for a, b in pairwise(days)] == [True, True]
    months = dumps_between("BTCUSDT", "2024-12", "2025-01")
    assert [one.path for one in months] == [
        "data/spot/monthly/trades/BTCUSDT/BTCUSDT-trades-2024-12.zip",
        "data/spot/monthly/trades/BTCUSDT/BTCUSDT-trades-2025-01.zip",
    ]
    assert months[0].end_us - months[0].first_us == 31 * 86_400_000_000


@pytest.mark.parametrize(
    ("symbol", "first", "last", "said"),
    [
        ("BTC/USDT", DAY, DAY, "--symbol is 'BTC/USDT'"),
        ("BTCUSDT", "yesterday", DAY, "--from is 'yesterday': it is a day such as 2024-08-08, or a month"),
        ("BTCUSDT", "2024-02-30", DAY, "--from is '2024-02-30'"),
        ("BTCUSDT", "2024-08", DAY, "both are days, or both are months"),
        ("BTCUSDT", DAY, "2024-08-07", "--to 2024-08-07 is before --from 2024-08-08"),
    ],
)
def test_what_is_no_span_of_days_or_months_is_told(symbol: str, first: str, last: str, said: str) -> None:
    with pytest.raises(ValueError, match=said.replace("(", r"\(")):
        dumps_between(symbol, first, last)


def test_rows_are_taken_over_to_the_last_digit(dump: Dump, packed: Callable[..., Path]) -> None:
    reading, rows = read(dump, packed([row(7), row(8, "0.000000000000000001"), row(9, "12345678901234567890.5")]))
    assert (reading.rows, reading.first_id, reading.last_id, reading.missing) == (3, 7, 9, 0)
    assert rows[0] == {
        "FILE_ROW": 1,
        "TRADE_ID": 7,
        "PRICE": Decimal("61000.12"),
        "QTY": Decimal("0.001"),
        "BUYER_IS_MAKER": True,
        "TRADED_AT": datetime(2024, 8, 8, microsecond=7_000, tzinfo=UTC),
    }
    assert [r["PRICE"] for r in rows[1:]] == [Decimal("0.000000000000000001"), Decimal("12345678901234567890.5")]
    assert [r["BUYER_IS_MAKER"] for r in rows] == [True, False, True]


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_a_header_and_microseconds_and_other_line_ends_are_understood(
    dump: Dump, packed: Callable[..., Path], end: str
) -> None:
    lines = [",".join(dumps.COLUMNS), row(1, at=BEGIN_MS * 1_000 + 5), row(2)]
    reading, rows = read(dump, packed(lines, end=end))
    assert reading.rows == 2
    assert [r["FILE_ROW"] for r in rows] == [2, 3]
    assert [r["TRADED_AT"] for r in rows] == [
        datetime(2024, 8, 8, microsecond=5, tzinfo=UTC), datetime(2024, 8, 8, microsecond=2_000, tzinfo=UTC)
    ]  # fmt: skip


def test_a_file_is_read_in_pieces_whose_lines_and_ids_go_on(
    dump: Dump, packed: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dumps, "BLOCK", 1_000)
    path = packed(row(n) for n in range(100, 400))
    pieces = list(Reading(dump).pieces(path))
    assert len(pieces) > 10
    assert [n for piece in pieces for n in piece["FILE_ROW"].to_pylist()] == list(range(1, 301))
    assert [n for piece in pieces for n in piece["TRADE_ID"].to_pylist()] == list(range(100, 400))


def test_holes_in_the_ids_are_counted_and_named_across_pieces(
    dump: Dump, packed: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dumps, "BLOCK", 200)
    reading, _ = read(dump, packed(row(n) for n in range(1, 101) if n not in (5, 6, 50)))
    assert (reading.missing, reading.holes) == (3, [(5, 6), (50, 50)])


WRONG = {
    "six columns": (lambda r: r.rpartition(",")[0], "it has 6 columns, not 7"),
    "no number": (lambda r: r.replace("61000.12000000", "NaN"), "'NaN' is not a decimal number"),
    "an exponent": (lambda r: r.replace("61000.12000000", "6.1e4"), "'6.1e4' is not a decimal number"),
    "no price": (lambda r: r.replace("61000.12000000", "0.00000000"), "price is 0.00000000, which is not above zero"),
    "a negative quantity": (lambda r: r.replace("0.00100000", "-1"), "qty is -1, which is not above zero"),
    "too many places": (
        lambda r: r.replace("0.00100000", "0.0000000000000000001"),
        "has more than 18 decimal places",
    ),
    "no id": (lambda r: f"x{r}", "id is 'x"),
    "no truth": (lambda r: r.replace("True,True", "True,perhaps").replace("False,True", "False,perhaps"), "perhaps"),
    "another day": (lambda r: r.replace(str(BEGIN_MS)[:6], "172400"), f"which is not in {DAY}"),
    "a blank line": (lambda r: "", "it has 1 columns, not 7"),
    "a quoted line": (lambda r: f'"{r}"', "is '\""),
    "no ASCII": (lambda r: r.replace("61000", "٦1000"), "ascii"),
}


@pytest.mark.parametrize("what", WRONG)
@pytest.mark.parametrize("at", [0, 60])
def test_a_row_that_is_wrong_is_told_with_its_file_and_line(
    dump: Dump, packed: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, what: str, at: int
) -> None:
    monkeypatch.setattr(dumps, "BLOCK", 1_000)
    damage, said = WRONG[what]
    lines = [row(n) for n in range(1, 101)]
    lines[at] = damage(lines[at])
    with pytest.raises(BadDump) as told:
        read(dump, packed(lines))
    assert str(told.value).startswith(f"{dump.name} line {at + 1}: ")
    assert said in str(told.value)
    assert str(told.value).endswith(EXPECTED)


@pytest.mark.parametrize("second", [5, 4])
def test_ids_that_do_not_rise_are_told(dump: Dump, packed: Callable[..., Path], second: int) -> None:
    with pytest.raises(BadDump, match=rf"line 2: id {second} comes after 5; expected"):
        read(dump, packed([row(5), row(second)]))


def test_what_is_no_whole_zip_of_that_day_is_told(dump: Dump, packed: Callable[..., Path]) -> None:
    with pytest.raises(BadDump, match=r"expected BTCUSDT-trades-2024-08-08.csv inside and nothing else"):
        read(dump, packed([row(1)], member="another.csv"))
    with pytest.raises(BadDump, match="there is no trade in it"):
        list(Reading(dump).pieces(packed([])))
    path = packed([row(n) for n in range(1, 2_000)])
    whole = bytearray(path.read_bytes())
    whole[len(whole) // 2] ^= 0xFF
    path.write_bytes(whole)
    with pytest.raises(BadDump):
        read(dump, path)
    path.write_bytes(whole[:500])
    with pytest.raises(BadDump, match="broken zip file"):
        read(dump, path)
