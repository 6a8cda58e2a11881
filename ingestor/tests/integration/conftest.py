"""Fixtures: the exchange simulator and ingestors as real processes, small captures, and what the topic holds."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from marketflow_common import codec
from marketflow_common.events import Event, Gap, Trade, Watermark
from marketflow_stack.testing import CreatedTopics, eventually, free_port, read_all

START_MS = 1_700_000_040_000 // 60_000 * 60_000


def ask(url: str, body: Any = None, method: str = "GET") -> Any:
    data = None if body is None else json.dumps(body).encode()
    with urllib.request.urlopen(urllib.request.Request(url, data=data, method=method), timeout=10) as answer:
        return json.load(answer)


@dataclass
class Process:
    """A running program that serves HTTP on ``port`` and writes to ``log``."""

    process: subprocess.Popen[bytes]
    port: int
    log: Path

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def answers(self, path: str) -> bool:
        assert self.process.poll() is None, self.log.read_text()
        try:
            ask(self.url + path)
        except (urllib.error.URLError, OSError):
            return False
        return True

    def wait_ready(self) -> None:
        eventually(lambda: self.answers("/readyz"), timeout=90)

    def owned(self) -> list[int]:
        """Partitions that an ingestor works on, ready or not."""
        try:
            return list(ask(self.url + "/readyz").get("partitions", []))
        except urllib.error.HTTPError as error:
            return list(json.loads(error.read()).get("partitions", []))
        except OSError:
            return []

    def metric(self, name: str) -> float:
        with urllib.request.urlopen(self.url + "/metrics", timeout=5) as answer:
            lines = answer.read().decode().splitlines()
        return sum(float(line.split()[-1]) for line in lines if line.startswith(name))

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def wait(self, timeout: float = 90) -> int:
        return self.process.wait(timeout)


class Simulator(Process):
    """The exchange."""

    def market(self) -> Any:
        return ask(self.url + "/sim/market")

    def start(self) -> None:
        ask(self.url + "/sim/market/start", method="POST")

    def fault(self, **fault: Any) -> None:
        ask(self.url + "/sim/faults", fault, "POST")

    def heal(self) -> None:
        ask(self.url + "/sim/faults", method="DELETE")

    def status(self, symbol: str) -> str:
        listed = ask(f"{self.url}/api/v3/exchangeInfo")["symbols"]
        return next(str(row["status"]) for row in listed if row["symbol"] == symbol)

    def published(self, symbol: str = "ETHUSDT") -> int:
        return int(self.market()["symbols"][symbol]["published"])


@pytest.fixture
def processes() -> Iterator[list[Process]]:
    running: list[Process] = []
    yield running
    for one in reversed(running):
        if one.process.poll() is None:
            one.process.send_signal(signal.SIGCONT)
            one.process.kill()
        one.process.wait()


@pytest.fixture
def simulator(processes: list[Process], tmp_path: Path) -> Callable[..., Simulator]:
    """Starts the exchange with settings as keywords; its market waits for ``start()``."""

    def begin(**settings: Any) -> Simulator:
        port, log = free_port(), tmp_path / f"simulator-{len(processes)}.log"
        values = {"port": port, "autostart": "false", **settings}
        environ = {f"MARKETFLOW_SIMULATOR_{name.upper()}": str(value) for name, value in values.items()}
        with log.open("wb") as out:
            process = subprocess.Popen(
                [sys.executable, "-m", "marketflow_simulator"], env=os.environ | environ, stderr=out, stdout=out
            )
        one = Simulator(process, port, log)
        processes.append(one)
        eventually(lambda: one.answers("/sim/health"), timeout=90)
        return one

    return begin


@pytest.fixture
def ingestor(processes: list[Process], tmp_path: Path, topics: CreatedTopics) -> Callable[..., Process]:
    """Starts an ingestor against an exchange, its own settings as keywords, KAFKA_ settings in capitals."""

    def begin(exchange: Simulator, symbols: str = "ETHUSDT", **settings: Any) -> Process:
        port, log = free_port(), tmp_path / f"ingestor-{len(processes)}.log"
        values = {
            "INGESTOR_SYMBOLS": symbols,
            "INGESTOR_HTTP_PORT": port,
            "INGESTOR_WS_URL": f"ws://127.0.0.1:{exchange.port}",
            "INGESTOR_REST_URL": exchange.url,
            "KAFKA_BOOTSTRAP_SERVERS": topics.bootstrap,
            "KAFKA_TOPIC_PREFIX": topics.prefix,
            **{name if name.isupper() else f"INGESTOR_{name.upper()}": value for name, value in settings.items()},
        }
        environ = {f"MARKETFLOW_{name}": str(value) for name, value in values.items()}
        with log.open("wb") as out:
            process = subprocess.Popen(
                [sys.executable, "-m", "marketflow_ingestor"], env=os.environ | environ, stderr=out, stdout=out
            )
        one = Process(process, port, log)
        processes.append(one)
        return one

    return begin


@pytest.fixture
def capture(tmp_path: Path) -> Callable[..., Path]:
    """Writes a capture: ``count`` trades of ETHUSDT, ids from 1000 on, ``every_ms`` apart, from mid-minute on.

    ``pause_at``: before the trade of this index the market is silent for two minutes. ``lost``: indexes that
    the exchange never had.
    """

    def write(count: int, every_ms: int = 50, pause_at: int = -1, lost: frozenset[int] = frozenset()) -> Path:
        path, at = tmp_path / "capture.jsonl", START_MS + 20_000
        with path.open("w") as lines:
            for i in range(count):
                at += 120_000 if i == pause_at else every_ms
                if i in lost:
                    continue
                data = {
                    "e": "trade", "E": at + 1, "s": "ETHUSDT", "t": 1_000 + i, "p": f"{2000 + i % 7}.10000000",
                    "q": f"0.0{1 + i % 9}000000", "T": at, "m": i % 3 == 0, "M": True,
                }  # fmt: skip
                lines.write(f"{at * 1_000_000} {json.dumps({'stream': 'ethusdt@trade', 'data': data})}\n")
        return path

    return write


@dataclass
class Feed:
    """What ohlcv_raw holds of one symbol, in its order."""

    events: list[Event]

    @property
    def trades(self) -> list[Trade]:
        return [event for event in self.events if isinstance(event, Trade)]

    @property
    def ids(self) -> list[int]:
        return [trade.trade_id for trade in self.trades]

    @property
    def gaps(self) -> list[Gap]:
        return [event for event in self.events if isinstance(event, Gap)]

    @property
    def watermarks(self) -> list[Watermark]:
        return [event for event in self.events if isinstance(event, Watermark)]

    def check_trades(self, exchange: Simulator, first: int, last: int) -> None:
        """The exchange's own trades from ``first`` to ``last``, each once, in order, to the last digit."""
        symbol = self.trades[0].symbol
        true = {t["id"]: t for t in ask(f"{exchange.url}/sim/trades?symbol={symbol}&from_id={first}")}
        mine = [trade for trade in self.trades if trade.trade_id >= first]
        assert [trade.trade_id for trade in mine] == [i for i in sorted(true) if i <= last]
        for trade in mine:
            row = true[trade.trade_id]
            assert (str(trade.price), str(trade.qty), trade.traded_at, trade.buyer_is_maker) == (
                row["price"], row["qty"], row["time_us"], row["is_buyer_maker"],
            )  # fmt: skip

    def check_watermarks(self) -> None:
        """Each once and in order, and everything that one vouches for lies before it."""
        last_id = -1
        through = [mark.through for mark in self.watermarks]
        assert through == sorted(set(through))
        for event in self.events:
            if isinstance(event, Trade):
                last_id = event.trade_id
            elif isinstance(event, Watermark):
                assert event.last_trade_id <= last_id
                inside = [t for t in self.trades if event.kline.open_time <= t.traded_at < event.through]
                assert len(inside) == event.kline.trade_count
                if inside:
                    assert event.last_trade_id == event.kline.last_trade_id == inside[-1].trade_id
                    assert event.kline.volume == sum(t.qty for t in inside)


