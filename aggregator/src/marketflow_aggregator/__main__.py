"""``python -m marketflow_aggregator``: the process. Must never do work at import."""

from __future__ import annotations

import sys

from marketflow_common import service

from . import app
from .settings import AggregatorSettings

__all__ = ["main"]


def main() -> int:
    """Run the service; returns its exit code."""
    return service.run("aggregator", AggregatorSettings, app.main)


if __name__ == "__main__":
    sys.exit(main())
