"""The measurements. Each returns rows; a row's ratio is taken within a run, and the medians are reported.

Must never report a figure of work that was not checked: candles are compared with the klines in the feed.
"""

from __future__ import annotations

import json
import math
import statistics
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from marketflow_common.events import Candle
from marketflow_common.settings import KafkaSettings
from marketflow_operator.audit.model import Evidence
from marketflow_operator.audit.topics import TopicReader
from marketflow_operator.latency import latencies, percentile

from .feed import SYMBOLS, Feed
from .stand import ROOT, Measured, Stand, TookTooLong, wait

__all__ = ["Plan", "Row", "aggregator", "get", "ingestor", "latency", "memory", "yardstick"]

YARDSTICKS = Path(__file__).parent / "yardsticks"
QUIX_PYTHON = ROOT / ".venv-bench" / "bin" / "python"


@dataclass(frozen=True)
class Row:
    """One figure: medians of ``samples``, each a run's ours, yardstick and ratio (None: there is no yardstick)."""

    name: str
    unit: str
    samples: Sequence[tuple[float, float | None]]
    note: str = ""

    @property
    def ours(self) -> float:
        return statistics.median(ours for ours, _ in self.samples)

    @property
    def yardstick(self) -> float | None:
        found = [other for _, other in self.samples if other is not None]
        return statistics.median(found) if found else None

    @property
    def ratio(self) -> float | None:
        found = [ours / other for ours, other in self.samples if other]
        return statistics.median(found) if found else None

    def as_json(self) -> dict[str, Any]:
        """As REPORT has it; ``samples`` are the single runs."""
        return {
            "name": self.name,
            "unit": self.unit,
            "ours": _rounded(self.ours),
            "yardstick": _rounded(self.yardstick),
            "ratio": _rounded(self.ratio),
            "runs": len(self.samples),
            "samples": [{"ours": _rounded(ours), "yardstick": _rounded(other)} for ours, other in self.samples],
            "note": self.note,
        }


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, max(0, 3 - int(math.log10(value)))) if value > 0 else value


@dataclass
class Plan:
    """How much of everything, and where to say what is going on."""

    runs: int = 3
    trades: int = 1_000_000
    quix_records: int = 40_000
    long_trades: int = 10_000_000
    replay: Path | None = None
    say: Callable[[str], None] = field(default=lambda text: None)


