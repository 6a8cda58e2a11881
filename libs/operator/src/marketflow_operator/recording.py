"""Whether a market can be played as asked for, and what a recording holds: found out before anything is started.

The exchange simulator itself reads it, in a process of its own; must never guess at the format here.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Final

__all__ = ["Recording", "Unreadable", "check_market", "examine"]

_PROGRAM: Final = """
import json, sys
from pathlib import Path
from marketflow_simulator.capture import CaptureError, load
try:
    found = load(Path(sys.argv[1]), sys.argv[2:])
except (CaptureError, ValueError) as error:
    print(json.dumps({"error": str(error)}))
else:
    print(json.dumps({"symbols": {tape.symbol: tape.size for tape in found.tapes}}))
"""

_CHECK: Final = """
import sys
from marketflow_simulator.settings import SettingsError, parse
try:
    parse(sys.argv[1:])
except SettingsError as error:
    sys.exit(str(error))
"""

SUFFIXES: Final = (".jsonl", ".jsonl.gz", ".csv", ".zip")
"""How the names of captures and trade dumps end."""


class Unreadable(Exception):
    """The exchange simulator cannot play that; the text is one line that says why and what was expected."""


@dataclass(frozen=True)
class Recording:
    """A recording that can be replayed: its symbols, and the number of trades of those."""

    path: Path
    symbols: tuple[str, ...]
    trades: int


def check_market(**settings: str) -> None:
    """Have the exchange simulator check its settings (symbols, seed, …). Raises Unreadable, naming the wrong one."""
    options = [word for name, value in settings.items() for word in (f"--{name}", value)]
    asked = subprocess.run([sys.executable, "-c", _CHECK, *options], capture_output=True, text=True, check=False)
    if asked.returncode != 0:
        raise Unreadable((asked.stderr.strip().splitlines() or [f"status {asked.returncode}"])[-1])


def examine(place: str | Path, symbols: tuple[str, ...] = ()) -> Recording:
    """Read a capture, a trade dump or a folder of those, of all its symbols or of those named. Raises Unreadable."""
    path = Path(place)
    if not str(place) or not path.exists():
        shown = str(place) or "''"
        raise Unreadable(
            f"there is no recording {shown}; name a capture (.jsonl, .jsonl.gz) or a trade dump (.csv, .zip)"
        )
    if path.is_dir():
        # All files of a folder are read: anything else in it is said before, and not as a line that is no capture's.
        others = sorted(file.name for file in path.iterdir() if file.is_file() and not file.name.endswith(SUFFIXES))
        if others:
            raise Unreadable(
                f"the folder {path} holds {others[0]}, which is no recording ({', '.join(SUFFIXES)}); move it elsewhere"
            )
    command = [sys.executable, "-c", _PROGRAM, str(path.resolve()), *symbols]
    asked = subprocess.run(command, capture_output=True, text=True, check=False)
    try:
        answer = json.loads(asked.stdout.strip().splitlines()[-1])
    except (IndexError, ValueError):
        last = (asked.stderr.strip().splitlines() or [f"status {asked.returncode}"])[-1]
        raise Unreadable(f"{path} cannot be read: {last}") from None
    if "error" in answer:
        raise Unreadable(answer["error"])
    sizes: dict[str, int] = answer["symbols"]
    return Recording(path.resolve(), tuple(sizes), sum(sizes.values()))
