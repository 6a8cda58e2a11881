"""The loader as a process that dies where it is told to: ``runner.py --die-at copied --times 2``.

Everything else is the real thing, settings from the environment included.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import threading
from pathlib import Path

from marketflow_common import service
from marketflow_common.health import Health
from marketflow_loader.app import work
from marketflow_loader.settings import LoaderSettings


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--die-at", default="")
    parser.add_argument("--freeze-at", default="", help="stop there until SIGCONT")
    parser.add_argument("--times", type=int, default=1)
    parser.add_argument("--tell", type=Path, help="file to write once the step is reached")
    options = parser.parse_args()
    left = options.times

    def step(name: str) -> None:
        nonlocal left
        if name not in (options.die_at, options.freeze_at):
            return
        left -= 1
        if left != 0:
            return
        if options.tell:
            options.tell.write_text(name)
        os.kill(os.getpid(), signal.SIGKILL if name == options.die_at else signal.SIGSTOP)

    def working(settings: LoaderSettings, health: Health, stop: threading.Event) -> None:
        work(settings, health, stop, step)

    return service.run("loader", LoaderSettings, working, [])


if __name__ == "__main__":
    sys.exit(main())
