"""The dashboard asks only for metrics that the code has."""

from __future__ import annotations

import json
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
SOURCES = [*ROOT.glob("*/src/**/*.py"), *(ROOT / "libs" / "common" / "src").rglob("*.py")]
DEFINED = {
    name for path in SOURCES for name in re.findall(r'\b(?:Counter|Gauge|Histogram)\(\s*"([a-z_]+)"', path.read_text())
}
BOARD = json.loads((ROOT / "infra" / "grafana" / "overview.json").read_text())
EXPRESSIONS = [target["expr"] for panel in BOARD["panels"] for target in panel.get("targets", [])]


def metrics_of(expression: str) -> set[str]:
    """Names that stand for a series: not functions, not labels."""
    no_labels = re.sub(r"\{[^}]*\}|\[[^]]*\]|\bby \([^)]*\)", " ", expression)
    plain = re.sub(r"\b[a-z_]+(?=\s*\()", " ", no_labels)
    return {re.sub(r"_(bucket|count|sum)$", "", name) for name in re.findall(r"\b[a-z][a-z_]+\b", plain)}


def test_every_metric_on_the_dashboard_is_defined_in_the_code() -> None:
    asked = set().union(*map(metrics_of, EXPRESSIONS))
    assert len(asked) > 20
    assert asked <= DEFINED


def test_the_dashboard_shows_what_an_operator_asks_first() -> None:
    asked = set().union(*map(metrics_of, EXPRESSIONS))
    assert asked >= {
        "service_ready",
        "messages_in_total",
        "consumer_lag_records",
        "agg_latency_seconds",
        "signals_generated_total",
        "orders_executed_total",
        "realized_pnl",
        "records_unreadable_total",
    }


def test_panels_have_titles_of_their_own_and_do_not_overlap() -> None:
    titles = [panel["title"] for panel in BOARD["panels"]]
    assert len(set(titles)) == len(titles)
    taken: set[tuple[int, int]] = set()
    for panel in BOARD["panels"]:
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert not cells & taken, panel["title"]
        assert at["x"] + at["w"] <= 24
        taken |= cells
