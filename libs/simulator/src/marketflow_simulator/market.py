"""The market: releases the trades of all symbols in the order of their time and closes the minutes.

Pure: it knows no wall clock and no network. Whoever drives it says up to which market time it may go.
"""

import heapq
from collections.abc import Iterator, Sequence
from typing import Final, Protocol

import msgspec

from marketflow_simulator.klines import INTERVALS, MINUTE_US, Kline, extend, flat, fold, merge
from marketflow_simulator.symbols import AVG_PRICE_MINS, SymbolSpec, default_filters
from marketflow_simulator.trades import Tape, Trade

MARK_US: Final = 2_000_000
"""Open klines are published at most this often (Binance: 2000 ms for all intervals but 1s)."""
FOREVER_US: Final = 1 << 62
_KEPT_KLINES: Final = 200_000


class Listener(Protocol):
    """Who wants to hear what happens in the market, at the moment it happens."""

    def on_trade(self, market: "SymbolMarket", trade: Trade) -> None: ...

    def on_mark(self, time_us: int) -> None:
        """Market time is an even second; at a minute's edge all minutes before it are closed now."""
        ...


class SymbolMarket:
    """One symbol: its tape, what of it has happened, and its open minute."""

    def __init__(self, spec: SymbolSpec, tape: Tape, start_us: int) -> None:
        self.spec = spec
        self.filters = default_filters(spec)
        """What new orders have to obey; a test may set others."""
        self.symbol = spec.symbol
        self.stream = spec.symbol.lower()
        self.tape = tape
        self.start_us = start_us
        self.first_at_us = tape.first_at_us
        """Time of the first trade of all, history included."""
        first = next(tape.live(start_us), None)
        self.first: Trade | None = first
        """The first trade that is streamed, whether or not it has happened yet."""
        self.published = 0
        """Trades since the market's start."""
        self.last: Trade | None = None
        """The last trade so far, history included."""
        self.open: Kline | None = None
        """The open minute, None as long as it has no trade."""
        self.upcoming: Iterator[Trade] = iter(())
        self.klines: dict[int, Kline] = {}
        self.breaks: list[tuple[int, int | None]] = []
        """From when to when (None: not yet known) the symbol is not traded at all."""

    def trades_at(self, us: int) -> bool:
        """Whether the symbol is traded at that time (exchangeInfo: TRADING, otherwise BREAK)."""
        return not any(begin <= us and (end is None or us < end) for begin, end in self.breaks)

    def _in_break(self, open_us: int, end_us: int) -> bool:
        return any(begin <= open_us and (end is None or end_us <= end) for begin, end in self.breaks)

    def flat(self, open_us: int, price: int) -> Kline | None:
        """A minute without trades; None if the symbol is not traded in any of it, which makes no kline."""
        end_us = open_us + MINUTE_US
        return None if self._in_break(open_us, end_us) else flat(open_us, end_us, price)

    def next_us(self, time_us: int) -> int:
        """The earliest time that its next trade can have, at market time `time_us`."""
        return self.start_us if self.published == 0 else time_us + 1

    def seek(self, us: int) -> None:
        """Go to market time `us`: trades published before it have happened, those from it on come next."""
        self.last = self.tape.before(us)
        self.published = self.tape.count(self.start_us, us)
        minute = us // MINUTE_US * MINUTE_US
        self.open = fold(self.tape.between(minute, us), minute, minute + MINUTE_US)
        self.upcoming = self.tape.live(us)

    def happened(self, from_id: int, limit: int) -> list[Trade]:
        """At most `limit` trades whose id is `from_id` or higher, of those that have happened."""
        last = self.last
        if last is None or from_id > last.id:
            return []
        limit = min(limit, last.id - from_id + 1)
        return [trade for trade in self.tape.by_id(from_id, limit) if trade.id <= last.id]


class _Part(msgspec.Struct):
    """The closed minutes of the latest kline of a longer interval, from `open_us` to `until_us`."""

    open_us: int
    until_us: int
    kline: Kline | None


