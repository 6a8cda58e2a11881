"""Wires the strategy service: candles of ohlcv_agg in, signals of trading_signals out, exactly once."""

from __future__ import annotations

import threading

from marketflow_common import logs, topics
from marketflow_common.health import Health
from marketflow_common.kafka.transform import Transform

from .lane import SignalLane
from .settings import Settings, make_strategies
from .signals import canonical

__all__ = ["main"]


def main(settings: Settings, health: Health, stop: threading.Event) -> None:
    """Run until ``stop``."""
    strategies = make_strategies(settings)
    for strategy in strategies:
        logs.get("strategy").info("strategy", name=strategy.name, parameters=canonical(strategy.parameters))
    Transform(
        settings.kafka,
        "strategy",
        topics.OHLCV_AGG,
        topics.TRADING_SIGNALS,
        lambda partition, output_end: SignalLane(strategies, settings.interval),
        health,
    ).run(stop)
