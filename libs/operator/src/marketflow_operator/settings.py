"""Settings of the operator's commands: where the local stack keeps its state, and on which ports its parts listen.

Must never hold a secret.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Final

from marketflow_common.settings import prefix
from marketflow_stack.stack import SERVICES, Ports, checkout
from pydantic import Field
from pydantic_settings import BaseSettings

__all__ = ["StackSettings", "known_settings", "strays"]

PREFIX: Final = "MARKETFLOW_"
_PARTS: Final = (
    *(service.upper() for service in SERVICES),
    "SIMULATOR",
    "STACK",
    "KAFKA",
    "SNOWFLAKE",
    "LOG",
)
_ELSEWHERE: Final = ("DBT", "TEST", "UPDATE", "COMPOSE", "CI")
"""Read by dbt, the tests, docker compose and CI."""
_NAMES: Final = ("MARKETFLOW_EXCHANGE_URL", "MARKETFLOW_RECORDER_URL")
_DEFAULT = Ports()


def _port(part: str) -> int:
    default: int = getattr(_DEFAULT, part)
    port: int = Field(default, ge=1, le=65535, description=f"port of {part} in `marketflow up`")
    return port


def known_settings() -> frozenset[str]:
    """Every variable that a part reads, as .env.example lists them. Raises StackError outside of a checkout."""
    listed = (checkout() / ".env.example").read_text()
    return frozenset(re.findall(rf"^#?({PREFIX}\w+)=", listed, re.MULTILINE))


def strays(environ: Iterable[str], known: Collection[str] = ()) -> tuple[list[tuple[str, str]], list[str]]:
    """MARKETFLOW_ variables that no part reads: slips with their neighbour, "" if none is near, and others.

    Without ``known`` names, those below a part's own prefix are left to that part.
    """
    slips, strange = [], []
    for name in sorted(environ):
        word = name.removeprefix(PREFIX).partition("_")[0]
        if not name.startswith(PREFIX) or name in _NAMES or word in _ELSEWHERE or name in known:
            continue
        if word in _PARTS:
            if known:
                slips.append((name, next(iter(difflib.get_close_matches(name, known, n=1, cutoff=0.8)), "")))
            continue
        near = difflib.get_close_matches(name, _NAMES, n=1, cutoff=0.9)
        parts = difflib.get_close_matches(word, _PARTS, n=1, cutoff=0.75)
        if near:
            slips.append((name, near[0]))
        elif parts:
            slips.append((name, PREFIX + parts[0] + name.removeprefix(PREFIX + word)))
        else:
            strange.append(name)
    return slips, strange


class StackSettings(BaseSettings):
    """``MARKETFLOW_STACK_<FIELD>``; `marketflow demo` takes free ports instead of these."""

    model_config = prefix("STACK")

    state: str = Field(".marketflow", description="folder of the local stack's data and logs, below the checkout")
    kafka_port: int = _port("kafka")
    controller_port: int = _port("controller")
    warehouse_port: int = _port("warehouse")
    recorder_port: int = _port("recorder")
    simulator_port: int = _port("simulator")
    ingestor_port: int = _port("ingestor")
    aggregator_port: int = _port("aggregator")
    strategy_port: int = _port("strategy")
    executor_port: int = _port("executor")
    notifier_port: int = _port("notifier")
    loader_port: int = _port("loader")

    @property
    def folder(self) -> Path:
        """The state folder."""
        named = Path(self.state).expanduser()
        return named if named.is_absolute() else checkout() / named

    @property
    def ports(self) -> Ports:
        """The configured ports."""
        return Ports(**{name: getattr(self, f"{name}_port") for name in Ports.__dataclass_fields__})
