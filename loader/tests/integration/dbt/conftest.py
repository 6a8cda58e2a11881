"""A small market with every case that dbt has to get right, landed by the loader's own code, and dbt as a process."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from marketflow_common import codec
from marketflow_common import topics as names
from marketflow_common.events import (
    AccountOpened,
    Candle,
    Event,
    Kline,
    OrderFilled,
    OrderIntended,
    Signal,
    Trade,
    Watermark,
)
from marketflow_loader.tables import Landing, Row
from marketflow_loader.warehouse import Place, Position, Warehouse
from msgspec.structs import replace

MINUTE = 60_000_000
DAY = 1_440 * MINUTE
START = 1_723_075_080_000_000
"""2024-08-07T23:58:00Z: the market runs over midnight."""
ZERO = Decimal(0)


def trades_of(symbol: str, seed: int) -> list[list[Trade]]:
    """Seven minutes as the exchange counts them, the third without a trade; prices and quantities with eight places.

    Times step back over a minute's edge in the fourth (by more than a minute) and sixth minute, where only a
    watermark tells that the one before is over, and in the fifth, which a trade has begun. The last trade of the
    second minute is ahead of its receipt and counts in the fifth.
    """
    chance = random.Random(seed)
    minutes: list[list[Trade]] = [[] for _ in range(7)]
    number, price = 1_000 * seed, Decimal("2500.00000000")
    for minute, trades in enumerate(minutes):
        for second in range(0, 60, 3) if minute != 2 else ():
            number += 1
            price += Decimal(chance.randint(-500, 500)) / 100
            qty = Decimal(chance.randint(1, 10**9)).scaleb(-8)
            at = START + minute * MINUTE + second * 1_000_000 + chance.randint(0, 999) * 1_000
            trades.append(Trade("test", symbol, number, price, qty, chance.random() < 0.5, at, at + 7_000))
    minutes[3][0] = replace(minutes[3][0], traded_at=START + 2 * MINUTE - 1_000)
    minutes[4][1] = replace(minutes[4][1], traded_at=START + 4 * MINUTE - 1_000)
    minutes[5][0] = replace(minutes[5][0], traded_at=START + 5 * MINUTE - 1)
    minutes[4].insert(0, replace(minutes[1].pop(), traded_at=START + 4 * MINUTE + 30_000_000))
    return minutes


def candle_of(symbol: str, open_time: int, trades: Sequence[Trade], last: Trade, **more: Any) -> Candle:
    """The candle of a minute's trades (in order of id), or a flat one after ``last``."""
    prices = [t.price for t in trades] or [last.price]
    takers = [t for t in trades if not t.buyer_is_maker]
    return Candle(
        symbol, "1m", open_time, open_time + MINUTE - 1,
        prices[0], max(prices), min(prices), prices[-1],
        sum((t.qty for t in trades), ZERO), sum((t.qty * t.price for t in trades), ZERO), len(trades),
        sum((t.qty for t in takers), ZERO), sum((t.qty * t.price for t in takers), ZERO),
        trades[0].trade_id if trades else last.trade_id + 1, trades[-1].trade_id if trades else last.trade_id,
        **more,
    )  # fmt: skip


def history_of(symbol: str, first: Trade, minutes: int) -> list[Trade]:
    """What was traded in the minutes before a symbol's first trade, twenty a minute, id by id."""
    count = 20 * minutes
    start = START - minutes * MINUTE
    return [
        Trade(
            "binance", symbol, first.trade_id - count + at, first.price + Decimal(at % 7) / 100,
            Decimal(at + 1).scaleb(-8), at % 3 == 0, start + at * 3_000_000 + 123_000, 0,
        )
        for at in range(count)
    ]  # fmt: skip


def watermark_of(candle: Candle) -> Watermark:
    kline = Kline(**{name: getattr(candle, name) for name in Kline.__struct_fields__})
    return Watermark("test", candle.symbol, candle.close_time + 1, candle.last_trade_id, kline)


