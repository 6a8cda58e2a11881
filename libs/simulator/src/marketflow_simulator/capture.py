"""Reads recordings: line-delimited stream captures and Binance's public trade dumps.

A recording that cannot be read is an error that names file, line and what was expected; nothing is
guessed. Up to two million trades are held in memory, more are laid out in a temporary file.
"""

import gzip
import math
import mmap
import re
import tempfile
import zipfile
import zlib
from array import array
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, Final

import msgspec

from marketflow_simulator.amounts import scaled
from marketflow_simulator.symbols import SymbolSpec, spec_of_trades, split_symbol
from marketflow_simulator.trades import Trade

IN_MEMORY: Final = 2_000_000
_DUMP_NAME: Final = re.compile(r"([A-Z0-9]+)-trades-.*\.(csv|zip)", re.ASCII)
_MICROSECONDS_FROM: Final = 100_000_000_000_000
"""Larger times are microseconds: as milliseconds they would lie beyond the year 5000."""


class CaptureError(Exception):
    """A recording cannot be used; the message is one line for the operator."""


class _Message(msgspec.Struct):
    stream: str
    data: msgspec.Raw


class _TradeEvent(msgspec.Struct):
    s: str
    t: int
    p: str
    q: str
    T: int
    m: bool


_message: Final = msgspec.json.Decoder(_Message)
_trade_event: Final = msgspec.json.Decoder(_TradeEvent)


class Recording(msgspec.Struct):
    """What a recording holds: one tape per symbol, and how many messages it had that are no trades."""

    tapes: list["RecordedTape"]
    specs: list[SymbolSpec]
    ignored: Counter[str]
    repeated: int


class _Columns:
    """Trades of one symbol while they are read: four columns of 64-bit numbers, on disk if there are many."""

    def __init__(self) -> None:
        self.names = ("ids", "prices", "qtys", "times")
        self.parts = {name: array("q") for name in self.names}
        self.makers = bytearray()
        self.files: dict[str, BinaryIO] = {}
        self.last_id = -1
        self.sorted = True
        self.price_unit = 0
        self.qty_unit = 0

    def add(self, trade_id: int, price: int, qty: int, time_us: int, maker: bool) -> None:
        if trade_id <= self.last_id:
            self.sorted = False
        else:
            self.last_id = trade_id
        parts = self.parts
        parts["ids"].append(trade_id)
        parts["prices"].append(price)
        parts["qtys"].append(qty)
        parts["times"].append(time_us)
        self.makers.append(maker)
        self.price_unit = math.gcd(self.price_unit, price)
        self.qty_unit = math.gcd(self.qty_unit, qty)
        if len(parts["ids"]) >= IN_MEMORY:
            self.spill()

    def spill(self) -> None:
        for name, part in self.parts.items():
            if name not in self.files:
                self.files[name] = tempfile.TemporaryFile()  # noqa: SIM115 - closed when it is mapped
            part.tofile(self.files[name])
            self.parts[name] = array("q")

    def column(self, name: str) -> Sequence[int]:
        if name not in self.files:
            return self.parts[name]
        file = self.files.pop(name)
        self.parts[name].tofile(file)
        file.flush()
        with file:  # the mapping outlives the file
            return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)).cast("q")


