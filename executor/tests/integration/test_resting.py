"""Orders that stay at the exchange: limits, chases, stops and targets, and what a crash at each step leaves of them."""

from __future__ import annotations

import time
from decimal import Decimal
from signal import SIGCONT
from typing import Any

import pytest
from marketflow_common import topics
from marketflow_common.events import Command, OrderFilled, OrderIntended

BTC = "BTCUSDT"
OCO = {"protect": "oco", "stop_distance_pct": 2, "stop_slip_pct": 3, "target_pct": 2, "reconcile_s": 1}


def died(executor: Any) -> bool:
    return executor.process.poll() is not None


def kinds(stage: Any, signal: Any) -> list[str]:
    return [last for order_id, last in stage.last_words().items() if order_id.startswith(f"mf-{signal.id}-")]


def protected(stage: Any, legs: int, qty: Decimal | None = None) -> list[Any]:
    """Wait until that many legs stand, for so much, and the log has taken note of all."""

    def done() -> list[Any]:
        here = stage.standing()
        assert len(here) == legs, here
        assert qty is None or {Decimal(o["origQty"]) for o in here} == {qty}, here
        said = stage.last_words()
        assert all(said.get(o["clientOrderId"]) == "order_accepted" for o in here), said
        assert len([name for name, last in said.items() if stage.protects(name) and last == "order_accepted"]) == legs
        return here

    return [] if not legs else stage.wait(done)


def sold_out(stage: Any) -> bool:
    """Nothing is held but dust, and nothing stands."""
    return (
        not stage.standing()
        and any(e.side == "SELL" for e in stage.events() if isinstance(e, OrderFilled))
        and (stage.position(BTC) < Decimal("0.0001"))
    )


# --- limits ------------------------------------------------------------------------------------------


def test_limits_fill_expire_or_are_refused_as_the_exchange_has_it(stage: Any) -> None:
    executor = stage.start(order_type="limit", limit_offset_pct=-1)
    bought = stage.signal(BTC, "BUY")
    stage.answered(bought)
    sold = stage.signal(BTC, "SELL")
    stage.answered(sold)
    assert kinds(stage, bought) == kinds(stage, sold) == ["order_filled"]
    for kind, offset, end in (
        ("limit_ioc", 1, "order_expired"),
        ("limit_fok", 1, "order_expired"),
        ("limit_maker", -1, "order_rejected"),
    ):
        executor.stop(20)
        executor = stage.start(order_type=kind, limit_offset_pct=offset)
        signal = stage.signal(BTC, "BUY")
        stage.answered(signal)
        assert kinds(stage, signal) == [end]
    stage.check_standing()
    said = {(o["type"], o["timeInForce"]) for o in stage.orders()}
    assert said == {("LIMIT", "GTC"), ("LIMIT", "IOC"), ("LIMIT", "FOK")}


@pytest.mark.parametrize("which", ["keep", "cancel_resting", "cancel_all"])
def test_a_leader_that_is_stopped_takes_back_what_its_setting_wants(stage: Any, which: str) -> None:
    terms = {**OCO, "on_shutdown": which}
    executor = stage.start(order_type="limit", limit_offset_pct=-1, limit_s=3_600, **terms)
    bought = stage.signal(BTC, "BUY")
    stage.answered(bought)
    protected(stage, 2)
    executor.stop(20)
    executor = stage.start(order_type="limit", limit_offset_pct=3, limit_s=3_600, **terms)
    rests = stage.signal("ETHUSDT", "BUY")
    stage.wait(lambda: kinds(stage, rests) == ["order_accepted"])
    protected(stage, 2)
    assert executor.stop(20) == 0
    assert kinds(stage, rests) == ["order_accepted" if which == "keep" else "order_canceled"]
    assert len(stage.standing()) == (0 if which == "cancel_all" else 2)
    stage.check_standing()


def test_an_order_that_rests_too_long_is_cancelled_also_by_the_next_leader(stage: Any) -> None:
    executor = stage.start("recorded", "kill", "1", order_type="limit_maker", limit_offset_pct=3, limit_s=2)
    signal = stage.signal(BTC, "BUY")
    stage.wait(lambda: died(executor))
    assert [o["status"] for o in stage.orders()] == ["NEW"]
    stage.start(order_type="limit_maker", limit_offset_pct=3, limit_s=2)
    stage.answered(signal)
    assert kinds(stage, signal) == ["order_canceled"]
    [order] = stage.orders()
    assert order["updateTime"] - order["time"] >= 2_000
    stage.check_standing()


