"""The frame around a service's main: command line, settings, logs, health, signals, exit codes.

Must never know which service it runs.
"""

from __future__ import annotations

import argparse
import faulthandler
import os
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from importlib.metadata import version
from types import FrameType
from typing import TypeVar

from confluent_kafka import KafkaException

from . import logs, settings
from .health import Health
from .kafka.client import FatalKafkaError, Fenced

__all__ = ["EXIT_CONFIG", "EXIT_FENCED", "EXIT_STUCK", "EXIT_UNAVAILABLE", "run"]

STUCK_SECONDS = 120.0
"""A service whose main loop has given no sign of life for this long leaves, to be started again."""
EXIT_UNAVAILABLE = 69
"""Something outside is missing or broken for good (EX_UNAVAILABLE of sysexits.h)."""
EXIT_STUCK = 70
"""A call has not returned, its own time limit notwithstanding; start again (EX_SOFTWARE)."""
EXIT_FENCED = 75
"""Another instance has taken over; start again to stand by (EX_TEMPFAIL)."""
EXIT_CONFIG = 78
"""A setting is wrong (EX_CONFIG)."""

S = TypeVar("S", bound=settings.ServiceSettings)


def _watch(health: Health, log: logs.Log, over: threading.Event) -> None:
    """End the process once its main loop stands still, as the crash that all services are made for.

    A client may wait for ever, whatever the time limit of the call (see client.BoundedProducer).
    Seconds are counted one by one, so that a process that was frozen meanwhile gets its time to go on.
    """
    beat, still = health.last_beat, 0
    while still < STUCK_SECONDS:
        if over.wait(1):
            return
        still = still + 1 if health.last_beat == beat else 0
        beat = health.last_beat
    log.error("stuck", detail=f"no sign of life for {STUCK_SECONDS:g} s", remedy="leaving, to be started again")
    faulthandler.dump_traceback(sys.stderr)
    os._exit(EXIT_STUCK)


def run(
    name: str,
    kind: type[S],
    main: Callable[[S, Health, threading.Event], None],
    argv: Sequence[str] | None = None,
) -> int:
    """Run ``main(settings, health, stop)`` until it returns; SIGTERM and SIGINT set ``stop``.

    Returns the exit code: 0 after a clean stop, EXIT_CONFIG, EXIT_FENCED or EXIT_UNAVAILABLE with one line
    that says what to do.
    """
    parser = argparse.ArgumentParser(
        prog=f"marketflow-{name}",
        description=f"MarketFlow's {name}. All settings come from the environment:",
        epilog="\n".join(f"  {n}={d}\n      {text}" for n, d, text in settings.describe(kind)),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"marketflow-{name} {version(f'marketflow-{name}')}")
    parser.add_argument("--check", action="store_true", help="read the settings, say whether they are right, and leave")
    arguments = parser.parse_args(argv)
    try:
        values = settings.load(kind)
    except settings.InvalidSettings as error:
        print(f"marketflow-{name}: {error}", file=sys.stderr)  # noqa: T201
        return EXIT_CONFIG
    if arguments.check:
        return 0
    logs.configure(name, values.log.level, values.log.format)
    log = logs.get(name)
    stop, over = threading.Event(), threading.Event()

    def on_signal(number: int, _: FrameType | None) -> None:
        log.info("stopping", signal=signal.Signals(number).name)
        stop.set()

    signal.signal(signal.SIGTERM, on_signal)
    signal.signal(signal.SIGINT, on_signal)
    try:
        with Health(name, values.http_host, values.http_port) as health:
            log.info("started", version=version(f"marketflow-{name}"), http_port=health.port)
            threading.Thread(target=_watch, args=(health, log, over), name="watchdog", daemon=True).start()
            main(values, health, stop)
    except Fenced as error:
        log.error("fenced", detail=str(error), remedy="another instance works on this; this one leaves")
        return EXIT_FENCED
    except FatalKafkaError as error:
        log.error("cannot_go_on", detail=str(error))
        return EXIT_UNAVAILABLE
    except (OSError, KafkaException) as error:
        log.error("cannot_go_on", detail=str(error), exc_info=True)
        return EXIT_UNAVAILABLE
    finally:
        over.set()
    log.info("stopped")
    return 0
