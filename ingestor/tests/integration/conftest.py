"""Fixtures: the exchange simulator and ingestors as real processes, small captures, and what the topic holds."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from marketflow_common import codec
from marketflow_common.events import Event, Gap, Trade, Watermark
from marketflow_stack.testing import CreatedTopics, Exchange, Program, Programs, ask, eventually, read_all

START_MS = 1_700_000_040_000 // 60_000 * 60_000


class Simulator(Exchange):
    """The exchange, and what it says of its symbols."""

    def status(self, symbol: str) -> str:
        listed = ask(f"{self.url}/api/v3/exchangeInfo")["symbols"]
        return next(str(row["status"]) for row in listed if row["symbol"] == symbol)

    def published(self, symbol: str = "ETHUSDT") -> int:
        return int(self.market()["symbols"][symbol]["published"])


@pytest.fixture
def simulator(programs: Programs) -> Callable[..., Simulator]:
    """Starts the exchange with settings as keywords; its market waits for ``start()``."""
    return partial(programs.exchange, Simulator)


@pytest.fixture
def ingestor(service: Callable[..., Program]) -> Callable[..., Program]:
    """Starts an ingestor against an exchange, its own settings as keywords, KAFKA_ settings in capitals."""

    def begin(exchange: Simulator, symbols: str = "ETHUSDT", **settings: Any) -> Program:
        return service(
            "ingestor",
            INGESTOR_SYMBOLS=symbols,
            INGESTOR_WS_URL=f"ws://127.0.0.1:{exchange.port}",
            INGESTOR_REST_URL=exchange.url,
            **{name if name.isupper() else f"INGESTOR_{name.upper()}": value for name, value in settings.items()},
        )

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
