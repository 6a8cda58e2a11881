"""Whether everything that follows from what the exchange has done so far has happened: what is still pending.

Pure. It looks at progress (is it there, has the position passed), never at content: that is the checks' business.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping

from marketflow_common.events import Candle, OrderFilled, Signal, SignalSkipped, Trade, Watermark
from marketflow_common.intervals import MINUTE

from .cuts import cuts_of, declared_lost
from .delivery import told_of
from .market import minute_text
from .model import Evidence, Exchange, SymbolFeed, Warehouse
from .trading import orders_of

__all__ = ["closed_until", "lagging", "pending_channels", "pending_market", "pending_topics", "pending_warehouse"]


def pending_market(evidence: Evidence) -> list[str]:
    """What ohlcv_raw and ohlcv_agg still lack of the minutes up to ``evidence.until``."""
    exchange = evidence.exchange
    if exchange is None:
        return []
    return _feed(evidence, exchange) or _candles(evidence, _minutes(evidence))


def _minutes(evidence: Evidence) -> set[tuple[str, int]]:
    return {(c.symbol, c.open_time) for _, c in evidence.of(Candle) if c.interval == "1m"}


def _candles(evidence: Evidence, there: set[tuple[str, int]]) -> list[str]:
    missing = []
    for symbol, cut in cuts_of(evidence).items():
        lacking = [at for at in cut.windows if (symbol, at) not in there]
        if lacking:
            missing.append(f"no candle of {symbol} {minute_text(lacking[0])} yet ({len(lacking)} lacking)")
    return missing


def pending_topics(evidence: Evidence) -> list[str]:
    """What the topics still lack of what follows from the minutes up to ``evidence.until``."""
    exchange = evidence.exchange
    if exchange is None:
        return []
    missing = _feed(evidence, exchange)
    if missing:
        return missing  # what follows from it cannot be there either
    candles = _minutes(evidence)
    missing = _candles(evidence, candles)
    spoken: dict[str, set[tuple[str, int]]] = defaultdict(set)
    for _, signal in evidence.of(Signal):
        spoken[f"{signal.strategy} ({signal.interval})"].add((signal.symbol, signal.open_time))
    if candles and not spoken:
        missing.append("no strategy has said anything yet")
    for strategy, said in spoken.items():
        silent = sorted(c for c in candles - said if strategy.endswith("(1m)"))
        if silent:
            missing.append(
                f"no signal of {strategy} for {silent[0][0]} {minute_text(silent[0][1])} yet ({len(silent)})"
            )
    return missing + _orders(evidence, exchange)


def _feed(evidence: Evidence, exchange: Exchange) -> list[str]:
    through: dict[str, int] = {}
    for _, mark in evidence.of(Watermark):
        through[mark.symbol] = max(mark.through, through.get(mark.symbol, 0))
    last: dict[str, int] = {}
    for _, trade in evidence.of(Trade):
        last[trade.symbol] = max(trade.trade_id, last.get(trade.symbol, -1))
    for symbol, ranges in declared_lost(evidence).items():
        last[symbol] = max(last.get(symbol, -1), *(until for _, until in ranges))
    missing = []
    for symbol, feed in exchange.feeds.items():
        due = evidence.until.get(symbol, 0)
        if through.get(symbol, 0) < due:
            missing.append(f"the watermark of {symbol} has not reached {minute_text(due)} yet")
        if exchange.ended and feed.trades and last.get(symbol, -1) < feed.trades[-1].trade_id:
            missing.append(f"{symbol} is published up to trade {last.get(symbol)} of {feed.trades[-1].trade_id}")
    return missing


def _orders(evidence: Evidence, exchange: Exchange) -> list[str]:
    orders = orders_of(evidence)
    answered = {o.intent.signal_id for o in orders.values() if o.intent is not None}
    answered |= {skip.signal_id for _, skip in evidence.of(SignalSkipped)}
    missing = [
        f"{s.signal_type} of {s.symbol} {minute_text(s.open_time)} ({seen.where}) is not answered yet"
        for seen, s in evidence.of(Signal)
        if s.signal_type != "HOLD" and s.id not in answered
    ]
    missing += [f"order {number} has no end yet" for number, order in orders.items() if order.end is None]
    recorded = {(fill.symbol, fill.fill_id) for _, fill in evidence.of(OrderFilled)}
    missing += [
        f"{fill.symbol} fill {fill.fill_id} is not recorded yet"
        for fill in exchange.fills
        if (fill.symbol, fill.fill_id) not in recorded
    ]
    known = {(fill.symbol, fill.fill_id) for fill in exchange.fills}
    # The ledger was read before the topics: a fill that only the topic has is newer than the ledger.
    real = {number for number, order in orders.items() if order.intent is None or order.intent.mode != "paper"}
    missing += [
        f"{fill.symbol} fill {fill.fill_id} is newer than the ledger that was read"
        for _, fill in evidence.of(OrderFilled)
        if fill.order_id in real and (fill.symbol, fill.fill_id) not in known
    ]
    return missing


def pending_warehouse(evidence: Evidence, warehouse: Warehouse) -> list[str]:
    """Partitions of which the loader's position has not passed the last record."""
    needed = _needed(evidence)
    return [
        f"the loader stands at {at} of {needed[key]} in {key[0]}/{key[1]}"
        for key, at in sorted(lagging(evidence, warehouse).items())
    ]


def lagging(evidence: Evidence, warehouse: Warehouse) -> dict[tuple[str, int], int]:
    """The loader's position, 0 if it has none, of each partition whose last record it has not passed."""
    positions: dict[tuple[str, int], int] = {}
    for p in warehouse.positions:
        key = (p.topic.removeprefix(evidence.prefix), p.partition)
        made = evidence.topic_ids.get(key[0])
        if made is None or made == p.topic_id:
            positions[key] = max(p.next_offset, positions.get(key, 0))
    return {key: positions.get(key, 0) for key, end in _needed(evidence).items() if positions.get(key, 0) < end}


def _needed(evidence: Evidence) -> dict[tuple[str, int], int]:
    needed: dict[tuple[str, int], int] = {}
    for records in evidence.records.values():
        for seen in records:
            key = (seen.where.topic, seen.where.partition)
            needed[key] = max(needed.get(key, 0), seen.where.offset + 1)
    return needed


def pending_channels(evidence: Evidence) -> list[str]:
    """Channels that have not told the last due record of each partition yet."""
    due, told = told_of(evidence)
    newest = {(where.topic, where.partition): where for where in sorted(due)}
    return [
        f"{channel} was told of {len(due & found.keys())} of {len(due)} yet"
        for channel, found in sorted(told.items())
        if any(where not in found for where in newest.values())
    ]


def closed_until(feeds: Mapping[str, SymbolFeed]) -> dict[str, int]:
    """End of the last minute, by symbol, that the exchange has closed."""
    return {symbol: max(feed.klines, default=-MINUTE) + MINUTE for symbol, feed in feeds.items()}
