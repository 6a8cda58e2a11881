"""Klines as the exchange makes them: folded from trades, and merged from minutes for longer intervals.

Whole numbers only (1e-8 for prices and volumes, 1e-16 for quote volumes), so every sum is exact.
"""

from collections.abc import Iterable
from typing import Any, Final

import msgspec

from marketflow_simulator.amounts import quote8, text8
from marketflow_simulator.trades import Trade

MINUTE_US: Final = 60_000_000

INTERVALS: Final[dict[str, int]] = {
    "1m": MINUTE_US,
    "3m": 3 * MINUTE_US,
    "5m": 5 * MINUTE_US,
    "15m": 15 * MINUTE_US,
    "30m": 30 * MINUTE_US,
    "1h": 60 * MINUTE_US,
    "2h": 120 * MINUTE_US,
    "4h": 240 * MINUTE_US,
    "6h": 360 * MINUTE_US,
    "8h": 480 * MINUTE_US,
    "12h": 720 * MINUTE_US,
    "1d": 1440 * MINUTE_US,
}
"""Length of each interval in microseconds. All of them divide a day, so they start at UTC midnight."""


class Kline(msgspec.Struct, gc=False):
    """One kline; without trades `count` is 0, the ids are -1 and all prices are the close before it."""

    open_us: int
    end_us: int
    """First microsecond that no longer belongs to it."""
    open: int
    high: int
    low: int
    close: int
    volume: int = 0
    quote_volume: int = 0
    count: int = 0
    taker_volume: int = 0
    taker_quote_volume: int = 0
    first_id: int = -1
    last_id: int = -1

    def add(self, trade: Trade) -> None:
        """Take in the next trade, which has to lie in this kline's time."""
        price, qty = trade.price, trade.qty
        if self.count == 0:
            self.open = self.high = self.low = price
            self.first_id = trade.id
        elif price > self.high:
            self.high = price
        elif price < self.low:
            self.low = price
        self.close = price
        self.last_id = trade.id
        self.count += 1
        product = price * qty
        self.volume += qty
        self.quote_volume += product
        if not trade.buyer_is_maker:
            self.taker_volume += qty
            self.taker_quote_volume += product


def flat(open_us: int, end_us: int, price: int) -> Kline:
    """A kline without trades; `price` is the close of the one before it."""
    return Kline(open_us, end_us, price, price, price, price)


def fold(trades: Iterable[Trade], open_us: int, end_us: int) -> Kline | None:
    """The kline of `trades`, or None if there are none."""
    kline: Kline | None = None
    for trade in trades:
        if kline is None:
            kline = flat(open_us, end_us, trade.price)
        kline.add(trade)
    return kline


def extend(kline: Kline, later: Kline) -> None:
    """Take a later, adjoining kline into this one."""
    if later.count == 0:
        return
    if kline.count == 0:
        kline.open, kline.high, kline.low = later.open, later.high, later.low
        kline.first_id = later.first_id
    else:
        kline.high = max(kline.high, later.high)
        kline.low = min(kline.low, later.low)
    kline.close = later.close
    kline.last_id = later.last_id
    kline.count += later.count
    kline.volume += later.volume
    kline.quote_volume += later.quote_volume
    kline.taker_volume += later.taker_volume
    kline.taker_quote_volume += later.taker_quote_volume


def merge(parts: Iterable[Kline], open_us: int, end_us: int) -> Kline | None:
    """One kline of adjoining ones in order, or None if there are none."""
    merged: Kline | None = None
    for part in parts:
        if merged is None:
            merged = flat(open_us, end_us, part.open)
        extend(merged, part)
    return merged


def rest_row(kline: Kline) -> list[Any]:
    """The documented array of `GET /api/v3/klines`; times in milliseconds."""
    return [
        kline.open_us // 1000,
        text8(kline.open),
        text8(kline.high),
        text8(kline.low),
        text8(kline.close),
        text8(kline.volume),
        kline.end_us // 1000 - 1,
        quote8(kline.quote_volume),
        kline.count,
        text8(kline.taker_volume),
        quote8(kline.taker_quote_volume),
        "0",
    ]


def stream_payload(kline: Kline, symbol: str, interval: str, event_us: int, closed: bool) -> str:
    """The documented JSON of `<symbol>@kline_<interval>`; times in milliseconds."""
    return (
        f'{{"e":"kline","E":{event_us // 1000},"s":"{symbol}","k":{{"t":{kline.open_us // 1000},'
        f'"T":{kline.end_us // 1000 - 1},"s":"{symbol}","i":"{interval}","f":{kline.first_id},'
        f'"L":{kline.last_id},"o":"{text8(kline.open)}","c":"{text8(kline.close)}",'
        f'"h":"{text8(kline.high)}","l":"{text8(kline.low)}","v":"{text8(kline.volume)}",'
        f'"n":{kline.count},"x":{"true" if closed else "false"},"q":"{quote8(kline.quote_volume)}",'
        f'"V":"{text8(kline.taker_volume)}","Q":"{quote8(kline.taker_quote_volume)}","B":"0"}}}}'
    )
