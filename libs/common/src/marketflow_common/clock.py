"""The wall clock, for edges only: a core gets its time from events.

The one place that reads it, so that import rules can keep it out of the cores.
"""

from __future__ import annotations

import time

__all__ = ["now_ms", "now_us"]


def now_us() -> int:
    """Microseconds since the epoch, UTC."""
    return time.time_ns() // 1_000


def now_ms() -> int:
    """Milliseconds since the epoch, UTC."""
    return time.time_ns() // 1_000_000
