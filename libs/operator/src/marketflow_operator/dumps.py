"""Binance's public trade dumps: their names, their bytes by checksum, their rows as exact columns.

https://github.com/binance/binance-public-data: a zip with one CSV of id, price, qty, quoteQty, time (milliseconds, and
microseconds since 2025), isBuyerMaker, isBestMatch. Must never pass a row on that it has not looked at, nor hold a
whole file in memory.
"""

from __future__ import annotations

import re
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import IO, Any, Final, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
from marketflow_common.numbers import number
from pyarrow import csv

__all__ = ["COLUMNS", "BadDump", "Dump", "Reading", "dumps_between"]

COLUMNS: Final = ("id", "price", "qty", "quoteQty", "time", "isBuyerMaker", "isBestMatch")
NUMBER: Final = pa.decimal128(38, 18)
BLOCK: Final = 4 << 20
"""Bytes of CSV that are read at a time."""
MICROSECONDS_FROM: Final = 100_000_000_000_000
"""Larger times are microseconds: as milliseconds they would lie beyond the year 5000."""
SLACK: Final = 60_000_000
"""Microseconds by which a trade may lie outside of its file's day: times step back a little, ids do not."""
SHOWN: Final = 5
"""Holes in the ids that are named; the rest is counted."""

_MONTH: Final = re.compile(r"(\d{4})-(\d{2})", re.ASCII)
_SYMBOL: Final = re.compile(r"[A-Z0-9]{3,30}", re.ASCII)
_INTEGER: Final = r"^[0-9]{1,18}$"
_NUMBER: Final = r"^[0-9]{1,20}(\.[0-9]{1,18})?$"
_TRUTH: Final = r"^([Tt]rue|TRUE|[Ff]alse|FALSE)$"
_PATTERNS: Final = dict(zip(COLUMNS, (_INTEGER, _NUMBER, _NUMBER, _NUMBER, _INTEGER, _TRUTH, _TRUTH), strict=True))


class BadDump(Exception):
    """A dump cannot be landed; the text is one line with its file, the place in it, and what was expected."""


class Dump(NamedTuple):
    """One file of Binance's: the trades of a symbol on a day, or in a month; ``period`` as in its name."""

    symbol: str
    period: str
    first_us: int
    end_us: int
    """Microseconds, UTC, from the beginning of the day or month to its end (exclusive)."""

    @property
    def stem(self) -> str:
        """The name without its ending."""
        return f"{self.symbol}-trades-{self.period}"

    @property
    def name(self) -> str:
        """The name of the zip."""
        return f"{self.stem}.zip"

    @property
    def path(self) -> str:
        """Where it lies below a base such as https://data.binance.vision."""
        often = "monthly" if len(self.period) == 7 else "daily"
        return f"data/spot/{often}/trades/{self.symbol}/{self.name}"


def dumps_between(symbol: str, first: str, last: str) -> list[Dump]:
    """The files of days (``2024-08-08``) or months (``2024-08``) from first to last, inclusive.

    Raises ValueError, naming what is wrong.
    """
    if not _SYMBOL.fullmatch(symbol):
        raise ValueError(f"--symbol is {symbol!r}: it is a symbol as Binance writes it, such as BTCUSDT")
    monthly = bool(_MONTH.fullmatch(first))
    if monthly != bool(_MONTH.fullmatch(last)):
        raise ValueError(f"--from is {first} and --to is {last}: both are days, or both are months")
    at, end = _begin("--from", first), _begin("--to", last)
    if end < at:
        raise ValueError(f"--to {last} is before --from {first}")
    found = []
    while at <= end:
        following = (at.replace(day=1) + timedelta(days=32)).replace(day=1) if monthly else at + timedelta(days=1)
        text = at.strftime("%Y-%m") if monthly else at.isoformat()
        found.append(Dump(symbol, text, _micros(at), _micros(following)))
        at = following
    return found


def _begin(option: str, text: str) -> date:
    try:
        return date.fromisoformat(f"{text}-01" if _MONTH.fullmatch(text) else text)
    except ValueError:
        raise ValueError(f"{option} is {text!r}: it is a day such as 2024-08-08, or a month such as 2024-08") from None


def _micros(day: date) -> int:
    return int(datetime(day.year, day.month, day.day, tzinfo=UTC).timestamp()) * 1_000_000


