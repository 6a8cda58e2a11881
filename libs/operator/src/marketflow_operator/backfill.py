"""Lands Binance's public trade dumps in RAW.TRADES_BACKFILL: a file all or not at all, and once.

Must never land a file before its last row was looked at. dbt unites what lands here with RAW.TRADES by trade id.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from secrets import token_hex
from typing import Any, Final, Literal, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
from marketflow_common import clock

from .audit.topics import CannotRead
from .dumps import BadDump, Dump, Reading
from .fetching import NoDump, Source
from .session import Session

__all__ = ["TABLE", "Backfill", "Outcome", "neighbours"]

TABLE: Final = "RAW.TRADES_BACKFILL"
SOURCE: Final = "binance"
"""As in RAW.TRADES: whose ids these are."""
PIECE: Final = 500_000
"""Rows of a Parquet file: what is held in memory at a time."""
TRIES: Final = 10
"""How often rows of a file that two have landed are tried to be deleted."""
Say = Callable[[str], None]
State = Literal["landed", "there", "absent", "wrong"]


class Landed(NamedTuple):
    """What there is of a file in the table."""

    rows: int
    first_id: int
    last_id: int
    times: int
    """How many flushes its rows are of: one, unless two backfills have landed it at the same time."""


@dataclass(frozen=True)
class Outcome:
    """What became of a file: landed, there already, absent at its source, or wrong in itself.

    ``missing``: how many ids between its first and last it does not have; ``detail``: what else is to be said.
    """

    file: str
    state: State
    rows: int = 0
    first_id: int = -1
    last_id: int = -1
    missing: int = 0
    detail: str = ""
    seconds: float = 0.0


class Backfill:
    """Files of one symbol, one after the other. Every method raises CannotRead where the warehouse does not answer."""

    def __init__(self, session: Session, source: Source, symbol: str, *, again: bool = False) -> None:
        """``again``: a file that has landed is taken out and landed once more."""
        self._session, self._source, self._symbol, self._again = session, source, symbol, again
        self._known: Mapping[str, Landed] | None = None

    def load(self, dump: Dump, say: Say = lambda _: None) -> Outcome:
        """Land one file, unless it has landed. ``say`` is told how far it is."""
        begun = time.monotonic()
        if self._known is None:
            self._known = self._landed()
        known = self._known.get(dump.name)
        if known is not None and not self._again:
            return Outcome(dump.name, "there", known.rows, known.first_id, known.last_id)
        try:
            path, detail = self._source.fetch(dump, say)
            reading = Reading(dump)
            with tempfile.TemporaryDirectory(prefix="marketflow-backfill-") as folder:
                landed_us = clock.now_us()
                pieces = self._write(reading, path, Path(folder), landed_us, say)
                say(f"{dump.name}: loading {reading.rows:,} rows")
                self._land(dump, pieces, reading.rows, landed_us)
        except NoDump as error:
            return Outcome(dump.name, "absent", detail=str(error))
        except BadDump as error:
            return Outcome(dump.name, "wrong", detail=f"{error}. Nothing of it has landed")
        self._source.done(path)
        words = [detail] if detail else []
        if reading.missing:
            holes = ", ".join(f"{a}" if a == b else f"{a} to {b}" for a, b in reading.holes)
            more = ", …" if _more(reading) else ""
            words.append(f"its ids have holes: {reading.missing:,} are missing ({holes}{more})")
        return Outcome(
            dump.name,
            "landed",
            reading.rows,
            reading.first_id,
            reading.last_id,
            reading.missing,
            "; ".join(words),
            time.monotonic() - begun,
        )

    def _landed(self, file: str = "") -> dict[str, Landed]:
        where, values = ("AND FILE = %s ", (file,)) if file else ("", ())
        rows = self._session.rows(
            "SELECT FILE, COUNT(*) AS ROWS_, MIN(TRADE_ID) AS FIRST_, MAX(TRADE_ID) AS LAST_, "
            f"COUNT(DISTINCT LANDED_AT) AS TIMES_ FROM {TABLE} WHERE SOURCE = %s AND SYMBOL = %s {where}GROUP BY FILE",
            SOURCE,
            self._symbol,
            *values,
        )
        return {r["FILE"]: Landed(int(r["ROWS_"]), int(r["FIRST_"]), int(r["LAST_"]), int(r["TIMES_"])) for r in rows}

    def _write(self, reading: Reading, path: Path, folder: Path, landed_us: int, say: Say) -> list[tuple[Path, int]]:
        """All rows of a dump as Parquet files on this machine's disk: nothing leaves it before all are known."""
        written: list[tuple[Path, int]] = []
        waiting, count = list[pa.Table](), 0

        def flush() -> None:
            nonlocal waiting, count
            file = folder / f"{len(written)}.parquet"
            pq.write_table(pa.concat_tables(waiting), file, compression="zstd", compression_level=1)
            written.append((file, count))
            waiting, count = [], 0

        for piece in reading.pieces(
            path, lambda size: say(f"{path.name}: {reading.rows:,} rows read, {size / 1e6:,.0f} MB")
        ):
            waiting.append(_whole(piece, reading.dump, landed_us))
            count += piece.num_rows
            if count >= PIECE:
                flush()
        if waiting:
            flush()
        return written

    def _land(self, dump: Dump, pieces: Iterable[tuple[Path, int]], rows: int, landed_us: int) -> None:
        folder = f"{TABLE.lower().replace('.', '/')}/{dump.stem}-{token_hex(6)}"
        paths = []
        for file, count in pieces:
            self._session.put(file, folder)
            paths.append((f"{folder}/{file.name}", count))
        try:
            with self._session.transaction():
                if self._again:
                    self._session.run(f"DELETE FROM {TABLE} WHERE SOURCE = %s AND FILE = %s", SOURCE, dump.name)
                for path, count in paths:
                    self._session.copy(TABLE, path, count)
        except CannotRead:
            # The answer to COMMIT may have been lost: whether it took effect is asked, not guessed.
            if not self._took_effect(dump, rows, landed_us):
                raise
        self._once(dump)

    def _took_effect(self, dump: Dump, rows: int, landed_us: int) -> bool:
        [found] = self._session.rows(
            f"SELECT COUNT(*) AS ROWS_ FROM {TABLE} WHERE SOURCE = %s AND FILE = %s AND LANDED_AT = %s::TIMESTAMP_LTZ",
            SOURCE,
            dump.name,
            _moment(landed_us),
        )
        return int(found["ROWS_"]) == rows

    def _once(self, dump: Dump) -> None:
        """Where another backfill has landed the same file at the same time: only the rows that came first stay."""
        for left in reversed(range(TRIES)):
            found = self._landed(dump.name).get(dump.name)
            if found is None or found.times <= 1:
                return
            try:
                self._session.run(
                    f"DELETE FROM {TABLE} WHERE SOURCE = %s AND FILE = %s AND LANDED_AT > "
                    f"(SELECT MIN(LANDED_AT) FROM {TABLE} WHERE SOURCE = %s AND FILE = %s)",
                    *(SOURCE, dump.name) * 2,
                )
            except CannotRead:
                # The other one may be deleting them at this very moment.
                if not left:
                    raise
                time.sleep(0.2)


