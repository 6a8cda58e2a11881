"""A small world that is right in everything, for tests to damage one thing at a time; and the command line.

The world is made by plain code of its own: three symbols, some minutes of trades from a seed, and all that follows from
them.
"""

from __future__ import annotations

import json
import os
import random
import re
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import msgspec
import pytest
from marketflow_common import codec, events
from marketflow_common.topics import ALL, partition_of
from marketflow_operator import cli
from marketflow_operator.audit.books import Position, fold_position
from marketflow_operator.audit.model import (
    Evidence,
    Exchange,
    ExchangeFill,
    ExchangeOrder,
    ExchangeTrade,
    Message,
    Row,
    Seen,
    SymbolFeed,
    Warehouse,
    Where,
)
from marketflow_operator.audit.model import Position as LoadPosition
from typer.testing import CliRunner

MINUTE = 60_000_000
START = 1_723_161_300_000_000  # 2024-08-08 23:55:00
SYMBOLS = {"BTCUSDT": ("BTC", "USDT"), "ETHUSDT": ("ETH", "USDT"), "SOLUSDT": ("SOL", "USDT")}
IDS = {name: f"id-of-{name}" for name in ALL}
KINDS = {
    "trade": "RAW.TRADES",
    "watermark": "RAW.FEED_EVENTS",
    "gap": "RAW.FEED_EVENTS",
    "candle": "STAGING.OHLCV_STREAM",
    "signal": "ANALYTICS.SIGNALS_STREAM",
    "command": "ANALYTICS.COMMANDS",
}
DUE = ("order_filled", "order_rejected", "order_expired", "order_canceled", "order_unresolved", "trading_state_changed")


