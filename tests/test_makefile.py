"""Targets of the Makefile do what their help says."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def would_run(*arguments: str) -> str:
    """The commands that make would run."""
    return subprocess.run(["make", "-n", *arguments], cwd=ROOT, capture_output=True, text=True, check=True).stdout


def test_chaos_takes_twenty_seeds_or_those_that_are_named() -> None:
    for arguments, count in ((["chaos"], 20), (["chaos", "SEEDS=5,6"], 2)):
        seeds = re.search(r"MARKETFLOW_CHAOS_SEEDS=(\S+)", would_run(*arguments))
        assert seeds is not None
        assert len(set(seeds[1].split(","))) == count
