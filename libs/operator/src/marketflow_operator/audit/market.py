"""Checks of market data: trades as the exchange made them, candles as the exchange's klines.

Pure functions from evidence to verdicts. Must never use a service's code: what is checked is not its own yardstick.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from decimal import Decimal
from operator import itemgetter
from typing import Any, Final

from marketflow_common.events import Candle, Gap, Kline, Trade, Watermark
from marketflow_common.intervals import INTERVALS, MINUTE
from marketflow_common.numbers import EXACT
from marketflow_common.topics import ALL, partition_of

from .cuts import Cut, declared_lost
from .model import Check, Evidence, Exchange, ExchangeTrade, Where, some_of, verdict

__all__ = [
    "CHECKS",
    "KLINE_FIELDS",
    "candles_equal_klines",
    "candles_once",
    "differences",
    "gaps_resolved",
    "minute_text",
    "partitions_agree",
    "trade_counts",
    "trades_equal",
    "trades_in_order",
    "trades_once",
    "watermarks_true",
]

KLINE_FIELDS: Final = (
    "open_time",
    "close_time",
    "open",
    "high",
    "low",
    "close",
    "volume",
    "quote_volume",
    "trade_count",
    "taker_buy_volume",
    "taker_buy_quote_volume",
)
Cuts = Mapping[str, Cut]


def minute_text(at: int) -> str:
    """``2024-08-08 23:55`` of microseconds; of a time that no calendar has, its number."""
    try:
        return datetime.fromtimestamp(at // 1_000_000, UTC).strftime("%Y-%m-%d %H:%M")
    except (ValueError, OverflowError, OSError):
        return f"{at} µs"


def _ranges(ids: Iterable[int]) -> list[tuple[int, int]]:
    return _joined((number, number) for number in ids)


def _joined(ranges: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """The same ids as few ranges in order, none touching another."""
    joined: list[tuple[int, int]] = []
    for first, last in sorted(ranges):
        if last < first:
            continue
        if joined and first <= joined[-1][1] + 1:
            joined[-1] = (joined[-1][0], max(joined[-1][1], last))
        else:
            joined.append((first, last))
    return joined


def _outside(first: int, last: int, covered: Sequence[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """What of the ids ``first`` to ``last`` lies in none of the joined ranges."""
    for low, high in covered[bisect_left(covered, first, key=itemgetter(1)) :]:
        if low > last:
            break
        if low > first:
            yield first, low - 1
        first = high + 1
    if first <= last:
        yield first, last


def _range_text(first: int, last: int) -> str:
    return f"{first}" if first == last else f"{first} to {last} ({last - first + 1})"


def _due(exchange: Exchange, cut: Cut) -> Sequence[ExchangeTrade]:
    return [trade for trade in exchange.feeds[cut.symbol].trades if cut.holds(trade.trade_id)]


def _published(evidence: Evidence) -> Mapping[str, Mapping[int, list[Where]]]:
    """Where each trade id of each symbol was published."""
    places: dict[str, dict[int, list[Where]]] = defaultdict(lambda: defaultdict(list))
    for seen, trade in evidence.of(Trade):
        places[trade.symbol][trade.trade_id].append(seen.where)
    return places


def _in(number: int, ranges: Iterable[tuple[int, int]]) -> bool:
    return any(first <= number <= last for first, last in ranges)


def trade_counts(evidence: Evidence, exchange: Exchange, cuts: Cuts) -> dict[str, int]:
    """Trades up to the cuts: ``sent`` by the exchange, ``published`` (distinct ids), ``lost``, ``duplicated``."""
    places, declared = _published(evidence), declared_lost(evidence)
    counts = dict.fromkeys(("sent", "published", "lost", "declared", "duplicated"), 0)
    for symbol, cut in cuts.items():
        found = places.get(symbol, {})
        for trade in _due(exchange, cut):
            copies = len(found.get(trade.trade_id, ()))
            counts["sent"] += 1
            counts["published"] += copies > 0
            counts["duplicated"] += max(0, copies - 1)
            if not copies:
                counts["declared" if _in(trade.trade_id, declared.get(symbol, ())) else "lost"] += 1
    return counts


def trades_once(evidence: Evidence, exchange: Exchange, cuts: Cuts) -> Check:
    """Every trade of the exchange, from the first due to the cut, lies exactly once in ohlcv_raw; none is invented.

    A trade that a final gap record declares lost is named but does not offend: nothing about it is hidden.
    """
    places, declared = _published(evidence), declared_lost(evidence)
    offenders, due, once, excused = [], 0, 0, 0
    for symbol, cut in cuts.items():
        found = places.get(symbol, {})
        lost = []
        for trade in _due(exchange, cut):
            copies = found.get(trade.trade_id, ())
            if not copies and _in(trade.trade_id, declared.get(symbol, ())):
                excused += 1
                continue
            due += 1
            once += len(copies) == 1
            if not copies:
                lost.append(trade.trade_id)
            elif len(copies) > 1:
                offenders.append(f"{symbol} trade {trade.trade_id} repeated at {', '.join(map(str, copies[1:]))}")
        offenders += [f"{symbol} trade {_range_text(*ids)} lost" for ids in _ranges(lost)]
        known = {trade.trade_id for trade in exchange.feeds[symbol].trades}
        newest = max(known, default=-1)
        offenders += [
            f"{symbol} trade {number} at {where[0]} is none of the exchange's"
            for number, where in found.items()
            if number not in known and cut.first_id <= number <= newest
        ]
    for symbol in places.keys() - cuts.keys():
        offenders.append(f"{symbol} at {next(iter(places[symbol].values()))[0]} is no symbol of the exchange")
    note = f"{excused} declared lost for good by a final gap record" if excused else ""
    return verdict("trades_once", due, once, offenders, note)


def trades_in_order(evidence: Evidence, exchange: Exchange, cuts: Cuts) -> Check:
    """Within a symbol ids rise by offset, except for a late trade that fills a gap recorded before."""
    last: dict[str, int] = {}
    gaps: dict[str, list[tuple[int, int]]] = defaultdict(list)
    met: dict[str, set[int]] = defaultdict(set)
    offenders, in_order, total = [], 0, 0
    for seen in evidence.records.get("ohlcv_raw", ()):
        event = seen.event
        if type(event) is Gap:
            gaps[event.symbol].append((event.first_trade_id, event.last_trade_id))
        if type(event) is not Trade:
            continue
        symbol, number = event.symbol, event.trade_id
        if number in met[symbol]:
            continue  # a repeat: trades_once names it
        met[symbol].add(number)
        total += 1
        if number > last.get(symbol, -1):
            last[symbol] = number
            in_order += 1
        elif _in(number, gaps[symbol]):
            in_order += 1
        else:
            offenders.append(f"{symbol} trade {number} at {seen.where} comes after {last[symbol]}")
    return verdict("trades_in_order", total, in_order, offenders)


def trades_equal(evidence: Evidence, exchange: Exchange, cuts: Cuts) -> Check:
    """Price, quantity, time and side of every published trade are the exchange's."""
    known = {symbol: {trade.trade_id: trade for trade in feed.trades} for symbol, feed in exchange.feeds.items()}
    offenders, compared, equal = [], 0, 0
    for seen, trade in evidence.of(Trade):
        theirs = known.get(trade.symbol, {}).get(trade.trade_id)
        if theirs is None:
            continue  # invented, or newer than the ledger: trades_once judges that
        compared += 1
        wrong = [
            f"{name} {mine} instead of {his}"
            for name, mine, his in (
                ("price", trade.price, theirs.price),
                ("qty", trade.qty, theirs.qty),
                ("traded_at", trade.traded_at, theirs.traded_at),
                ("buyer_is_maker", trade.buyer_is_maker, theirs.buyer_is_maker),
            )
            if mine != his
        ]
        equal += not wrong
        if wrong:
            offenders.append(f"{trade.symbol} trade {trade.trade_id} at {seen.where}: {', '.join(wrong)}")
    return verdict("trades_equal", compared, equal, offenders)


