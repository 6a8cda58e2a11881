"""Says NOT RUN, loudly, where no container engine answers: silence would read as success."""

from __future__ import annotations

import subprocess

import pytest

REASON = "NOT RUN: no container engine answers `docker version`"


def answers() -> bool:
    try:
        return subprocess.run(["docker", "version"], capture_output=True, timeout=30).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    mine = [item for item in items if item.get_closest_marker("engine")]
    if mine and not answers():
        for item in mine:
            item.add_marker(pytest.mark.skip(reason=REASON))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    skipped = [r for r in terminalreporter.stats.get("skipped", []) if REASON in str(r.longrepr)]
    if skipped:
        terminalreporter.section("container engine", yellow=True)
        terminalreporter.line(f"{len(skipped)} tests of the containers {REASON}")
