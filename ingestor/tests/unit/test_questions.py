"""When REST is asked, how often, and when a question is given up. The exchange is a list, the clock real but short."""

from __future__ import annotations

import asyncio
import warnings
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from marketflow_common.events import Event, Gap, Kline, Trade
from marketflow_common.intervals import MINUTE
from marketflow_ingestor.sequence import SymbolSequence
from marketflow_ingestor.settings import Settings

with warnings.catch_warnings():  # python-binance imports a deprecated part of websockets, unused here
    warnings.simplefilter("ignore", DeprecationWarning)
    from marketflow_ingestor.questions import Questions
    from marketflow_ingestor.rest import RestError, Waiting

T0 = 1_700_000_040 * 1_000_000 // MINUTE * MINUTE


class Exchange:
    """REST over a world; ``problem`` is raised as long as it is set."""

    def __init__(self, world: Any) -> None:
        self.world, self.asked = world, 0
        self.problem: Exception | None = None

    def _ask(self) -> None:
        self.asked += 1
        if self.problem is not None:
            raise self.problem

    async def trades(self, _: str, first: int, limit: int = 1000, share: float = 1.0) -> list[Trade]:
        self._ask()
        return list(self.world.page(first, limit))

    async def single_trades(self, _: str, since: int, first: int, last: int) -> list[Trade]:
        self._ask()
        return [t for t in self.world.page(first, 1000) if t.trade_id <= last and t.traded_at >= since]

    async def newest_id(self, _: str) -> int:
        self._ask()
        return int(self.world.trades[-1].trade_id)

    async def klines(self, _: str, start: int, end: int) -> list[Kline]:
        self._ask()
        return [self.world.kline(at, ids=False) for at in self.world.minutes() if start <= at < end]


class Slow(Exchange):
    """Five times there is no weight left, for longer than the deadline."""

    async def trades(self, _: str, first: int, limit: int = 1000, share: float = 1.0) -> list[Trade]:
        if self.asked < 5:
            self.asked += 1
            await asyncio.sleep(0.1)
            raise Waiting("4800 of 6000 weight used")
        return await super().trades(_, first, limit, share)


class Aggregates(Exchange):
    """Only aggregates can be had."""

    async def trades(self, _: str, first: int, limit: int = 1000, share: float = 1.0) -> list[Trade]:
        raise RestError("HTTP 401")


class Bench:
    """A sequence that has published 100 to 104 of twenty trades, and whoever asks for it."""

    def __init__(self, world: Any, kind: type[Exchange] = Exchange, **settings: float) -> None:
        self.exchange, self.out = kind(world), list[Event]()
        self.sequence = SymbolSequence("binance", "ETHUSDT", self.out)
        self.sequence.trade(world.trades[0])
        self.sequence.start([])
        for trade in world.trades[1:5]:
            self.sequence.trade(trade)
        values: dict[str, Any] = {"fill_deadline_s": 0.2, "settle_s": 0.01, "late_pause_s": 0.02} | settings
        rest: Any = self.exchange
        self.questions = Questions(Settings(**values), rest, self._room, lambda: None)

    async def _room(self) -> None:
        return

    @property
    def ids(self) -> list[int]:
        return [event.trade_id for event in self.out if isinstance(event, Trade)]

    @property
    def gaps(self) -> list[tuple[int, int, bool]]:
        return [(e.first_trade_id, e.last_trade_id, e.final) for e in self.out if isinstance(e, Gap)]

    async def work(self, then: Callable[[], Awaitable[None]]) -> None:
        """Ask in the background until ``then`` is through."""
        async with asyncio.TaskGroup() as group, asyncio.timeout(20):
            self.questions.start(group)
            self.questions.look_after(self.sequence)
            await then()

    async def until(self, done: Callable[[], bool]) -> None:
        async with asyncio.timeout(15):
            while True:
                if done():
                    return
                await asyncio.sleep(0.01)


@pytest.fixture
def exchange(world: Callable[..., Any]) -> Any:
    return world([T0 + i * 1_000_000 for i in range(20)])


async def test_a_hole_is_filled(exchange: Any) -> None:
    bench = Bench(exchange)
    bench.sequence.trade(exchange.trades[9])
    await bench.work(lambda: bench.until(lambda: not bench.sequence.unsettled))
    assert bench.ids == list(range(100, 110))
    assert bench.exchange.asked == 1


async def test_trades_that_cannot_be_had_one_by_one_come_from_aggregates_of_one(exchange: Any) -> None:
    bench = Bench(exchange, Aggregates)
    bench.sequence.trade(exchange.trades[9])
    await bench.work(lambda: bench.until(lambda: not bench.sequence.unsettled))
    assert bench.ids == list(range(100, 110))
    assert bench.gaps == []


async def test_what_does_not_come_in_time_is_declared_and_comes_late_while_the_stream_goes_on(exchange: Any) -> None:
    bench = Bench(exchange)
    bench.exchange.problem = RestError("HTTP 503")
    bench.sequence.trade(exchange.trades[9])

    async def then() -> None:
        await bench.until(lambda: bool(bench.gaps))
        bench.sequence.trade(exchange.trades[10])
        assert bench.ids[-2:] == [109, 110]
        bench.exchange.problem = None
        await bench.until(lambda: not bench.sequence.open)

    await bench.work(then)
    assert bench.ids == [*range(100, 105), 109, 110, *range(105, 109)]
    assert bench.gaps == [(105, 108, False)]


async def test_a_gap_that_never_comes_is_given_up_at_last(exchange: Any) -> None:
    bench = Bench(exchange, late_give_up_s=0.3)
    bench.exchange.problem = RestError("HTTP 503")
    bench.sequence.trade(exchange.trades[9])
    await bench.work(lambda: bench.until(lambda: len(bench.gaps) == 2))
    assert bench.gaps == [(105, 108, False), (105, 108, True)]
    assert bench.sequence.open == []


async def test_waiting_for_ones_own_budget_declares_nothing(exchange: Any) -> None:
    bench = Bench(exchange, Slow)
    bench.sequence.trade(exchange.trades[9])
    await bench.work(lambda: bench.until(lambda: not bench.sequence.unsettled))
    assert bench.gaps == []
    assert bench.ids == list(range(100, 110))


async def test_after_a_reconnect_the_newest_id_says_whether_anything_is_missing(exchange: Any) -> None:
    bench = Bench(exchange)
    for trade in exchange.trades[5:]:
        bench.sequence.trade(trade)
    bench.sequence.connected()
    await bench.work(lambda: bench.until(lambda: not bench.sequence.unsettled))
    assert bench.exchange.asked == 1


async def test_a_stream_is_behind_only_if_rest_has_more_that_does_not_come(exchange: Any) -> None:
    bench = Bench(exchange)

    async def then() -> None:
        assert await bench.questions.behind(bench.sequence) is True
        await bench.until(lambda: bench.ids[-1] == 119)
        assert await bench.questions.behind(bench.sequence) is False
        bench.exchange.problem = RestError("HTTP 503")
        assert await bench.questions.behind(bench.sequence) is None

    await bench.work(then)
    assert bench.ids == list(range(100, 120))
