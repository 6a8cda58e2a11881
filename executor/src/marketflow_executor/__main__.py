"""``python -m marketflow_executor``."""

from __future__ import annotations

import sys

from marketflow_common import service

from .app import main as work
from .settings import ExecutorSettings


def main() -> int:
    """Exit codes: see marketflow_common.service."""
    return service.run("executor", ExecutorSettings, work)


if __name__ == "__main__":
    sys.exit(main())
