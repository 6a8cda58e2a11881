"""How much may be asked of the exchange: request weight per minute, bans, and new stream connections.

Pure: times are handed in, in seconds. Must never allow a request while the exchange has asked to wait.
Limits as documented by Binance: "Limits" (request weight, 429, 418, Retry-After) and "WebSocket Streams" (300
connections per five minutes and address).
"""

from __future__ import annotations

from collections import deque
from typing import Final

__all__ = ["CONNECTIONS", "FILL", "HOUSEKEEPING", "LATE", "Connects", "Weight"]

FILL: Final = 1.0
"""Share of the budget for what the live stream waits for."""
LATE: Final = 0.8
"""Share up to which declared gaps are asked for."""
HOUSEKEEPING: Final = 0.6
"""Share up to which clock, symbols and proofs of minutes are asked for."""
CONNECTIONS: Final = 150
"""New stream connections in five minutes at most: half of what the exchange allows one address."""
_WINDOW: Final = 300.0
_DEFAULT_LIMIT: Final = 6_000


class Weight:
    """The request weight of this minute, as the exchange's own header counts it for the whole address."""

    def __init__(self, share: float, limit: int = _DEFAULT_LIMIT) -> None:
        self.limit, self._share = limit, share
        self.used = 0
        self._minute = -1
        self._pending = 0
        self._blocked_until = 0.0

    def wait(self, weight: int, share: float, now: float) -> float:
        """Seconds until a request of ``weight`` may be sent; 0: now, and it is counted. ``now``: exchange's time."""
        self._turn(now)
        used = self.used + self._pending
        if used and used + weight > self.limit * self._share * share:
            return 60.0 - now % 60.0
        self._pending += weight
        return 0.0

    def done(self, weight: int, now: float, reported: int | None) -> None:
        """A request that was let through is over; ``reported``: X-MBX-USED-WEIGHT-1M, None where none came."""
        self._turn(now)
        self._pending -= weight
        self.used = self.used + weight if reported is None else reported

    def refused(self, retry_after: float, clock: float) -> None:
        """The exchange answered 429 or 418: nobody asks before that. ``clock``: monotonic."""
        self._blocked_until = max(self._blocked_until, clock + retry_after)

    def blocked(self, clock: float) -> float:
        """Seconds for which the exchange wants no request."""
        return max(0.0, self._blocked_until - clock)

    def _turn(self, now: float) -> None:
        if int(now // 60) != self._minute:
            self._minute, self.used = int(now // 60), 0


class Connects:
    """Spreads new connections of all partitions over time."""

    def __init__(self, most: int = CONNECTIONS) -> None:
        self._most, self._opened = most, deque[float]()

    def wait(self, now: float) -> float:
        """Seconds until another connection may be opened; 0: now, and it is counted."""
        while self._opened and self._opened[0] <= now - _WINDOW:
            self._opened.popleft()
        if len(self._opened) >= self._most:
            return self._opened[0] + _WINDOW - now
        self._opened.append(now)
        return 0.0