class World:
    """Builds the evidence of a run in which nothing went wrong."""

    def __init__(self, minutes: int = 4, seed: int = 1, cut_first: bool = False, ended: bool = True) -> None:
        self.random = random.Random(seed)
        self.records: dict[str, list[Seen]] = {name: [] for name in ALL}
        self.offsets: dict[tuple[str, int], int] = {}
        self.clock_ms = 1_700_000_000_000
        self.orders: list[ExchangeOrder] = []
        self.fills: list[ExchangeFill] = []
        self.balances = {"USDT": Decimal(100000), "BTC": Decimal(0), "ETH": Decimal(0), "SOL": Decimal(0)}
        self.positions: dict[str, Position] = {}
        self.feeds: dict[str, SymbolFeed] = {}
        self.cut_first, self.ended = cut_first, ended
        self.say("order_events", events.AccountOpened("main", "testnet", dict(self.balances), START))
        for number, symbol in enumerate(SYMBOLS):
            self.symbol(symbol, 1000 * (number + 1), minutes)

    def say(self, topic: str, event: Any) -> Where:
        key = codec.key_of(event)
        partition = partition_of(key, 3)
        self.offsets[topic, partition] = offset = self.offsets.get((topic, partition), -1) + self.random.choice((1, 2))
        self.clock_ms += self.random.randrange(20)
        where = Where(topic, partition, offset)
        self.records[topic].append(Seen(where, self.clock_ms, key, event))
        return where

    def symbol(self, symbol: str, first_id: int, minutes: int) -> None:
        number, price = first_id, Decimal(self.random.randrange(100, 3000))
        trades: list[ExchangeTrade] = []
        klines: dict[int, events.Kline] = {}
        for minute in range(minutes + 1):
            start = START + minute * MINUTE
            at = start + (15_000_000 if self.cut_first and not minute else 7_000)
            begin = len(trades)
            # The third minute has no trades; the last one stays open.
            for _ in range(0 if minute == 2 else self.random.randrange(2, 6)):
                price += Decimal(self.random.randrange(-50, 51)) / 100
                qty = Decimal(self.random.randrange(1, 500)).scaleb(-4)
                trades.append(ExchangeTrade(number, price, qty, at, self.random.random() < 0.5))
                self.say("ohlcv_raw", events.Trade("sim", symbol, *trades[-1][:3], trades[-1][4], at, at + 5))
                number, at = number + 1, at + self.random.randrange(1, 8_000_000)
            if minute == minutes:
                break
            kline = self.kline(trades[begin:], start, price, trades)
            klines[start] = kline
            self.say("ohlcv_raw", events.Watermark("sim", symbol, start + MINUTE, number - 1, kline))
            first = number - len(trades) + begin
            candle = events.Candle(
                symbol, "1m", *msgspec.structs.astuple(kline)[:11], first_trade_id=first, last_trade_id=number - 1
            )
            self.say("ohlcv_agg", candle)
            self.signals(candle)
        history = [ExchangeTrade(first_id - 1, price, Decimal(1), START - 1, False)]
        self.feeds[symbol] = SymbolFeed(
            symbol,
            trades if self.cut_first else history + trades,
            klines,
            trades[0].trade_id,
            trades[0].trade_id if self.cut_first else first_id - 1,
        )

    def kline(self, trades: list[ExchangeTrade], start: int, last: Decimal, _: Any) -> events.Kline:
        zero = Decimal("0.00000000")
        prices = [t.price for t in trades] or [last]
        taker = [t for t in trades if not t.buyer_is_maker]
        return events.Kline(
            start,
            start + MINUTE - 1,
            prices[0],
            max(prices),
            min(prices),
            prices[-1],
            sum((t.qty for t in trades), zero),
            sum((t.qty * t.price for t in trades), zero),
            len(trades),
            sum((t.qty for t in taker), zero),
            sum((t.qty * t.price for t in taker), zero),
            trades[0].trade_id if trades else -1,
            trades[-1].trade_id if trades else -1,
        )

    def signals(self, candle: events.Candle) -> None:
        minute = (candle.open_time - START) // MINUTE
        for strategy, kind in (("cycle", ("HOLD", "BUY", "SELL", "BUY", "SELL")[minute % 5]), ("weak_levels", "HOLD")):
            signal = events.Signal(
                f"{strategy}-{candle.symbol}-{minute}",
                strategy,
                "p1",
                candle.symbol,
                "1m",
                candle.open_time,
                candle.close,
                candle.volume,
                Decimal("0.00012300"),
                kind,  # type: ignore[arg-type]
                candle.last_trade_id,
                {"low": candle.low},
                ("because",),
            )
            self.say("trading_signals", signal)
            if kind != "HOLD":
                self.order(signal)

    def order(self, signal: events.Signal) -> None:
        symbol, side = signal.symbol, signal.signal_type
        if side == "SELL" and not self.positions.get(symbol, Position()).qty:
            self.say(
                "order_events",
                events.SignalSkipped("main", signal.id, symbol, side, "nothing_held", "there is no position"),
            )
            return
        number = f"mf-{signal.id}"
        held = self.positions.get(symbol, Position())
        qty = Decimal("0.0500") if side == "BUY" else held.qty.quantize(Decimal("0.0001"), "ROUND_DOWN")
        quote = qty * signal.close
        asset = SYMBOLS[symbol][0 if side == "BUY" else 1]
        fee = ((qty if side == "BUY" else quote) / 1000).quantize(Decimal("1e-8"), "ROUND_DOWN")
        order_id = len(self.orders) + 1
        assert side != "HOLD"
        self.say(
            "order_events",
            events.OrderIntended(
                "main",
                number,
                signal.id,
                1,
                symbol,
                side,
                "MARKET",
                qty,
                None,
                None,
                self.clock_ms,
                5000,
                "testnet",
                signal.close,
                signal.last_trade_id,
            ),
        )
        self.say("order_events", events.OrderAccepted("main", number, signal.id, symbol, order_id, START))
        fill = events.OrderFilled(
            "main",
            number,
            signal.id,
            symbol,
            side,
            order_id,
            order_id + 500,
            signal.close,
            qty,
            quote,
            fee,
            asset,
            Decimal(0),
            None,
            Decimal(0),
            Decimal(0),
            START,
            True,
        )
        fold = fold_position(held, fill, *SYMBOLS[symbol])
        self.positions[symbol] = fold.position
        self.say(
            "order_events",
            msgspec.structs.replace(
                fill,
                realized_pnl=fold.realized,
                profit_pct=fold.profit_pct,
                position_qty=fold.position.qty,
                position_cost=fold.position.cost,
            ),
        )
        self.orders.append(ExchangeOrder(symbol, number, order_id, side, "MARKET", "FILLED", qty, quote))
        self.fills.append(ExchangeFill(symbol, order_id + 500, order_id, side, signal.close, qty, quote, fee, asset))
        base, quoted = SYMBOLS[symbol]
        sign = 1 if side == "BUY" else -1
        self.balances[base] += sign * qty
        self.balances[quoted] -= sign * quote
        self.balances[asset] -= fee

    def evidence(self) -> Evidence:
        ends = {(name, p): self.offsets.get((name, p), -1) + 2 for name in ALL for p in range(3)}
        records = {name: sorted(seen, key=lambda s: s.where) for name, seen in self.records.items()}
        return Evidence(
            records=records,
            partitions=3,
            ends=ends,
            topic_ids=IDS,
            exchange=Exchange(
                self.feeds, self.ended, START + 10 * MINUTE, self.orders, self.fills, self.balances, SYMBOLS
            ),
            warehouse=self.warehouse(records, ends),
            recorded=self.recording(records),
            channels=("telegram", "discord"),
            notifier_restarts=0,
            from_start=True,
        )

    def warehouse(self, records: dict[str, list[Seen]], ends: dict[tuple[str, int], int]) -> Warehouse:
        tables: dict[str, list[Row]] = {
            "RAW.TRADES": [],
            "RAW.FEED_EVENTS": [],
            "STAGING.OHLCV_STREAM": [],
            "ANALYTICS.SIGNALS_STREAM": [],
            "ANALYTICS.COMMANDS": [],
            "ANALYTICS.ORDER_EVENTS": [],
            "RAW.REJECTS": [],
        }
        for seen in (s for topic in records.values() for s in topic):
            kind = codec.schema_of(seen.event)
            tables[KINDS.get(kind, "ANALYTICS.ORDER_EVENTS")].append(self.row(seen, kind))
        return Warehouse(tables, [LoadPosition(t, IDS[t], p, end) for (t, p), end in ends.items()])

    @staticmethod
    def row(seen: Seen, kind: str) -> dict[str, Any]:
        fields = {name: getattr(seen.event, name) for name in seen.event.__struct_fields__}
        if kind == "watermark":
            kline = fields.pop("kline")
            fields |= {f"kline_{name}": getattr(kline, name) for name in kline.__struct_fields__}
        row: dict[str, Any] = {
            "KAFKA_TOPIC": seen.where.topic,
            "KAFKA_TOPIC_ID": IDS[seen.where.topic],
            "KAFKA_PARTITION": seen.where.partition,
            "KAFKA_OFFSET": seen.where.offset,
            "KAFKA_APPENDED_AT": _at(seen.appended_ms * 1000),
            "LANDED_AT": _at(seen.appended_ms * 1000),
            "EVENT_TYPE": kind,
        }
        for name, value in fields.items():
            if name.endswith(("_at", "open_time", "close_time")) or name == "through":
                value = _at(value)
            elif isinstance(value, tuple | dict):
                value = json.dumps(msgspec.to_builtins(value))
            elif isinstance(value, Decimal):
                value = value.quantize(Decimal("1e-18"))
            row[name.upper()] = value
        return row

    @staticmethod
    def recording(records: dict[str, list[Seen]]) -> list[Message]:
        due = [
            seen.where
            for seen in (*records["trading_signals"], *records["order_events"])
            if codec.schema_of(seen.event) in DUE
            or (codec.schema_of(seen.event) == "signal" and seen.event.signal_type != "HOLD")
        ]
        return [
            Message(channel, "\n".join(f"something happened · {where}" for where in due[at : at + 2]))
            for channel in ("telegram", "discord")
            for at in range(0, len(due), 2)
        ]


