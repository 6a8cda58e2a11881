"""Properties of the aggregator's lane over a log in memory: whatever happens to process and log, same candles."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from decimal import Decimal
from fractions import Fraction
from itertools import pairwise
from random import Random
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from marketflow_aggregator.candles import Candles
from marketflow_aggregator.folds import EMPTY, Fold, fold_of, merge
from marketflow_aggregator.lane import CandleLane
from marketflow_common import codec
from marketflow_common.events import Candle, Event, Gap, Kline, Trade, Watermark
from marketflow_common.intervals import MINUTE, window_start
from marketflow_common.kafka.client import Batch, Committed, Record, Skim

T0 = 1_723_161_240_000_000  # a whole minute
SLOW = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def wire(records: list[Record], skim: Skim | None = None) -> Batch:
    """The records as the loop gives them to a lane."""
    values: list[bytes | None] = [codec.encode(record.event) for record in records]
    if skim is not None:
        rest = skim(values)
        values, records = [values[index] for index in rest], [records[index] for index in rest]
    events = codec.decode_wire(values)
    assert events is not None
    return Batch(events, records.__getitem__)


@dataclass
class Log:
    """Input, output and committed position of one partition, as a broker would hold them."""

    events: list[Event]
    intervals: tuple[str, ...] = ()
    output: list[Record] = field(default_factory=list)
    end: int = 0
    committed: Committed = field(default_factory=lambda: Committed(-1, {}))

    def open(self) -> tuple[CandleLane, int]:
        lane, at = CandleLane(0, self.end, self.intervals), max(0, self.committed.offset)
        if "out_from" in self.committed.marks:
            for record in self.output:
                if record.offset >= self.committed.marks["out_from"]:
                    lane.restore_output(record)
        for offset in range(self.committed.marks.get("in_from", at), at):
            lane.restore_input(Record(offset, 0, self.events[offset]))
        return lane, at

    def run(self, choose: Callable[[int], int]) -> list[bytes]:
        """Work to the end; ``choose(n)`` decides about batch sizes (0: die) and about commits without output."""
        lane, at = self.open()
        lives = 0
        while at < len(self.events):
            size = choose(6)
            if size == 0 and lives < 40:
                lives += 1
                lane, at = self.open()
                continue
            batch = [Record(at + i, 0, event) for i, event in enumerate(self.events[at : at + max(1, size * size)])]
            # Whether or not trades are taken in before they are events makes no difference.
            outputs = lane.process(wire(batch, lane.skim if choose(4) else None))
            at += len(batch)
            position = lane.position(at)
            assert position.offset == at
            if choose(8) == 0 and lives < 40:  # dies before the commit
                lives += 1
                lane, at = self.open()
                continue
            if outputs or choose(3) == 0:
                offsets = list(range(self.end, self.end + len(outputs)))
                for offset, event in zip(offsets, outputs, strict=True):
                    self.output.append(Record(offset, 0, event))
                self.end += len(outputs) + 1  # a transaction's marker takes an offset too
                self.committed = position
                lane.delivered(outputs, offsets)
        return [codec.encode(record.event) for record in self.output]


def never(_: int) -> int:
    return 1


@dataclass
class Market:
    """A log, and the truth behind it."""

    log: list[Event]
    trades: dict[str, list[Trade]]
    lost: set[tuple[str, int]]


def kline_of(trades: list[tuple[int, Trade]], start: int) -> Kline:
    """The exchange's own word on a window, by trades and their windows; only its ids are true where it is empty."""
    mine = [t for window, t in trades if window == start]
    if not mine:
        last = max(window for window, _ in trades if window < start)
        price = [t for window, t in trades if window == last][-1].price
        zero = Decimal(0)
        return Kline(start, start + MINUTE - 1, price, price, price, price, zero, zero, 0, zero, zero, -1, -1)
    return Kline(start, start + MINUTE - 1, *totals(mine), mine[0].trade_id, mine[-1].trade_id)


