"""Command line of the notifier: ``marketflow-notifier``, ``python -m marketflow_notifier``."""

from __future__ import annotations

import sys

from marketflow_common import service

from . import app
from .settings import NotifierSettings


def main() -> int:
    """Run until SIGTERM; returns the exit code (see marketflow_common.service)."""
    return service.run("notifier", NotifierSettings, app.main)


if __name__ == "__main__":
    sys.exit(main())