def test_a_halt_takes_back_what_rests(stage: Any) -> None:
    stage.start(order_type="limit", limit_offset_pct=3)
    signal = stage.signal(BTC, "BUY")
    stage.wait(lambda: stage.orders("NEW"))
    now = time.time_ns() // 1_000
    stage.publish(topics.TRADING_SIGNALS, "main", Command("c-1", "main", "halt", "alice", now, None, ""))
    stage.answered(signal)
    assert kinds(stage, signal) == ["order_canceled"]
    stage.check_standing()


# --- chase -------------------------------------------------------------------------------------------


def replaced(stage: Any, signal: Any) -> list[Any]:
    """Wait until the signal's first order has given its place to another, which the exchange has."""

    def done() -> list[Any]:
        intents = [e for e in stage.events() if isinstance(e, OrderIntended) and e.signal_id == signal.id]
        said = stage.last_words()
        assert intents
        assert said[intents[0].order_id] == "order_canceled", said
        assert any(said[intent.order_id] != "order_expired" for intent in intents[1:]), said
        return intents

    return stage.wait(done)


def test_a_chase_follows_the_market_to_its_bound_and_no_further(stage: Any) -> None:
    stage.start(order_type="limit", chase_pct="0.5")
    close = (stage.exchange.price(BTC) * Decimal("0.97")).quantize(Decimal("0.01"))
    signal = stage.signal(BTC, "BUY", close=close)
    first, second = replaced(stage, signal)
    bound = close * Decimal("1.005")
    assert first.price == close < second.price <= bound < second.price + Decimal("0.02")
    assert second.replaces == first.order_id
    # It is looked at again and again, and stays.
    asked = stage.exchange.ledger()["requests"]["GET /api/v3/ticker/bookTicker"]["200"]
    stage.wait(lambda: stage.exchange.ledger()["requests"]["GET /api/v3/ticker/bookTicker"]["200"] > asked + 1)
    assert [o["status"] for o in stage.orders()] == ["CANCELED", "NEW"]
    stage.exchange.fault("burst", symbol=BTC, count=1, percent=-5)
    stage.answered(signal)
    assert kinds(stage, signal) == ["order_canceled", "order_filled"]
    stage.check_standing()


@pytest.mark.parametrize(("step", "number"), [("intended", "2"), ("posted", "2")])
def test_a_crash_in_a_chase_leaves_one_order(stage: Any, step: str, number: str) -> None:
    settings = {"order_type": "limit", "chase_pct": "0.5"}
    executor = stage.start(step, "kill", number, **settings)
    close = (stage.exchange.price(BTC) * Decimal("0.97")).quantize(Decimal("0.01"))
    signal = stage.signal(BTC, "BUY", close=close)
    stage.wait(lambda: died(executor))
    stage.start(**settings)
    replaced(stage, signal)
    assert len(stage.orders("NEW")) == 1
    stage.exchange.fault("burst", symbol=BTC, count=1, percent=-5)
    stage.answered(signal)
    stage.check_standing()


@pytest.mark.parametrize("fault", ["order_lost_answer", "order_lost_request", "order_429"])
def test_a_chase_whose_answer_does_not_come_is_found_out(stage: Any, fault: str) -> None:
    stage.start(order_type="limit", chase_pct="0.5")
    close = (stage.exchange.price(BTC) * Decimal("0.97")).quantize(Decimal("0.01"))
    signal = stage.signal(BTC, "BUY", close=close)
    stage.wait(lambda: stage.orders("NEW"))
    stage.exchange.fault(fault)
    replaced(stage, signal)
    stage.exchange.fault("burst", symbol=BTC, count=1, percent=-5)
    stage.answered(signal)
    stage.check_standing()


# --- stops and targets -------------------------------------------------------------------------------


@pytest.mark.parametrize(("protect", "percent"), [("stop", -2.5), ("oco", -2.5), ("oco", 2.5)])
def test_what_was_bought_is_given_up_at_its_stop_or_sold_at_its_target(
    stage: Any, protect: str, percent: float
) -> None:
    stage.start(**(OCO | {"protect": protect}))
    bought = stage.signal(BTC, "BUY")
    stage.answered(bought)
    legs = protected(
        stage, 1 if protect == "stop" else 2, stage.position(BTC) // Decimal("0.00001") * Decimal("0.00001")
    )
    stage.exchange.fault("burst", symbol=BTC, count=1, percent=percent)
    stage.wait(lambda: sold_out(stage))
    said = {o["type"]: o["status"] for o in stage.orders() if stage.protects(o["clientOrderId"])}
    hit = "LIMIT_MAKER" if percent > 0 else "STOP_LOSS_LIMIT"
    assert said == {o["type"]: "FILLED" if o["type"] == hit else "EXPIRED" for o in legs}
    stage.check_standing()


