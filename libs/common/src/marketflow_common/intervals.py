"""The grid of candle windows: interval names as Binance spells them, lengths in microseconds.

Pure arithmetic; must never read a clock.
"""

from __future__ import annotations

from typing import Final

__all__ = ["INTERVALS", "MINUTE", "close_time", "window_start"]

MINUTE: Final = 60_000_000
INTERVALS: Final[dict[str, int]] = {
    "1m": MINUTE,
    "5m": 5 * MINUTE,
    "15m": 15 * MINUTE,
    "1h": 60 * MINUTE,
    "4h": 240 * MINUTE,
    "1d": 1440 * MINUTE,
}


def window_start(at: int, interval: str = "1m") -> int:
    """Open time of the window that holds the moment ``at`` (microseconds, UTC)."""
    return at - at % INTERVALS[interval]


def close_time(open_time: int, interval: str = "1m") -> int:
    """Last microsecond of the window, inclusive, as the exchange's klines have it."""
    return open_time + INTERVALS[interval] - 1
