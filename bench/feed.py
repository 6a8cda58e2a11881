"""Fills ohlcv_raw with trades and watermarks, of the simulator's synthetic market or of a capture.

One block of whole minutes is made once and published as often as asked for, ids and times moved on each time.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from confluent_kafka import KafkaError, Message, Producer
from marketflow_common import codec
from marketflow_common.events import Kline, Trade, Watermark
from marketflow_common.intervals import MINUTE
from marketflow_common.numbers import ZERO, number
from marketflow_common.topics import partition_of
from marketflow_simulator import capture, klines
from marketflow_simulator.amounts import quote8, text8
from marketflow_simulator.symbols import spec_of
from marketflow_simulator.synthetic import SyntheticTape
from marketflow_simulator.trades import Tape
from marketflow_simulator.trades import Trade as Row

__all__ = ["SYMBOLS", "Feed"]

SYMBOLS = (
    "BTCUSDT", "ETHUSDT", "SOLUSDT", "BNBUSDT", "XRPUSDT", "ADAUSDT", "DOGEUSDT", "AVAXUSDT", "LTCUSDT", "LINKUSDT",
    "TRXUSDT", "DOTUSDT", "MATICUSDT", "ATOMUSDT", "UNIUSDT", "ETCUSDT", "FILUSDT", "APTUSDT", "ARBUSDT", "OPUSDT",
    "NEARUSDT", "INJUSDT", "SUIUSDT", "SEIUSDT", "TIAUSDT", "AAVEUSDT", "ALGOUSDT", "EOSUSDT", "SANDUSDT", "FTMUSDT",
)  # fmt: skip
_START = 1_704_067_200_000_000
PARTITIONS = 3


class _Line(NamedTuple):
    """A trade (JSON around id and times) or, with ``mark``, a watermark. ``at`` is microseconds."""

    symbol: str
    partition: int
    head: bytes
    number: int
    middle: bytes
    at: int
    mark: Watermark | None


class Feed:
    """A block of whole minutes: ``size`` records, ``trades`` of them trades, each over ``span`` microseconds."""

    def __init__(self, trades: int, replay: Path | None = None, seed: int = 7) -> None:
        self._lines: list[_Line] = []
        self._counts: dict[str, int] = {}
        tapes, start = _tapes(replay, seed)
        rows = heapq.merge(*(_rows(tape, start) for tape in tapes), key=lambda pair: pair[1].at_us)
        minute, waiting = start, dict[str, list[Row]]()
        for symbol, row in rows:
            while row.at_us >= minute + MINUTE:
                self._close(waiting, minute)
                minute, waiting = minute + MINUTE, {}
                if len(self._lines) >= trades:
                    break
            if len(self._lines) >= trades:
                break
            waiting.setdefault(symbol, []).append(row)
        self.span = minute - start
        self.size = len(self._lines)
        self.trades = sum(self._counts.values())
        if not self.size:
            raise ValueError("the feed has no whole minute")

    def _close(self, minute: dict[str, list[Row]], start: int) -> None:
        for symbol, row in sorted(
            ((s, r) for s, rows in minute.items() for r in rows), key=lambda pair: (pair[1].at_us, pair[0], pair[1].id)
        ):
            count = self._counts[symbol] = self._counts.get(symbol, 0) + 1
            trade = Trade(
                "binance", symbol, 0, number(text8(row.price)), number(text8(row.qty)), row.buyer_is_maker, 0, 0
            )
            head, rest = codec.encode(trade).split(b'"trade_id":0', 1)
            middle, _ = rest.split(b'"traded_at":0', 1)
            self._lines.append(
                _Line(symbol, partition_of(symbol, PARTITIONS), head + b'"trade_id":', count, middle, row.at_us, None)
            )
        for symbol, rows in minute.items():
            kline = klines.fold(rows, start, start + MINUTE)
            if kline is None:
                continue
            last = self._counts[symbol]
            mark = Watermark("binance", symbol, start + MINUTE, last, _kline(kline, last))
            self._lines.append(_Line(symbol, partition_of(symbol, PARTITIONS), b"", last, b"", start + MINUTE, mark))

    def publish(
        self,
        bootstrap: str,
        topic: str,
        rounds: int = 1,
        pace: Callable[[int], None] | None = None,
        most: int | None = None,
    ) -> int:
        """Publish the block ``rounds`` times, ``most`` records of it; returns their number.

        ``pace(records)`` may hold it up.
        """
        failed: list[KafkaError] = []

        def on_delivery(error: KafkaError | None, _: Message) -> None:
            if error is not None:
                failed.append(error)

        producer = Producer(
            {
                "bootstrap.servers": bootstrap,
                "compression.type": "lz4",
                "linger.ms": 50,
                "batch.num.messages": 10_000,
                "queue.buffering.max.messages": 200_000,
                "log_level": 2,
            }
        )
        sent = 0
        for symbol, partition, value, headers in islice(self._records(rounds), most):
            while True:
                try:
                    producer.produce(
                        topic, value, symbol, partition=partition, headers=headers, on_delivery=on_delivery
                    )
                    break
                except BufferError:
                    producer.poll(0.05)
            sent += 1
            if not sent % 10_000:
                producer.poll(0)
                if pace is not None:
                    pace(sent)
        if producer.flush(60) or failed:
            raise RuntimeError(f"the feed is not published: {failed[:1] or 'no answer from the broker'}")
        return sent

    def _records(self, rounds: int) -> Iterator[tuple[str, int, bytes, list[tuple[str, str | bytes | None]]]]:
        mark_headers = next(codec.headers_of(line.mark) for line in self._lines if line.mark is not None)
        trade_headers = codec.headers_of(Trade("", "", 0, ZERO, ZERO, False, 0, 0))
        for turn in range(rounds):
            later = turn * self.span
            for symbol, partition, head, count, middle, at, mark in self._lines:
                moved = count + turn * self._counts[symbol]
                if mark is None:
                    at += later
                    yield (
                        symbol, partition,
                        b'%b%d%b"traded_at":%d,"received_at":%d}' % (head, moved, middle, at, at + 20_000),
                        trade_headers,
                    )  # fmt: skip
                else:
                    first = mark.kline.first_trade_id + turn * self._counts[symbol]
                    yield symbol, partition, codec.encode(_moved(mark, later, first, moved)), mark_headers


def _moved(mark: Watermark, later: int, first: int, last: int) -> Watermark:
    kline = mark.kline
    values = {name: getattr(kline, name) for name in kline.__struct_fields__} | {
        "open_time": kline.open_time + later,
        "close_time": kline.close_time + later,
        "first_trade_id": first,
        "last_trade_id": last,
    }
    return Watermark(mark.source, mark.symbol, mark.through + later, last, Kline(**values))


def _rows(tape: Tape, start: int) -> Iterator[tuple[str, Row]]:
    return ((tape.symbol, row) for row in tape.live(start))


def _tapes(replay: Path | None, seed: int) -> tuple[list[Tape], int]:
    if replay is None:
        return [SyntheticTape(spec_of(symbol), seed, _START) for symbol in SYMBOLS], _START
    tapes: list[Tape] = list(capture.load(replay).tapes)
    return tapes, min(tape.first_at_us for tape in tapes) // MINUTE * MINUTE


def _kline(kline: klines.Kline, last: int) -> Kline:
    return Kline(
        kline.open_us,
        kline.end_us - 1,
        number(text8(kline.open)),
        number(text8(kline.high)),
        number(text8(kline.low)),
        number(text8(kline.close)),
        number(text8(kline.volume)),
        number(quote8(kline.quote_volume)),
        kline.count,
        number(text8(kline.taker_volume)),
        number(quote8(kline.taker_quote_volume)),
        last - kline.count + 1,
        last,
    )
