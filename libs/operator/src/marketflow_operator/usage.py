"""What options and environment variables may say: each check is an error of one line that names the thing.

Must never start anything.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Final

import httpx
from marketflow_common.settings import load
from marketflow_stack.errors import StackError
from marketflow_stack.supervisor import ProcessSpec

from .settings import StackSettings, known_settings, strays

__all__ = [
    "WrongUsage",
    "check_environment",
    "check_speed",
    "check_url",
    "split",
    "state_folder",
    "unheard",
]

FASTEST: Final = 100_000


class WrongUsage(Exception):
    """An option that is none; the text is one line that names it and what was expected."""


def state_folder(given: Path | None) -> Path:
    """The state folder of the command: as given, or as configured. Raises WrongUsage if that is a file."""
    folder = given.resolve() if given is not None else load(StackSettings).folder
    there = next(path for path in (folder, *folder.parents) if os.path.lexists(path))
    if not there.is_dir():
        raise WrongUsage(f"--state (MARKETFLOW_STACK_STATE) is {folder}, but {there} is no folder; name another")
    return folder


def check_speed(speed: str) -> None:
    """Raises WrongUsage if it is no speed of a market."""
    try:
        right = speed == "max" or 0 < float(speed) <= FASTEST
    except ValueError:
        right = False
    if not right:
        raise WrongUsage(f"--speed (SPEED) is {speed!r}: a number above 0 and at most {FASTEST}, or max")


def check_url(option: str, url: str) -> None:
    """Raises WrongUsage if nothing can be asked at it."""
    try:
        found = httpx.URL(url)
        right = found.scheme in ("http", "https") and bool(found.host)
    except (httpx.InvalidURL, ValueError):
        right = False
    if not right:
        raise WrongUsage(f"{option} is {url!r}: it is the URL of a server, such as http://127.0.0.1:9080")


def split(symbols: str | None) -> tuple[str, ...]:
    """``"a, b"`` to ``("A", "B")``, None to none. Raises WrongUsage if something is given that names no symbol."""
    found = tuple(part.strip().upper() for part in (symbols or "").split(",") if part.strip())
    if symbols is not None and not found:
        raise WrongUsage(f"--symbols (SYMBOLS) is {symbols!r}: name at least one, such as BTCUSDT,ETHUSDT")
    return found


def check_environment() -> list[str]:
    """Variables that nothing reads, a line for each. Raises WrongUsage where one looks like a slip."""
    try:
        known = known_settings()
    except StackError:
        known = frozenset()  # outside of a checkout each part still refuses what it does not know
    slips, strange = strays(os.environ, known)
    if slips:
        raise WrongUsage(
            "; ".join(
                f"{name}: there is no such setting; "
                + (f"did you mean {near}?" if near else "docs/settings.md lists them")
                for name, near in slips
            )
        )
    return [f"{name}: nothing reads this setting; docs/settings.md lists them" for name in strange]


def unheard(specs: Iterable[ProcessSpec]) -> list[str]:
    """Settings of the environment that the local stack replaces by its own, a line for each; values are not shown."""
    own = {name: value for spec in specs for name, value in spec.env.items() if name.startswith("MARKETFLOW_")}
    return [
        f"{name}: the local stack has its own value for this; yours is not used"
        for name in sorted(own.keys() & os.environ.keys())
        if own[name] != os.environ[name]
    ]