def totals(trades: list[Trade]) -> tuple[Any, ...]:
    buys = [t for t in trades if not t.buyer_is_maker]
    return (
        trades[0].price,
        max(t.price for t in trades),
        min(t.price for t in trades),
        trades[-1].price,
        sum((t.qty for t in trades), Decimal(0)),
        sum((t.qty * t.price for t in trades), Decimal(0)),
        len(trades),
        sum((t.qty for t in buys), Decimal(0)),
        sum((t.qty * t.price for t in buys), Decimal(0)),
    )


STEPS = (0, 1_000, 7_000_000, 25_000_000, 59_000_000, 150_000_000)


def market(
    random: Random,
    length: int,
    symbols: int,
    *,
    holes: bool = True,
    lose: bool = True,
    back: bool = False,
    ahead: bool = False,
) -> Market:
    """Random trades of some symbols, late, twice, lost or in order, with watermarks that keep their word.

    The exchange's windows tile the ids: it closes one with a trade of a later one, or by its clock, and what it
    publishes then, whatever its time, is in a later one; but a time far ahead closes nothing.
    """
    streams: list[list[Event]] = []
    truth: dict[str, list[Trade]] = {}
    lost: set[tuple[str, int]] = set()
    for number in range(symbols):
        symbol, at, trades = f"S{number}", T0 + 30_000_000, list[Trade]()
        windows = list[int]()  # each trade's
        now, told = 0, set[int]()  # the open one; those of which only a watermark tells that they are over
        for i in range(length):
            at += random.choice(STEPS)
            when = at
            if back and i and random.random() < 0.2:
                when = at - random.choice((1_000, 20_000_000, 60_000_000, 250_000_000))
            # Not in the cut first window: an id that steps back behind one that is ahead is told there by no candle.
            if ahead and i and now > windows[0] and random.random() < 0.15:
                when = at + random.choice((5_000_000, 20_000_000, 70_000_000, 300_000_000, 3_600_000_000, 10**11))
            price, qty = Decimal(random.randint(1, 9)), Decimal(random.randint(1, 10**6)).scaleb(-4)
            trades.append(Trade("sim", symbol, 100 + i, price, qty, random.random() < 0.5, when, min(at, when)))
            if when <= at + 10_000_000:
                now = max(now, window_start(when))
                if back and i and window_start(at) > now and random.random() < 0.5:
                    now = window_start(at)
                    told.add(now - MINUTE)
            windows.append(max(now, window_start(when)))
        truth[symbol], end = trades, window_start(at) + 2 * MINUTE
        # Holes next to the cut first window start the symbol anew, which has a test of its own.
        first = windows[0]
        whole = next((i for i, window in enumerate(windows) if window > first), length)
        stream: list[tuple[float, Event]] = []
        for i, trade in enumerate(trades):
            fate = random.randrange(10) if holes and i > whole else 9
            if fate <= 1:
                stream.append((random.uniform(i, length + 3), trade))  # late, or just in time
            elif fate == 2 and lose:
                lost.add((symbol, trade.trade_id))
                stream.append((i, Gap("sim", symbol, trade.trade_id, trade.trade_id, "lost", False)))
            else:
                stream.append((i, trade))
            if fate != 2 and random.random() < 0.1:
                stream.append((random.uniform(i + 1, length + 4), trade))  # once more, much later
        for start in range(first, end, MINUTE):
            before = max(i for i, window in enumerate(windows) if window <= start)
            if start == end - MINUTE or start in told or random.random() < 0.5:
                kline = kline_of(list(zip(windows, trades, strict=True)), start)
                # It may come behind the next trade if that tells as much as it does.
                late = random.random() < 0.3 and not any(t.traded_at < start + MINUTE for t in trades[before + 1 :][:1])
                place = length + 5 if start == end - MINUTE else before + (1.5 if late else 0.5)
                stream.append((place, Watermark("sim", symbol, start + MINUTE, trades[before].trade_id, kline)))
        streams.append([event for _, event in sorted(stream, key=lambda pair: pair[0])])
    log: list[Event] = []
    while any(streams):
        log.append(random.choice([s for s in streams if s]).pop(0))
    return Market(log, truth, lost)


randoms = st.integers(0, 2**64).map(Random)
sizes = st.integers(3, 25)
few = st.integers(1, 3)
kinds = st.sampled_from(["holes", "back", "ahead", "back, ahead"])


