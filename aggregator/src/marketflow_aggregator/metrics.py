"""The aggregator's own metrics, beside those that every service has.

Must never carry a label of unbounded values.
"""

from __future__ import annotations

from typing import Final

from marketflow_common.metrics import LATENCY_BUCKETS
from prometheus_client import Counter, Gauge, Histogram

__all__ = ["CLOSED", "COUNTERS", "LATENCY", "OPEN"]

LATENCY: Final = Histogram(
    "agg_latency_seconds",
    "From the record that closes a candle (a trade's received_at, a watermark's append time) to the candle",
    buckets=LATENCY_BUCKETS,
)
CLOSED: Final = Counter("candles_closed_total", "Candles published, first statements and revisions", ["revised"])
OPEN: Final = Gauge("windows_open", "Windows that hold trades and are not closed", ["partition"])
_CHECKED: Final = Counter(
    "candles_checked_total", "Candles compared with the exchange's own kline, all fields", ["result"]
)
COUNTERS: Final = {
    "equal": _CHECKED.labels("equal"),
    "different": _CHECKED.labels("different"),
    "duplicates": Counter("trades_duplicate_total", "Trades dropped because their id was seen (also after a restart)"),
    "late": Counter("trades_late_total", "Trades merged into a window after later ones were seen"),
    "stranded": Counter(
        "trades_stranded_total",
        "Trades left out: a day ahead of their receipt, or ahead and their minute has no candle",
    ),
    "ahead": Counter("trades_ahead_total", "Trades far ahead of their own receipt: they wait for their time"),
    "cut": Counter("windows_cut_total", "First windows of a symbol without proof of their first trade: no candle"),
    "flat": Counter("candles_flat_total", "Candles of windows without trades"),
    "revised": Counter("candles_revised_total", "Candles stated again because of late trades"),
    "bars": Counter("bars_ignored_total", "Bars of sources that publish no trades"),
    "gaps": Counter("gaps_declared_total", "Gap records of the ingestor"),
}
