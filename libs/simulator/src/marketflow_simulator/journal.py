"""The state folder: a journal of the books, and the point from which market time goes on after a restart.

A line of the journal is one whole step of the books (a change, or a list of them), written before its answer leaves.
A last line that a crash cut short never had an answer, and is dropped.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import IO, Final

import msgspec

from marketflow_simulator.logs import log
from marketflow_simulator.records import Change

_BOOKS: Final = "books.jsonl"
_CLOCK: Final = "market.json"


class StateError(Exception):
    """The state folder cannot be used; the message is one line for the operator."""


class Identity(msgspec.Struct, frozen=True):
    """Which market and account a state belongs to; it must not be mixed with another's."""

    symbols: list[str]
    seed: int | None
    replay: str | None
    start_us: int
    initial: dict[str, int]
    fee: int


class Clock(msgspec.Struct):
    """Market time was `market_us` when the wall clock said `wall_ns`.

    It has gone on at `speed` since, or not at all if that is 0: not started, stopped at speed `max`.
    """

    identity: Identity
    started: bool
    market_us: int
    wall_ns: int
    speed: float

    def market_us_at(self, wall_ns: int) -> int:
        """Market time at a later time of the wall clock."""
        return self.market_us + max(int((wall_ns - self.wall_ns) / 1000 * self.speed), 0)


class Journal:
    """One state folder, held open by one simulator."""

    def __init__(self, folder: Path, identity: Identity) -> None:
        self._folder = folder
        self._identity = identity
        self._file: IO[bytes] | None = None

    def open(self) -> tuple[Clock | None, list[Change]]:
        """What the folder knows, nothing if it is new; StateError if it belongs to another market."""
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            clock = self._read_clock()
            changes = self._read_books()
            self._file = (self._folder / _BOOKS).open("ab", buffering=0)
        except OSError as error:
            raise StateError(f"cannot use the state folder {self._folder}: {error.strerror or error}") from error
        return clock, changes

    def _read_clock(self) -> Clock | None:
        path = self._folder / _CLOCK
        if not path.exists():
            if (self._folder / _BOOKS).exists():
                raise StateError(f"{self._folder} has {_BOOKS} but no {_CLOCK}; remove the folder to start anew")
            return None
        try:
            clock = msgspec.json.decode(path.read_bytes(), type=Clock)
        except msgspec.DecodeError as error:
            raise StateError(f"{path} cannot be read ({error}); remove the folder to start anew") from error
        for name in Identity.__struct_fields__:
            had, has = getattr(clock.identity, name), getattr(self._identity, name)
            if had != has:
                raise StateError(
                    f"the state folder {self._folder} belongs to a market with {name} {had}, this one has {has}; "
                    "use its settings again, or another folder"
                )
        return clock

    def _read_books(self) -> list[Change]:
        path = self._folder / _BOOKS
        if not path.exists():
            return []
        changes: list[Change] = []
        lines = path.read_bytes().split(b"\n")
        whole = sum(len(line) + 1 for line in lines[:-1])
        if lines[-1]:
            log("journal_cut", level="warning", path=path, dropped_bytes=len(lines[-1]))
            with path.open("r+b") as file:
                file.truncate(whole)
        for number, line in enumerate(lines[:-1], 1):
            try:
                if line.startswith(b"["):
                    changes += msgspec.json.decode(line, type=list[Change])
                else:
                    changes.append(msgspec.json.decode(line, type=Change))
            except msgspec.DecodeError as error:
                raise StateError(f"{path} line {number}: {error}; remove the folder to start anew") from error
        return changes

    def record(self, changes: Sequence[Change]) -> None:
        """Write one step of the books, all of it or nothing."""
        if self._file is None:
            raise StateError(f"the journal in {self._folder} is not open")
        self._file.write(msgspec.json.encode(changes[0] if len(changes) == 1 else changes) + b"\n")

    def set_clock(self, started: bool, market_us: int, wall_ns: int, speed: float) -> None:
        """Replace the point from which market time goes on."""
        path = self._folder / _CLOCK
        new = path.with_suffix(".new")
        new.write_bytes(msgspec.json.encode(Clock(self._identity, started, market_us, wall_ns, speed)))
        new.replace(path)

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None
