"""Settings of the strategy service: which strategies run, with which parameters."""

from __future__ import annotations

import json
from importlib.metadata import entry_points
from typing import Any

from marketflow_common.intervals import INTERVALS
from marketflow_common.settings import CommaList, ServiceSettings, prefix, split_commas
from pydantic import Field, ValidationError, field_validator, model_validator

from .signals import Strategy

__all__ = ["Settings", "make_strategies"]

GROUP = "marketflow.strategies"


class Settings(ServiceSettings):
    """MARKETFLOW_STRATEGY_*."""

    model_config = prefix("STRATEGY")

    http_port: int = Field(9103, ge=0, le=65535, description="port of /metrics, /healthz and /readyz; 0: any free one")
    strategies: CommaList = Field(
        ("weak_levels", "band"), min_length=1, description="strategies to run, by entry point, separated by commas"
    )
    parameters: str = Field(
        "{}", description='JSON object of parameters by strategy, for example {"band": {"buy_factor": "1.002"}}'
    )
    interval: str = Field("1m", description="candles to decide on; 1m, 5m, 15m, 1h, 4h or 1d")

    _split = field_validator("strategies", mode="before")(split_commas)

    @field_validator("interval")
    @classmethod
    def _known_interval(cls, value: str) -> str:
        if value not in INTERVALS:
            raise ValueError(f"{value} is no interval; there are {', '.join(INTERVALS)}")
        return value

    @model_validator(mode="after")
    def _can_be_made(self) -> Settings:
        make_strategies(self)
        return self


def make_strategies(settings: Settings) -> list[Strategy]:
    """The configured strategies, in their order. Raises ValueError, naming what is wrong and what there is."""
    found = {entry.name: entry for entry in entry_points(group=GROUP)}
    try:
        given: Any = json.loads(settings.parameters)
    except json.JSONDecodeError as error:
        raise ValueError(f"MARKETFLOW_STRATEGY_PARAMETERS is not JSON: {error}") from None
    if not isinstance(given, dict) or not all(isinstance(values, dict) for values in given.values()):
        raise ValueError("MARKETFLOW_STRATEGY_PARAMETERS must be a JSON object of objects, by strategy")
    strays = sorted(set(given) - set(settings.strategies))
    if strays:
        raise ValueError(
            f"there are parameters for {', '.join(strays)}, which MARKETFLOW_STRATEGY_STRATEGIES does not run"
        )
    made: list[Strategy] = []
    for name in settings.strategies:
        if name not in found:
            raise ValueError(f"there is no strategy {name!r}; installed are {', '.join(sorted(found))}")
        kind = found[name].load()
        try:
            parameters = kind.Parameters.model_validate(given.get(name, {}))
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"])) or "parameters"
            raise ValueError(
                f"{name}: {where}: {first['msg']}; it takes {', '.join(kind.Parameters.model_fields)}"
            ) from None
        made.append(kind(parameters))
    return made
