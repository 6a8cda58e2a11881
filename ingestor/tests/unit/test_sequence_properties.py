"""Whatever the stream loses, repeats or reorders, wherever it is cut, and whenever REST answers: the contiguous
sequence goes out once, what it lacks comes late or is declared lost, and a watermark goes out only behind
everything that it vouches for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from marketflow_common.events import Event, Gap, Kline, Trade, Watermark
from marketflow_common.intervals import MINUTE
from marketflow_ingestor.sequence import Before, Hole, SymbolSequence
from marketflow_ingestor.tail import Pins, Tail, ids_of, unpublished

T0 = 1_700_000_000_000_000 // MINUTE * MINUTE
STEPS = [0, 1_000_000, 9_000_000, 25_000_000, MINUTE, 3 * MINUTE]


class Driver:
    """Feeds a sequence with a damaged stream of a world and answers what it asks."""

    def __init__(self, world: Any, draw: Callable[[st.SearchStrategy[Any]], Any]) -> None:
        self.world, self.draw = world, draw
        self.out: list[Event] = []
        self.happened = -1
        self.sequence = SymbolSequence("binance", "ETHUSDT", self.out)
        self.committed, self.pins = 0, Pins({})
        self.mark: int | None = None
        self.overlapping = False

    def stream(self) -> list[Trade | Kline]:
        """In the exchange's order: a minute is closed behind its last trade, up to three trades late."""
        trades, items = self.world.trades, list[Trade | Kline]()
        minutes, late = self.world.minutes()[:-1], 0
        for trade in trades:
            while minutes and minutes[0] + MINUTE <= trade.traded_at and late == 0:
                items.append(self.world.kline(minutes.pop(0)))
                late = self.draw(st.integers(0, 3))
            late = max(0, late - 1)
            items.append(trade)
        return [*items, *map(self.world.kline, minutes)]

    def answer(self, limit: int) -> None:
        need, sequence = self.sequence.need(), self.sequence
        if isinstance(need, Before):
            sequence.start(self.world.page(0, 1000, need.trade_id - 1))
        elif isinstance(need, Hole):
            page = self.world.page(need.first, limit, self.happened)
            sequence.filled(page, at_end=need.last is None and len(page) < limit)
        elif need is not None:
            minutes = [m for m in self.world.minutes() if need.start <= m < need.end]
            sequence.closed(need, [self.world.kline(m, ids=False) for m in minutes])

    def late(self, limit: int) -> None:
        if self.sequence.open:
            first, last = self.sequence.open[0]
            self.sequence.late((first, last), self.world.page(first, limit, self.happened))

    def commit(self, end: int) -> None:
        """One transaction with all that is out up to ``end``, and the mark."""
        self.pins.take(self.out[self.committed : end], self.committed)
        self.committed, self.mark = end, self.pins.mark

    def tail(self) -> Tail:
        """What a reader of the topic finds: back to the mark, and until it is known."""
        tail = Tail()
        for offset in reversed(range(self.committed)):
            if tail.known and (self.mark is None or offset < self.mark):
                break
            tail.take(self.out[offset], offset)
        return tail

    def restart(self) -> None:
        """Only what was committed is in the topic."""
        del self.out[self.committed :]
        tail = self.tail()
        self.sequence, self.pins = SymbolSequence("binance", "ETHUSDT", self.out, tail), Pins({"ETHUSDT": tail})
        self.sequence.connected()
        self.overlapping = False

    def lose_answer(self) -> None:
        """A commit's answer is lost: the topic tells whether it happened."""
        flight = self.draw(st.integers(self.committed, len(self.out)))
        pending = self.out[self.committed :]
        if self.draw(st.booleans()):
            self.commit(flight)
        tail = self.tail()
        rest = unpublished(pending, {"ETHUSDT": self.sequence.last_id}, {"ETHUSDT": tail})
        assert rest == self.out[self.committed :]
        self.pins = Pins({"ETHUSDT": tail})

    def run(self, restarts: bool, give_up: bool) -> None:
        actions = ["take"] * 6 + ["drop", "repeat", "swap", "answer", "cut", "doubt", "overlap"]
        actions += ["restart", "commit", "commit", "lose_answer"] * restarts + ["give_up", "give_up", "late"] * give_up
        items = self.stream()
        position = 0
        while position < len(items):
            action, item = self.draw(st.sampled_from(actions)), items[position]
            if action == "answer":
                self.answer(self.draw(st.integers(1, 20)))
            elif action == "give_up":
                self.sequence.give_up("not in time")
            elif action == "late":
                self.late(self.draw(st.integers(1, 5)))
            elif action == "commit":
                self.commit(self.draw(st.integers(self.committed, len(self.out))))
            elif action == "restart":
                self.restart()
            elif action == "lose_answer":
                self.lose_answer()
            elif action == "overlap":  # a second connection; then the first is closed, read to its end
                self.sequence.covered() if self.overlapping else self.sequence.connected()
                self.overlapping = not self.overlapping
            else:
                following = items[position + 1] if position + 1 < len(items) else None
                if action == "swap" and isinstance(item, Trade) and isinstance(following, Trade):
                    items[position], items[position + 1] = following, item
                    item = following
                position += 1
                if isinstance(item, Trade):
                    self.happened = max(self.happened, item.trade_id)
                if action == "doubt" and isinstance(item, Trade):
                    self.sequence.told(item.trade_id)
                    continue
                if action == "drop":
                    continue
                if action == "cut":  # this item and what follows it within the outage are never streamed
                    for lost in items[position : position + self.draw(st.integers(0, 8))]:
                        position += 1
                        if isinstance(lost, Trade):
                            self.happened = max(self.happened, lost.trade_id)
                    self.sequence.connected()
                    self.overlapping = False
                    continue
                for _ in range(1 + (action == "repeat")):
                    if isinstance(item, Trade):
                        self.sequence.trade(item)
                    else:
                        self.sequence.minute(item)
        self.sequence.connected()
        for _ in range(10_000):
            if self.sequence.need() is None and not self.sequence.open:
                return
            self.answer(1000)
            self.late(1000)
        raise AssertionError(f"never settles: {self.sequence.need()}")


