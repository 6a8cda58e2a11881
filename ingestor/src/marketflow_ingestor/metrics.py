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
HANDOVERS: Final = Counter(
    "ingestor_handovers_total",
    "Connections that a second one has taken over from",
    ["why"],
)
SUSPICIONS: Final = Counter("ingestor_suspicions_total", "Silences that were out of a connection's rhythm")
DOUBTED: Final = Counter(
    "ingestor_time_ahead_total", "Trades of the stream whose time lay ahead, asked for by REST instead", ["symbol"]
)
USED_WEIGHT: Final = Gauge("ingestor_rest_used_weight", "Request weight used in this minute, as the exchange counts it")
WEIGHT_LIMIT: Final = Gauge("ingestor_rest_weight_limit", "Request weight that the exchange allows in a minute")
BLOCKED: Final = Gauge("ingestor_rest_blocked_seconds", "Seconds for which the exchange wants no request (429, 418)")
CLOCK_OFFSET: Final = Gauge("ingestor_clock_offset_seconds", "Exchange's clock minus this machine's")
RECONNECTS: Final = Counter("ingestor_reconnects_total", "Connections that ended or stalled and were opened again")
ANEW: Final = Gauge("ingestor_symbols_anew", "Symbols refused because the exchange numbers their trades anew")
ENDED: Final = Counter("ingestor_symbols_ended_total", "Symbols closed because they trade no more", ["symbol"])
SUBSCRIBED: Final = Gauge("ingestor_subscribed_symbols", "Symbols whose streams are connected and confirmed")
BUFFERED: Final = Gauge("ingestor_buffered_records", "Records that wait to be published", ["partition"])
REQUESTS: Final = Counter("ingestor_rest_requests_total", "REST requests by their outcome", ["path", "outcome"])
BEHIND: Final = Histogram(
    "ingestor_publish_seconds", "Receipt of a batch's first record to its commit", buckets=LATENCY_BUCKETS
)