def _more(reading: Reading) -> bool:
    return reading.missing > sum(last - first + 1 for first, last in reading.holes)


def _whole(piece: pa.Table, dump: Dump, landed_us: int) -> pa.Table:
    """The rows with the columns that are the same in all of them."""
    same: dict[str, Any] = {
        "SOURCE": pa.scalar(SOURCE),
        "FILE": pa.scalar(dump.name),
        "LANDED_AT": pa.scalar(landed_us, pa.timestamp("us", tz="UTC")),
        "SYMBOL": pa.scalar(dump.symbol),
    }
    columns = {name: pa.repeat(value, piece.num_rows) for name, value in same.items()}
    return pa.table(columns | {name: piece[name] for name in piece.column_names})


def _moment(micros: int) -> str:
    return datetime.fromtimestamp(micros // 1_000_000, UTC).replace(microsecond=micros % 1_000_000).isoformat()


def neighbours(outcomes: Iterable[Outcome]) -> list[str]:
    """Where the ids of a file do not go on from the file before it, a line for each."""
    known = [one for one in outcomes if one.state in ("landed", "there")]
    return [
        f"{after.file} begins with id {after.first_id}, and {before.file} ends with {before.last_id}: "
        + (
            f"{after.first_id - before.last_id - 1:,} ids are missing between them"
            if after.first_id > before.last_id
            else "they overlap"
        )
        for before, after in pairwise(known)
        if after.first_id != before.last_id + 1
    ]
