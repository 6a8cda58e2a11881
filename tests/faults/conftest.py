"""Fixtures of the fault matrix: exchange, ingestors and aggregators as real processes, and the audit's market part.

A case waits in market time or for conditions, and ends with `clean`: nothing lost, doubled or different.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from marketflow_common.events import Candle, Gap, Trade, Watermark
from marketflow_common.settings import KafkaSettings
from marketflow_operator.audit import market
from marketflow_operator.audit.cuts import cuts_of
from marketflow_operator.audit.exchange import ExchangeReader
from marketflow_operator.audit.model import Evidence
from marketflow_operator.audit.settled import closed_until, pending_market
from marketflow_operator.audit.topics import TopicReader
from marketflow_stack.testing import CreatedTopics, eventually, free_port

SECOND = 1_000_000
MINUTE = 60 * SECOND
START = 1_704_067_200_000_000
"""Market time at which the simulator's synthetic market starts."""
_DRAIN_SECONDS = 180.0


def ask(url: str, body: Any = None, method: str = "GET") -> Any:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data=data, method=method)
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return json.load(answer)
    except urllib.error.HTTPError as error:
        return json.loads(error.read()) if error.code == 503 else pytest.fail(f"{url}: {error.read().decode()}")


class Process:
    """A running program that serves HTTP on `port` and writes to `log`."""

    def __init__(self, arguments: list[str], environment: dict[str, Any], port: int, log: Path) -> None:
        self.port, self.log, self.url = port, log, f"http://127.0.0.1:{port}"
        environ = {f"MARKETFLOW_{name}": str(value) for name, value in environment.items()}
        with log.open("wb") as out:
            self.process = subprocess.Popen(
                [sys.executable, *arguments], env=os.environ | environ, stderr=out, stdout=out
            )

    def answers(self, path: str) -> bool:
        if self.process.poll() is not None:
            pytest.fail(f"exit code {self.process.returncode}: {self.log.read_text()[-3_000:]}")
        try:
            with urllib.request.urlopen(self.url + path, timeout=5) as answer:
                return bool(answer.status == 200)
        except (urllib.error.URLError, OSError):
            return False

    def wait_ready(self) -> Any:
        eventually(lambda: self.answers("/readyz"))
        return self

    def owned(self) -> list[int]:
        """Partitions that it works on, ready or not."""
        try:
            return list(ask(self.url + "/readyz").get("partitions", []))
        except OSError:
            return []

    def metric(self, name: str) -> float:
        """The sum over all labels; a name may go on with labels: `name{symbol="X"`."""
        with urllib.request.urlopen(self.url + "/metrics", timeout=5) as answer:
            lines = answer.read().decode().splitlines()
        return sum(float(line.split()[-1]) for line in lines if line.startswith(name))

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def wait(self, timeout: float = 90) -> int:
        return self.process.wait(timeout)

    def kill(self) -> None:
        self.signal(signal.SIGKILL)
        assert self.wait() == -signal.SIGKILL


class Exchange(Process):
    """The exchange simulator with a synthetic market, which begins with `start()` at START."""

    def market(self) -> Any:
        return ask(self.url + "/sim/market")

    def start(self) -> None:
        ask(self.url + "/sim/market/start", method="POST")

    def end(self, more: float = 70) -> None:
        """Let the market go on for so many seconds of its time, and then end with the minute."""
        self.reach((self.market()["market_time_us"] - START) / SECOND + more)
        ask(self.url + "/sim/market/end", method="POST")

    def fault(self, kind: str, **details: Any) -> Any:
        return ask(self.url + "/sim/faults", {"kind": kind, **details}, "POST")

    def done(self, kind: str) -> list[Any]:
        """Faults of the kind that are over."""
        return [fault for fault in ask(self.url + "/sim/faults")["done"] if fault["kind"] == kind]

    def reach(self, seconds: float, timeout: float = 120) -> None:
        """Wait until so many seconds of market time have gone by since its start."""
        eventually(lambda: self.market()["market_time_us"] >= START + seconds * SECOND, timeout=timeout, interval=0.02)

    def first_id(self, symbol: str = "ETHUSDT") -> int:
        """Id of the first trade that is streamed."""
        return int(self.market()["symbols"][symbol]["first_trade_id"])

    def answered(self, status: str) -> int:
        """REST calls that were answered with this status."""
        requests = ask(self.url + "/sim/ledger")["requests"]
        return sum(counts.get(status, 0) for counts in requests.values())


@pytest.fixture
def elapsed() -> Callable[[], float]:
    """Seconds since the test began."""
    begin = time.monotonic()
    return lambda: time.monotonic() - begin


@pytest.fixture
def processes() -> Iterator[list[Process]]:
    """Whatever was started, to be ended in the end."""
    running: list[Process] = []
    yield running
    for one in reversed(running):
        if one.process.poll() is None:
            one.signal(signal.SIGCONT)
            one.process.kill()
        one.process.wait()


@pytest.fixture
def exchange(processes: list[Process], tmp_path: Path) -> Callable[..., Exchange]:
    """Starts the exchange with settings as keywords; ETHUSDT unless told."""

    def begin(**settings: Any) -> Exchange:
        port = free_port()
        values = {"port": port, "autostart": "false", "symbols": "ETHUSDT", **settings}
        environ = {f"SIMULATOR_{name.upper()}": value for name, value in values.items()}
        one = Exchange(["-m", "marketflow_simulator"], environ, port, tmp_path / f"exchange-{len(processes)}.log")
        processes.append(one)
        eventually(lambda: one.answers("/sim/health"))
        return one

    return begin