def gaps_resolved(evidence: Evidence, exchange: Exchange, cuts: Cuts) -> Check:
    """Every id of every gap record was published later, or is declared lost by a final one."""
    published, declared = _published(evidence), declared_lost(evidence)
    covered = {
        symbol: _joined([*_ranges(published.get(symbol, ())), *declared.get(symbol, ())])
        for symbol in {gap.symbol for _, gap in evidence.of(Gap)}
    }
    offenders = [
        f"{gap.symbol} {_range_text(*ids)} missing since {seen.where} ({gap.reason})"
        for seen, gap in evidence.of(Gap)
        for ids in _outside(gap.first_trade_id, gap.last_trade_id, covered[gap.symbol])
    ]
    return verdict("gaps_resolved", 0, len(offenders), offenders)


def watermarks_true(evidence: Evidence, exchange: Exchange, cuts: Cuts) -> Check:
    """What a watermark claims holds: its kline is the exchange's, and no earlier trade comes after it."""
    offenders, total, true = [], 0, 0
    through: dict[str, tuple[int, Where]] = {}
    gaps: dict[str, list[tuple[int, int]]] = defaultdict(list)
    last_id: dict[str, int] = {}
    met: dict[str, set[int]] = defaultdict(set)
    for seen in evidence.records.get("ohlcv_raw", ()):
        event = seen.event
        if type(event) is Gap:
            gaps[event.symbol].append((event.first_trade_id, event.last_trade_id))
        elif type(event) is Trade:
            known = through.get(event.symbol)
            late = known is not None and event.trade_id <= last_id[event.symbol]
            if late and event.trade_id not in met[event.symbol] and not _in(event.trade_id, gaps[event.symbol]):
                assert known is not None
                offenders.append(
                    f"{event.symbol} trade {event.trade_id} at {seen.where} comes after the watermark at {known[1]}"
                )
            met[event.symbol].add(event.trade_id)
        elif type(event) is Watermark:
            total += 1
            problem = _watermark_problem(event, exchange, through.get(event.symbol))
            true += not problem
            if problem:
                offenders.append(f"{event.symbol} watermark at {seen.where}: {problem}")
            through[event.symbol] = (event.through, seen.where)
            last_id[event.symbol] = max(event.last_trade_id, last_id.get(event.symbol, -1))
    return verdict("watermarks_true", total, true, offenders)