def moment(micros: int) -> str:
    return f"'{datetime.fromtimestamp(0, UTC) + timedelta(microseconds=micros)}'::TIMESTAMP_LTZ"


class Market:
    """What has been published so far, by topic and partition; ``land`` brings the rest to the warehouse."""

    start = START

    def __init__(self, tables: Any) -> None:
        self.tables = tables
        self.late: tuple[Trade, Candle] | None = None
        self.trades: dict[str, list[Trade]] = {}
        """Every trade of a symbol in order of its id, also what the stream does not have."""
        self.minutes: list[list[tuple[str, int, Sequence[Event]]]] = [[] for _ in range(7)]
        self.log: dict[tuple[str, int], list[Event]] = {}
        self._landed: dict[tuple[str, int], int] = {}
        self._warehouse = Warehouse(tables.settings)
        self._appended = START // 1_000

    def publish(self, topic: str, partition: int, *events: Event) -> None:
        self.log.setdefault((topic, partition), []).extend(events)

    def go_on(self, minutes: int) -> None:
        """Publish and land what happens in so many more minutes."""
        for _ in range(minutes):
            for topic, partition, events in self.minutes.pop(0):
                self.publish(topic, partition, *events)
        self.land()

    def history(self, symbol: str, minutes: int) -> list[Trade]:
        return history_of(symbol, self.trades[symbol][0], minutes)

    def backfill(self, file: str, trades: Sequence[Trade]) -> None:
        """Load trades as a public dump has them: a line each, to the millisecond, without a receipt."""
        self._appended += 1
        landed = moment(self._appended * 1_000 + 900_000)
        rows = ", ".join(
            f"('binance', '{file}', {line}, {landed}, '{t.symbol}', {t.trade_id}, {t.price:f}, {t.qty:f}, "
            f"{t.buyer_is_maker}, {moment(t.traded_at // 1_000 * 1_000)})"
            for line, t in enumerate(trades, 1)
        )
        self.tables.ask(f"INSERT INTO RAW.TRADES_BACKFILL VALUES {rows}")

    def land(self) -> None:
        landing, moves = Landing(self._appended * 1_000 + 900_000), []
        for (topic, partition), events in self.log.items():
            place = Place(topic, f"id-{topic}", partition)
            begin = self._landed.get((topic, partition), 0)
            if begin == 0:
                self._warehouse.start(Position(place, 0))
            rows = []
            for offset, event in enumerate(events[begin:], begin):
                self._appended += 1
                rows.append(Row(topic, *place, offset, self._appended, b"", codec.encode(event)))
            assert landing.add(rows) == 0
            if rows:
                moves.append((Position(place, begin), len(events)))
                self._landed[topic, partition] = len(events)
        self._warehouse.land(self._warehouse.pack(f"test-{self._appended}", landing.tables()), moves)

    def close(self) -> None:
        self._warehouse.close()


def fills_of(account: str, symbol: str, candles: Sequence[Candle]) -> list[Event]:
    """Buys and sells in turn, fees in base, quote and BNB; books by average cost."""
    events: list[Event] = []
    qty = cost = ZERO
    for number, candle in enumerate(candles):
        side, price = ("BUY", "SELL")[number % 2], candle.close
        fee_asset = (symbol[:3], "USDT", "BNB")[number % 3]
        amount = Decimal("0.30000000") if side == "BUY" else Decimal("0.10000000")
        fee = Decimal("0.00030000")
        quote = amount * price
        if side == "BUY":
            realized, cost = ZERO, cost + quote
            qty += amount
        else:
            gone = amount + (fee if fee_asset == symbol[:3] else ZERO)
            sold = (cost * gone / qty).quantize(Decimal("1e-8"))
            realized, cost, qty = quote - sold, cost - sold, qty - gone
        if side == "BUY" and fee_asset == symbol[:3]:
            qty -= fee
        if fee_asset == "USDT":
            realized -= fee
        order = f"{symbol}-{number}"
        events += [
            OrderIntended(
                account, order, f"{symbol}-{candle.open_time}", 1, symbol, side, "MARKET", amount, None, None,
                candle.close_time // 1_000, 5_000, "testnet", price, candle.last_trade_id,
            ),
            OrderFilled(
                account, order, f"{symbol}-{candle.open_time}", symbol, side, number, 100 + number, price, amount,
                quote, fee, fee_asset, realized, None, qty, cost, candle.close_time + 40_000, True,
            ),
        ]  # fmt: skip
    return events


