"""Wires the aggregator: ohlcv_raw to ohlcv_agg, a lane for each partition.

Must never hold logic.
"""

from __future__ import annotations

import gc
import threading

from marketflow_common import codec, logs
from marketflow_common.health import Health
from marketflow_common.kafka.transform import Transform
from marketflow_common.topics import OHLCV_AGG, OHLCV_RAW

from .candles import Skimmer
from .lane import CandleLane
from .settings import AggregatorSettings

__all__ = ["main"]


def main(settings: AggregatorSettings, health: Health, stop: threading.Event) -> None:
    """Work until ``stop``."""
    # Nothing here makes cycles: looking for them after every 700 new objects costs 4 % of the time.
    gc.freeze()
    gc.set_threshold(100_000, 50, 100)

    logs.get("aggregator").info("folding", core="Python" if Skimmer is None else "C")

    def lane(partition: int, output_end: int) -> CandleLane:
        return CandleLane(partition, output_end, settings.intervals)

    # Behind by much, nearly every batch closes candles, so larger ones need fewer transactions (see bench/README).
    # With nothing to catch up a batch is what there is.
    Transform(
        settings.kafka, "aggregator", OHLCV_RAW, OHLCV_AGG, lane, health, batch=10_000, decoder=codec.decode_wire
    ).run(stop)