def _watermark_problem(mark: Watermark, exchange: Exchange, before: tuple[int, Where] | None) -> str:
    if before is not None and mark.through <= before[0]:
        return f"through {mark.through} does not pass {before[0]} of {before[1]}"
    feed = exchange.feeds.get(mark.symbol)
    kline = feed.klines.get(mark.kline.open_time) if feed else None
    if kline is None:
        return f"the exchange has closed no kline of {minute_text(mark.kline.open_time)}"
    if mark.through != mark.kline.close_time + 1:
        return f"through {mark.through} is not the end of its kline, {mark.kline.close_time + 1}"
    wrong = differences(mark.kline, kline, (*KLINE_FIELDS, "first_trade_id", "last_trade_id"))
    return ", ".join(wrong)


def differences(ours: Any, theirs: Any, fields: Iterable[str]) -> list[str]:
    """Of each field in which the two differ: its name, our value, and theirs."""
    return [
        f"{name} {_plain(getattr(ours, name))} instead of {_plain(getattr(theirs, name))}"
        for name in fields
        if getattr(ours, name) != getattr(theirs, name)
    ]


def _plain(value: object) -> str:
    return format(value, "f") if isinstance(value, Decimal) else str(value)


def _last_revisions(evidence: Evidence, interval: str = "1m") -> dict[str, dict[int, tuple[Where, Candle]]]:
    """The last word on every window of an interval: by symbol, and then by the window's open time."""
    latest: dict[str, dict[int, tuple[Where, Candle]]] = defaultdict(dict)
    for seen, candle in evidence.of(Candle):
        if candle.interval != interval:
            continue
        own = latest[candle.symbol]
        if candle.open_time not in own or candle.revision >= own[candle.open_time][1].revision:
            own[candle.open_time] = (seen.where, candle)
    return dict(latest)


