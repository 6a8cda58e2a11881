"""Text for people: the end of a log."""

from __future__ import annotations

from pathlib import Path


def tail(path: Path, lines: int = 15) -> str:
    """The last lines of a log, indented; reads at most its last 16 kB."""
    try:
        with path.open("rb") as log:
            log.seek(max(0, path.stat().st_size - 16_384))
            text = log.read().decode(errors="replace")
    except OSError:
        return "  (there is no log)"
    kept = text.splitlines()[-lines:]
    return "\n".join(f"  {line}" for line in kept) or "  (the log is empty)"