@pytest.fixture
def ingestor(processes: list[Process], tmp_path: Path, topics: CreatedTopics) -> Callable[..., Process]:
    """Starts an ingestor of an exchange's symbols: its settings as keywords, KAFKA_ settings in capitals."""

    def begin(exchange: Exchange, **settings: Any) -> Process:
        port = free_port()
        values = {
            "INGESTOR_SYMBOLS": ",".join(exchange.market()["symbols"]),
            "INGESTOR_HTTP_PORT": port,
            "INGESTOR_WS_URL": f"ws://127.0.0.1:{exchange.port}",
            "INGESTOR_REST_URL": exchange.url,
            "KAFKA_BOOTSTRAP_SERVERS": topics.bootstrap,
            "KAFKA_TOPIC_PREFIX": topics.prefix,
            **{name if name.isupper() else f"INGESTOR_{name.upper()}": value for name, value in settings.items()},
        }
        one = Process(["-m", "marketflow_ingestor"], values, port, tmp_path / f"ingestor-{len(processes)}.log")
        processes.append(one)
        return one

    return begin


@pytest.fixture
def aggregator(processes: list[Process], tmp_path: Path, topics: CreatedTopics) -> Callable[..., Process]:
    """Starts an aggregator; with `die_at` and `times` one that kills itself at a step of its loop."""

    def begin(die_at: str = "", times: int = 1, **settings: Any) -> Process:
        port = free_port()
        values = {
            "AGGREGATOR_HTTP_PORT": port,
            "KAFKA_BOOTSTRAP_SERVERS": topics.bootstrap,
            "KAFKA_TOPIC_PREFIX": topics.prefix,
            **settings,
        }
        arguments = ["-m", "marketflow_aggregator"]
        if die_at:
            arguments = [str(Path(__file__).with_name("dying_aggregator.py")), die_at, str(times)]
        one = Process(arguments, values, port, tmp_path / f"aggregator-{len(processes)}.log")
        processes.append(one)
        return one

    return begin


@dataclass(frozen=True)
class Chain:
    """An exchange whose market has not begun, one ingestor and one aggregator that are ready."""

    exchange: Exchange
    ingestor: Process
    aggregator: Process


@pytest.fixture
def chain(
    exchange: Callable[..., Exchange], ingestor: Callable[..., Process], aggregator: Callable[..., Process]
) -> Callable[..., Chain]:
    """Starts a chain: the ingestor's settings as a dict, the exchange's as keywords."""

    def begin(feed: dict[str, Any] | None = None, **settings: Any) -> Chain:
        one = exchange(**settings)
        both = ingestor(one, **(feed or {})), aggregator()
        return Chain(one, both[0].wait_ready(), both[1].wait_ready())

    return begin


class Found:
    """What the topics hold in the end."""

    def __init__(self, evidence: Evidence) -> None:
        self.evidence = evidence

    def trades(self, symbol: str = "ETHUSDT") -> list[Trade]:
        return [trade for _, trade in self.evidence.of(Trade) if trade.symbol == symbol]

    def gaps(self, symbol: str = "ETHUSDT") -> list[Gap]:
        return [gap for _, gap in self.evidence.of(Gap) if gap.symbol == symbol]

    def marks(self, symbol: str = "ETHUSDT") -> list[Watermark]:
        return [mark for _, mark in self.evidence.of(Watermark) if mark.symbol == symbol]

    def candles(self, symbol: str = "ETHUSDT") -> list[Candle]:
        """All statements, the later revision after the earlier one."""
        return [candle for _, candle in self.evidence.of(Candle) if candle.symbol == symbol]

    @property
    def all_gaps(self) -> list[Gap]:
        return [gap for _, gap in self.evidence.of(Gap)]

    @property
    def revised(self) -> list[Candle]:
        return [candle for _, candle in self.evidence.of(Candle) if candle.revision]


@pytest.fixture
def clean(topics: CreatedTopics) -> Callable[..., Found]:
    """Waits until the market has ended and all of it has come through; then every check of the audit must hold."""

    def check(exchange: Exchange, bootstrap: str = "") -> Found:
        kafka = KafkaSettings(bootstrap_servers=bootstrap or topics.bootstrap, topic_prefix=topics.prefix)
        ledger, reader = ExchangeReader(exchange.url), TopicReader(kafka)
        try:
            eventually(lambda: exchange.market()["ended"], timeout=_DRAIN_SECONDS, interval=0.1)
            deadline = time.monotonic() + _DRAIN_SECONDS
            lowest: dict[str, int] = {}
            while True:
                reader.advance()
                evidence = Evidence(reader.records, reader.partitions, dict(reader.ends), from_start=True)
                for _, trade in evidence.of(Trade):
                    lowest[trade.symbol] = min(trade.trade_id, lowest.get(trade.symbol, trade.trade_id))
                truth = ledger.read(lowest)
                evidence = replace(evidence, exchange=truth, until=closed_until(truth.feeds))
                pending = pending_market(evidence)
                checks = [] if pending else [one(evidence, truth, cuts_of(evidence)) for one in market.CHECKS]
                wrong = [one for one in checks if not one.ok]
                # What was lost in a declared gap may still come: only in the end it has to be there.
                if checks and not wrong:
                    return Found(evidence)
                assert time.monotonic() < deadline, f"pending: {pending}; wrong: {wrong}"
                if wrong and {one.name for one in wrong} - {"gaps_resolved", "trades_once", "candles_equal_klines"}:
                    pytest.fail("; ".join(f"{one.name}: {one.detail}" for one in wrong))
                eventually(lambda: reader.advance() or time.monotonic() > deadline, timeout=_DRAIN_SECONDS + 10)
        finally:
            ledger.close()
            reader.close()

    return check