@pytest.fixture
def feed(topics: CreatedTopics) -> Callable[..., Feed]:
    """Reads what the topic (another broker's, if ``bootstrap`` is given) holds of a symbol now."""

    def read(symbol: str = "ETHUSDT", bootstrap: str = "") -> Feed:
        events: dict[str, list[Event]] = defaultdict(list)
        for message in read_all(bootstrap or topics.bootstrap, topics["ohlcv_raw"]):
            event = codec.decode("ohlcv_raw", message.value())
            events[event.symbol].append(event)
        return Feed(events[symbol])

    return read


@pytest.fixture
def whole(feed: Callable[..., Feed]) -> Callable[..., Feed]:
    """Waits until the topic holds all that the exchange has streamed, and checks that it holds it once, in order."""

    def check(exchange: Simulator, symbol: str = "ETHUSDT", timeout: float = 90, bootstrap: str = "") -> Feed:
        eventually(lambda: exchange.market()["ended"], timeout=timeout)
        about = exchange.market()["symbols"][symbol]
        first, last = about["first_trade_id"], about["last_trade_id"]
        eventually(lambda: feed(symbol, bootstrap).ids[-1:] == [last], timeout=timeout, interval=0.5)
        found = feed(symbol, bootstrap)
        found.check_trades(exchange, first, last)
        found.check_watermarks()
        return found

    return check
