"""Wires the executor together: settings in, a process that leads or stands by. The only place where parts meet."""

from __future__ import annotations

import threading
from collections.abc import Callable

from marketflow_common.health import Health
from marketflow_common.secrets import secret

from .engine import Engine
from .exchange import BinanceRest, Exchange
from .filters import default_instrument
from .leader import lead
from .paper import Paper
from .rest import Rest
from .settings import ExecutorSettings
from .stream import UserStream

__all__ = ["main"]


def main(
    settings: ExecutorSettings,
    health: Health,
    stop: threading.Event,
    *,
    step: Callable[[str], None] = lambda name: None,
) -> None:
    """Run until ``stop``. ``step`` is told the name of each step (see the README), so that a test can die there."""
    kafka, rest = settings.kafka, None
    command_secret = secret(settings.command_secret, settings.command_secret_file)
    if settings.rest_url:
        requests = Rest(settings.rest_url, *settings.key(), settings.rest_timeout_s, settings.recv_window_ms)
        rest = BinanceRest(requests, strategy_id=settings.send_last_trade_id)

    def make_engine(leads: Callable[[], bool], partitions: int) -> Engine:
        exchange: Exchange
        stream = None
        if settings.mode == "paper":
            rules = rest.instrument if rest is not None else default_instrument
            exchange = paper = Paper(kafka, partitions, settings.paper_balances, settings.paper_fee_rate, rules)
        else:
            assert rest is not None, "the settings demand an address"
            exchange = rest
            if settings.ws_url:
                stream = UserStream(settings.ws_url, *settings.key(), rest.now_ms)
        engine = Engine(
            kafka,
            settings.limits(),
            exchange,
            health,
            leads,
            partitions,
            not_found_margin_ms=settings.not_found_margin_ms,
            reconcile_s=settings.reconcile_s,
            step=step,
            command_secret=command_secret,
            stream=stream,
        )
        if settings.mode == "paper":
            paper.free = lambda asset: engine.account.books.balance(asset)
        return engine

    try:
        lead(kafka, settings.account, health, stop, make_engine)
    finally:
        if rest is not None:
            rest.close()
