"""The aggregator's settings, prefix MARKETFLOW_AGGREGATOR_.

Must never hold a default that differs between machines.
"""

from __future__ import annotations

from marketflow_common.intervals import INTERVALS
from marketflow_common.settings import CommaList, ServiceSettings, prefix, split_commas
from pydantic import Field, field_validator

__all__ = ["AggregatorSettings"]


class AggregatorSettings(ServiceSettings):
    """Where to listen, and which intervals: candles follow from the trades alone."""

    model_config = prefix("AGGREGATOR")

    http_port: int = Field(9102, ge=0, le=65535, description="port of /metrics, /healthz and /readyz; 0: any free one")
    intervals: CommaList = Field(
        ("1m",), description="candles to publish, comma-separated; 1m always, and of 5m, 15m, 1h, 4h and 1d those named"
    )

    _split = field_validator("intervals", mode="before")(split_commas)

    @field_validator("intervals")
    @classmethod
    def _known(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for interval in value:
            if interval not in INTERVALS:
                raise ValueError(f"{interval} is no interval; there are {', '.join(INTERVALS)}")
        return tuple(interval for interval in INTERVALS if interval == "1m" or interval in value)
