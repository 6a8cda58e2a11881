"""How much may be asked of the exchange: request weight of the address, new orders of the account, bans.

Pure: times are handed in, in seconds of the exchange's clock. Must never allow what the exchange would refuse, as far
as its own headers tell: who goes on asking is banned, and a banned executor can cancel nothing.
Limits and headers as documented by Binance: "Limits", X-MBX-USED-WEIGHT-(number)(letter), X-MBX-ORDER-COUNT-….
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, Final

__all__ = ["HOUSEKEEPING", "OUTCOMES", "Budget"]

OUTCOMES: Final = 0.9
"""Share of the weight up to which the outcome of an order is asked for; orders and cancellations may use all of it."""
HOUSEKEEPING: Final = 0.6
"""Share up to which clock, rules and balances are asked for: others on this address need weight, too."""
_SECONDS: Final = {"S": 1, "M": 60, "H": 3_600, "D": 86_400}
_HEADER: Final = re.compile(r"x-mbx-(used-weight|order-count)-([0-9]{1,6})([smhd])", re.IGNORECASE)
_KINDS: Final = {"used-weight": "REQUEST_WEIGHT", "order-count": "ORDERS"}
_DEFAULTS: Final = {("REQUEST_WEIGHT", 60): 6_000, ("ORDERS", 10): 100, ("ORDERS", 86_400): 200_000}


class _Window:
    def __init__(self, limit: int) -> None:
        self.limit, self.used, self._index = limit, 0, -1

    def turn(self, now: float, seconds: int) -> None:
        index = int(now // seconds)
        if index != self._index:
            self._index, self.used = index, 0


class Budget:
    """Counts by kind (REQUEST_WEIGHT, ORDERS) and interval in seconds; the exchange's own word goes before ours."""

    def __init__(self) -> None:
        self._windows = {key: _Window(limit) for key, limit in _DEFAULTS.items()}

    def allow(self, rate_limits: Iterable[Mapping[str, Any]]) -> None:
        """Take over the limits that exchangeInfo states (``rateLimits``); others than these two kinds do not count."""
        for row in rate_limits:
            kind, letter, number = row.get("rateLimitType"), str(row.get("interval"))[:1], row.get("intervalNum")
            limit = row.get("limit")
            if kind in _KINDS.values() and letter in _SECONDS and isinstance(number, int) and isinstance(limit, int):
                self._window(str(kind), number * _SECONDS[letter]).limit = limit

    def wait(self, now: float, weight: int, share: float = 1.0, orders: int = 0) -> float:
        """Seconds until a request may be sent; 0: now, and it is counted. ``orders``: how many it places."""
        wait = 0.0
        for (kind, seconds), window in self._windows.items():
            window.turn(now, seconds)
            asked, most = (weight, window.limit * share) if kind == "REQUEST_WEIGHT" else (orders, window.limit)
            # An interval that has used nothing takes any request: waiting for the next one would gain nothing.
            if asked and window.used and window.used + asked > most:
                wait = max(wait, seconds - now % seconds)
        if not wait:
            for (kind, _), window in self._windows.items():
                window.used += weight if kind == "REQUEST_WEIGHT" else orders
        return wait

    def heard(self, now: float, headers: Iterable[tuple[str, str]]) -> None:
        """Take over the counts that an answer's headers state."""
        for name, value in headers:
            found = _HEADER.fullmatch(name)
            if found is not None and value.isdecimal():
                seconds = int(found[2]) * _SECONDS[found[3].upper()]
                window = self._window(_KINDS[found[1].lower()], seconds)
                window.turn(now, seconds)
                window.used = int(value)

    def used(self) -> dict[tuple[str, int], tuple[int, int]]:
        """Count and limit by kind and interval in seconds."""
        return {key: (window.used, window.limit) for key, window in self._windows.items()}

    def _window(self, kind: str, seconds: int) -> _Window:
        # A limit that exchangeInfo has not stated is none that we know of.
        return self._windows.setdefault((kind, seconds), _Window(1 << 62))
