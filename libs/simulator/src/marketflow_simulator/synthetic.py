"""A market out of a seed: trends, ranges, bursts, and now and then a minute without any trade.

Each minute of each symbol is computed from (seed, symbol, minute) alone, so any past minute can be
asked for again. Only `+ - * /` on floats: the same seed gives the same trades on every machine.
"""

import hashlib
from array import array
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterator
from functools import lru_cache
from random import Random
from typing import Final

from marketflow_simulator.klines import MINUTE_US
from marketflow_simulator.symbols import SymbolSpec
from marketflow_simulator.trades import Trade

HISTORY_MINUTES: Final = 60
"""Minutes before the market's start that REST knows; their first trade has id 1."""

# Seconds between two points of each wave, and how far it moves the price (fraction). The slow ones make
# trends, those of one to three minutes make the swings that a strategy can trade within ten minutes.
_WAVES: Final = ((21600, 0.030), (3600, 0.012), (660, 0.008), (150, 0.0060), (41, 0.0016), (11, 0.0004))

_BURST_CHANCE: Final = 0.07
_EMPTY_CHANCE: Final = 0.08
_QUIET_RATE: Final = 3.0
"""Symbols with at most this many trades a second have minutes without any."""
_KEPT_MINUTES: Final = 6


@lru_cache(maxsize=1 << 16)
def _draw(name: str, index: int) -> float:
    """A number from -1 to 1 that depends on nothing but its arguments."""
    digest = hashlib.blake2b(f"{name}/{index}".encode(), digest_size=6).digest()
    return int.from_bytes(digest, "big") / (1 << 47) - 1.0


