"""The bench's own arithmetic and feed: a figure is worth no more than what it is made of."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from marketflow_aggregator.lane import CandleLane
from marketflow_common import codec
from marketflow_common.kafka.client import Batch, Record

ROOT = Path(__file__).parents[1]


@pytest.fixture
def bench() -> Iterator[ModuleType]:
    """The package, which is no distribution: `make bench` runs it from the checkout."""
    folder = ROOT / "bench"
    spec = importlib.util.spec_from_file_location(
        "bench", folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["bench"] = module
    yield module
    for name in [name for name in sys.modules if name.split(".")[0] == "bench"]:
        del sys.modules[name]


def test_a_ratio_is_taken_within_a_run_and_the_medians_are_reported(bench: Any) -> None:
    parts = importlib.import_module("bench.parts")
    row = parts.Row(
        "aggregator_vs_bare_consumer", "records per CPU second", [(100.0, 200.0), (50.0, 50.0), (90.0, 300.0)]
    )
    assert (row.ours, row.yardstick, row.ratio) == (90.0, 200.0, 0.5)
    told = row.as_json()
    assert {name: told[name] for name in ("name", "unit", "ours", "yardstick", "ratio", "runs")} == {
        "name": "aggregator_vs_bare_consumer",
        "unit": "records per CPU second",
        "ours": 90.0,
        "yardstick": 200.0,
        "ratio": 0.5,
        "runs": 3,
    }
    assert json.loads(json.dumps(told)) == told


def test_the_table_aligns_and_leaves_out_what_was_not_compared(bench: Any) -> None:
    parts, main = importlib.import_module("bench.parts"), importlib.import_module("bench.__main__")
    rows = [
        parts.Row("trade_to_candle_ms_p50", "ms", [(12.0, None)], "30 candles"),
        parts.Row("aggregator_vs_quixstreams", "records per CPU second", [(250000.0, 10000.0)]),
    ]
    assert main.table(rows) == (
        "\n"
        "figure                        ours  yardstick  ratio  runs  unit\n"
        "trade_to_candle_ms_p50        12.0                       1  ms                      30 candles\n"
        "aggregator_vs_quixstreams  250,000     10,000  25.00     1  records per CPU second\n"
    )


def test_the_feeds_candles_equal_the_klines_of_its_watermarks_however_often_it_is_repeated(bench: Any) -> None:
    feed = importlib.import_module("bench.feed").Feed(3_000)
    values = [value for _, partition, value, _ in feed._records(3) if partition == 0]
    lane = CandleLane(0, 0)
    events = codec.decode_wire(values)
    assert events is not None
    made = lane.process(Batch(events, lambda i: Record(i, 0, events[i])))
    counts = lane._candles.counts
    assert len(made) > 10
    assert (counts["different"], counts["duplicates"], counts["late"], counts["stranded"]) == (0, 0, 0, 0)
    assert counts["equal"] > 10
