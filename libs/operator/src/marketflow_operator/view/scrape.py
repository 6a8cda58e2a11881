"""Reads the services' /metrics and /readyz into rows of the board.

Must never fail because a service does: one that does not answer is shown as down.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping
from typing import Final

import httpx
from prometheus_client.parser import text_string_to_metric_families

from .board import Service

__all__ = ["Samples", "Scraper", "parse", "quantile"]

LATENCY: Final[Mapping[str, str]] = {
    "ingestor": "ingestor_publish_seconds",
    "aggregator": "agg_latency_seconds",
    "strategy": "strategy_latency_seconds",
    "executor": "order_latency_seconds",
    "notifier": "notification_delay_seconds",
    "loader": "flush_seconds",
}
"""The histogram that says how long the service's own work takes; transaction_seconds where it has none."""
WORK: Final[Mapping[str, tuple[str, ...]]] = {
    "ingestor": ("messages_out_total",),
    "notifier": ("notifications_sent_total",),
    "loader": ("rows_landed_total",),
}
"""What the rate counts; messages_in_total by default."""


class Samples:
    """One scrape: sums of counters and gauges over their labels, and buckets of histograms."""

    def __init__(self) -> None:
        self.values: dict[str, float] = defaultdict(float)
        self.buckets: dict[str, dict[float, float]] = defaultdict(lambda: defaultdict(float))
        self.known: set[str] = set()


def parse(text: str) -> Samples:
    """Read Prometheus' text format. Raises ValueError for anything else."""
    samples = Samples()
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            samples.known.add(sample.name)
            if sample.name.endswith("_bucket"):
                edge = float(sample.labels["le"].replace("+Inf", "inf"))
                samples.buckets[sample.name.removesuffix("_bucket")][edge] += sample.value
            elif not sample.name.endswith("_created"):
                samples.values[sample.name] += sample.value
    return samples


def quantile(buckets: Mapping[float, float], share: float) -> float | None:
    """The value below which ``share`` of the observations lie, linear within its bucket; None without any."""
    edges = sorted(buckets)
    if not edges or not buckets[edges[-1]]:
        return None
    rank = share * buckets[edges[-1]]
    low, below = 0.0, 0.0
    for edge in edges:
        count = buckets[edge]
        if count >= rank:
            if math.isinf(edge):
                return low
            return low + (edge - low) * ((rank - below) / (count - below) if count > below else 1.0)
        low, below = edge, count
    return low


class Scraper:
    """Rates over the time between two scrapes of each service. Moments are seconds of any steady clock."""

    def __init__(self, services: Mapping[str, str]) -> None:
        self._services = services
        self._http = httpx.Client(timeout=1.0, trust_env=False)
        self._before: dict[str, tuple[float, float]] = {}

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def scrape(self, now: float) -> dict[str, Service]:
        """A row for each service."""
        return {name: self._one(name, url, now) for name, url in self._services.items()}

    def _one(self, name: str, url: str, now: float) -> Service:
        service = Service(name)
        try:
            ready = self._http.get(f"{url}/readyz")
            samples = parse(self._http.get(f"{url}/metrics").text)
            service.note = "" if ready.status_code == 200 else str(ready.json().get("reason", "not ready"))
        except (httpx.HTTPError, ValueError):
            service.note = "does not answer"
            return service
        service.up, service.ready = True, ready.status_code == 200
        service.total = sum(samples.values[metric] for metric in WORK.get(name, ("messages_in_total",)))
        before = self._before.get(name)
        if before is not None and now > before[0]:
            # A service that was started again counts from nothing.
            service.rate = max(0.0, service.total - before[1]) / (now - before[0])
        self._before[name] = (now, service.total)
        if "consumer_lag_records" in samples.known:
            service.lag = samples.values["consumer_lag_records"]
        elif name == "ingestor":
            service.lag = samples.values["ingestor_buffered_records"]
        buckets = samples.buckets.get(LATENCY[name]) or samples.buckets.get("transaction_seconds", {})
        service.p50, service.p99 = (
            None if (value := quantile(buckets, share)) is None else value * 1000 for share in (0.5, 0.99)
        )
        return service
