"""From where to where each symbol is judged: its first due trade, its cut, and the candle windows between.

Pure. The cut is the symbol's last watermark in the topic (while the feed goes on, of what was closed when the audit
began), or the exchange's last trade once the feed has ended.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from marketflow_common.events import Gap, Trade, Watermark
from marketflow_common.intervals import MINUTE, window_start

from .model import Evidence, SymbolFeed

__all__ = ["Cut", "cuts_of", "declared_lost"]


@dataclass(frozen=True)
class Cut:
    """What is judged of one symbol: trades ``first_id`` to ``last_id`` (inclusive) and whole minutes.

    ``windows`` are open times of the whole minutes that the exchange has closed. ``cut_window`` is the first minute
    where the exchange's own record begins inside it, or the ingestor declares that it does not know what is before its
    first trade; ``open_window`` the last one, not closed when the feed ended.
    """

    symbol: str
    first_id: int
    last_id: int
    windows: tuple[int, ...]
    cut_window: int | None
    open_window: int | None

    def holds(self, trade_id: int) -> bool:
        """Whether the trade is among those judged."""
        return self.first_id <= trade_id <= self.last_id


def cuts_of(evidence: Evidence) -> Mapping[str, Cut]:
    """The cut of every symbol of the exchange. Raises ValueError if the exchange was not reached."""
    exchange = evidence.exchange
    if exchange is None:
        raise ValueError("no cut without the exchange's ledger")
    lowest: dict[str, int] = {}
    for _, trade in evidence.of(Trade):
        known = lowest.get(trade.symbol)
        if known is None or trade.trade_id < known:
            lowest[trade.symbol] = trade.trade_id
    marks: dict[str, Watermark] = {}
    for _, mark in evidence.of(Watermark):
        last = marks.get(mark.symbol)
        if (last is None or mark.through > last.through) and mark.through <= evidence.until.get(
            mark.symbol, mark.through
        ):
            marks[mark.symbol] = mark
    begun = {
        gap.symbol
        for _, gap in evidence.of(Gap)
        if gap.last_trade_id < gap.first_trade_id == lowest.get(gap.symbol) and gap.final
    }
    return {
        symbol: _cut(feed, lowest.get(symbol), marks.get(symbol), exchange.ended, evidence.from_start, symbol in begun)
        for symbol, feed in exchange.feeds.items()
    }


def _cut(
    feed: SymbolFeed, lowest: int | None, mark: Watermark | None, ended: bool, from_start: bool, begun: bool
) -> Cut:
    if not feed.trades:
        return Cut(feed.symbol, 0, -1, (), None, None)
    start = feed.streamed_from
    if lowest is not None:
        start = min(lowest, start) if from_start and not begun else lowest
    at = next((i for i, t in enumerate(feed.trades) if t.trade_id >= start), len(feed.trades) - 1)
    first, second = feed.trades[at], feed.trades[min(at + 1, len(feed.trades) - 1)]
    minute = window_start(first.traded_at)
    if begun:
        first_id = first.trade_id
    elif window_start(second.traded_at) > minute:
        # The last trade before the first whole minute: published as the proof that nothing is missing at its start.
        first_id, minute = first.trade_id, window_start(second.traded_at)
    else:
        # The first minute ever is filled back to its start, so it is due from its start.
        first_id = next(t.trade_id for t in feed.trades if window_start(t.traded_at) >= minute)
    if ended:
        last_id, through = feed.trades[-1].trade_id, max(feed.klines, default=-MINUTE) + MINUTE
    else:
        last_id, through = (mark.last_trade_id, mark.through) if mark else (first_id - 1, 0)
    begins_inside = begun or (first_id == feed.oldest and minute != first.traded_at)
    windows = tuple(
        at
        for at in sorted(feed.klines)
        if at >= minute and at + MINUTE <= through and not (begins_inside and at == minute)
    )
    tail = window_start(feed.trades[-1].traded_at)
    return Cut(
        feed.symbol,
        first_id,
        last_id,
        windows,
        cut_window=minute if begins_inside else None,
        open_window=tail if ended and tail >= through else None,
    )


def declared_lost(evidence: Evidence) -> Mapping[str, list[tuple[int, int]]]:
    """Id ranges by symbol that a final gap record says can never be had."""
    ranges: dict[str, list[tuple[int, int]]] = {}
    for _, gap in evidence.of(Gap):
        if gap.final:
            ranges.setdefault(gap.symbol, []).append((gap.first_trade_id, gap.last_trade_id))
    return ranges