def oracle(log: list[Event], symbol: str, end: int, minutes: int = 1) -> dict[int, tuple[Any, ...]]:
    """Whole windows of a log from its sorted, deduplicated trades, in fractions: no code of the suite."""
    length = minutes * 60_000_000
    trades = list({e.trade_id: e for e in log if isinstance(e, Trade) and e.symbol == symbol}.values())
    trades.sort(key=lambda t: t.trade_id)
    marks = [e for e in log if isinstance(e, Watermark) and e.symbol == symbol]
    placed: list[tuple[int, Trade]] = []
    now = 0  # the latest minute that a trade up to here, or a watermark before it, has shown to have begun
    for trade in trades:
        own = trade.traded_at // 60_000_000 * 60_000_000
        if trade.traded_at - trade.received_at <= 10_000_000:
            now = max(now, own)
        now = max(now, *(mark.through for mark in marks if mark.last_trade_id < trade.trade_id), 0)
        placed.append((max(now, own), trade))
    rows: dict[int, list[Trade]] = {}
    for minute, trade in placed:
        rows.setdefault(minute // length * length, []).append(trade)
    start = -(-(placed[0][0] + 60_000_000) // length) * length  # the first minute is cut
    newest = max(minute for minute, _ in placed if minute < start)
    last = Fraction([t for minute, t in placed if minute == newest][-1].price)
    result = dict[int, tuple[Any, ...]]()
    for window in range(start, end - length + 1, length):
        mine = [(Fraction(t.price), Fraction(t.qty), t.buyer_is_maker) for t in rows.get(window, [])]
        prices = [price for price, _, _ in mine] or [last]
        buys = [(price, qty) for price, qty, maker in mine if not maker]
        last = prices[-1]
        result[window] = (
            prices[0], max(prices), min(prices), last, sum(qty for _, qty, _ in mine), sum(p * q for p, q, _ in mine),
            len(mine), sum(qty for _, qty in buys), sum(p * q for p, q in buys),
        )  # fmt: skip
    return result


def fields(candle: Candle) -> tuple[Any, ...]:
    return (
        candle.open, candle.high, candle.low, candle.close, candle.volume, candle.quote_volume, candle.trade_count,
        candle.taker_buy_volume, candle.taker_buy_quote_volume,
    )  # fmt: skip


def latest(log: Log, symbol: str, interval: str = "1m") -> dict[int, Candle]:
    found: dict[int, Candle] = {}
    for record in log.output:
        candle = record.event
        if candle.symbol == symbol and candle.interval == interval:
            known = found.get(candle.open_time)
            assert known is None or candle.revision == known.revision + 1
            found[candle.open_time] = candle
    return dict(sorted(found.items()))


def choices(random: Random) -> Callable[[int], int]:
    return lambda n: random.randint(0, n)


@SLOW
@given(randoms, sizes, few)
def test_any_cut_of_the_log_into_restarts_gives_the_same_bytes(random: Random, length: int, symbols: int) -> None:
    log = market(random, length, symbols).log
    assert Log(log).run(choices(random)) == Log(log).run(never)


@SLOW
@given(randoms, sizes, few)
def test_restarts_change_nothing_where_times_step_back(random: Random, length: int, symbols: int) -> None:
    log = market(random, length, symbols, back=True).log
    assert Log(log).run(choices(random)) == Log(log).run(never)


@SLOW
@given(randoms, sizes, few, st.booleans())
def test_restarts_change_nothing_where_trades_are_ahead_of_their_time(
    random: Random, length: int, symbols: int, back: bool
) -> None:
    log = market(random, length, symbols, holes=False, back=back, ahead=True).log
    assert Log(log).run(choices(random)) == Log(log).run(never)


@SLOW
@given(randoms, sizes, few, st.booleans())
def test_a_trade_ahead_of_its_time_is_in_the_window_of_its_time_and_closes_none(
    random: Random, length: int, symbols: int, back: bool
) -> None:
    world = market(random, length, symbols, holes=False, back=back, ahead=True)
    log = Log(world.log)
    log.run(choices(random))
    for symbol in world.trades:
        end = max(e.through for e in world.log if isinstance(e, Watermark) and e.symbol == symbol)
        assert {at: fields(c) for at, c in latest(log, symbol).items()} == oracle(world.log, symbol, end)


@SLOW
@given(randoms, sizes, few, st.booleans())
def test_whatever_comes_late_or_twice_or_dies_the_candles_are_the_fold_of_the_sorted_trades(
    random: Random, length: int, symbols: int, back: bool
) -> None:
    world = market(random, length, symbols, holes=not back, lose=False, back=back)
    log = Log(world.log)
    log.run(choices(random))
    for symbol in world.trades:
        candles = latest(log, symbol)
        end = max(e.through for e in world.log if isinstance(e, Watermark) and e.symbol == symbol)
        assert {at: fields(c) for at, c in candles.items()} == oracle(world.log, symbol, end)
        assert not any(c.missing for c in candles.values())


@SLOW
@given(randoms, sizes, few)
def test_candles_tile_the_ids_where_trades_come_late_and_times_step_back(
    random: Random, length: int, symbols: int
) -> None:
    world = market(random, length, symbols, lose=False, back=True)
    log = Log(world.log)
    log.run(choices(random))
    for symbol, trades in world.trades.items():
        candles = list(latest(log, symbol).values())
        for before, after in pairwise(candles):
            assert after.open_time == before.close_time + 1
            assert after.first_trade_id == before.last_trade_id + 1
        for candle in candles:
            assert candle.trade_count == candle.last_trade_id - candle.first_trade_id + 1
            mine = [t for t in trades if candle.first_trade_id <= t.trade_id <= candle.last_trade_id]
            if mine:
                assert fields(candle) == totals(mine)
        assert candles[-1].last_trade_id == trades[-1].trade_id
        assert not any(c.missing for c in candles)


@SLOW
@given(randoms, sizes, few, st.booleans())
def test_a_whole_log_needs_no_revision(random: Random, length: int, symbols: int, ahead: bool) -> None:
    log = Log(market(random, length, symbols, holes=False, back=True, ahead=ahead).log)
    log.run(choices(random))
    assert all(r.event.revision == 0 for r in log.output)


@SLOW
@given(randoms, sizes, few)
def test_a_whole_log_needs_no_watermark(random: Random, length: int, symbols: int) -> None:
    world = market(random, length, symbols, holes=False)
    log, bare = Log(world.log), Log([e for e in world.log if not isinstance(e, Watermark)])
    log.run(never)
    bare.run(never)
    for symbol in world.trades:
        with_marks, without = list(latest(log, symbol).values()), list(latest(bare, symbol).values())
        assert with_marks[: len(without)] == without


@SLOW
@given(randoms, sizes, few, st.booleans(), st.booleans())
def test_candles_of_a_whole_log_equal_the_klines_of_its_watermarks(
    random: Random, length: int, symbols: int, back: bool, ahead: bool
) -> None:
    world = market(random, length, symbols, holes=False, back=back, ahead=ahead)
    core = Candles()
    core.process([(i, 0, event) for i, event in enumerate(world.log)])
    marks = sum(isinstance(e, Watermark) for e in world.log)
    assert core.counts["different"] == 0
    assert 0 < core.counts["equal"] <= marks


@SLOW
@given(randoms, sizes, few)
def test_a_missing_trade_is_named_by_the_candle_it_belongs_to(random: Random, length: int, symbols: int) -> None:
    world = market(random, length, symbols)
    log = Log(world.log)
    log.run(never)
    for symbol, trades in world.trades.items():
        for candle in latest(log, symbol).values():
            missing = {i for lo, hi in candle.missing for i in range(lo, hi + 1)}
            mine = [t for t in trades if window_start(t.traded_at) == candle.open_time]
            gone = {t.trade_id for t in mine if (symbol, t.trade_id) in world.lost}
            ids = range(candle.first_trade_id, candle.last_trade_id + 1)
            assert gone <= missing <= set(ids)
            assert candle.trade_count == len(ids) - len(missing) == len(mine) - len(gone)


def numbers(places: int) -> st.SearchStrategy[Decimal]:
    return st.integers(1, 10**38 - 1).map(lambda n: Decimal(n).scaleb(-places))


LONGER = {"5m": 5, "15m": 15, "1h": 60}


@SLOW
@given(randoms, sizes, few, kinds)
def test_longer_candles_are_the_same_bytes_however_the_log_is_cut(
    random: Random, length: int, symbols: int, kind: str
) -> None:
    log = market(random, length, symbols, holes=kind == "holes", back="back" in kind, ahead="ahead" in kind).log
    whole = Log(log, tuple(LONGER)).run(never)
    assert Log(log, tuple(LONGER)).run(choices(random)) == whole
    assert [b for b in whole if b'"interval":"1m"' in b] == Log(log).run(never)


@SLOW
@given(randoms, sizes, few, kinds)
def test_longer_candles_are_the_fold_of_the_sorted_trades(random: Random, length: int, symbols: int, kind: str) -> None:
    world = market(
        random, length, symbols, lose=False, holes=kind == "holes", back="back" in kind, ahead="ahead" in kind
    )
    log = Log(world.log, tuple(LONGER))
    log.run(choices(random))
    for symbol in world.trades:
        end = max(e.through for e in world.log if isinstance(e, Watermark) and e.symbol == symbol)
        for interval, minutes in LONGER.items():
            candles = latest(log, symbol, interval)
            assert {at: fields(c) for at, c in candles.items()} == oracle(world.log, symbol, end, minutes)
            assert not any(c.missing for c in candles.values())


@SLOW
@given(randoms, sizes, few)
def test_a_longer_candle_names_what_its_minutes_miss(random: Random, length: int, symbols: int) -> None:
    world = market(random, length, symbols)
    log = Log(world.log, tuple(LONGER))
    log.run(choices(random))
    for symbol, trades in world.trades.items():
        for interval, minutes in LONGER.items():
            for candle in latest(log, symbol, interval).values():
                missing = {i for lo, hi in candle.missing for i in range(lo, hi + 1)}
                inside = range(candle.open_time, candle.open_time + minutes * MINUTE)
                mine = [t for t in trades if t.traded_at in inside]
                gone = {t.trade_id for t in mine if (symbol, t.trade_id) in world.lost}
                ids = range(candle.first_trade_id, candle.last_trade_id + 1)
                assert gone <= missing <= set(ids)
                assert candle.trade_count == len(ids) - len(missing) == len(mine) - len(gone)


trade_lists = st.lists(st.tuples(numbers(18), numbers(18), st.booleans()), min_size=1, max_size=12).map(
    lambda rows: [Trade("sim", "S", i, p, q, m, T0, T0) for i, (p, q, m) in enumerate(rows)]
)


@given(trade_lists, randoms)
def test_folds_are_a_commutative_monoid_and_exact_for_the_longest_numbers(trades: list[Trade], random: Random) -> None:
    whole = EMPTY
    for trade in trades:
        whole = merge(whole, fold_of(trade))
    folds = [fold_of(trade) for trade in trades]
    while len(folds) > 1:
        a, b = random.sample(range(len(folds)), 2)
        one, two = folds[a], folds[b]
        folds = [f for i, f in enumerate(folds) if i not in (a, b)] + [merge(merge(one, EMPTY), merge(EMPTY, two))]
    assert folds == [whole]
    amounts = [(Fraction(t.price), Fraction(t.qty)) for t in trades]
    assert Fraction(whole.volume) == sum(qty for _, qty in amounts)
    assert Fraction(whole.quote_volume) == sum(price * qty for price, qty in amounts)


@given(trade_lists, st.integers(0, 12), st.integers(0, 12))
def test_merge_is_associative_and_commutative_with_the_empty_fold_as_identity(
    trades: list[Trade], one: int, two: int
) -> None:
    low, high = sorted((one, two))
    a, b, c = (reduced(part) for part in (trades[:low], trades[low:high], trades[high:]))
    assert merge(merge(a, b), c) == merge(a, merge(b, c))
    assert merge(a, b) == merge(b, a)
    assert merge(a, EMPTY) == a == merge(EMPTY, a)


def reduced(trades: list[Trade]) -> Fold:
    fold = EMPTY
    for trade in trades:
        fold = merge(fold, fold_of(trade))
    return fold