def _at(micros: int) -> datetime:
    return datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=micros)


@pytest.fixture
def world() -> Callable[..., Evidence]:
    """Evidence of a run in which nothing went wrong: ``world(minutes=…, seed=…, cut_first=…, ended=…)``."""

    def build(**options: Any) -> Evidence:
        return World(**options).evidence()

    return build


@pytest.fixture
def edit() -> Callable[..., Evidence]:
    """``edit(evidence, topic, position_or_predicate, change)``: one record of a topic replaced, or None to drop it."""

    def apply(
        evidence: Evidence, topic: str, which: Callable[[Seen], bool], change: Callable[[Seen], Seen | None]
    ) -> Evidence:
        done, records = False, []
        for seen in evidence.records[topic]:
            if not done and which(seen):
                done = True
                changed = change(seen)
                if changed is not None:
                    records.append(changed)
            else:
                records.append(seen)
        assert done, "the test found nothing to damage"
        return replace(evidence, records={**evidence.records, topic: records})

    return apply


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[int, str]]:
    """The command line in this process, without any setting but a state folder of its own.

    ``run("status")`` -> (code, text).
    """
    for name in list(os.environ):
        if name.startswith("MARKETFLOW_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("MARKETFLOW_STACK_STATE", str(tmp_path / "state"))

    def invoke(*arguments: str) -> tuple[int, str]:
        cli.err.file, cli.out.file = None, None  # type: ignore[assignment]  # the streams of this invocation
        found = CliRunner().invoke(cli.app, list(arguments))
        return found.exit_code, re.sub(r"\x1b\[[0-9;]*m", "", found.output)

    return invoke