class SyntheticTape:
    """Trades of one symbol. `start_us` is a minute's edge; `minutes` of 0 means without end."""

    def __init__(self, spec: SymbolSpec, seed: int, start_us: int, minutes: int = 0) -> None:
        self._spec = spec
        self._key = f"{seed}/{spec.symbol}"
        self._origin = start_us - HISTORY_MINUTES * MINUTE_US
        self._minutes = HISTORY_MINUTES + minutes if minutes else None
        # First trade id and first aggregate id of each minute since the origin, one past the end included.
        self._ids = array("q", [1])
        self._aggs = array("q", [1])
        self._kept: OrderedDict[int, list[Trade]] = OrderedDict()

    @property
    def symbol(self) -> str:
        return self._spec.symbol

    @property
    def first_at_us(self) -> int:
        return self._minute(0)[0].at_us

    @property
    def last_at_us(self) -> int | None:
        return None

    def live(self, from_us: int) -> Iterator[Trade]:
        index = self._index(from_us)
        for trade in self._minute(index):
            if trade.at_us >= from_us:
                yield trade
        while self._minutes is None or index + 1 < self._minutes:
            index += 1
            yield from self._minute(index)

    def by_id(self, from_id: int, limit: int) -> list[Trade]:
        from_id = max(from_id, 1)
        while self._ids[-1] <= from_id and self._count_next():
            pass
        index = bisect_right(self._ids, from_id) - 1
        found: list[Trade] = []
        while len(found) < limit and (self._minutes is None or index < self._minutes):
            trades = self._minute(index)
            skip = max(from_id - trades[0].id, 0) if trades else 0
            found.extend(trades[skip : skip + limit - len(found)])
            index += 1
        return found

    def latest(self, until_id: int, limit: int) -> list[Trade]:
        first = max(until_id - limit + 1, 1)
        return self.by_id(first, until_id - first + 1)

    def between(self, from_us: int, until_us: int) -> list[Trade]:
        found: list[Trade] = []
        for index in range(self._index(from_us), self._index(until_us - 1) + 1):
            found.extend(t for t in self._minute(index) if from_us <= t.at_us < until_us)
        return found

    def before(self, us: int) -> Trade | None:
        for index in range(self._index(us), -1, -1):
            earlier = [t for t in self._minute(index) if t.at_us < us]
            if earlier:
                return earlier[-1]
        return None

    def count(self, from_us: int, until_us: int) -> int:
        return self._first_id_from(until_us) - self._first_id_from(from_us)

    def agg_start(self, agg_id: int) -> int | None:
        agg_id = max(agg_id, 1)
        while self._aggs[-1] <= agg_id:
            if not self._count_next():
                return None
        index = bisect_right(self._aggs, agg_id) - 1
        return next(t.id for t in self._minute(index) if t.agg_id == agg_id)

    def prepare(self, us: int) -> bool:
        index = self._index(us) + 1
        if index in self._kept or (self._minutes is not None and index >= self._minutes):
            return False
        self._minute(index)
        return True

    def _first_id_from(self, us: int) -> int:
        index = self._index(us)
        while len(self._ids) <= index + 1 and self._count_next():
            pass
        if index + 1 >= len(self._ids):
            return self._ids[-1]
        return self._ids[index] + sum(1 for trade in self._minute(index) if trade.at_us < us)

    def _index(self, us: int) -> int:
        return max((us - self._origin) // MINUTE_US, 0)

    def _count_next(self) -> bool:
        """Number one more minute; False at the end of the market."""
        index = len(self._ids) - 1
        if self._minutes is not None and index >= self._minutes:
            return False
        sizes = self._sizes(index)
        self._ids.append(self._ids[-1] + sum(sizes))
        self._aggs.append(self._aggs[-1] + len(sizes))
        return True

    def _burst(self, index: int) -> bool:
        return (_draw(f"{self._key}/burst", index) + 1) / 2 < _BURST_CHANCE

    def _sizes(self, index: int) -> list[int]:
        """How many trades each aggregate of the minute has."""
        rate = self._spec.rate
        empty = (_draw(f"{self._key}/empty", index) + 1) / 2 < _EMPTY_CHANCE
        if empty and rate <= _QUIET_RATE and index > 0:
            return []
        busy = 1.0 + 0.6 * _wave(f"{self._key}/busy", index * 60.0, 420)
        wanted = max(int(rate * 60 * busy * (2.5 if self._burst(index) else 0.9)), 1)
        random = Random(f"{self._key}/sizes/{index}").random
        sizes: list[int] = []
        while wanted > 0:
            draw = random()
            size = 1 if draw < 0.6 else 2 if draw < 0.8 else 3 + int((draw - 0.8) * 25)
            size = min(size, wanted)
            sizes.append(size)
            wanted -= size
        return sizes

    def _minute(self, index: int) -> list[Trade]:
        kept = self._kept.get(index)
        if kept is None:
            while len(self._ids) <= index + 1 and self._count_next():
                pass
            kept = self._make(index) if index + 1 < len(self._ids) else []
            self._kept[index] = kept
            if len(self._kept) > _KEPT_MINUTES:
                self._kept.popitem(last=False)
        else:
            self._kept.move_to_end(index)
        return kept

    def _levels(self, index: int) -> list[float]:
        """The price at each second of the minute, its end included, relative to the symbol's base price."""
        # Seconds since the epoch, so that the price does not depend on where the market was started.
        start = (self._origin + index * MINUTE_US) // 1_000_000
        levels = [0.0] * 61
        for period, height in _WAVES:  # no sum(): Python 3.12 adds floats differently
            name = f"{self._key}/wave{period}"
            for second in range(61):
                levels[second] += height * _wave(name, start + second, period)
        return levels

    def _make(self, index: int) -> list[Trade]:
        sizes = self._sizes(index)
        random = Random(f"{self._key}/trades/{index}").random
        levels = self._levels(index)
        burst_at, burst_move = 0, 0.0
        if self._burst(index):
            burst_at = 5_000 + int(random() * 40_000)
            burst_move = (random() - 0.5) * 0.012
        times = sorted(
            burst_at + int(random() * 10_000) if burst_move and random() < 0.6 else int(random() * 60_000)
            for _ in sizes
        )
        spec = self._spec
        base_ticks = spec.price / spec.tick
        jitter = base_ticks * 0.00006 + 1.0
        usual_steps = 400 * spec.tick * base_ticks / spec.price * 100_000_000 / spec.step / (spec.price / 1e8)
        trade_id, agg_id = self._ids[index], self._aggs[index]
        start_us = self._origin + index * MINUTE_US
        trades: list[Trade] = []
        for position, size in enumerate(sizes):
            if position and random() < 0.15:  # a large order that takes several prices at once
                times[position] = times[position - 1]
            ms = times[position]
            second, within = ms // 1000, (ms % 1000) / 1000
            slope = levels[second + 1] - levels[second]
            level = levels[second] + slope * within
            if burst_move:
                level += burst_move * max(0.0, 1.0 - abs(ms - burst_at - 5_000) / 5_000)
            buys = random() < 0.5 + max(-0.3, min(0.3, slope * 4000))
            price_ticks = int(base_ticks * (1.0 + level) + (random() - 0.5) * jitter + (1.0 if buys else 0.0))
            price, at_us = price_ticks * spec.tick, start_us + ms * 1000
            for _ in range(size):
                draw = random()
                qty = (1 + int(usual_steps * draw * draw * draw / (1.03 - draw))) * spec.step
                trades.append(Trade(trade_id, price, qty, at_us, at_us, not buys, agg_id))
                trade_id += 1
            agg_id += 1
        return trades


def _wave(name: str, second: float, period: int) -> float:
    """Smooth noise, about -1.2 to 1.2, through one random point each `period` seconds.

    The points' cube makes many small moves and a few large ones: ranges and trends.
    """
    index = int(second // period)
    share = (second - index * period) / period
    left, right = _draw(name, index), _draw(name, index + 1)
    left, right = left * (0.5 + 0.7 * left * left), right * (0.5 + 0.7 * right * right)
    return left + (right - left) * share * share * (3.0 - 2.0 * share)