class Market:
    """All symbols on one clock. `end_us` is a minute's edge at which the market ends, or None."""

    def __init__(self, symbols: Sequence[tuple[SymbolSpec, Tape]], start_us: int, end_us: int | None = None) -> None:
        self.start_us = start_us
        self.symbols = {spec.symbol: SymbolMarket(spec, tape, start_us) for spec, tape in symbols}
        self._in_order = list(self.symbols.values())
        lasts = [s.tape.last_at_us for s in self._in_order]
        last_us = max((last for last in lasts if last is not None), default=FOREVER_US)
        self.last_us = end_us if end_us is not None else last_us
        self.ended = False
        self.listeners: list[Listener] = []
        self._to_prepare = 0
        self._latest: dict[tuple[str, str], _Part] = {}
        self.seek(start_us)

    def seek(self, us: int) -> None:
        """Go to market time `us`, at most to the end, without telling anyone what happens on the way."""
        us = min(us, self.last_us + 1)  # a market that has ended closes no further minute, however late it is resumed
        self.time_us = min(us, self.last_us)
        self._latest.clear()
        self.next_mark_us = us // MARK_US * MARK_US + MARK_US
        self._heap: list[tuple[int, int, Trade]] = []
        for index, symbol in enumerate(self._in_order):
            symbol.seek(us)
            self._push(index, symbol)
        self.ended = us >= self.last_us and not self._heap

    def end(self) -> int:
        """Let the market end at the next minute's edge, if it would not end before, and say when that is."""
        self.last_us = min(self.last_us, self.time_us // MINUTE_US * MINUTE_US + MINUTE_US)
        self._heap = [event for event in self._heap if event[0] < self.last_us]
        heapq.heapify(self._heap)
        return self.last_us

    def rewind(self, symbol: SymbolMarket) -> None:
        """Take what comes next from the symbol's tape anew: it was changed."""
        index = self._in_order.index(symbol)
        self._heap = [event for event in self._heap if event[1] != index]
        heapq.heapify(self._heap)
        symbol.upcoming = symbol.tape.live(symbol.next_us(self.time_us))
        if symbol.published == 0:
            symbol.first = next(symbol.tape.live(self.start_us), None)
        self._push(index, symbol)

    def _push(self, index: int, symbol: SymbolMarket) -> None:
        trade = next(symbol.upcoming, None)
        if trade is not None and trade.at_us <= self.last_us:
            heapq.heappush(self._heap, (trade.at_us, index, trade))

    @property
    def closed_us(self) -> int:
        """All minutes before this time are closed."""
        return (self.next_mark_us - MARK_US) // MINUTE_US * MINUTE_US

    @property
    def next_event_us(self) -> int:
        """Market time of what happens next."""
        if self._heap:
            return min(self._heap[0][0], self.next_mark_us)
        return self.next_mark_us

    def advance(self, to_us: int, budget: int) -> None:
        """Let happen what happens up to `to_us`, that included, but stop early after `budget` events.

        Trades of the same instant are never divided. At the end of the market time stands still.
        """
        to_us = min(to_us, self.last_us)
        heap, listeners = self._heap, self.listeners
        while not self.ended:
            mark = self.next_mark_us
            while heap and heap[0][0] < mark and heap[0][0] <= to_us:
                at_us, index, trade = heap[0]
                if budget <= 0 and at_us > self.time_us:
                    return
                symbol = self._in_order[index]
                following = next(symbol.upcoming, None)
                if following is not None and following.at_us <= self.last_us:
                    heapq.heapreplace(heap, (following.at_us, index, following))
                else:
                    heapq.heappop(heap)
                self.time_us = at_us
                symbol.last = trade
                symbol.published += 1
                if symbol.open is None:
                    minute = at_us // MINUTE_US * MINUTE_US
                    symbol.open = flat(minute, minute + MINUTE_US, trade.price)
                symbol.open.add(trade)
                for listener in listeners:
                    listener.on_trade(symbol, trade)
                budget -= 1
            if mark > to_us:
                self.time_us = max(self.time_us, to_us) if to_us < FOREVER_US else self.time_us
                self.ended = to_us >= self.last_us
                return
            if budget <= 0:
                return
            self.time_us = mark
            if mark % MINUTE_US == 0:
                self._close_minute(mark)
            self.next_mark_us = mark + MARK_US
            for listener in listeners:
                listener.on_mark(mark)
            budget -= 1
            self.ended = mark >= self.last_us and not heap

    def _close_minute(self, edge_us: int) -> None:
        for symbol in self._in_order:
            kline = symbol.open
            if kline is None and symbol.last is not None:
                kline = symbol.flat(edge_us - MINUTE_US, symbol.last.price)
            if kline is not None:
                self._keep(symbol, kline)
            symbol.open = None

    def _keep(self, symbol: SymbolMarket, kline: Kline) -> None:
        share = max(_KEPT_KLINES // len(self._in_order), 120)
        while len(symbol.klines) >= share:
            del symbol.klines[next(iter(symbol.klines))]
        symbol.klines[kline.open_us] = kline

    def minute(self, symbol: SymbolMarket, open_us: int) -> Kline | None:
        """The kline of the minute that begins at `open_us`; None before the first trade and in the future."""
        if open_us > self.time_us or open_us + MINUTE_US <= symbol.first_at_us:
            return None
        if open_us >= self.closed_us:
            if symbol.open is not None:
                return symbol.open
            return symbol.flat(open_us, symbol.last.price) if symbol.last else None
        kept = symbol.klines.get(open_us)
        if kept is None:
            kept = fold(symbol.tape.between(open_us, open_us + MINUTE_US), open_us, open_us + MINUTE_US)
            if kept is None:
                before = symbol.tape.before(open_us)
                kept = symbol.flat(open_us, before.price) if before is not None else None
                if kept is None:
                    return None
            self._keep(symbol, kept)
        return kept

    def kline(self, symbol: SymbolMarket, interval: str, open_us: int) -> Kline | None:
        """The kline of that interval as far as it has happened; None if nothing of it has."""
        length = INTERVALS[interval]
        if length == MINUTE_US:
            return self.minute(symbol, open_us)
        first = max(open_us, symbol.first_at_us // MINUTE_US * MINUTE_US)
        until = min(open_us + length, self.closed_us)
        if open_us + length < self.closed_us:
            return self._merge(symbol, first, until, open_us, length)
        # The latest one is asked for every two seconds: what it has of closed minutes is kept.
        key = (symbol.symbol, interval)
        part = self._latest.get(key)
        if part is None or part.open_us != open_us:
            part = _Part(open_us, first, None)
            self._latest[key] = part
        if part.until_us < until:
            more = self._merge(symbol, part.until_us, until, open_us, length)
            if part.kline is None:
                part.kline = more
            elif more is not None:
                extend(part.kline, more)
            part.until_us = until
        last = self.minute(symbol, until) if until < open_us + length else None
        return merge((k for k in (part.kline, last) if k is not None), open_us, open_us + length)

    def _merge(self, symbol: SymbolMarket, first_us: int, until_us: int, open_us: int, length: int) -> Kline | None:
        minutes = (self.minute(symbol, at) for at in range(first_us, until_us, MINUTE_US))
        return merge((minute for minute in minutes if minute is not None), open_us, open_us + length)

    def average_price(self, symbol: SymbolMarket, minutes: int = AVG_PRICE_MINS) -> int | None:
        """Volume-weighted price of the last minutes, or the last price if none traded."""
        if symbol.last is None:
            return None
        now = self.closed_us
        total = flat(0, 0, symbol.last.price)
        for at in range(now - (minutes - 1) * MINUTE_US, now + 1, MINUTE_US):
            part = self.minute(symbol, at)
            if part is not None:
                extend(total, part)
        return total.quote_volume // total.volume if total.volume else symbol.last.price

    def prepare(self) -> bool:
        """Get some of the next minute's trades ready; False if nothing is left to do."""
        for _ in self._in_order:
            self._to_prepare = (self._to_prepare + 1) % len(self._in_order)
            if self._in_order[self._to_prepare].tape.prepare(self.time_us):
                return True
        return False
