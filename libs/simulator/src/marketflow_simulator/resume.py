"""Where market time and the books go on after a restart, and what is kept for that while the market runs.

At a finite speed market time is a function of the wall clock, so it goes on while the simulator is down.
At speed `max` it stands still; a minute is marked as published before any of it is, so that no trade is
ever streamed twice, and what a crash left unstreamed of that minute is there for REST.
"""

import time

from marketflow_simulator.books import Books
from marketflow_simulator.filters import Filters
from marketflow_simulator.journal import Clock, Journal
from marketflow_simulator.klines import MINUTE_US
from marketflow_simulator.logs import log
from marketflow_simulator.market import FOREVER_US, Market
from marketflow_simulator.pump import Pump
from marketflow_simulator.records import Change
from marketflow_simulator.streams import Hub


class Resume:
    """Ties a market to its state folder."""

    def __init__(self, journal: Journal, market: Market, pump: Pump) -> None:
        self._journal = journal
        self._market = market
        self._pump = pump
        self._reserved_us = 0
        pump.on_start = self._started
        if pump.speed == "max":
            pump.reserve = self._reserve

    def restore(self, clock: Clock | None, changes: list[Change], books: Books, hub: Hub) -> None:
        """Bring books and market to where they would be now. Resting orders meet the trades they missed."""
        if clock is None:
            self._journal.set_clock(False, self._market.time_us, time.time_ns(), 0.0)
            return
        books.restore(changes)
        for name, entries in books.filters.items():
            filters = self._market.symbols[name].filters = Filters(entries)
            books.steps[name] = filters.step
        if not clock.started:
            return
        # Up to here trades have happened, that included; at a speed of 0 none of that very moment has.
        happened_us = clock.market_us_at(time.time_ns()) - (clock.speed == 0)
        from_us = happened_us
        if books.open_orders() and changes:
            from_us = min(changes[-1].market_us, happened_us)
        hub.muted = True
        self._market.seek(from_us + 1)
        self._market.advance(happened_us, FOREVER_US)
        hub.muted = False
        self._pump.started.set()
        log("resumed", market_time_us=self._market.time_us, orders=len(books.orders), fills=len(books.fills))

    def _started(self) -> None:
        if self._pump.speed != "max":
            self._journal.set_clock(True, self._market.time_us, time.time_ns(), float(self._pump.speed))

    def _reserve(self, time_us: int) -> int:
        if time_us >= self._reserved_us - 1:
            self._reserved_us = (time_us + 1) // MINUTE_US * MINUTE_US + MINUTE_US
            self._journal.set_clock(True, self._reserved_us, time.time_ns(), 0.0)
        return self._reserved_us - 1

    def close(self) -> None:
        """Keep the exact time of a market that does not go on by itself."""
        if self._pump.speed == "max" and self._pump.started.is_set():
            self._journal.set_clock(True, self._market.time_us + 1, time.time_ns(), 0.0)
        self._journal.close()
