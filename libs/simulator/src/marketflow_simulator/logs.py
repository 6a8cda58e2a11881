"""Structured log lines on stderr: one JSON object each, never a key or a secret."""

import sys
import time
from datetime import UTC, datetime
from typing import Any

import msgspec


def log(event: str, *, level: str = "info", **fields: Any) -> None:
    """Write one line: when, how bad, what, and the values that explain it."""
    at = datetime.fromtimestamp(time.time(), UTC).isoformat(timespec="milliseconds")
    line = {"ts": at, "level": level, "service": "simulator", "event": event, **fields}
    sys.stderr.write(msgspec.json.encode(line, enc_hook=str).decode() + "\n")
