"""The whole chain on one market: equal to a stand-alone fold of the file, at any speed, and after any fault."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Mapping
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from marketflow_stack.testing import eventually

pytestmark = [pytest.mark.broker, pytest.mark.timeout(1200)]
SPEED = os.environ.get("MARKETFLOW_TEST_SPEED", "4")
FAULTED = ("ingestor", "aggregator", "strategy", "executor", "loader")


def folded(capture: Path) -> list[dict[str, Any]]:
    """The whole minutes of a capture as candles, by plain fractions and nothing of the suite.

    The first minute is cut (nothing proves where it began) and the last one is open: neither is returned.
    """
    minutes: dict[int, list[dict[str, Any]]] = {}
    with gzip.open(capture, "rt") as lines:
        for line in lines:
            trade = json.loads(line.split(" ", 1)[1])["data"]
            minutes.setdefault(trade["T"] // 60_000, []).append(trade)
    first, last = min(minutes), max(minutes)
    rows: list[dict[str, Any]] = []
    for minute in range(first + 1, last):
        trades = minutes.get(minute, [])
        before = next(minutes[m][-1] for m in range(minute - 1, first - 1, -1) if m in minutes)
        prices = [Fraction(t["p"]) for t in trades] or [Fraction(before["p"])]
        taker = [t for t in trades if not t["m"]]
        rows.append(
            {
                "open_time": minute * 60_000_000,
                "close_time": minute * 60_000_000 + 59_999_999,
                "open": _eight(prices[0]),
                "high": _eight(max(prices)),
                "low": _eight(min(prices)),
                "close": _eight(prices[-1]),
                "volume": _eight(sum(Fraction(t["q"]) for t in trades)),
                "quote_volume": _eight(sum(Fraction(t["p"]) * Fraction(t["q"]) for t in trades)),
                "trade_count": len(trades),
                "taker_buy_volume": _eight(sum(Fraction(t["q"]) for t in taker)),
                "taker_buy_quote_volume": _eight(sum(Fraction(t["p"]) * Fraction(t["q"]) for t in taker)),
                "first_trade_id": trades[0]["t"] if trades else before["t"] + 1,
                "last_trade_id": trades[-1]["t"] if trades else before["t"],
            }
        )
    return rows


def _eight(value: Fraction | int) -> str:
    scaled = Fraction(value) * 10**8
    assert scaled.denominator == 1, "the exchange prints eight places"
    return f"{scaled.numerator // 10**8}.{scaled.numerator % 10**8:08d}"


@pytest.fixture(scope="module")
def calm(
    market: Mapping[str, Any], tmp_path_factory: pytest.TempPathFactory, run_chain: Callable[..., Any]
) -> dict[str, Any]:
    """What a run without faults publishes, as fast as the services can."""
    with run_chain(tmp_path_factory.mktemp("calm"), market, "max") as chain:
        chain.open_market()
        chain.wait_market_end(180)
        chain.audit()
        return {topic: chain.records(topic) for topic in ("ohlcv_raw", "ohlcv_agg", "trading_signals", "order_events")}


def test_candles_equal_a_stand_alone_fold_of_the_file_as_strings(
    calm: dict[str, Any], market: Mapping[str, Any]
) -> None:
    candles = [json.loads(value) for value in calm["ohlcv_agg"]["ETHUSDT"]]
    expected = folded(market["replay"])
    assert [{name: candle[name] for name in expected[0]} for candle in candles] == expected
    assert {(candle["revision"], len(candle["missing"])) for candle in candles} == {(0, 0)}


def test_every_trade_of_the_file_is_published_once_and_in_order(
    calm: dict[str, Any], market: Mapping[str, Any]
) -> None:
    with gzip.open(market["replay"], "rt") as lines:
        sent = [json.loads(line.split(" ", 1)[1])["data"]["t"] for line in lines]
    trades = [r for r in map(json.loads, calm["ohlcv_raw"]["ETHUSDT"]) if r["type"] == "trade"]
    assert [trade["trade_id"] for trade in trades] == sent


def test_it_trades_both_ways_and_every_signal_has_one_answer(calm: dict[str, Any]) -> None:
    signals = [json.loads(v) for v in calm["trading_signals"]["ETHUSDT"]]
    events = [json.loads(v) for values in calm["order_events"].values() for v in values]
    filled = Counter(e["side"] for e in events if e["type"] == "order_filled" and e["complete"])
    assert filled["BUY"] >= 3
    assert filled["SELL"] >= 3
    answered = [
        e["signal_id"]
        for e in events
        if (e["type"] == "order_filled" and e["complete"]) or e["type"] in ("signal_skipped", "order_rejected")
    ]
    assert sorted(answered) == sorted(s["id"] for s in signals if s["signal_type"] != "HOLD")


def test_sixty_times_faster_than_the_market_gives_the_same_bytes(
    calm: dict[str, Any], chain: Callable[[str], Any]
) -> None:
    with chain("60") as again:
        again.open_market()
        again.wait_market_end(180)
        again.audit()
        assert again.records("ohlcv_agg") == calm["ohlcv_agg"]
        assert again.records("trading_signals") == calm["trading_signals"]


def test_kills_and_freezes_of_every_service_leave_candles_and_signals_byte_identical(
    calm: dict[str, Any], chain: Callable[[str], Any]
) -> None:
    with chain(SPEED) as storm:
        storm.open_market()
        # A topic without any record knows no first trade yet: an ingestor that starts then begins at its own minute.
        eventually(lambda: storm.records("ohlcv_raw"))
        for service in FAULTED:
            storm.kill(service)
            storm.freeze(service)
        storm.wait_market_end(900)
        verdict = storm.audit()
        story = "\n".join(storm.story)
        print(story)
        assert storm.records("ohlcv_agg") == calm["ohlcv_agg"], story
        assert storm.records("trading_signals") == calm["trading_signals"], story
    assert {c["name"] for c in verdict["checks"]} >= {"balances_equal_fold", "unresolved_orders"}
    assert story.count("SIGKILL") == story.count("SIGSTOP") == len(FAULTED)


def test_the_demo_reports_what_it_did_and_leaves_nothing_behind(market: Mapping[str, Any], tmp_path: Path) -> None:
    report_file, state = tmp_path / "report.json", tmp_path / "state"
    done = subprocess.run(
        [sys.executable, "-m", "marketflow_operator", "demo", "--replay", str(market["replay"]), "--speed", "max",
         "--report", str(report_file), "--state", str(state)],
        capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads(report_file.read_text(), parse_float=Decimal)
    with gzip.open(market["replay"], "rt") as lines:
        sent = sum(1 for _ in lines)
    assert [report["trades"][k] for k in ("sent", "published", "landed")] == [sent] * 3
    assert [report["trades"][k] for k in ("lost", "duplicated")] == [0, 0]
    assert report["candles"]["different"] == 0
    assert report["candles"]["equal"] == len(folded(market["replay"]))
    assert (report["orders"]["unresolved"], report["orders"]["duplicated"]) == (0, 0)
    assert report["pnl"]["equity_error"] == 0
    assert report["notifications"]["lost"] == 0
    for stage in ("trade_to_candle", "candle_to_order", "trade_to_order"):
        assert report["latency_ms"][stage]["p99"] >= report["latency_ms"][stage]["p50"] >= 0
    assert report["audit"]["ok"]
    left = [p for p in Path("/proc").glob("[0-9]*/cmdline") if str(state).encode() in _read(p)]
    assert left == []


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""