def test_signals_change_what_is_held_and_one_protection_follows(stage: Any) -> None:
    stage.start(**OCO)
    first = stage.signal(BTC, "BUY")
    stage.answered(first)
    [before] = {o["origQty"] for o in protected(stage, 2)}
    second = stage.signal(BTC, "BUY")
    stage.answered(second)

    def more() -> Decimal:
        [now] = {Decimal(o["origQty"]) for o in protected(stage, 2)}
        assert now > Decimal(before)
        return now

    whole = stage.wait(more)
    # Half of it is sold, and the rest is protected again.
    part = stage.signal(BTC, "SELL")
    stage.answered(part)

    def less() -> Decimal:
        [now] = {Decimal(o["origQty"]) for o in protected(stage, 2)}
        assert now < whole
        return now

    stage.wait(less)
    rest = stage.signal(BTC, "SELL")
    stage.answered(rest)
    stage.wait(lambda: sold_out(stage))
    assert kinds(stage, part) == kinds(stage, rest) == ["order_filled"]
    stage.check_standing()


def test_a_protection_that_is_cancelled_from_outside_is_placed_again_and_a_flatten_ends_it(stage: Any) -> None:
    stage.start(**OCO)
    stage.answered(stage.signal(BTC, "BUY"))
    [leg, _] = protected(stage, 2)
    stage.exchange.cancel(BTC, leg["clientOrderId"])
    stage.wait(lambda: {o["clientOrderId"] for o in protected(stage, 2)}.isdisjoint({leg["clientOrderId"]}))
    now = time.time_ns() // 1_000
    stage.publish(topics.TRADING_SIGNALS, "main", Command("c-1", "main", "flatten", "alice", now, None, ""))
    stage.wait(lambda: sold_out(stage))
    stage.check_standing()


def test_what_falls_below_its_stop_before_that_stands_is_sold_at_the_market(stage: Any) -> None:
    stage.start(**OCO)
    price = stage.exchange.price(BTC)
    stage.answered(stage.signal(BTC, "BUY", close=price * Decimal("1.05")))
    stage.wait(lambda: sold_out(stage))
    assert {o["type"] for o in stage.orders()} == {"MARKET"}
    stage.check_standing()


@pytest.mark.parametrize(
    ("step", "number"),
    [("recorded", "1"), ("intended", "2"), ("posted", "2"), ("recorded", "2")],
)
def test_a_crash_between_a_fill_and_its_protection_leaves_one_protection(stage: Any, step: str, number: str) -> None:
    executor = stage.start(step, "kill", number, **OCO)
    bought = stage.signal(BTC, "BUY")
    stage.wait(lambda: died(executor))
    stage.start(**OCO)
    stage.answered(bought)
    protected(stage, 2)
    stage.check_standing()


@pytest.mark.parametrize(
    ("step", "number"),
    [("cancelling", "1"), ("cancelled", "1"), ("intended", "3"), ("posted", "3")],
)
def test_a_crash_in_a_sale_of_what_is_protected_sells_it_once(stage: Any, step: str, number: str) -> None:
    executor = stage.start(step, "kill", number, **OCO)
    bought = stage.signal(BTC, "BUY")
    stage.answered(bought)
    protected(stage, 2)
    sold = stage.signal(BTC, "SELL")
    stage.wait(lambda: died(executor))
    stage.start(**OCO)
    stage.answered(sold)
    stage.wait(lambda: sold_out(stage))
    assert kinds(stage, sold)[-1] == "order_filled"
    stage.check_standing()


@pytest.mark.parametrize("fault", ["order_lost_answer", "order_lost_request", "order_429", "reject"])
def test_a_protection_whose_answer_does_not_come_is_found_out(stage: Any, fault: str) -> None:
    executor = stage.start("recorded", "freeze", "1", **OCO)
    bought = stage.signal(BTC, "BUY")
    stage.wait(executor.frozen)
    stage.exchange.fault(fault)
    executor.signal(SIGCONT)
    stage.answered(bought)
    protected(stage, 2)
    stage.check_standing()


def test_a_lost_answer_to_a_cancellation_delays_the_sale_and_sells_once(stage: Any) -> None:
    stage.start(**OCO)
    stage.answered(stage.signal(BTC, "BUY"))
    protected(stage, 2)
    stage.exchange.fault("cancel_lost_answer", status=0)
    sold = stage.signal(BTC, "SELL")
    stage.answered(sold)
    stage.wait(lambda: sold_out(stage))
    stage.check_standing()
