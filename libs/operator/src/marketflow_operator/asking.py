"""Asks the parts of a running stack how they are, each at its own HTTP side.

Must never take the supervisor's word for a part that can answer itself, nor ask one after the other.
"""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import urlsplit

import httpx
from marketflow_stack.state import ProcessState

__all__ = ["Condition", "look"]

SECONDS: Final = 2.0


@dataclass(frozen=True)
class Condition:
    """What a part says of itself; where it cannot be asked, or need not be, the supervisor's phase."""

    state: str
    reason: str = ""
    trading: str | None = None

    @property
    def well(self) -> bool:
        """Whether it is as it should be; a halt is somebody's will, and no fault."""
        return self.state in ("ready", "done")

    @property
    def note(self) -> str:
        """The reason and the trading state, for people."""
        return ", ".join(filter(None, (self.reason, f"trading {self.trading}" if self.trading else "")))


def look(processes: Iterable[ProcessState]) -> dict[str, Condition]:
    """The condition of each process, by name; all are asked at once."""
    wanted = list(processes)
    with httpx.Client(timeout=SECONDS, trust_env=False) as http, ThreadPoolExecutor(max(len(wanted), 1)) as pool:
        return dict(zip((e.name for e in wanted), pool.map(lambda e: _ask(http, e), wanted), strict=True))


def _ask(http: httpx.Client, entry: ProcessState) -> Condition:
    if not entry.ready or entry.phase != "ready":
        return Condition(entry.phase)
    path = urlsplit(entry.ready).path
    try:
        answer = http.get(entry.ready)
    except httpx.HTTPError as error:
        return Condition("no answer", f"{path}: {type(error).__name__}")
    said = _said(answer)
    state = "ready" if answer.status_code == 200 else "not ready"
    reason = "" if state == "ready" else str(said.get("reason") or f"{path} answers {answer.status_code}")
    trading = said.get("trading")
    return Condition(state, reason, str(trading) if trading else None)


def _said(answer: httpx.Response) -> dict[str, Any]:
    try:
        found = answer.json()
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
