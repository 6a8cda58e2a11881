"""Candles of every interval beside the exchange's klines, in every field, as the texts that go over the wire.

The market and its klines are the simulator's, which folds whole numbers by code of its own; a recording of real
trades takes part where there is one.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path

import msgspec
import pytest
from marketflow_aggregator.lane import CandleLane
from marketflow_common import codec
from marketflow_common.events import Event, Trade
from marketflow_common.intervals import INTERVALS, MINUTE, window_start
from marketflow_common.kafka.client import Batch, Record
from marketflow_common.numbers import number
from marketflow_simulator import capture, klines
from marketflow_simulator.amounts import quote8, text8
from marketflow_simulator.symbols import spec_of
from marketflow_simulator.synthetic import SyntheticTape
from marketflow_simulator.trades import Trade as Row

START = 1_704_067_200_000_000  # a midnight
BATCH = 2_000


def batches(rows: Iterable[tuple[str, Row]]) -> Iterator[Batch]:
    """What the ingestor would publish, as the loop gives it to the aggregator."""
    records = (
        codec.encode(
            Trade(
                "binance", symbol, row.id, number(text8(row.price)), number(text8(row.qty)), row.buyer_is_maker,
                row.at_us, row.at_us + 20_000,
            )
        )
        for symbol, row in rows
    )  # fmt: skip
    offset = 0
    while values := list(islice(records, BATCH)):
        events = codec.decode_wire(values)
        assert events is not None
        yield Batch(events, lambda i, events=events, offset=offset: Record(offset + i, 0, events[i]))  # type: ignore[misc]
        offset += len(values)


def candles(rows: Iterable[tuple[str, Row]]) -> dict[tuple[str, str, int], dict[str, object]]:
    """Candles as JSON fields, by symbol, interval and open time."""
    lane, made = CandleLane(0, 0, tuple(INTERVALS)), list[Event]()
    for batch in batches(rows):
        made += lane.process(batch)
    found: dict[tuple[str, str, int], dict[str, object]] = {}
    for event in made:
        fields = msgspec.json.decode(codec.encode(event))
        key = (fields["symbol"], fields["interval"], fields["open_time"])
        assert key not in found, "a fault-free run states each candle once"
        found[key] = fields
    return found


def expected(symbol: str, interval: str, kline: klines.Kline) -> dict[str, object]:
    return {
        "type": "candle", "symbol": symbol, "interval": interval,
        "open_time": kline.open_us, "close_time": kline.end_us - 1,
        "open": text8(kline.open), "high": text8(kline.high), "low": text8(kline.low), "close": text8(kline.close),
        "volume": text8(kline.volume), "quote_volume": quote8(kline.quote_volume), "trade_count": kline.count,
        "taker_buy_volume": text8(kline.taker_volume), "taker_buy_quote_volume": quote8(kline.taker_quote_volume),
        "first_trade_id": kline.first_id, "last_trade_id": kline.last_id,
    }  # fmt: skip


def exchange_klines(rows: list[Row], interval: str, since: int, until: int) -> Iterator[klines.Kline]:
    """Whole windows from ``since`` to ``until``; the ids of one without trades are those of our candles."""
    length = INTERVALS[interval]
    windows: dict[int, list[Row]] = {}
    for row in rows:
        windows.setdefault(window_start(row.at_us, interval), []).append(row)
    before = next((row for row in reversed(rows) if row.at_us < since), None)
    for at in range(window_start(since + length - 1, interval), until, length):
        mine = windows.get(at, [])
        if mine:
            kline = klines.fold(mine, at, at + length)
            assert kline is not None
            before = mine[-1]
            yield kline
        elif before is not None:
            kline = klines.flat(at, at + length, before.price)
            kline.first_id, kline.last_id = before.id + 1, before.id
            yield kline


def plain(fields: dict[str, object]) -> dict[str, object]:
    return {name: value for name, value in fields.items() if name not in ("missing", "revision")}


def compare(rows: dict[str, list[Row]], since: int) -> dict[str, int]:
    """Compare all whole windows from ``since`` on; returns how many there were of each interval."""
    merged = heapq.merge(
        *([(symbol, row) for row in mine] for symbol, mine in rows.items()), key=lambda pair: pair[1].at_us
    )
    found = candles(merged)
    compared = dict.fromkeys(INTERVALS, 0)
    for symbol, mine in rows.items():
        for interval in INTERVALS:
            until = window_start(mine[-1].at_us, interval)
            for kline in exchange_klines(mine, interval, since, until):
                assert plain(found[symbol, interval, kline.open_us]) == expected(symbol, interval, kline)
                compared[interval] += 1
    assert sum(compared.values()) == sum(at >= since for _, _, at in found)
    return compared


@pytest.mark.parametrize(("symbols", "hours", "step"), [(200, 1, 1), (20, 24, 30)])
def test_every_candle_of_every_interval_equals_the_exchanges(symbols: int, hours: int, step: int) -> None:
    # A whole day of 200 busy symbols would take minutes: the day's market trades in one minute of thirty and stands
    # still in between. The first trades lie before midnight: they prove where the first windows begin.
    names = [f"{a}{b}USDT" for a in "ABCDEFGHIJKLMNOPQRST" for b in "KLMNOPQRST"][:symbols]
    rows: dict[str, list[Row]] = {}
    end = START + 60 * hours * MINUTE
    for place, name in enumerate(names):
        tape = SyntheticTape(msgspec.structs.replace(spec_of(name), rate=0.1), 7, START)
        minutes = range(place % step, 60 * hours, step)
        first, last = tape.before(START), next(tape.live(START + len(minutes) * MINUTE))
        assert first is not None
        mine = [msgspec.structs.replace(first, at_us=START - 1)]
        for turn, minute in enumerate(minutes):
            at, later = START + turn * MINUTE, (minute - turn) * MINUTE
            mine += [msgspec.structs.replace(r, at_us=r.at_us + later) for r in tape.between(at, at + MINUTE)]
        mine.append(msgspec.structs.replace(last, at_us=end))
        rows[name] = [msgspec.structs.replace(row, id=i) for i, row in enumerate(mine, 1)]
    compared = compare(rows, START)
    assert compared == {interval: symbols * ((end - START) // length) for interval, length in INTERVALS.items()}


def test_of_a_recording_every_candle_equals_the_one_folded_from_its_trades(recording: Path) -> None:
    rows = {tape.symbol: list(tape.live(tape.first_at_us)) for tape in capture.load(recording).tapes}
    first = min(mine[0].at_us for mine in rows.values())
    compared = compare(rows, window_start(first, "5m") + INTERVALS["5m"])
    assert compared["1m"] >= 5