def signals_of(candles: Sequence[Candle]) -> list[Signal]:
    """The band rule, with factors that make each of the three signals; the first minute has no previous one."""
    factors = {"buy_factor": Decimal("1.001"), "momentum_window": 1, "sell_factor": Decimal("1.004")}
    signals, parameters = [], json.dumps(factors, default=str)
    for previous, candle in zip([None, *candles], candles, strict=False):
        kind: Any = "HOLD"
        levels = {}
        if previous is not None:
            levels = {"previous_low": previous.low, "previous_high": previous.high}
            below = candle.close < previous.low * Decimal("1.001")
            kind = "BUY" if below else "SELL" if candle.close > previous.high * Decimal("1.004") else "HOLD"
        signals.append(
            Signal(
                f"{candle.symbol}-{candle.open_time}", "band", parameters, candle.symbol, "1m", candle.open_time,
                candle.close, candle.volume, ZERO, kind, candle.last_trade_id, levels, ("because",),
            )
        )  # fmt: skip
    return signals


def land(tables: Any, minutes: int = 7) -> Market:
    """Two symbols, seven minutes each over midnight; the seventh minute is open and not stated."""
    found = Market(tables)
    for partition, symbol in ((0, "ETHUSDT"), (1, "BTCUSDT")):
        counted = trades_of(symbol, partition + 1)
        waiting = counted[4][0]
        found.trades[symbol] = sorted((t for trades in counted for t in trades), key=lambda t: t.trade_id)
        sent = [counted[0], [*counted[1], waiting], counted[2], counted[3], counted[4][1:], *counted[5:]]
        # For the minute without trades: the ids go on behind the trade that waits for its time, the price does not.
        last = replace(counted[1][-1], trade_id=waiting.trade_id)
        candles = [candle_of(symbol, START + at * MINUTE, trades, last) for at, trades in enumerate(counted[:6])]
        if partition == 0:
            # Two trades of the fourth minute are missing at first; one comes later, the other never.
            inside, begin = counted[3], START + 3 * MINUTE
            late, lost = inside[4], inside[5]
            sent[3] = [t for t in sent[3] if t not in (late, lost)]
            hole = ((late.trade_id, lost.trade_id),)
            candles[3] = candle_of(symbol, begin, inside[:4] + inside[6:], inside[-1], missing=hole)
            still = ((lost.trade_id, lost.trade_id),)
            found.late = (
                late, candle_of(symbol, begin, inside[:5] + inside[6:], inside[-1], missing=still, revision=1)
            )  # fmt: skip
        opened = AccountOpened("main", "testnet", {"USDT": Decimal(10_000)}, START)
        found.publish(names.ORDER_EVENTS, partition, opened)
        signals, fills = signals_of(candles), fills_of("main", symbol, candles)
        for minute, trades in enumerate(sent):
            closed = candles[minute : minute + 1]
            found.minutes[minute] += [
                (names.OHLCV_RAW, partition, [*trades, *map(watermark_of, closed)]),
                (names.OHLCV_AGG, partition, closed),
                (names.TRADING_SIGNALS, partition, signals[minute : minute + 1]),
                (names.ORDER_EVENTS, partition, fills[2 * minute : 2 * minute + 2]),
            ]
    found.go_on(minutes)
    return found