class RecordedTape:
    """Trades of one symbol from a recording, sorted by id, each id once."""

    def __init__(self, symbol: str, columns: _Columns) -> None:
        self._symbol = symbol
        self._makers: bytes | bytearray = columns.makers
        self._ids, self._prices, self._qtys, self._times = (columns.column(n) for n in columns.names)
        self.repeated = 0
        if not columns.sorted:
            self._sort()
        self._ats = self._running_times()
        self._aggs = self._aggregates()

    def _sort(self) -> None:
        ids = self._ids
        order: list[int] = []
        for position in sorted(range(len(ids)), key=ids.__getitem__):
            if order and ids[order[-1]] == ids[position]:
                self.repeated += 1
            else:
                order.append(position)
        self._ids, self._prices, self._qtys, self._times = (
            array("q", [column[i] for i in order]) for column in (self._ids, self._prices, self._qtys, self._times)
        )
        self._makers = bytes(self._makers[i] for i in order)

    def _running_times(self) -> Sequence[int]:
        latest = 0
        for time_us in self._times:
            if time_us < latest:
                break
            latest = time_us
        else:
            return self._times
        ats, latest = array("q"), 0
        for time_us in self._times:
            latest = max(latest, time_us)
            ats.append(latest)
        return ats

    def _aggregates(self) -> Sequence[int]:
        """Number the aggregates: consecutive ids with one time, one price and one side are one."""
        aggs, number, before = array("q"), 0, (-1, 0, 0, 0)
        for row in zip(self._ids, self._times, self._prices, self._makers, strict=True):
            if row[1:] != before[1:] or row[0] != before[0] + 1:
                number += 1
            before = row
            aggs.append(number)
        return aggs

    def _trade(self, i: int) -> Trade:
        return Trade(
            self._ids[i],
            self._prices[i],
            self._qtys[i],
            self._times[i],
            self._ats[i],
            bool(self._makers[i]),
            self._aggs[i],
        )

    def _trades(self, first: int, end: int) -> list[Trade]:
        return [self._trade(i) for i in range(max(first, 0), min(end, len(self._ids)))]

    @property
    def symbol(self) -> str:
        return self._symbol

    @property
    def size(self) -> int:
        """Number of trades."""
        return len(self._ids)

    @property
    def first_at_us(self) -> int:
        return self._ats[0]

    @property
    def last_at_us(self) -> int | None:
        return self._ats[-1]

    def live(self, from_us: int) -> Iterator[Trade]:
        return map(self._trade, range(bisect_left(self._ats, from_us), len(self._ids)))

    def by_id(self, from_id: int, limit: int) -> list[Trade]:
        first = bisect_left(self._ids, from_id)
        return self._trades(first, first + limit)

    def latest(self, until_id: int, limit: int) -> list[Trade]:
        end = bisect_left(self._ids, until_id + 1)
        return self._trades(end - limit, end)

    def between(self, from_us: int, until_us: int) -> list[Trade]:
        return self._trades(bisect_left(self._ats, from_us), bisect_left(self._ats, until_us))

    def before(self, us: int) -> Trade | None:
        end = bisect_left(self._ats, us)
        return self._trade(end - 1) if end else None

    def count(self, from_us: int, until_us: int) -> int:
        return bisect_left(self._ats, until_us) - bisect_left(self._ats, from_us)

    def agg_start(self, agg_id: int) -> int | None:
        position = bisect_left(self._aggs, agg_id)
        return self._ids[position] if position < len(self._ids) else None

    def prepare(self, us: int) -> bool:
        return False


def load(path: Path, only: Iterable[str] = ()) -> Recording:
    """Read a recording (or every one in a folder); of the symbols in `only`, or of all if that is empty.

    CaptureError says what is wrong with it.
    """
    wanted = frozenset(only)
    columns: dict[str, _Columns] = {}
    ignored: Counter[str] = Counter()

    def add(symbol: str, trade_id: int, price: str, qty: str, time: int, maker: bool) -> None:
        if wanted and symbol not in wanted:
            ignored[symbol] += 1
            return
        if symbol not in columns:
            split_symbol(symbol)
            columns[symbol] = _Columns()
        price_units, qty_units = scaled(price), scaled(qty)
        if price_units <= 0 or qty_units <= 0 or trade_id < 0 or time <= 0:
            raise ValueError("price, quantity, id and time of a trade have to be above zero")
        time_us = time if time >= _MICROSECONDS_FROM else time * 1000
        columns[symbol].add(trade_id, price_units, qty_units, time_us, maker)

    try:
        files = sorted(p for p in path.iterdir() if p.is_file()) if path.is_dir() else [path]
        for file in files:
            _read(file, add, ignored)
    except OSError as error:
        raise CaptureError(f"cannot read {path}: {error.strerror or error}") from error
    if not columns:
        found = f"; it holds {dict(ignored)}" if ignored else ""
        raise CaptureError(
            f"{path} holds no trades{f' of {sorted(wanted)}' if wanted else ''}{found}; expected lines "
            '<receive time ns> {"stream":"<symbol>@trade","data":{...}} or a trade dump of Binance'
        )
    tapes, specs = [], []
    for symbol, column in sorted(columns.items()):
        tape = RecordedTape(symbol, column)
        tapes.append(tape)
        price = tape.by_id(0, 1)[0].price
        specs.append(spec_of_trades(symbol, column.price_unit, column.qty_unit, price))
    return Recording(tapes, specs, ignored, sum(tape.repeated for tape in tapes))


