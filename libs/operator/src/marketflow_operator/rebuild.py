"""Has the loader land a table again: it alone knows how a record becomes a row.

The loader's own program does it, as a process; must never know a table, nor ask what that program asks.
"""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from typing import Final

from pydantic import SecretStr
from pydantic_settings import BaseSettings

from .audit.topics import CannotRead, answers
from .targets import Targets

__all__ = ["environment", "rebuild"]

PROGRAM: Final = "marketflow_loader"


def rebuild(places: Targets, table: str, *, yes: bool, partly: bool) -> int:
    """Run it in the foreground; its exit code. Raises CannotRead where there is no broker, or no loader to run."""
    if find_spec(PROGRAM) is None:
        raise CannotRead("the loader, which does this, is not installed here; run it where it is, or `make setup`")
    answers(places.kafka)
    options = [*(["--yes"] if yes else []), *(["--partly"] if partly else [])]
    words = [sys.executable, "-m", f"{PROGRAM}.rebuild", table, *options]
    process = subprocess.Popen(words, env=os.environ | environment(places))
    while True:
        try:
            return process.wait()
        except KeyboardInterrupt:
            # Ctrl-C has reached it as well: what it says, and how it ends, is its own.
            continue


def environment(places: Targets) -> dict[str, str]:
    """Where Kafka and the warehouse are, as the variables that a service reads."""
    return _variables(places.kafka) | _variables(places.snowflake)


def _variables(settings: BaseSettings) -> dict[str, str]:
    found = {}
    for name in type(settings).model_fields:
        value = getattr(settings, name)
        text = value.get_secret_value() if isinstance(value, SecretStr) else str(value)
        found[f"{settings.model_config.get('env_prefix', '')}{name}".upper()] = text
    return found