def candles_equal_klines(evidence: Evidence, exchange: Exchange, cuts: Cuts) -> Check:
    """The last revision of every whole window equals the exchange's own kline in every field, exactly.

    Minutes, and every longer interval that is published, from the first of its candles on.

    A candle that states missing trades is compared with the exchange's trades without those. A cut first minute (see
    Cut) and the last, still open one, are named and not due.
    """
    latest = _last_revisions(evidence)
    offenders, notes, due, equal = [], [], 0, 0
    for symbol, cut in cuts.items():
        feed, own = exchange.feeds[symbol], latest.get(symbol, {})
        if cut.cut_window is not None:
            notes.append(f"{symbol} {minute_text(cut.cut_window)} is the cut first minute")
        if cut.open_window is not None:
            notes.append(f"{symbol} {minute_text(cut.open_window)} is the open last minute")
        for at in cut.windows:
            due += 1
            found = own.get(at)
            if found is None:
                offenders.append(f"{symbol} {minute_text(at)}: no candle")
                continue
            where, candle = found
            wrong = _candle_problems(candle, feed.klines[at], feed.trades)
            equal += not wrong
            if wrong:
                offenders.append(f"{symbol} {minute_text(at)} at {where}: {', '.join(wrong)}")
        judged = set(cut.windows)
        for at, (where, candle) in own.items():
            if at in judged:
                continue
            if at == cut.cut_window and at in feed.klines:
                wrong = _candle_problems(candle, feed.klines[at], feed.trades)
                if wrong:
                    offenders.append(f"{symbol} {minute_text(at)} (cut) at {where}: {', '.join(wrong)}")
            elif at not in feed.klines:
                offenders.append(f"{symbol} {minute_text(at)} at {where}: the exchange has closed no such kline")
    for interval in INTERVALS:
        latest = _last_revisions(evidence, interval) if interval != "1m" else {}
        for symbol, cut in cuts.items():
            feed, own = exchange.feeds[symbol], latest.get(symbol, {})
            klines = feed.longer.get(interval, {})
            for at in _longer_due(interval, symbol, cut, klines, latest, evidence.from_start):
                due += 1
                found = own.get(at)
                wrong = ["no candle"] if found is None else _candle_problems(found[1], klines[at], feed.trades)
                equal += not wrong
                if wrong:
                    place = f" at {found[0]}" if found else ""
                    offenders.append(f"{symbol} {interval} {minute_text(at)}{place}: {', '.join(wrong)}")
            offenders += [
                f"{symbol} {interval} {minute_text(at)} at {where}: the exchange has closed no such kline"
                for at, (where, _) in own.items()
                if at not in klines
            ]
    return verdict("candles_equal_klines", due, equal, offenders, some_of(notes))


def _longer_due(
    interval: str,
    symbol: str,
    cut: Cut,
    klines: Mapping[int, Kline],
    latest: Mapping[str, Mapping[int, Any]],
    from_start: bool,
) -> list[int]:
    """Windows of a longer interval that lie wholly in those judged.

    The interval may have been asked for in mid-run, so they begin with the first candle of it there is.
    """
    if not latest or not cut.windows:
        return []
    first, end = cut.windows[0], cut.windows[-1] + MINUTE
    if not from_start:
        first = max(first, min(latest.get(symbol) or (at for own in latest.values() for at in own)))
    return [at for at in sorted(klines) if at >= first and at + INTERVALS[interval] <= end]


def _candle_problems(candle: Candle, kline: Kline, trades: Sequence[ExchangeTrade]) -> list[str]:
    if candle.missing:
        there = [
            trade
            for trade in trades
            if kline.open_time <= trade.traded_at <= kline.close_time and not _in(trade.trade_id, candle.missing)
        ]
        rest = _fold(there, kline)
        return ["states missing trades"] if rest is None else differences(candle, rest, KLINE_FIELDS)
    wrong = differences(candle, kline, KLINE_FIELDS)
    if kline.trade_count:
        return wrong + differences(candle, kline, ("first_trade_id", "last_trade_id"))
    if candle.first_trade_id != candle.last_trade_id + 1:
        wrong.append(f"ids {candle.first_trade_id} to {candle.last_trade_id} for a minute without trades")
    return wrong


