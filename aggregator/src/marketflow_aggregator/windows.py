"""The parts of a symbol's state: an open window, a closed one that may still change, and a hole in the ids.

Plain data; what happens to them is in candles.py. Must never do I/O or read a clock.
"""

from __future__ import annotations

from decimal import Decimal

from marketflow_common.events import Candle
from marketflow_common.intervals import MINUTE

from .folds import Fold

__all__ = ["Closed", "Hole", "Window"]


class Window:
    """An open window's running totals, in order of ids. ``cut``: nothing proves that its first trade is known."""

    __slots__ = (
        "close", "count", "cut", "end", "first_id", "high", "last_id", "low", "offset", "open", "quote", "start",
        "taker", "taker_quote", "volume",
    )  # fmt: skip

    def __init__(self, start: int, offset: int, cut: bool, fold: Fold) -> None:
        self.start, self.end, self.offset, self.cut = start, start + MINUTE, offset, cut
        self.load(fold)

    def load(self, fold: Fold) -> None:
        (
            self.first_id, self.last_id, self.open, self.high, self.low, self.close, self.volume, self.quote,
            self.count, self.taker, self.taker_quote,
        ) = fold  # fmt: skip

    def fold(self) -> Fold:
        return Fold(
            self.first_id, self.last_id, self.open, self.high, self.low, self.close, self.volume, self.quote,
            self.count, self.taker, self.taker_quote,
        )  # fmt: skip


class Hole:
    """Missing ids ``lo`` to ``hi``, which belong to windows ``left`` to ``right`` (open times, inclusive).

    ``prev`` is the window of the trade ``lo - 1``: ``left`` itself, or an earlier one when a watermark proved the
    windows between. ``shared``: the trade ``hi + 1`` lies in ``right``.
    """

    __slots__ = ("final", "hi", "left", "lo", "prev", "right", "shared")

    def __init__(self, lo: int, hi: int, left: int, right: int, prev: int | None, shared: bool, final: bool) -> None:
        self.lo, self.hi, self.left, self.right = lo, hi, left, right
        self.prev, self.shared, self.final = prev, shared, final


class Closed:
    """A closed window that may still change: its totals and its last statement.

    ``offset``: no later than the output record of its first known statement (``exact``: that record's own).
    ``whole``: all its statements are known.
    """

    __slots__ = ("exact", "flat", "fold", "offset", "revision", "stated", "whole")

    def __init__(self, fold: Fold, flat: tuple[Decimal, int] | None, revision: int, offset: int) -> None:
        self.fold, self.flat, self.revision, self.offset = fold, flat, revision, offset
        self.stated: Candle | None = None
        self.exact, self.whole = False, revision < 0

    @property
    def close(self) -> Decimal:
        """Price of its last trade, or of the last one before it."""
        return self.fold.close if self.fold.trade_count or self.flat is None else self.flat[0]
