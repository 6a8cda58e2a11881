"""The loader as a process that dies, or stops, where it is told to: ``runner.py --die-at put,copied``.

One process starts it again and again: it dies at the first step named, then at the second, and then lives. With
``--replica`` there are several at a time, each with its own plan. Everything else is the real thing, settings from the
environment included.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import signal
import sys
import threading
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import NamedTuple

from marketflow_common import service
from marketflow_common.health import Health
from marketflow_loader.app import work
from marketflow_loader.settings import LoaderSettings

PR_SET_PDEATHSIG = 1


class Fault(NamedTuple):
    """At the ``times``-th time that a step is reached, the process is killed or, as SIGSTOP does it, stands still."""

    step: str
    times: int
    what: signal.Signals


def live(faults: Sequence[Fault], tell: Path | None = None) -> int:
    """One life of the loader, through these faults one after the other."""
    ahead, seen = deque(faults), 0

    def step(name: str) -> None:
        nonlocal seen
        if not ahead or name != ahead[0].step:
            return
        seen += 1
        if seen < ahead[0].times:
            return
        seen, fault = 0, ahead.popleft()
        if tell:
            with tell.open("a") as told:
                told.write(f"{name}\n")
        os.kill(os.getpid(), fault.what)

    def working(settings: LoaderSettings, health: Health, stop: threading.Event) -> None:
        work(settings, health, stop, step)

    return service.run("loader", LoaderSettings, working, [])


class Replica:
    """A loader that is started again whenever it has ended. A plan is ``step:times:kill`` or ``freeze``, by commas."""

    def __init__(self, number: int, plan: str) -> None:
        self._number, self._plan = number, deque(map(fault_of, plan.split(",")))
        self.pid, self.ahead = 0, deque[Fault]()

    def begin(self) -> None:
        """Its next life, up to the next planned end; once the plan is through it is left alone."""
        faults = self.ahead
        while self._plan and (not faults or faults[-1].what != signal.SIGKILL):
            faults.append(self._plan.popleft())
        self.pid = os.fork()
        if self.pid == 0:
            ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            if self._number:
                os.environ["MARKETFLOW_LOADER_HTTP_PORT"] = "0"
            os._exit(live(faults))


def fault_of(entry: str) -> Fault:
    step, times, what = entry.split(":")
    return Fault(step, int(times), signal.SIGKILL if what == "kill" else signal.SIGSTOP)


def supervise(plans: list[str], tell: Path) -> int:
    """Run the replicas until SIGTERM, as a container engine would. ``tell`` gets a line for each life's end or stop."""
    replicas = [Replica(number, plan) for number, plan in enumerate(plans)]
    stopping = False

    def stop(_: int, __: FrameType | None) -> None:
        nonlocal stopping
        stopping = True
        for replica in replicas:
            with suppress(ProcessLookupError):  # it has just ended by itself
                os.kill(replica.pid, signal.SIGTERM)

    def say(text: str) -> None:
        with tell.open("a") as told:
            told.write(f"{text}\n")

    for replica in replicas:
        replica.begin()
    signal.signal(signal.SIGTERM, stop)
    left, worst = {replica.pid: replica for replica in replicas}, 0
    while left:
        pid, status = os.waitpid(-1, os.WUNTRACED)
        if os.WIFSTOPPED(status):
            left[pid].ahead.popleft()
            say(f"frozen {pid}")
            continue
        replica, code = left.pop(pid), os.waitstatus_to_exitcode(status)
        if stopping:
            worst = worst or (0 if code == -signal.SIGTERM else abs(code))  # by SIGTERM, before it had begun
        elif code in (-signal.SIGKILL, service.EXIT_UNAVAILABLE):
            if code < 0:
                replica.ahead.popleft()
            say("killed" if code < 0 else "left")
            replica.begin()
            left[replica.pid] = replica
        else:
            print(f"a loader has ended with {code}", file=sys.stderr)
            return 1
    return worst


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--die-at", default="", help="steps, separated by commas: one for each life but the last")
    parser.add_argument("--freeze-at", default="", help="stop there, once, until SIGCONT")
    parser.add_argument("--replica", action="append", default=[], help="a plan; again for another loader beside it")
    parser.add_argument("--tell", type=Path, help="file that each step reached is written to")
    options = parser.parse_args()
    if options.replica:
        return supervise(options.replica, options.tell)
    for die_at in [step for step in options.die_at.split(",") if step]:
        # A fork of the loaded program: starting Python and the connector anew takes seconds each time.
        child = os.fork()
        if child == 0:
            ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
            os._exit(live([Fault(die_at, 1, signal.SIGKILL)], options.tell))
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if status != -signal.SIGKILL:
            print(f"was to die at {die_at}, but ended with {status}", file=sys.stderr)
            return 1
    return live([Fault(options.freeze_at, 1, signal.SIGSTOP)] if options.freeze_at else [], options.tell)


if __name__ == "__main__":
    sys.exit(main())