def _fold(trades: Sequence[ExchangeTrade], kline: Kline) -> Kline | None:
    """The kline of some trades of a minute, by the audit's own arithmetic; None without trades."""
    if not trades:
        return None
    volume = quote = taker = taker_quote = Decimal(0)
    for trade in trades:
        amount = EXACT.multiply(trade.price, trade.qty)
        volume, quote = EXACT.add(volume, trade.qty), EXACT.add(quote, amount)
        if not trade.buyer_is_maker:
            taker, taker_quote = EXACT.add(taker, trade.qty), EXACT.add(taker_quote, amount)
    return Kline(
        kline.open_time,
        kline.close_time,
        trades[0].price,
        max(trade.price for trade in trades),
        min(trade.price for trade in trades),
        trades[-1].price,
        volume,
        quote,
        len(trades),
        taker,
        taker_quote,
        trades[0].trade_id,
        trades[-1].trade_id,
    )


def candles_once(evidence: Evidence, exchange: Exchange, cuts: Cuts) -> Check:
    """One revision 0 per window, revisions rising by one, windows and trade ids without a hole or an overlap."""
    by_symbol: dict[tuple[str, str], dict[int, list[tuple[Where, Candle]]]] = defaultdict(lambda: defaultdict(list))
    for seen, candle in evidence.of(Candle):
        by_symbol[candle.symbol, candle.interval][candle.open_time].append((seen.where, candle))
    offenders, windows, once, revised = [], 0, 0, 0
    for (symbol, interval), statements in by_symbol.items():
        length = INTERVALS.get(interval, MINUTE)
        before: tuple[int, Candle] | None = None
        for at in sorted(statements):
            windows += 1
            problems = []
            numbers = [candle.revision for _, candle in statements[at]]
            places = ", ".join(str(where) for where, _ in statements[at])
            if numbers != list(range(len(numbers))):
                problems.append(f"revisions {numbers} at {places}")
            revised += len(numbers) > 1
            last = statements[at][-1][1]
            if last.close_time != at + length - 1 or at % length:
                problems.append(f"window {at} to {last.close_time} is not on the {interval} grid ({places})")
            if before is not None:
                if at != before[0] + length:
                    problems.append(f"no candle between {minute_text(before[0])} and {minute_text(at)}")
                elif last.first_trade_id != before[1].last_trade_id + 1:
                    problems.append(
                        f"begins with trade {last.first_trade_id} although the one before ends with "
                        f"{before[1].last_trade_id} ({places})"
                    )
            once += not problems
            offenders += [f"{symbol} {interval} {minute_text(at)}: {problem}" for problem in problems]
            before = (at, last)
    return verdict("candles_once", windows, once, offenders, f"{revised} revised" if revised else "")


def partitions_agree(evidence: Evidence, exchange: Exchange, cuts: Cuts) -> Check:
    """A key lives in the partition that the one partition function names, in every topic."""
    offenders, total, right = [], 0, 0
    for topic in ALL:
        for seen in evidence.records.get(topic, ()):
            if seen.event is None or seen.key is None:
                continue
            total += 1
            due = partition_of(seen.key, evidence.partitions)
            named = getattr(seen.event, "symbol", None)
            if seen.where.partition != due:
                offenders.append(f"{seen.key} at {seen.where} belongs in partition {due}")
            elif named is not None and named != seen.key:
                offenders.append(f"{seen.where} has key {seen.key} and symbol {named}")
            else:
                right += 1
    return verdict("partitions_agree", total, right, offenders)


CHECKS: Final = (
    trades_once,
    trades_in_order,
    trades_equal,
    gaps_resolved,
    watermarks_true,
    candles_equal_klines,
    candles_once,
    partitions_agree,
)