def yardstick(script: str, *arguments: object, python: str | Path = sys.executable, seconds: float = 180) -> Any:
    """Run a yardstick to its end and return what it printed."""
    command = [str(python), str(YARDSTICKS / script), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=seconds)
    if done.returncode:
        raise TookTooLong(f"{script} ended with status {done.returncode}: {done.stderr.strip()[-800:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


# --- aggregator --------------------------------------------------------------------------------------


def aggregator(stand: Stand, plan: Plan) -> list[Row]:
    """Records per processor second, beside a bare loop and beside quixstreams, over a topic that is filled before."""
    prefix = "throughput-"
    stand.topics(prefix)
    feed = Feed(plan.trades, plan.replay)
    rounds = max(1, round(plan.trades / feed.trades))
    records = feed.publish(stand.bootstrap, f"{prefix}ohlcv_raw", rounds)
    plan.say(f"aggregator: {records:,} records are on the topic")
    quix = _quix_ready(plan)
    floor: list[tuple[float, float | None]] = []
    peer: list[tuple[float, float | None]] = []
    for run in range(plan.runs):
        bare = yardstick("bare_consumer.py", stand.bootstrap, f"{prefix}ohlcv_raw", records)
        ours = _aggregate(stand, prefix, records)
        floor.append((ours, bare["records"] / bare["cpu"]))
        text = f"aggregator, run {run + 1}: {ours:,.0f} records per CPU second, bare loop {floor[-1][1]:,.0f}"
        if quix:
            out, state = f"quix-{run}", stand.folder / f"quix-{run}"
            found = yardstick(
                "quix_candles.py", stand.bootstrap, f"{prefix}ohlcv_raw", plan.quix_records, out, state,
                python=QUIX_PYTHON,
            )  # fmt: skip
            if not found["candles"]:
                raise TookTooLong("quixstreams has made no candle")
            peer.append((ours, found["records"] / found["cpu"]))
            text += f", quixstreams {peer[-1][1]:,.0f}"
        plan.say(text)
    unit = "records per CPU second"
    rows = [Row("aggregator_vs_bare_consumer", unit, floor, f"{1 / _median_ratio(floor):.2f} x the floor's CPU time")]
    if quix:
        rows.append(Row("aggregator_vs_quixstreams", unit, peer, f"quixstreams over {plan.quix_records:,} records"))
    return rows


def _median_ratio(samples: Sequence[tuple[float, float | None]]) -> float:
    return statistics.median(ours / other for ours, other in samples if other)


def _quix_ready(plan: Plan) -> bool:
    if QUIX_PYTHON.exists():
        return True
    plan.say(f"aggregator: quixstreams is left out, there is no {QUIX_PYTHON.relative_to(ROOT)} (make bench makes it)")
    return False


def _aggregate(stand: Stand, prefix: str, records: int) -> float:
    """The real process over the whole topic, from its being ready on; its candles equal the klines of the feed."""
    one = stand.service("aggregator", prefix)
    taken = 'messages_in_total{topic="ohlcv_raw"}'
    try:
        wait("the aggregator is ready", one.ready, one, pause=0.02)
        begin, cpu = one.metric(taken), one.cpu_seconds()
        # Asked once a second: each answer costs the aggregator some milliseconds.
        wait("the aggregator is through", lambda: one.metric(taken) >= records, one, seconds=180, pause=1)
        cpu = one.cpu_seconds() - cpu
        _checked(one)
    finally:
        one.stop()
    stand.forget(f"{prefix}aggregator")
    return (records - begin) / cpu


def _checked(one: Measured) -> None:
    different, equal = (one.metric(f'candles_checked_total{{result="{r}"}}') for r in ("different", "equal"))
    if different or not equal:
        raise TookTooLong(f"the aggregator's candles are wrong: {equal:g} equal the klines, {different:g} do not")


def memory(stand: Stand, plan: Plan) -> list[Row]:
    """Resident memory over a long replay, at its end beside after the first tenth."""
    prefix = "memory-"
    stand.topics(prefix)
    feed = Feed(min(plan.trades, plan.long_trades // 10), plan.replay)
    rounds = max(10, round(plan.long_trades / feed.trades))
    one = stand.service("aggregator", prefix)
    taken, seen = 'messages_in_total{topic="ohlcv_raw"}', list[tuple[float, float]]()
    try:
        wait("the aggregator is ready", one.ready, one)

        def pace(sent: int) -> None:
            # What is published and not yet taken in would only show the speed of the disk.
            if not sent % 100_000:
                wait("the aggregator keeps up", lambda: sent - one.metric(taken) < 500_000, one, seconds=180)
                seen.append((one.metric(taken), one.resident_mb()))

        records = feed.publish(stand.bootstrap, f"{prefix}ohlcv_raw", rounds, pace)
        wait("the aggregator is through", lambda: one.metric(taken) >= records, one, seconds=180, pause=0.2)
        seen.append((records, one.resident_mb()))
        _checked(one)
    finally:
        one.stop()
    warm = [mb for at, mb in seen if 0.1 * records <= at < 0.3 * records]
    late = [mb for at, mb in seen if at >= 0.8 * records]
    note = f"{records:,} records; last fifth beside the second and third tenth; peak {max(mb for _, mb in seen):.0f} MB"
    plan.say(f"memory: {note}")
    return [
        Row("aggregator_memory_mb", "MB resident, end vs warm", [(statistics.mean(late), statistics.mean(warm))], note)
    ]


# --- the chain ---------------------------------------------------------------------------------------


def latency(stand: Stand, plan: Plan) -> list[Row]:
    """Trade to candle through the real chain: append of the closing record to append of the candle."""
    fifty, ninety_nine = list[tuple[float, float | None]](), list[tuple[float, float | None]]()
    count = rate = 0
    for run in range(plan.runs):
        prefix = f"latency-{run}-"
        stand.topics(prefix)
        exchange = stand.simulator(SYMBOLS=",".join(SYMBOLS), SPEED=_SPEED, SEED=7 + run)
        parts = [exchange, *_chain(stand, prefix, exchange)]
        try:
            _post(f"{exchange.url}/sim/market/start")
            threading.Event().wait(_LATENCY_SECONDS)
        finally:
            for part in parts:
                part.alive()
                part.stop()
        measured, trades = _latencies(stand, prefix)
        count, rate = count + len(measured), round(trades / _LATENCY_SECONDS)
        for rows, rank in ((fifty, 50), (ninety_nine, 99)):
            value = percentile(measured, rank)
            if value is None:
                raise TookTooLong("no candle was published")
            rows.append((float(value), None))
        plan.say(
            f"latency, run {run + 1}: p50 {fifty[-1][0]:g} ms, p99 {ninety_nine[-1][0]:g} ms "
            f"({len(measured)} candles, {rate:,} trades per second)"
        )
    note = f"{count} candles of {plan.runs} runs, {rate:,} trades per second of {len(SYMBOLS)} symbols"
    return [
        Row("trade_to_candle_ms_p50", "ms", fifty, note),
        Row("trade_to_candle_ms_p99", "ms", ninety_nine, note),
    ]


_SPEED = 8
_LATENCY_SECONDS = 25.0
"""Wall seconds at eight times the market's speed: three minutes of thirty symbols close."""


def _chain(stand: Stand, prefix: str, exchange: Measured) -> list[Measured]:
    aggregator_ = stand.service("aggregator", prefix)
    ingestor_ = _ingestor(stand, prefix, exchange)
    wait("the aggregator is ready", aggregator_.ready, aggregator_)
    return [ingestor_, aggregator_]


def _ingestor(stand: Stand, prefix: str, exchange: Measured) -> Measured:
    one = stand.service(
        "ingestor",
        prefix,
        SYMBOLS=",".join(SYMBOLS),
        WS_URL=exchange.url.replace("http", "ws"),
        REST_URL=exchange.url,
    )
    wait("the ingestor is ready", one.ready, one)
    return one


def _latencies(stand: Stand, prefix: str) -> tuple[Sequence[int], int]:
    reader = TopicReader(KafkaSettings(bootstrap_servers=stand.bootstrap, topic_prefix=prefix))
    try:
        reader.advance()
        records = reader.records
        evidence = Evidence(records=records, partitions=reader.partitions, ends=dict(reader.ends))
        # The first minute of the market is filled back by REST: its candles come in one heap, not as trades do.
        first = min((c.open_time for _, c in evidence.of(Candle)), default=0)
        later = [s for s in records["ohlcv_agg"] if isinstance(s.event, Candle) and s.event.open_time > first]
        evidence = Evidence({**records, "ohlcv_agg": later}, reader.partitions, dict(reader.ends))
        return latencies(evidence).trade_to_candle, len(records["ohlcv_raw"])
    finally:
        reader.close()


def ingestor(stand: Stand, plan: Plan) -> list[Row]:
    """Trades per processor second from a socket to the topic, beside a client that only decodes the messages."""
    samples = list[tuple[float, float | None]]()
    for run in range(plan.runs):
        prefix = f"socket-{run}-"
        stand.topics(prefix)
        ours, trades = _ingest(stand, prefix)
        bare = _listen(stand, trades)
        samples.append((ours, bare))
        plan.say(f"ingestor, run {run + 1}: {ours:,.0f} trades per CPU second over {trades:,}, bare socket {bare:,.0f}")
    return [Row("ingestor_trades_per_cpu_second", "trades per CPU second", samples, "yardstick: socket and JSON only")]


_SOCKET_MINUTES = 10


def _ingest(stand: Stand, prefix: str) -> tuple[float, int]:
    exchange = stand.simulator(SYMBOLS=",".join(SYMBOLS), SPEED="max", MINUTES=_SOCKET_MINUTES)
    one = _ingestor(stand, prefix, exchange)
    out = 'messages_out_total{topic="ohlcv_raw"}'
    try:
        before, cpu = one.metric(out), one.cpu_seconds()
        _post(f"{exchange.url}/sim/market/start")
        wait("the market is over", lambda: bool(get(f"{exchange.url}/sim/market")["ended"]), one, exchange)
        trades = sum(s["published"] for s in get(f"{exchange.url}/sim/market")["symbols"].values())
        wait("the ingestor is through", lambda: one.metric(out) - before >= trades, one, pause=0.2)
        return trades / (one.cpu_seconds() - cpu), trades
    finally:
        one.stop()
        exchange.stop()


def _listen(stand: Stand, trades: int) -> float:
    exchange = stand.simulator(SYMBOLS=",".join(SYMBOLS), SPEED="max", MINUTES=_SOCKET_MINUTES)
    streams = "/".join(f"{symbol.lower()}@{kind}" for symbol in SYMBOLS for kind in ("trade", "kline_1m"))
    url = f"{exchange.url.replace('http', 'ws')}/stream?streams={streams}"
    one = stand.process("bare_websocket", [sys.executable, str(YARDSTICKS / "bare_websocket.py"), url, str(trades)], {})
    try:
        wait("the bare socket is connected", lambda: "ready" in one.log.read_text(), one)
        _post(f"{exchange.url}/sim/market/start")
        wait("the bare socket is through", lambda: one.log.read_text().count("\n") >= 2, exchange, seconds=180)
        found = json.loads(one.log.read_text().splitlines()[-1])
        return float(found["trades"] / found["cpu"])
    finally:
        one.stop()
        exchange.stop()


def get(url: str) -> Any:
    with urllib.request.urlopen(url, timeout=10) as answer:
        return json.load(answer)


def _post(url: str) -> None:
    urllib.request.urlopen(urllib.request.Request(url, method="POST"), timeout=10).close()
