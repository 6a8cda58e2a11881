"""What the tests of the whole share: a recording of trades to replay."""

from __future__ import annotations

import gzip
import json
import os
import random
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A capture of real trades if MARKETFLOW_TEST_CAPTURE names one (the repository holds none), else a made one."""
    named = os.environ.get("MARKETFLOW_TEST_CAPTURE")
    if named:
        assert Path(named).is_file(), f"MARKETFLOW_TEST_CAPTURE names {named}, which is not a file"
        return Path(named)
    return write_capture(tmp_path_factory.mktemp("capture") / "made.jsonl.gz")


def write_capture(path: Path) -> Path:
    """Eleven minutes of ETHUSDT that start and end in mid-minute: a seeded walk, one of its minutes without a trade."""
    walk = random.Random(20240808)
    at, end, price = 1_723_161_255_611, 1_723_161_255_611 + 650_000, 268_380
    with gzip.open(path, "wt") as out:
        for trade_id in range(1_520_538_925, 1_520_538_925 + 100_000):
            at += min(int(walk.expovariate(1 / 80)), 4_000)
            if at // 60_000 == 1_723_161_255_611 // 60_000 + 7:
                at += 60_000
            if at > end:
                break
            price += walk.choice((-9, -3, -1, 0, 0, 1, 3, 9))
            data = {
                "e": "trade", "E": at + 1, "s": "ETHUSDT", "t": trade_id, "p": f"{price / 100:.2f}000000",
                "q": f"{walk.randint(1, 30_000) / 10_000:.4f}0000", "T": at, "m": walk.random() < 0.5, "M": True,
            }  # fmt: skip
            out.write(f"{at * 1_000_000} {json.dumps({'stream': 'ethusdt@trade', 'data': data})}\n")
    return path
