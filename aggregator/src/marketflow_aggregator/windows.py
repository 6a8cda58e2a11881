"""The parts of a symbol's state: an open window, and a closed one that may still change.

Plain data; what happens to them is in candles.py. Must never do I/O or read a clock.
"""

from __future__ import annotations

from decimal import Decimal

from marketflow_common.events import Candle, IdRange
from marketflow_common.intervals import MINUTE

from .folds import EMPTY, Fold, fold_of_candle

__all__ = ["Closed", "Window", "without"]


class Window:
    """An open window's running totals, in order of ids. ``cut``: nothing proves that its first trade is known.

    ``missing``: ids that may belong to it and have not been seen. ``offset``: of the record that opened it.

    Most trades have the price of the one before: its ``text`` tells, and what was traded at it is multiplied by it
    once, when another comes (``priced`` and ``taker_priced``: how much of the volumes the quote volumes hold).
    """

    __slots__ = (
        "close", "count", "cut", "end", "first_id", "high", "last_id", "low", "missing", "offset", "open", "priced",
        "quote", "start", "taker", "taker_priced", "taker_quote", "text", "volume",
    )  # fmt: skip

    def __init__(self, start: int, offset: int, cut: bool, missing: list[IdRange], fold: Fold) -> None:
        self.start, self.end, self.offset, self.cut, self.missing = start, start + MINUTE, offset, cut, missing
        self.load(fold)

    def load(self, fold: Fold) -> None:
        """Take over totals."""
        (
            self.first_id, self.last_id, self.open, self.high, self.low, self.close, self.volume, self.quote,
            self.count, self.taker, self.taker_quote,
        ) = fold  # fmt: skip
        self.priced, self.taker_priced = self.volume, self.taker
        self.text: str | None = None

    def settle(self) -> None:
        """Bring the quote volumes up to the volumes."""
        volume, taker = self.volume, self.taker
        if volume is not self.priced:
            self.quote += self.close * (volume - self.priced)
            self.priced = volume
        if taker is not self.taker_priced:
            self.taker_quote += self.close * (taker - self.taker_priced)
            self.taker_priced = taker

    def reprice(self, text: str) -> None:
        """What is traded from now on is traded at this price."""
        self.settle()
        self.text, self.close = text, (price := Decimal(text))
        if price > self.high:
            self.high = price
        elif price < self.low:
            self.low = price

    def fold(self) -> Fold:
        """The totals."""
        self.settle()
        return Fold(
            self.first_id, self.last_id, self.open, self.high, self.low, self.close, self.volume, self.quote,
            self.count, self.taker, self.taker_quote,
        )  # fmt: skip

    @property
    def lowest(self) -> int:
        """Lowest id that it holds or may hold."""
        return min(self.first_id, self.missing[0][0]) if self.missing else self.first_id


class Closed:
    """A closed window that may still change: its totals, what it may miss, and its last statement.

    ``after``: ids that are missing in windows between it and the next candle, and in neither of the two.
    ``offset``: no later than the output record of its first known statement (``exact``: that record's own).
    ``whole``: that was made before any of a later window, so those of all later windows are known, too.
    """

    __slots__ = ("after", "exact", "flat", "fold", "missing", "offset", "stated", "whole")

    def __init__(
        self, fold: Fold, missing: list[IdRange], offset: int, flat: tuple[Decimal, int] | None = None
    ) -> None:
        self.fold, self.missing, self.flat, self.offset = fold, missing, flat, offset
        self.after: IdRange | None = None
        self.stated: Candle | None = None
        self.exact = self.whole = False

    @classmethod
    def restored(cls, candle: Candle, first: Candle, offset: int) -> Closed:
        """From the last and the first statement, and the offset of the first."""
        flat = None if candle.trade_count else (candle.close, candle.last_trade_id)
        closed = cls(fold_of_candle(candle) if flat is None else EMPTY, list(candle.missing), offset, flat)
        closed.stated = candle
        closed.exact, closed.whole = True, first.revision == 0
        return closed

    @property
    def first_id(self) -> int:
        """First id it holds; one more than ``last_id`` where it holds none."""
        return self.flat[1] + 1 if self.flat is not None and not self.fold.trade_count else self.fold.first_id

    @property
    def last_id(self) -> int:
        """Last id it holds, or the last one before it."""
        return self.flat[1] if self.flat is not None and not self.fold.trade_count else self.fold.last_id

    @property
    def lowest(self) -> int:
        """Lowest id that it holds or may hold."""
        return min(self.first_id, self.missing[0][0]) if self.missing else self.first_id

    @property
    def highest(self) -> int:
        """Highest id that it holds or may hold."""
        return max(self.last_id, self.missing[-1][1]) if self.missing else self.last_id

    @property
    def close(self) -> Decimal:
        """Price of its last trade, or of the last one before it."""
        return self.flat[0] if self.flat is not None and not self.fold.trade_count else self.fold.close


def without(ranges: list[IdRange], trade_id: int, *, below: bool = True, above: bool = True) -> list[IdRange]:
    """The ranges without the id; of the range that held it only what lies below, or above, if so wanted."""
    rest = []
    for lo, hi in ranges:
        if not lo <= trade_id <= hi:
            rest.append((lo, hi))
            continue
        if below and lo < trade_id:
            rest.append((lo, trade_id - 1))
        if above and trade_id < hi:
            rest.append((trade_id + 1, hi))
    return rest
