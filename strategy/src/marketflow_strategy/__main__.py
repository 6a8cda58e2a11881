"""``python -m marketflow_strategy``: the process. Must never do work at import."""

from __future__ import annotations

import sys

from marketflow_common import service

from . import app
from .settings import Settings

__all__ = ["main"]


def main() -> int:
    """Run the service; returns its exit code."""
    return service.run("strategy", Settings, app.main)


if __name__ == "__main__":
    sys.exit(main())