@dataclass
class Reading:
    """The rows of a dump, and what was seen of them: number, first and last id, and where the ids have holes."""

    dump: Dump
    rows: int = 0
    first_id: int = -1
    last_id: int = -1
    holes: list[tuple[int, int]] = field(default_factory=list)
    """First and last missing id of the first few holes."""
    missing: int = 0
    """Ids between the first and the last that the file does not have."""

    def pieces(self, path: Path, seen: Callable[[int], None] = lambda _: None) -> Iterator[pa.Table]:
        """FILE_ROW, TRADE_ID, PRICE, QTY, BUYER_IS_MAKER and TRADED_AT of its rows, some ten thousand at a time.

        ``seen`` is told the number of bytes of the CSV read so far. Raises BadDump at the first row that is wrong.
        """
        try:
            with zipfile.ZipFile(path) as archive:
                names = archive.namelist()
                if names != [f"{self.dump.stem}.csv"]:
                    raise BadDump(f"{path}: expected {self.dump.stem}.csv inside and nothing else, found {names}")
                with archive.open(names[0]) as lines:
                    yield from self._read(lines, seen)
        except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError) as error:
            raise BadDump(f"{path}: broken zip file ({error}) after line {self.rows}") from None
        if not self.rows:
            raise BadDump(f"{path}: there is no trade in it")

    def _read(self, lines: IO[bytes], seen: Callable[[int], None]) -> Iterator[pa.Table]:
        line, read = 0, 0
        for block in _blocks(lines):
            read += len(block)
            if line == 0 and block.startswith((b"id,", b"trade_id,")):
                _, _, block = block.partition(b"\n")
                line = 1
            if not block:
                continue
            piece = self._piece(block, line)
            if piece is None:
                raise self._wrong(block, line)
            line += piece.num_rows
            yield piece
            seen(read)

    def _piece(self, block: bytes, line: int) -> pa.Table | None:
        """The block's rows, by a few calls for all of them; None if any of them is wrong."""
        try:
            raw = csv.read_csv(
                pa.BufferReader(block),
                csv.ReadOptions(use_threads=False, block_size=len(block) + 1, column_names=list(COLUMNS)),
                csv.ParseOptions(quote_char=False, ignore_empty_lines=False),
                csv.ConvertOptions(column_types=dict.fromkeys(COLUMNS, pa.string()), strings_can_be_null=False),
            ).combine_chunks()
        except pa.ArrowInvalid:
            return None
        if not all(pc.all(pc.match_substring_regex(raw[name], _PATTERNS[name])).as_py() for name in COLUMNS):
            return None
        ids, times = raw["id"].cast(pa.int64()), raw["time"].cast(pa.int64())
        price, qty = raw["price"].cast(NUMBER), raw["qty"].cast(NUMBER)
        times = pc.if_else(pc.less(times, MICROSECONDS_FROM), pc.multiply(times, 1_000), times)
        low, high = self.dump.first_us - SLACK, self.dump.end_us + SLACK
        nothing = pa.scalar(0, pa.int64()).cast(NUMBER)
        steps = pc.subtract(ids.slice(1), ids.slice(0, len(ids) - 1))
        right = (
            _all(pc.greater(price, nothing))
            and _all(pc.greater(qty, nothing))
            and _all(pc.and_(pc.greater_equal(times, low), pc.less(times, high)))
            and _all(pc.greater(steps, 0))
            and ids[0].as_py() > self.last_id
        )
        if not right:
            return None
        self._follow(ids, steps)
        rows = raw.num_rows
        return pa.table(
            {
                "FILE_ROW": pa.array(range(line + 1, line + rows + 1), pa.int64()),
                "TRADE_ID": ids,
                "PRICE": price,
                "QTY": qty,
                "BUYER_IS_MAKER": pc.equal(pc.ascii_lower(raw["isBuyerMaker"]), "true"),
                "TRADED_AT": times.cast(pa.timestamp("us", tz="UTC")),
            }
        )

    def _follow(self, ids: Any, steps: Any) -> None:
        first, last = ids[0].as_py(), ids[-1].as_py()
        if self.first_id < 0:
            self.first_id = first
        else:
            self._hole(self.last_id, first)
        for at in pc.indices_nonzero(pc.not_equal(steps, 1)).to_pylist():
            self._hole(ids[at].as_py(), ids[at + 1].as_py())
        self.last_id = last
        self.rows += len(ids)

    def _hole(self, before: int, after: int) -> None:
        if after > before + 1:
            self.missing += after - before - 1
            if len(self.holes) < SHOWN:
                self.holes.append((before + 1, after - 1))

    def _wrong(self, block: bytes, line: int) -> BadDump:
        """Which line of a block is wrong, and how: what is slow is done for the one block that needs it."""
        before = self.last_id
        for number_, text in enumerate(block.splitlines(), start=line + 1):
            try:
                before = self._look(text, before)
            except ValueError as error:
                return BadDump(f"{self.dump.name} line {number_}: {error}; expected {','.join(COLUMNS)}")
        return BadDump(f"{self.dump.name}: lines {line + 1} and following cannot be read as {','.join(COLUMNS)}")

    def _look(self, line: bytes, before: int) -> int:
        cells = line.decode("ascii").split(",")
        if len(cells) != len(COLUMNS):
            raise ValueError(f"it has {len(cells)} columns, not {len(COLUMNS)}")
        row = dict(zip(COLUMNS, cells, strict=True))
        for name in ("price", "qty", "quoteQty"):
            if number(row[name]) <= 0 and name != "quoteQty":
                raise ValueError(f"{name} is {row[name]}, which is not above zero")
        for name in ("id", "time", "isBuyerMaker", "isBestMatch"):
            if not re.fullmatch(_PATTERNS[name].strip("^$"), row[name], re.ASCII):
                raise ValueError(f"{name} is {row[name]!r}")
        trade_id, at = int(row["id"]), int(row["time"])
        if trade_id <= before:
            raise ValueError(f"id {trade_id} comes after {before}")
        at = at * 1_000 if at < MICROSECONDS_FROM else at
        if not self.dump.first_us - SLACK <= at < self.dump.end_us + SLACK:
            raise ValueError(f"time is {row['time']}, which is not in {self.dump.period} (UTC)")
        return trade_id


def _all(truths: Any) -> bool:
    return pc.all(truths).as_py() is not False  # of nothing it is None, which is no fault


def _blocks(stream: IO[bytes]) -> Iterator[bytes]:
    """The stream in pieces that end with a line."""
    rest = b""
    while data := stream.read(BLOCK):
        whole, end, rest_ = (rest + data).rpartition(b"\n")
        if end:
            yield whole + end
        rest = rest_
        if len(rest) > BLOCK:  # no line is as long: what follows is not held, but found wrong
            yield rest
            rest = b""
    if rest:
        yield rest
