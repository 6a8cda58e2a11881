"""Executors that die, freeze or make room: each signal has one order, whoever leads."""

from __future__ import annotations

from signal import SIGCONT
from typing import Any

import pytest
from marketflow_common.events import OrderIntended
from marketflow_common.kafka.client import producer
from marketflow_common.service import EXIT_FENCED

STEPS = ("decided", "intended", "posting", "posted", "recorded")


def died(executor: Any) -> bool:
    return executor.process.poll() is not None


def test_killed_at_each_step_the_next_one_finishes_the_same_order(stage: Any) -> None:
    signals = []
    for step in STEPS:
        # It may meet the step while it recovers what the one before it left behind, or with the new signal.
        executor = stage.start(step, "kill", "1", leads=False)
        signals.append(stage.signal("BTCUSDT", "BUY"))
        stage.wait(lambda executor=executor: died(executor))
    stage.start()
    stage.settled(*signals)
    assert "order_accepted" in stage.of(signals[-1])


@pytest.mark.parametrize(("step", "count"), [("unresolved", 1), ("asked", 1), ("decided", 2), ("intended", 2)])
def test_killed_while_finding_out_what_became_of_an_order(stage: Any, step: str, count: int) -> None:
    executor = stage.start(step, "kill", str(count))
    stage.exchange.fault("order_lost_request")
    signal = stage.signal("ETHUSDT", "BUY")
    stage.wait(lambda: died(executor))
    stage.start()
    stage.settled(signal)


def test_a_leader_frozen_before_its_order_wakes_up_too_late_to_have_it_accepted(stage: Any) -> None:
    frozen = stage.start("posting", "freeze", "1")
    # The standby has patience to spare: on a busy machine its own order must not come too late as well.
    standby = stage.start(leads=False, recv_window_ms=30_000, rest_timeout_s=25)
    stage.wait(standby.stands_by)
    signal = stage.signal("BTCUSDT", "BUY")
    stage.wait(frozen.frozen)
    stage.wait(standby.leads)
    stage.answered(signal)
    frozen.signal(SIGCONT)
    # The request that was about to be sent goes out, and the exchange refuses it for its age.
    stage.wait(lambda: stage.exchange.ledger()["requests"]["POST /api/v3/order"].get("400"))
    stage.wait(lambda: frozen.stands_by() or died(frozen))
    later = stage.signal("BTCUSDT", "SELL")
    stage.settled(signal, later)
    assert [e.attempt for e in stage.events() if isinstance(e, OrderIntended) and e.signal_id == signal.id] == [1, 2]
    # Who joins again takes the lead from nobody.
    stage.wait(lambda: stage.members("executor-leader-main") == 2)
    stage.wait(frozen.stands_by)
    stage.wait(standby.leads)


def test_a_leader_frozen_after_its_order_can_record_nothing_once_another_leads(stage: Any) -> None:
    frozen = stage.start("posted", "freeze", "1")
    standby = stage.start(leads=False)
    stage.wait(standby.stands_by)
    signal = stage.signal("SOLUSDT", "BUY")
    stage.wait(frozen.frozen)
    stage.wait(standby.leads)
    stage.answered(signal)
    frozen.signal(SIGCONT)
    stage.wait(lambda: frozen.stands_by() or died(frozen))
    later = stage.signal("SOLUSDT", "SELL")
    stage.settled(signal, later)


def test_a_leader_that_is_asked_to_stop_finishes_the_order_in_flight(stage: Any) -> None:
    # Patience to spare: a busy machine must not make the answer an unknown one, which the next leader would resolve.
    leader = stage.start(recv_window_ms=30_000, rest_timeout_s=25)
    stage.exchange.fault("late_answer", path="/api/v3/order", seconds=1)
    signal = stage.signal("BTCUSDT", "BUY")
    stage.wait(lambda: stage.of(signal))
    assert leader.stop(20) == 0
    assert stage.of(signal) == ["order_intended", "order_accepted", "order_filled"]
    stage.settled(signal)


def test_whoever_takes_the_transactional_id_stops_a_leader_before_its_next_order(stage: Any) -> None:
    leader = stage.start()
    usurper = producer(stage.kafka, "executor-main")
    usurper.init_transactions(30)
    stage.signal("BTCUSDT", "BUY")
    stage.wait(lambda: died(leader))
    assert leader.process.returncode == EXIT_FENCED
    assert "another instance works on this" in leader.log.read_text()
    assert stage.exchange.posts() == 0
    assert [type(event).__name__ for event in stage.events()] == ["AccountOpened"]


def test_a_leader_that_is_asked_to_stop_leaves_at_once_to_the_standby(stage: Any) -> None:
    leader = stage.start()
    standby = stage.start(leads=False)
    stage.wait(lambda: stage.members("executor-leader-main") == 2 and standby.stands_by() and leader.leads())
    first = stage.signal("BTCUSDT", "BUY")
    stage.answered(first)
    assert leader.stop(20) == 0
    # It has left the group: the standby need not wait for its session to time out.
    assert stage.members("executor-leader-main") == 1
    stage.wait(standby.leads)
    stage.settled(first, stage.signal("BTCUSDT", "SELL"))
