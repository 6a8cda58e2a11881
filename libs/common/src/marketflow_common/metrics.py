"""Names and meanings of the metrics that every service has; a service's own are in its metrics section.

Must never carry a label of unbounded values (ids, offsets).
"""

from __future__ import annotations

from typing import Final

from prometheus_client import Counter, Gauge, Histogram

__all__ = [
    "LAG",
    "LATENCY_BUCKETS",
    "MESSAGES_IN",
    "MESSAGES_OUT",
    "OLDEST_WAITING",
    "OWNED_PARTITIONS",
    "PAUSED",
    "READY",
    "REOPENED",
    "TRANSACTION_SECONDS",
    "UNREADABLE",
    "WAITING",
]

LATENCY_BUCKETS: Final = (
    0.001,
    0.0025,
    0.005,
    0.01,
    0.02,
    0.04,
    0.06,
    0.1,
    0.25,
    0.5,
    1.0,
    2.5,
    5.0,
    15.0,
    60.0,
)
"""Seconds; fine around the 20 ms and 60 ms that trade-to-candle aims at."""

MESSAGES_IN: Final = Counter("messages_in_total", "Records or stream messages taken in", ["topic"])
MESSAGES_OUT: Final = Counter("messages_out_total", "Records published or messages delivered", ["topic"])
UNREADABLE: Final = Counter("records_unreadable_total", "Records that could not be read and were skipped", ["topic"])
LAG: Final = Gauge("consumer_lag_records", "Records behind the end of the partition", ["topic", "partition"])
WAITING: Final = Gauge("records_waiting", "Records taken in whose effect is still to come")
OLDEST_WAITING: Final = Gauge(
    "oldest_waiting_seconds", "Age of the oldest of them, by the broker's append time; 0 if there is none", ["topic"]
)
PAUSED: Final = Gauge("fetching_paused", "1 while so many records wait that no more are fetched")
READY: Final = Gauge("service_ready", "1 while /readyz answers 200")
OWNED_PARTITIONS: Final = Gauge("owned_partitions", "Partitions that this process works on now")
REOPENED: Final = Counter(
    "lanes_reopened_total",
    "Times a partition's state was put back to what is committed after an error",
    ["topic"],
)
TRANSACTION_SECONDS: Final = Histogram(
    "transaction_seconds", "Begin of a Kafka transaction to its commit", ["topic"], buckets=LATENCY_BUCKETS
)
