"""The engine under commands, with the log in memory: what a halt overtakes is not sent, and a flatten sells once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from decimal import Decimal
from types import SimpleNamespace
from typing import Any

import pytest
from marketflow_common.events import AccountOpened, Command, OrderEvent, OrderIntended, Signal, SignalSkipped
from marketflow_common.settings import KafkaSettings
from marketflow_executor.books import Fill
from marketflow_executor.decision import Limits
from marketflow_executor.engine import Engine
from marketflow_executor.filters import default_instrument
from marketflow_executor.orders import Answer, Report

NOW_MS = 1_700_000_000_000
LIMITS = Limits(
    account="main",
    mode="testnet",
    order_quote=Decimal(200),
    max_position_quote=Decimal(1_000),
    max_exposure_quote=Decimal(2_000),
    max_signal_age_ms=0,
    max_attempts=3,
    recv_window_ms=5_000,
)


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
        number, qty = len(self.placed), intent.qty or Decimal(0)
        fill = Fill(number, Decimal(100), qty, 100 * qty, Decimal(0), "USDT", NOW_MS * 1_000)
        return Report(number, "FILLED", qty, (fill,), NOW_MS * 1_000)


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
        LIMITS,
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

    monkeypatch.setattr(engine, "_commit", commit)
    monkeypatch.setattr(engine, "_commands", reader)
    engine.account.assets["ETHUSDT"] = default_instrument("ETHUSDT").assets
    commit([AccountOpened("main", "testnet", {"USDT": Decimal(1_000)}, 1)])
    return SimpleNamespace(engine=engine, market=market, reader=reader, log=log)


def signal(number: int = 1) -> Signal:
    values: dict[str, Any] = {"levels": {}, "reasons": (), "volume": Decimal(1), "momentum": Decimal(0)}
    return Signal(
        id=f"s-{number}",
        strategy="test",
        parameters="",
        symbol="ETHUSDT",
        interval="1m",
        open_time=0,
        close=Decimal(100),
        signal_type="BUY",
        last_trade_id=7,
        **values,
    )


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
        stage.engine._flatten()
    [bought, sold] = stage.market.placed
    assert (bought.side, sold.side, sold.qty) == ("BUY", "SELL", Decimal(2))
    assert sold.signal_id == "command:c-1:ETHUSDT"
    assert stage.engine.account.books.position("ETHUSDT").qty == 0
    stage.engine._decide(signal(2), 1, [], "")
    assert isinstance(stage.log[-1], SignalSkipped)
    assert stage.log[-1].reason == "reduce_only"
