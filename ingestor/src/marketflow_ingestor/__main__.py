"""``python -m marketflow_ingestor``: settings, logs and signals around the ingestor. Must never do its work."""

from __future__ import annotations

import sys

from marketflow_common import logs, service

from . import app
from .settings import Settings


def main() -> int:
    """Run until SIGTERM or SIGINT; returns the exit code (see marketflow_common.service)."""
    try:
        return service.run("ingestor", Settings, app.run)
    except app.UnknownSymbols as error:
        logs.get("ingestor").error("cannot_go_on", detail=str(error))
        return service.EXIT_CONFIG


if __name__ == "__main__":
    sys.exit(main())
