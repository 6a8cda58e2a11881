"""Text for people: the end of a log."""

from __future__ import annotations

from pathlib import Path


def size(path: Path) -> int:
    """Bytes of a log so far, 0 if there is none: where what comes now begins."""
    try:
        return path.stat().st_size
    except OSError:
        return 0


def tail(path: Path, lines: int = 15, since: int = 0) -> str:
    """The last lines of a log from the byte `since` on, indented; reads at most its last 16 kB."""
    try:
        with path.open("rb") as log:
            log.seek(max(0, since, path.stat().st_size - 16_384))
            text = log.read().decode(errors="replace")
    except OSError:
        return "  (there is no log)"
    kept = text.splitlines()[-lines:]
    return "\n".join(f"  {line}" for line in kept) or "  (the log is empty)"