@pytest.fixture
def land_market() -> Iterator[Callable[..., Market]]:
    markets: list[Market] = []

    def make(tables: Any, minutes: int = 7) -> Market:
        markets.append(land(tables, minutes))
        return markets[-1]

    yield make
    for market in markets:
        market.close()


@pytest.fixture
def market(tables: Any, land_market: Callable[..., Market]) -> Market:
    return land_market(tables)


RUN_DBT = """
import contextlib, io, json, sys
from dbt.cli.main import dbtRunner
runner = dbtRunner()
for line in sys.stdin:
    with contextlib.redirect_stdout(io.StringIO()) as said:
        done = runner.invoke(json.loads(line))
    print(json.dumps([done.success, said.getvalue() + str(done.exception or "")]), flush=True)
"""


class Dbt:
    """``dbt`` in a process of its own, with its folders in the test's; one for all calls, as it takes long to start.

    Its environment serves both targets: `dev` takes the password that is not there, `prod` the key pair.
    """

    def __init__(self, tables: Any, root: Path, folder: Path) -> None:
        self._root, self._folder, self.target = root, folder, folder / "target"
        key = rsa.generate_private_key(65_537, 2_048)
        (folder / "dbt.p8").write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
        environment = {
            name: value for name, value in os.environ.items() if not name.startswith(("MARKETFLOW_", "DBT_"))
        }
        self._process = subprocess.Popen(
            [sys.executable, "-c", RUN_DBT], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env=environment | {
                "MARKETFLOW_SNOWFLAKE_ACCOUNT": "local",
                "MARKETFLOW_SNOWFLAKE_USER": "MARKETFLOW_DBT",
                "MARKETFLOW_SNOWFLAKE_PRIVATE_KEY_FILE": str(folder / "dbt.p8"),
                "MARKETFLOW_SNOWFLAKE_HOST": "127.0.0.1",
                "MARKETFLOW_SNOWFLAKE_PORT": str(tables.settings.port),
                "MARKETFLOW_SNOWFLAKE_PROTOCOL": "http",
                "MARKETFLOW_SNOWFLAKE_DATABASE": tables.settings.database,
            },
        )  # fmt: skip

    def __call__(self, *arguments: str) -> tuple[bool, str]:
        """Whether it succeeded, and what it said."""
        folders = {"project": "dbt", "profiles": "dbt"}
        places = [part for name, at in folders.items() for part in (f"--{name}-dir", str(self._root / at))]
        places += ["--target-path", str(self.target), "--log-path", str(self._folder / "logs")]
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps([*arguments, *places]) + "\n")
        self._process.stdin.flush()
        success, said = json.loads(self._process.stdout.readline())
        return success, said

    def close(self) -> None:
        self._process.communicate(timeout=60)

    def made(self, file: str) -> Any:
        """What an artefact of the last call holds."""
        return json.loads((self.target / file).read_text())

    def passes(self, *arguments: str) -> None:
        success, said = self(*arguments)
        assert success, said[-8_000:]

    def failures(self, *arguments: str) -> set[str]:
        """Names of the tests that failed; an error is none of them."""
        _, said = self(*arguments)
        results = self.made("run_results.json")["results"]
        assert {r["status"] for r in results} <= {"pass", "fail"}, said[-6_000:]
        return {self._name(r["unique_id"]) for r in results if r["status"] == "fail"}

    @staticmethod
    def _name(unique_id: str) -> str:
        """``test.marketflow.<name>`` or ``test.marketflow.<name>.<hash>``."""
        return unique_id.split(".")[2]


@pytest.fixture
def dbt(tables: Any, pytestconfig: pytest.Config, tmp_path: Path) -> Iterator[Dbt]:
    one = Dbt(tables, pytestconfig.rootpath, tmp_path)
    yield one
    one.close()
