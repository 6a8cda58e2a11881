"""How many orders may be placed: Binance's unfilled order count, per ten seconds and per day of its own clock.

An order counts when it is placed and no longer once it has its first fill; a canceled or expired one goes on counting.
"""

from collections.abc import Callable
from typing import Any, Final

from marketflow_simulator.errors import ApiError

TEN_SECONDS: Final = 100
DAY: Final = 200_000


class _Window:
    def __init__(self, seconds: int, limit: int, letter: str, interval: str, number: int) -> None:
        self.seconds = seconds
        self.limit = limit
        self.header = f"X-MBX-ORDER-COUNT-{letter}"
        self.interval = interval
        self.number = number
        self.index = 0
        self.count = 0

    def at(self, now: float) -> None:
        index = int(now) // self.seconds
        if index != self.index:
            self.index, self.count = index, 0


class OrderCount:
    """The one account's counts. `ten_seconds`: the limit of the short interval; `limited`: whether any is enforced."""

    def __init__(self, clock: Callable[[], float], ten_seconds: int = TEN_SECONDS, limited: bool = True) -> None:
        self._clock = clock
        self._limited = limited and ten_seconds > 0
        self._windows = (
            _Window(10, ten_seconds or TEN_SECONDS, "10S", "SECOND", 10),
            _Window(86_400, DAY, "1D", "DAY", 1),
        )

    def add(self, orders: int) -> dict[str, str]:
        """Count new orders and give the headers that say so; ApiError, and nothing counted, if they are too many."""
        now = self._clock()
        for window in self._windows:
            window.at(now)
            if self._limited and window.count + orders > window.limit:
                current = f"{window.limit} orders per {window.number} {window.interval}"
                left = window.seconds - int(now) % window.seconds
                raise ApiError(-1015, f"Too many new orders; current limit is {current}.", 429, left)
        for window in self._windows:
            window.count += orders
        return {window.header: str(window.count) for window in self._windows}

    def take_back(self, orders: int = 1) -> None:
        """Orders were refused after all, or had their first fill."""
        now = self._clock()
        for window in self._windows:
            window.at(now)
            window.count = max(window.count - orders, 0)

    def limits(self) -> list[dict[str, Any]]:
        """The limits as exchangeInfo shows them."""
        return [
            {"rateLimitType": "ORDERS", "interval": w.interval, "intervalNum": w.number, "limit": w.limit}
            for w in self._windows
        ]

    def listing(self) -> list[dict[str, Any]]:
        """The limits and how much of each is used."""
        now = self._clock()
        for window in self._windows:
            window.at(now)
        return [{**limit, "count": w.count} for limit, w in zip(self.limits(), self._windows, strict=True)]
