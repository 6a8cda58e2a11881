"""The aggregator's settings, prefix MARKETFLOW_AGGREGATOR_.

Must never hold a default that differs between machines.
"""

from __future__ import annotations

from marketflow_common.settings import ServiceSettings, prefix
from pydantic import Field

__all__ = ["AggregatorSettings"]


class AggregatorSettings(ServiceSettings):
    """Nothing but where to listen: candles follow from the trades alone."""

    model_config = prefix("AGGREGATOR")

    http_port: int = Field(9102, ge=0, le=65535, description="port of /metrics, /healthz and /readyz; 0: any free one")
