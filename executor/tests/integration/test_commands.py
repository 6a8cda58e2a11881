"""Commands on a real broker and the real exchange simulator: honoured at once, once, and only if they are genuine."""

from __future__ import annotations

import time
from typing import Any

from marketflow_common import topics
from marketflow_common.commands import signed
from marketflow_common.events import Command, OrderIntended, SignalSkipped, TradingStateChanged

SECRET = "the-operators-secret"


def command(stage: Any, number: int, action: Any, secret: str = SECRET, age_us: int = 0) -> Command:
    now = time.time_ns() // 1_000 - age_us
    made = signed(Command(f"c-{number}", "main", action, "alice", now, None, "", "a test"), secret)
    stage.publish(topics.TRADING_SIGNALS, "main", made)
    return made


def changes(stage: Any) -> list[tuple[str, str]]:
    return [(e.command_id, e.state) for e in stage.events() if isinstance(e, TradingStateChanged)]


def skips(stage: Any) -> dict[str, str]:
    return {e.signal_id: e.reason for e in stage.events() if isinstance(e, SignalSkipped)}


def test_a_halt_ends_trading_also_for_the_next_leader_and_only_a_genuine_resume_takes_it_back(stage: Any) -> None:
    executor = stage.start(command_secret=SECRET)
    halt = command(stage, 1, "halt", secret="")
    stage.wait(lambda: executor.health()["trading"] == "HALTED")
    stage.publish(topics.TRADING_SIGNALS, "main", halt)
    withheld = stage.signal("BTCUSDT", "BUY")
    stage.answered(withheld)
    assert skips(stage) == {withheld.id: "halted"}
    executor.stop(20)
    executor = stage.start(command_secret=SECRET)
    assert executor.health()["trading"] == "HALTED"
    command(stage, 2, "resume", secret="forged")
    command(stage, 3, "resume", secret="")
    command(stage, 4, "resume", age_us=60_000_000)
    stage.wait(lambda: executor.metric('commands_total{action="resume",outcome="refused"}') == 3)
    assert executor.health()["trading"] == "HALTED"
    command(stage, 5, "resume")
    stage.wait(lambda: executor.health()["trading"] == "ACTIVE")
    bought = stage.signal("BTCUSDT", "BUY")
    stage.settled(bought)
    assert changes(stage) == [("c-1", "HALTED"), ("c-5", "ACTIVE")]


def test_a_halt_that_was_given_while_nobody_led_comes_before_the_first_decision(stage: Any) -> None:
    signal = stage.signal("BTCUSDT", "BUY")
    command(stage, 1, "halt")
    stage.start(command_secret=SECRET)
    stage.answered(signal)
    assert skips(stage) == {signal.id: "halted"}
    assert stage.exchange.posts() == 0


def test_a_flatten_sells_what_is_held_and_takes_no_new_risk(stage: Any) -> None:
    stage.start(command_secret=SECRET)
    signals = [stage.signal("BTCUSDT", "BUY"), stage.signal("ETHUSDT", "BUY")]
    stage.answered(*signals)
    command(stage, 1, "flatten")

    def sold() -> bool:
        orders = [e for e in stage.events() if isinstance(e, OrderIntended) and e.side == "SELL"]
        return {o.signal_id for o in orders} == {"command:c-1:BTCUSDT", "command:c-1:ETHUSDT"}

    stage.wait(sold)
    late = stage.signal("SOLUSDT", "BUY")
    stage.answered(late)
    assert skips(stage)[late.id] == "reduce_only"
    stage.wait(lambda: len([f for f in stage.exchange.ledger()["fills"] if f["side"] == "SELL"]) == 2)
    stage.wait(lambda: stage.check_books() is None)
