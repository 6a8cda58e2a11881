"""Stops, targets and limits with the log and the exchange in memory, while answers get lost and leaders die."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from decimal import Decimal
from random import Random
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
from executor_builders import OPENED, instrument, limits, signal
from marketflow_common.events import OrderEvent, OrderIntended, Signal, SignalSkipped
from marketflow_common.settings import KafkaSettings
from marketflow_executor import engine as engine_module
from marketflow_executor import resting
from marketflow_executor.books import Fill
from marketflow_executor.desk import Pending
from marketflow_executor.engine import Engine
from marketflow_executor.filters import Range
from marketflow_executor.orders import Answer, NotCancelled, NotThere, NotTried, Refused, Report, Unknown, Update
from marketflow_executor.plans import Terms, is_standing

D = Decimal
ETH = instrument(prices=Range(D("0.01"), D(0), D("0.01")))
LIMITS = limits(terms=Terms(protection="oco", stop_slip_pct=D(1), target_pct=D(2)))


class Died(Exception):
    """The process is gone."""


class Place(msgspec.Struct):
    """An order at the exchange."""

    number: int
    intent: OrderIntended
    status: Any = "NEW"
    fills: list[Fill] = []

    @property
    def left(self) -> Decimal:
        return (self.intent.qty or D(0)) - sum((fill.qty for fill in self.fills), D(0))


class Market:
    """An exchange with one symbol: base that an order locks cannot be sold by another."""

    def __init__(self, random: Random) -> None:
        self.random, self.price, self.base, self.time = random, D(100), D(0), 1_000_000
        self.orders: dict[str, Place] = {}
        self.lossy = False
        self.short = 0
        self.trades = 0

    # --- its own

    def locked(self) -> Decimal:
        held: dict[str, Decimal] = {}
        for place in self.live():
            if place.intent.side == "SELL":
                held[place.intent.list_id or place.intent.order_id] = place.left
        return sum(held.values(), D(0))

    def live(self) -> list[Place]:
        return [place for place in self.orders.values() if place.status in ("NEW", "PARTIALLY_FILLED")]

    def enter(self, *intents: OrderIntended) -> Answer | None:
        sale = intents[0].qty if intents[0].side == "SELL" else D(0)
        if (sale or D(0)) > self.base - self.locked():
            self.short += 1
            return Refused(-2010, "Account has insufficient balance for requested action.")
        for intent in intents:
            assert intent.order_id not in self.orders, "sent twice"
            place = self.orders[intent.order_id] = Place(len(self.orders) + 1, intent, "NEW", [])
            if intent.price is None:
                self.fill(place, self.price)
        self.move(self.price)
        return None

    def fill(self, place: Place, price: Decimal) -> None:
        qty, self.trades = place.left, self.trades + 1
        if self.lossy and place.intent.price is not None and self.random.random() < 0.4:
            qty = (qty / 2).quantize(D("0.0001")) or qty
        self.base += qty if place.intent.side == "BUY" else -qty
        place.fills.append(Fill(self.trades, price, qty, price * qty, D(0), "USDT", self.time * 1_000))
        place.status = "PARTIALLY_FILLED" if place.left else "FILLED"
        for other in self.live():
            if other is not place and place.intent.list_id and other.intent.list_id == place.intent.list_id:
                other.status = "EXPIRED"

    def move(self, price: Decimal) -> None:
        self.price = price = price.quantize(D("0.01"))
        for place in self.live():
            intent = place.intent
            limit = intent.price or D(0)
            reached = price <= limit if intent.side == "BUY" else price >= limit
            if intent.stop_price is not None:
                reached = price <= intent.stop_price
            if place in self.live() and (reached or place.fills):
                self.fill(place, limit)

    def end(self, name: str, only_new: bool = False) -> bool:
        place = self.orders.get(name)
        if place not in self.live() or place is None or (only_new and place.fills):
            return False
        for other in self.live():
            if other is place or (place.intent.list_id and other.intent.list_id == place.intent.list_id):
                other.status = "CANCELED"
        return True

    def report(self, name: str) -> Report:
        place = self.orders[name]
        done = sum((fill.qty for fill in place.fills), D(0))
        return Report(place.number, place.status, done, tuple(place.fills), place.intent.timestamp_ms * 1_000)

    def lost(self) -> str:
        return self.random.choice([*10 * [""], "request", "answer"]) if self.lossy else ""

    # --- as an Exchange

    def now_ms(self) -> int:
        self.time += 400
        return self.time

    def paused_s(self) -> float:
        return 0.0

    def instrument(self, symbol: str) -> Any:
        return ETH

    def last_price(self, symbol: str) -> Decimal:
        return self.price

    def best(self, symbol: str) -> tuple[Decimal, Decimal]:
        return self.price - D("0.01"), self.price + D("0.01")

    def balances(self) -> None:
        return

    def place(self, intent: OrderIntended) -> Answer:
        return self.place_list([intent])[intent.order_id]

    def place_list(self, legs: Sequence[OrderIntended]) -> dict[str, Answer]:
        lost = self.lost()
        refused = None if lost == "request" else self.enter(*legs)
        if lost:
            return {leg.order_id: Unknown(f"lost {lost}") for leg in legs}
        return {leg.order_id: refused or self.report(leg.order_id) for leg in legs}

    def replace(self, intent: OrderIntended) -> dict[str, Answer]:
        lost = self.lost()
        if lost == "request":
            return {intent.order_id: Unknown("lost request")}
        said: dict[str, Answer]
        if self.end(intent.replaces, only_new=True):
            old = Update(self.orders[intent.replaces].number, "CANCELED", D(0), None)
            refused = self.enter(intent)
            said = {intent.replaces: old, intent.order_id: refused or self.report(intent.order_id)}
        else:
            said = {intent.replaces: NotCancelled(-2011, "Unknown order sent."), intent.order_id: NotTried("not free")}
        return {intent.order_id: Unknown("lost answer")} if lost else said

    def ask(self, intent: OrderIntended) -> Answer:
        if self.lost():
            return Unknown("no answer")
        return self.report(intent.order_id) if intent.order_id in self.orders else NotThere(self.now_ms())

    def cancel(self, intent: OrderIntended) -> Answer:
        lost = self.lost()
        ended = lost != "request" and self.end(intent.order_id)
        if lost:
            return Unknown(f"lost {lost}")
        if not ended:
            return NotCancelled(-2011, "Unknown order sent.")
        place = self.orders[intent.order_id]
        return Update(place.number, "CANCELED", (intent.qty or D(0)) - place.left, None)


class World:
    """Leaders that come one after the other, and what they leave: the log and the exchange."""

    def __init__(self, seed: int, patch: pytest.MonkeyPatch, settings: Any = LIMITS) -> None:
        self.random, self.patch, self.settings = Random(seed), patch, settings
        self.market, self.log = Market(self.random), list[OrderEvent]([OPENED])
        self.signals: dict[str, Signal] = {}
        self.deadly = False
        self.lead()

    def step(self, name: str) -> None:
        if self.deadly and self.random.random() < 0.03:
            raise Died

    def lead(self) -> None:
        health: Any = SimpleNamespace(beat=lambda: None, ready=lambda *_: None, detail=lambda **_: None)
        exchange: Any = self.market
        self.engine = engine = Engine(
            KafkaSettings(),
            self.settings,
            exchange,
            health,
            lambda: True,
            3,
            not_found_margin_ms=0,
            reconcile_s=60,
            step=self.step,
        )
        engine.account.assets["ETHUSDT"] = ETH.assets
        for event in self.log:
            engine.account.apply(event)

        def commit(events: Sequence[OrderEvent]) -> None:
            self.log.extend(events)
            for event in events:
                engine.account.apply(event)

        nothing = SimpleNamespace(to_end=lambda alive: [], arrived=list)
        for name, value in (
            ("commit", commit),
            ("_commands", nothing),
            ("_pause", lambda seconds: None),
            ("find_signal", lambda intent: self.signals.get(intent.signal_id)),
        ):
            self.patch.setattr(engine, name, value)
        engine.pending = {order_id: Pending() for order_id in engine.account.open}

    def survive(self, act: Callable[[], None]) -> None:
        """Do something; whoever dies of it is followed by another."""
        try:
            act()
        except Died:
            self.lead()

    def tick(self) -> None:
        self.engine._tend(settle=True)
        self.engine._resting.look()
        self.engine._resting.protect()
        self.sound()

    def take(self, one: Signal) -> None:
        if not self.engine.account.answered(one.id):
            self.engine._make_way(one)
            self.engine._decide(one, 1, [], "")

    def sound(self) -> None:
        """What holds at every moment: nobody sells what another order holds."""
        live = [place.intent for place in self.market.live() if is_standing(place.intent)]
        assert len({intent.list_id or intent.order_id for intent in live}) <= 1, live
        assert self.market.locked() <= self.market.base
        assert self.market.short == 0, "an order was for what another one held"

    def settled(self) -> None:
        """Without losses and deaths: the fold is the exchange, and what is held is protected once."""
        self.market.lossy = self.deadly = False
        for _ in range(400):
            self.tick()
        account = self.engine.account
        assert account.books.position("ETHUSDT").qty == self.market.base
        assert set(account.open) == {place.intent.order_id for place in self.market.live()}
        due = self.market.base >= ETH.least(self.market.price)
        standing = account.standing("ETHUSDT")
        assert standing or not due, self.market.base
        assert len(standing) in (0, 1 if any(order.filled for order in standing) else 2)
        assert all(order.remaining == self.market.base for order in standing), (self.market.base, standing)


@pytest.fixture(autouse=True)
def _unhurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing waits, so that a test says how often things happen."""
    for module, name in (
        (engine_module, "ASK_FIRST_S"),
        (engine_module, "ASK_LAST_S"),
        (engine_module, "ASK_RESTING_S"),
        (resting, "CANCEL_AGAIN_S"),
        (resting, "CHASE_EVERY_S"),
        (resting, "FIRST_PAUSE_S"),
        (resting, "LAST_PAUSE_S"),
    ):
        monkeypatch.setattr(module, name, 0.0)


