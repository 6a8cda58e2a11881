"""The engine under commands, with the log in memory: what a halt overtakes is not sent, and a flatten sells once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from decimal import Decimal
from types import SimpleNamespace
from typing import Any

import executor_builders
import pytest
from executor_builders import OPENED, fill, limits
from marketflow_common.events import Command, OrderEvent, OrderIntended, Signal, SignalSkipped
from marketflow_common.settings import KafkaSettings
from marketflow_executor.engine import Engine
from marketflow_executor.filters import default_instrument
from marketflow_executor.orders import Answer, Report

NOW_MS = 1_700_000_000_000


class Market:
    """An exchange that fills every order at 100, without a fee."""

    def __init__(self) -> None:
        self.placed: list[OrderIntended] = []

    def now_ms(self) -> int:
        return NOW_MS

    def paused_s(self) -> float:
        return 0.0

    def instrument(self, symbol: str) -> Any:
        return default_instrument(symbol)

    def place(self, intent: OrderIntended) -> Answer:
        self.placed.append(intent)
        number, qty, at = len(self.placed), intent.qty or Decimal(0), NOW_MS * 1_000
        return Report(number, "FILLED", qty, (fill(number, "100", qty, at=at),), at)


class Reader:
    """Commands that come in; ``before_end`` runs when somebody asks for all of them."""

    def __init__(self) -> None:
        self.commands: list[Command] = []
        self.asked = 0

    def to_end(self, alive: Callable[[], None]) -> list[Command]:
        self.asked += 1
        return list(self.commands)


@pytest.fixture
def stage(monkeypatch: pytest.MonkeyPatch) -> Any:
    market, reader, log = Market(), Reader(), list[OrderEvent]()
    health: Any = SimpleNamespace(beat=lambda: None, ready=lambda *_: None, detail=lambda **_: None)
    exchange: Any = market
    engine = Engine(
        KafkaSettings(),
        limits(),
        exchange,
        health,
        lambda: True,
        3,
        not_found_margin_ms=0,
        reconcile_s=60,
        step=lambda _: None,
    )

    def commit(events: Sequence[OrderEvent]) -> None:
        log.extend(events)
        for event in events:
            engine.account.apply(event)

    monkeypatch.setattr(engine, "commit", commit)
    monkeypatch.setattr(engine, "_commands", reader)
    engine.account.assets["ETHUSDT"] = default_instrument("ETHUSDT").assets
    commit([OPENED])
    return SimpleNamespace(engine=engine, market=market, reader=reader, log=log)


def signal(number: int = 1) -> Signal:
    return executor_builders.signal(id=f"s-{number}", open_time=0, last_trade_id=7)


def command(action: Any, number: int = 1) -> Command:
    return Command(f"c-{number}", "main", action, "alice", NOW_MS * 1_000, None, "")


def kinds(log: list[OrderEvent]) -> list[str]:
    return [str(event.__struct_config__.tag) for event in log]


def test_a_halt_between_intent_and_post_keeps_the_order_from_being_sent(stage: Any) -> None:
    stage.reader.commands.append(command("halt"))
    stage.engine._decide(signal(), 1, [], "")
    assert stage.reader.asked == 1
    stage.engine._tend(settle=True)
    assert stage.market.placed == []
    assert kinds(stage.log)[1:] == ["order_intended", "trading_state_changed", "order_expired", "signal_skipped"]
    assert isinstance(stage.log[-1], SignalSkipped)
    assert stage.log[-1].reason == "halted"
    assert stage.engine.account.open == {}


def test_a_command_takes_effect_once_however_often_it_is_read(stage: Any) -> None:
    stage.reader.commands += [command("halt"), command("halt"), command("reduce_only", 2)]
    for _ in range(2):
        stage.engine._heed_all()
    assert kinds(stage.log)[1:] == ["trading_state_changed", "trading_state_changed"]
    assert stage.engine.account.state == "REDUCE_ONLY"


def test_a_flatten_sells_what_is_held_once_and_stands(stage: Any) -> None:
    stage.engine._decide(signal(), 1, [], "")
    assert stage.engine.account.books.position("ETHUSDT").qty == Decimal(2)
    stage.reader.commands.append(command("flatten"))
    stage.engine._heed_all()
    for _ in range(3):
        stage.engine._resting.flatten()
    [bought, sold] = stage.market.placed
    assert (bought.side, sold.side, sold.qty) == ("BUY", "SELL", Decimal(2))
    assert sold.signal_id == "command:c-1:ETHUSDT"
    assert stage.engine.account.books.position("ETHUSDT").qty == 0
    stage.engine._decide(signal(2), 1, [], "")
    assert isinstance(stage.log[-1], SignalSkipped)
    assert stage.log[-1].reason == "reduce_only"
