"""A small exchange whose whole history is known, to hold the sequence's output against."""

from __future__ import annotations

from collections.abc import Callable
from decimal import Decimal

import pytest
from marketflow_common.events import Kline, Trade
from marketflow_common.intervals import MINUTE, close_time, window_start


class World:
    """Trades by id, as the exchange has them; ``lost`` ids do not exist anywhere."""

    def __init__(self, times: list[int], first_id: int = 100, lost: frozenset[int] = frozenset()) -> None:
        ids = range(first_id, first_id + len(times))
        self.trades = [self.trade(i, at) for i, at in zip(ids, times, strict=True) if i not in lost]

    @staticmethod
    def trade(trade_id: int, at: int) -> Trade:
        return Trade("binance", "ETHUSDT", trade_id, Decimal(trade_id), Decimal(1), False, at, 0)

    def page(self, first: int, limit: int, happened: int | None = None) -> list[Trade]:
        """What historicalTrades gives while ``happened`` is the newest id."""
        return [t for t in self.trades if t.trade_id >= first and (happened is None or t.trade_id <= happened)][:limit]

    def kline(self, open_time: int, ids: bool = True) -> Kline:
        """The closed minute; as REST has it, without ids, unless told."""
        inside = [t for t in self.trades if window_start(t.traded_at) == open_time]
        before = [t for t in self.trades if t.traded_at < open_time]
        prices = [t.price for t in inside] or [before[-1].price if before else Decimal(1)]
        count = Decimal(len(inside))
        first, last = (inside[0].trade_id, inside[-1].trade_id) if inside and ids else (-1, -1)
        return Kline(
            open_time, close_time(open_time), prices[0], max(prices), min(prices), prices[-1],
            count, sum(prices) if inside else Decimal(0), len(inside), count, count, first, last,
        )  # fmt: skip

    def minutes(self) -> list[int]:
        """Open times of all minutes from the first trade to the last, the last included."""
        first, last = (window_start(self.trades[i].traded_at) for i in (0, -1))
        return list(range(first, last + MINUTE, MINUTE))


@pytest.fixture(scope="session")
def world() -> Callable[..., World]:
    return World