@pytest.mark.parametrize("kind", ["market", "limit"])
@pytest.mark.parametrize("seed", range(25))
def test_whatever_is_lost_and_whoever_dies_what_is_held_has_one_protection(
    monkeypatch: pytest.MonkeyPatch, seed: int, kind: Any
) -> None:
    terms = msgspec.structs.replace(LIMITS.terms, kind=kind, limit_ms=20_000, chase_pct=D(1) if seed % 2 else D(0))
    world = World(seed, monkeypatch, msgspec.structs.replace(LIMITS, terms=terms))
    world.deadly = world.market.lossy = True
    for number in range(30):
        kinds, closes = ["BUY", "BUY", "SELL"], ["0.99", "1", "1.01"]
        close = (world.market.price * D(world.random.choice(closes))).quantize(D("0.01"))
        one = signal(id=f"s-{number}", signal_type=world.random.choice(kinds), close=close)
        world.signals[one.id] = one
        for _ in range(20):
            world.survive(lambda one=one: world.take(one))
            world.sound()
            if world.engine.account.answered(one.id):
                break
        for _ in range(world.random.randrange(15)):
            world.survive(world.tick)
            if world.random.random() < 0.3:
                world.market.move(world.market.price * D(world.random.choice(["0.97", "0.995", "1.005", "1.03"])))
            if world.random.random() < 0.05 and world.market.live():
                world.market.end(world.random.choice(world.market.live()).intent.order_id)  # from outside
            world.sound()
    assert world.market.trades > 2
    world.settled()
    filled = [place.intent for place in world.market.orders.values() if place.fills]
    of_signals = [intent.signal_id for intent in filled if not intent.signal_id.startswith("protect:")]
    assert len(of_signals) == len(set(of_signals)), "a signal was traded twice"
    assert {event.signal_id for event in world.log if isinstance(event, SignalSkipped)} <= set(world.signals)


