"""Rebuilds that die where they are told to: ``rebuild_runner.py staged,deleted RAW.TRADES`` dies twice, once at each.

Everything else is the real thing, settings from the environment included. Exit status 0 once all have died there.
"""

from __future__ import annotations

import os
import signal
import sys

from marketflow_loader import rebuild


def main() -> int:
    for die_at in sys.argv[1].split(","):
        # A fork of the loaded program: starting Python and the connector anew takes seconds each time.
        child = os.fork()
        if child == 0:

            def step(name: str, due: str = die_at) -> None:
                if name == due:
                    os.kill(os.getpid(), signal.SIGKILL)

            os._exit(rebuild.main([*sys.argv[2:], "--yes"], step))
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if status != -signal.SIGKILL:
            print(f"was to die at {die_at}, but ended with {status}", file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
