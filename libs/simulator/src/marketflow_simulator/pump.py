"""Drives the market by the wall clock, or at speed `max` by what the readers take."""

import asyncio
import time
from collections.abc import Callable
from typing import Final, Literal

from marketflow_simulator.logs import log
from marketflow_simulator.market import FOREVER_US, Market
from marketflow_simulator.streams import MAX_BUFFER, Hub

_TICK_SECONDS: Final = 0.001
"""Shortest sleep: trades that are due within it leave together."""
_BUDGET: Final = 2_000
"""Events between two looks at the sockets."""
_IDLE_SECONDS: Final = 0.25
_PREPARE_SECONDS: Final = 0.02


class Pump:
    """Market time since the start is wall time since the start times `speed`."""

    def __init__(self, market: Market, hub: Hub, speed: float | Literal["max"]) -> None:
        self._market = market
        self._hub = hub
        self.speed = speed
        self.started = asyncio.Event()
        self.on_start: Callable[[], None] = lambda: None
        self.reserve: Callable[[int], int] = lambda time_us: FOREVER_US
        """At speed `max`: up to where the market may go from `time_us` before this is asked again."""

    @property
    def running(self) -> bool:
        return self.started.is_set() and not self._market.ended

    async def run(self) -> None:
        """Run the market from its start to its end, if it has one."""
        await self.started.wait()
        self.on_start()
        log("market_started", speed=self.speed, market_time_us=self._market.time_us)
        if self.speed == "max":
            await self._run_max()
        else:
            await self._run_timed(float(self.speed))
        log("market_ended", market_time_us=self._market.time_us)

    async def _run_max(self) -> None:
        market, hub = self._market, self._hub
        while not market.ended:
            await hub.subscribed.wait()
            market.advance(self.reserve(market.time_us), _BUDGET)
            hub.flush(MAX_BUFFER * 8)
            await asyncio.sleep(0)
            await hub.taken()

    async def _run_timed(self, speed: float) -> None:
        market, hub = self._market, self._hub
        from_us, from_wall = market.time_us, time.monotonic()
        while not market.ended:
            due_us = from_us + int((time.monotonic() - from_wall) * speed * 1_000_000)
            market.advance(due_us, _BUDGET)
            hub.flush()
            behind = market.next_event_us <= due_us
            wait = 0.0
            if not behind:
                wait = (market.next_event_us - from_us) / (speed * 1_000_000) - (time.monotonic() - from_wall)
                if wait > _PREPARE_SECONDS and market.prepare():
                    wait = 0.0
            await asyncio.sleep(0 if behind else min(max(wait, _TICK_SECONDS), _IDLE_SECONDS))

    async def ping(self, others: Callable[[float], None]) -> None:
        """Keep the connections alive, those of `others` too, and flush what a stall held back."""
        while True:
            await asyncio.sleep(0.05)
            self._hub.ping(time.monotonic())
            others(time.monotonic())
            self._hub.flush()
