"""What a read_committed reader sees is what has landed: every record once, with its origin and its exact values."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from marketflow_common import topics as names
from marketflow_stack.testing import eventually

pytestmark = pytest.mark.broker


def test_records_land_once_with_topic_partition_and_offset(
    tables: Any,
    start_loader: Callable[..., Any],
    feed: Callable[..., None],
    published: Callable[..., list[tuple[str, int, int]]],
) -> None:
    feed(1, 100)
    loader = start_loader(tables).wait_ready()
    feed(101, 200)
    eventually(lambda: len(tables.offsets("RAW.TRADES")) >= 600)
    loader.stop()
    assert tables.offsets("RAW.TRADES") == published(names.OHLCV_RAW)
    assert tables.offsets("STAGING.OHLCV_STREAM") == published(names.OHLCV_AGG)
