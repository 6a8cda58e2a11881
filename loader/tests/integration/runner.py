"""The loader as a process that dies, or stops, where it is told to: ``runner.py --die-at put,copied``.

One process starts it again and again: it dies at the first step named, then at the second, and then lives. Everything
else is the real thing, settings from the environment included.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import signal
import sys
import threading
from pathlib import Path

from marketflow_common import service
from marketflow_common.health import Health
from marketflow_loader.app import work
from marketflow_loader.settings import LoaderSettings

PR_SET_PDEATHSIG = 1


def live(die_at: str, freeze_at: str, tell: Path | None) -> int:
    """One life of the loader."""
    reached = False

    def step(name: str) -> None:
        nonlocal reached
        if reached or name not in (die_at, freeze_at):
            return
        reached = True
        if tell:
            with tell.open("a") as told:
                told.write(f"{name}\n")
        os.kill(os.getpid(), signal.SIGKILL if name == die_at else signal.SIGSTOP)

    def working(settings: LoaderSettings, health: Health, stop: threading.Event) -> None:
        work(settings, health, stop, step)

    return service.run("loader", LoaderSettings, working, [])


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--die-at", default="", help="steps, separated by commas: one for each life but the last")
    parser.add_argument("--freeze-at", default="", help="stop there, once, until SIGCONT")
    parser.add_argument("--tell", type=Path, help="file that each step reached is written to")
    options = parser.parse_args()
    for die_at in [step for step in options.die_at.split(",") if step]:
        # A fork of the loaded program: starting Python and the connector anew takes seconds each time.
        child = os.fork()
        if child == 0:
            ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
            os._exit(live(die_at, "", options.tell))
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if status != -signal.SIGKILL:
            print(f"was to die at {die_at}, but ended with {status}", file=sys.stderr)
            return 1
    return live("", options.freeze_at, options.tell)


if __name__ == "__main__":
    sys.exit(main())