def test_an_order_may_rest_for_days(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(1, monkeypatch)
    world.take(signal())
    world.tick()
    for pending in world.engine.pending.values():
        pending.asked = 5_000
    world.tick()
    world.settled()


def test_who_leads_next_knows_from_the_log_what_lacks_its_protection(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(1, monkeypatch)
    world.take(signal())
    account = world.engine.account
    assert account.protection_due("ETHUSDT") == "place"
    world.lead()
    assert world.engine.account.protection_due("ETHUSDT") == "place"
    wanted, number = world.engine.account.next_protection("ETHUSDT")
    world.tick()
    assert world.engine.account.protection_due("ETHUSDT") == ""
    assert world.engine.account.next_protection("ETHUSDT") == (wanted, number + 1)
    world.take(signal(id="s-2"))
    assert world.engine.account.protection_due("ETHUSDT") == "cancel"
    world.settled()


def test_a_stop_follows_the_level_of_its_signal_and_the_distance_where_that_is_gone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sizing = msgspec.structs.replace(LIMITS.sizing, stop_level="low")
    for known, stop in ((True, D("95.50")), (False, D("98.00"))):
        world = World(1, monkeypatch, msgspec.structs.replace(LIMITS, sizing=sizing))
        one = signal(levels={"low": D("95.5")})
        world.signals = {one.id: one} if known else {}
        world.take(one)
        world.tick()
        assert [o.intent.stop_price for o in world.engine.account.standing("ETHUSDT") if o.intent.stop_price] == [stop]


def test_a_position_that_is_beyond_its_stop_or_target_is_sold_now(monkeypatch: pytest.MonkeyPatch) -> None:
    for price in (D(97), D(103)):
        world = World(1, monkeypatch)
        world.take(signal())
        world.market.price = price
        world.tick()
        assert world.market.base == 0
        assert [place.intent.order_type for place in world.market.orders.values()] == ["MARKET", "MARKET"]
