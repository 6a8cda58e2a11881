"""Sorted, disjoint ranges of trade ids, both ends inclusive. Pure; must never hold an empty range."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable

from .events import IdRange

__all__ = ["add", "overlaps", "subtract"]


def add(ranges: list[IdRange], first: int, last: int) -> None:
    """Put ``first`` to ``last`` into ``ranges``, joined with what it touches."""
    if last < first:
        return
    at = bisect_left(ranges, (first, first))
    if at and ranges[at - 1][1] >= first - 1:
        at -= 1
    end = at
    while end < len(ranges) and ranges[end][0] <= last + 1:
        first, last = min(first, ranges[end][0]), max(last, ranges[end][1])
        end += 1
    ranges[at:end] = [(first, last)]


def subtract(ranges: list[IdRange], first: int, last: int) -> None:
    """Take ``first`` to ``last`` out of ``ranges``."""
    if not overlaps(ranges, first, last):
        return
    rest: list[IdRange] = []
    for low, high in ranges:
        rest += [(a, b) for a, b in ((low, min(high, first - 1)), (max(low, last + 1), high)) if a <= b]
    ranges[:] = rest


def overlaps(ranges: Iterable[IdRange], first: int, last: int) -> bool:
    """Whether any id from ``first`` to ``last`` is in ``ranges``."""
    return first <= last and any(low <= last and first <= high for low, high in ranges)
