"""Command line of the loader."""

from __future__ import annotations

import sys

from marketflow_common import service

from .app import work
from .settings import LoaderSettings


def main() -> int:
    """Run until SIGTERM; returns the exit code."""
    return service.run("loader", LoaderSettings, work)


if __name__ == "__main__":
    sys.exit(main())