def check(world: Any, out: list[Event], given_up: bool) -> None:
    true = {trade.trade_id: trade for trade in world.trades}
    following: int | None = None
    covered: set[int] = set()
    unknown: set[int] = set()
    waiting: set[int] = set()
    through = 0
    for event in out:
        if isinstance(event, Watermark):
            assert event.through > through
            through = event.through
            kline = world.kline(through - MINUTE)
            assert event.kline == kline
            before = [t for t in world.trades if t.traded_at < through]
            after = [t for t in world.trades if t.traded_at >= through]
            assert covered
            assert {t.trade_id for t in before if t.trade_id >= min(covered)} <= covered
            assert before[-1].trade_id <= event.last_trade_id or given_up
            # Where a gap lies across the minute's edge nobody can know which of its ids is the last.
            assert {t.trade_id for t in after if t.trade_id <= event.last_trade_id} <= unknown
            continue
        assert isinstance(event, Trade | Gap)
        first, last = ids_of(event)
        late = following is not None and first < following
        if isinstance(event, Trade):
            assert event == true[event.trade_id]
        else:
            assert given_up or event.final
            assert not event.final or not set(range(first, last + 1)) & true.keys()
            assert event.final or not late
        if late:  # once, and only for what was declared missing
            assert set(range(first, last + 1)) <= waiting
            waiting -= set(range(first, last + 1))
            continue
        if isinstance(event, Gap) and not event.final:
            unknown |= set(range(first, last + 1))
            waiting |= set(range(first, last + 1))
        assert first == following or following is None
        covered |= set(range(first, last + 1))
        following = last + 1
    assert not waiting
    if covered:
        assert max(covered) == world.trades[-1].trade_id


worlds = st.tuples(
    st.lists(st.sampled_from(STEPS), min_size=3, max_size=40),
    st.frozensets(st.integers(101, 138), max_size=6),
)


@settings(max_examples=300, deadline=None)
@given(data=st.data(), shape=worlds, restarts=st.booleans(), give_up=st.booleans())
def test_any_interleaving_gives_the_contiguous_sequence_once(
    world: Callable[..., Any],
    data: st.DataObject,
    shape: tuple[list[int], frozenset[int]],
    restarts: bool,
    give_up: bool,
) -> None:
    times = [T0 + 17_000_000 + sum(shape[0][: i + 1]) for i in range(len(shape[0]))]
    last = 100 + len(times) - 1
    driver = Driver(world(times, lost=shape[1] - {last}), data.draw)
    driver.run(restarts, give_up)
    check(driver.world, driver.out, give_up)
