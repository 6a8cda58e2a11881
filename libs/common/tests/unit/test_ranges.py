"""Ranges of ids behave as the sets of ids that they stand for."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st
from marketflow_common.events import IdRange
from marketflow_common.ranges import add, overlaps, subtract

steps = st.lists(st.tuples(st.booleans(), st.integers(0, 30), st.integers(0, 8)), max_size=20)


@given(steps)
def test_adding_and_subtracting_is_that_of_sets(changes: list[tuple[bool, int, int]]) -> None:
    ranges: list[IdRange] = []
    ids: set[int] = set()
    for adding, first, length in changes:
        span = set(range(first, first + length))
        assert overlaps(ranges, first, first + length - 1) == bool(ids & span)
        (add if adding else subtract)(ranges, first, first + length - 1)
        ids = ids | span if adding else ids - span
        assert [i for low, high in ranges for i in range(low, high + 1)] == sorted(ids)
        assert all(a[1] + 1 < b[0] for a, b in pairwise(ranges))
