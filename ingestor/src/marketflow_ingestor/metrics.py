"""Names and meanings of the ingestor's own metrics. Must never carry ids or free text as labels."""

from __future__ import annotations

from typing import Final

from marketflow_common.metrics import LATENCY_BUCKETS
from prometheus_client import Counter, Gauge, Histogram

STREAM: Final = "binance"
"""Label of what comes from the exchange, in messages_in_total and records_unreadable_total."""

DUPLICATES: Final = Counter("ingestor_duplicates_total", "Trades that came again and were dropped", ["symbol"])
FILLED: Final = Counter("ingestor_filled_total", "Trades that REST gave because the stream had not", ["symbol"])
LATE: Final = Counter("ingestor_late_total", "Trades of a declared gap that came after all", ["symbol"])
OPEN_GAPS: Final = Gauge("ingestor_open_gaps", "Declared gaps that are still asked for", ["partition"])
GAPS: Final = Counter("ingestor_gaps_total", "Gap records published", ["symbol", "final"])
WATERMARKS: Final = Counter("ingestor_watermarks_total", "Minutes proven and published", ["symbol"])
RECONNECTS: Final = Counter("ingestor_reconnects_total", "Stream connections that ended and were opened again")
SUBSCRIBED: Final = Gauge("ingestor_subscribed_symbols", "Symbols whose streams are connected and confirmed")
BUFFERED: Final = Gauge("ingestor_buffered_records", "Records that wait to be published", ["partition"])
REQUESTS: Final = Counter("ingestor_rest_requests_total", "REST requests by their outcome", ["path", "outcome"])
BEHIND: Final = Histogram(
    "ingestor_publish_seconds", "Receipt of a batch's first record to its commit", buckets=LATENCY_BUCKETS
)
