"""Fixtures of the fault matrix: exchange, ingestors and aggregators as real processes, and the audit's market part.

A case waits in market time or for conditions, and ends with `clean`: nothing lost, doubled or different.
"""

from __future__ import annotations

import time
from collections.abc import Callable
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
from marketflow_operator.audit.topics import CannotRead, TopicReader
from marketflow_stack import testing
from marketflow_stack.testing import CreatedTopics, Program, Programs, ask, eventually

SECOND = 1_000_000
MINUTE = 60 * SECOND
START = 1_704_067_200_000_000
"""Market time at which the simulator's synthetic market starts."""
_DRAIN_SECONDS = 300.0


class Exchange(testing.Exchange):
    """The exchange simulator with a synthetic market, which begins with `start()` at START."""

    def end(self, more: float = 70) -> None:
        """Let the market go on for so many seconds of its time, and then end with the minute."""
        self.reach((self.market()["market_time_us"] - START) / SECOND + more)
        ask(self.url + "/sim/market/end", method="POST")

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
def exchange(programs: Programs) -> Callable[..., Exchange]:
    """Starts the exchange with settings as keywords; ETHUSDT unless told."""
    return lambda **settings: programs.exchange(Exchange, **{"symbols": "ETHUSDT", **settings})


@pytest.fixture
def ingestor(service: Callable[..., Program]) -> Callable[..., Program]:
    """Starts an ingestor of an exchange's symbols: its settings as keywords, KAFKA_ settings in capitals."""

    def begin(exchange: Exchange, **settings: Any) -> Program:
        values = {
            "INGESTOR_SYMBOLS": ",".join(exchange.market()["symbols"]),
            "INGESTOR_WS_URL": f"ws://127.0.0.1:{exchange.port}",
            "INGESTOR_REST_URL": exchange.url,
        }
        more = {name if name.isupper() else f"INGESTOR_{name.upper()}": value for name, value in settings.items()}
        return service("ingestor", **(values | more))

    return begin


@pytest.fixture
def aggregator(service: Callable[..., Program]) -> Callable[..., Program]:
    """Starts an aggregator; with `die_at` and `times` one that kills itself at a step of its loop."""

    def begin(die_at: str = "", times: int = 1, **settings: Any) -> Program:
        dying = (Path(__file__).with_name("dying_aggregator.py"), die_at, str(times))
        return service("aggregator", *(dying if die_at else ()), **settings)

    return begin


@dataclass(frozen=True)
class Chain:
    """An exchange whose market has not begun, one ingestor and one aggregator that are ready."""

    exchange: Exchange
    ingestor: Program
    aggregator: Program


@pytest.fixture
def chain(
    exchange: Callable[..., Exchange], ingestor: Callable[..., Program], aggregator: Callable[..., Program]
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

            def advance() -> bool:
                try:
                    return reader.advance()
                except CannotRead:  # a broker that stands still for a minute on a busy machine
                    if time.monotonic() > deadline:
                        raise
                    return False

            while True:
                advance()
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
                eventually(lambda: advance() or time.monotonic() > deadline, timeout=_DRAIN_SECONDS + 10)
        finally:
            ledger.close()
            reader.close()

    return check