_Add = Callable[[str, int, str, str, int, bool], None]


def _read(file: Path, add: _Add, ignored: Counter[str]) -> None:
    dump = _DUMP_NAME.fullmatch(file.name)
    if file.suffix == ".zip" or file.suffix == ".csv":
        if dump is None:
            raise CaptureError(
                f"{file}: the name of a trade dump tells its symbol, expected <SYMBOL>-trades-<date>{file.suffix}"
            )
        _read_dump(file, dump[1], add)
    else:
        _read_capture(file, add, ignored)


def _read_capture(file: Path, add: _Add, ignored: Counter[str]) -> None:
    number = 0
    try:
        with gzip.open(file, "rb") if file.suffix == ".gz" else file.open("rb") as lines:
            for line in lines:
                number += 1
                if line.isspace():
                    continue
                received, _, text = line.partition(b" ")
                if not received.isdigit():
                    raise ValueError(f"it begins with {received[:20]!r}, not with a receive time")
                message = _message.decode(text)
                if not message.stream.endswith("@trade"):
                    ignored[message.stream.partition("@")[2] or message.stream] += 1
                    continue
                event = _trade_event.decode(message.data)
                add(event.s, event.t, event.p, event.q, event.T, event.m)
    except (ValueError, msgspec.DecodeError) as error:
        raise CaptureError(
            f"{file} line {number}: {error}; expected <receive time ns> "
            '{"stream":"<symbol>@trade","data":{"s":…,"t":…,"p":"…","q":"…","T":…,"m":…}}'
        ) from error
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise CaptureError(f"{file} after line {number}: broken gzip data ({error})") from error


def _read_dump(file: Path, symbol: str, add: _Add) -> None:
    if file.suffix == ".csv":
        with file.open("rb") as lines:
            _read_rows(file, lines, symbol, add)
        return
    try:
        with zipfile.ZipFile(file) as archive:
            names = [name for name in archive.namelist() if name.endswith(".csv")]
            if len(names) != 1:
                raise CaptureError(f"{file}: expected one .csv inside, found {len(names)}")
            with archive.open(names[0]) as lines:
                _read_rows(file, lines, symbol, add)
    except (zipfile.BadZipFile, zlib.error) as error:
        raise CaptureError(f"{file}: broken zip file ({error})") from error


def _read_rows(file: Path, lines: Iterable[bytes], symbol: str, add: _Add) -> None:
    number = 0
    try:
        for line in lines:
            number += 1
            row = line.decode().strip().split(",")
            if row == [""] or (number == 1 and row[0] == "id"):
                continue
            if len(row) != 7:
                raise ValueError(f"it has {len(row)} columns")
            trade_id, price, qty, _, time, maker, _ = row
            if maker.lower() not in ("true", "false"):
                raise ValueError(f"is_buyer_maker is {maker!r}")
            add(symbol, int(trade_id), price, qty, int(time), maker.lower() == "true")
    except ValueError as error:
        raise CaptureError(
            f"{file} line {number}: {error}; expected id,price,qty,quote_qty,time,is_buyer_maker,is_best_match"
        ) from error
