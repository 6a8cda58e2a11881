"""Damage to what was delivered is named: rows and positions in the warehouse, and what people were told."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from marketflow_common import events
from marketflow_operator.audit.judge import judge
from marketflow_operator.audit.model import Evidence, Message
from marketflow_operator.audit.settled import lagging, pending_warehouse
from marketflow_operator.cli import CANNOT, WRONG, code_of
from marketflow_operator.table import outcome
from marketflow_operator.targets import of_stack
from marketflow_stack.processes import ProcessId
from marketflow_stack.stack import StackConfig
from marketflow_stack.state import ProcessState, StackState

Build = Callable[..., Evidence]
Edit = Callable[..., Evidence]


def busy_partition(evidence: Evidence) -> int:
    return next(seen.where.partition for seen in evidence.records["ohlcv_raw"] if seen.key == "ETHUSDT")


# --- warehouse ---------------------------------------------------------------------------------------


def damaged(evidence: Evidence, table: str, rows: Callable[[list[Any]], Sequence[Any]]) -> Evidence:
    assert evidence.warehouse is not None
    tables = {**evidence.warehouse.tables, table: rows([dict(r) for r in evidence.warehouse.tables[table]])}
    return replace(evidence, warehouse=replace(evidence.warehouse, tables=tables))


@pytest.mark.parametrize(
    "table",
    ["RAW.TRADES", "RAW.FEED_EVENTS", "STAGING.OHLCV_STREAM", "ANALYTICS.SIGNALS_STREAM", "ANALYTICS.ORDER_EVENTS"],
)
def test_a_deleted_a_repeated_and_a_changed_row_are_named(world: Build, table: str) -> None:
    evidence = world()
    assert evidence.warehouse is not None
    row = evidence.warehouse.tables[table][1]
    where = f"{row['KAFKA_TOPIC']}/{row['KAFKA_PARTITION']}@{row['KAFKA_OFFSET']}"
    name = f"warehouse_rows_{table.partition('.')[2].lower()}"
    found = judge(damaged(evidence, table, lambda rows: [rows[0], *rows[2:]])).failed
    assert found[name].detail == f"{where} missing in {table}"
    found = judge(damaged(evidence, table, lambda rows: [*rows, rows[1]])).failed
    assert found[name].detail == f"{where} stands 2 times in {table}"

    def change(rows: list[Any]) -> list[Any]:
        column = next(c for c, v in rows[1].items() if isinstance(v, Decimal))
        rows[1][column] += Decimal("1e-18")
        return rows

    assert f"{table} {where}:" in judge(damaged(evidence, table, change)).failed["warehouse_values"].detail


def test_a_time_that_is_a_microsecond_off_is_named(world: Build) -> None:
    def change(rows: list[Any]) -> list[Any]:
        rows[0]["TRADED_AT"] += timedelta(microseconds=1)
        return rows

    assert "TRADED_AT" in judge(damaged(world(), "RAW.TRADES", change)).failed["warehouse_values"].detail


def test_a_row_of_a_topic_that_was_made_anew_is_named(world: Build) -> None:
    def change(rows: list[Any]) -> list[Any]:
        rows[0]["KAFKA_TOPIC_ID"] = "another"
        return rows

    assert "topic id another" in judge(damaged(world(), "RAW.TRADES", change)).failed["warehouse_rows_trades"].detail


def test_an_unreadable_record_has_to_lie_in_rejects(world: Build, edit: Edit) -> None:
    evidence = edit(world(), "ohlcv_raw", lambda s: isinstance(s.event, events.Trade), lambda s: s._replace(event=None))
    seen = next(s for s in evidence.records["ohlcv_raw"] if s.event is None)
    found = judge(evidence).failed
    assert found["rejects_equal_unreadable"].detail == f"{seen.where} missing in RAW.REJECTS"
    assert "is no such record of the topic" in found["warehouse_rows_trades"].detail


def test_a_position_behind_the_last_record_is_named(world: Build) -> None:
    evidence = world()
    assert evidence.warehouse is not None
    busy = busy_partition(evidence)
    positions = [
        p._replace(next_offset=1) if (p.topic, p.partition) == ("ohlcv_raw", busy) else p
        for p in evidence.warehouse.positions
    ]
    evidence = replace(evidence, warehouse=replace(evidence.warehouse, positions=positions))
    assert f"ohlcv_raw/{busy}: position 1 is behind the last record" in judge(evidence).failed["load_offsets"].detail


def lagging_at(evidence: Evidence, at: int) -> tuple[Evidence, int]:
    """The loader has landed the busiest partition of ohlcv_raw up to ``at``, and not a row more."""
    assert evidence.warehouse is not None
    busy = busy_partition(evidence)
    here = ("ohlcv_raw", busy)
    positions = [
        p._replace(next_offset=at) if (p.topic, p.partition) == here else p for p in evidence.warehouse.positions
    ]
    tables = {
        table: [r for r in rows if (r["KAFKA_TOPIC"], r["KAFKA_PARTITION"]) != here or r["KAFKA_OFFSET"] < at]
        for table, rows in evidence.warehouse.tables.items()
    }
    warehouse = replace(evidence.warehouse, tables=tables, positions=positions)
    behind = replace(evidence, warehouse=warehouse)
    pending = pending_warehouse(behind, warehouse)
    assert len(pending) == 1
    return replace(behind, pending=pending, lagging=lagging(behind, warehouse)), busy


@pytest.mark.parametrize("at", [0, 9])
def test_what_has_not_landed_yet_is_pending_and_no_damage(world: Build, at: int) -> None:
    evidence, _ = lagging_at(world(), at)
    found = judge(evidence)
    assert list(found.failed) == ["drained"]
    assert not found.failed_beyond_waiting
    assert not found.ok
    rows = next(check for check in found.checks if check.name == "warehouse_rows_trades")
    assert "beyond the loader's position are not judged" in rows.detail
    assert code_of(found) == CANNOT
    assert outcome(found).plain.startswith("The audit is not finished")


def test_a_row_missing_before_the_position_of_a_loader_that_lags_is_damage(world: Build) -> None:
    evidence, busy = lagging_at(world(), 9)
    assert evidence.warehouse is not None
    rows = evidence.warehouse.tables["RAW.TRADES"]
    gone = next(row for row in rows if row["KAFKA_PARTITION"] == busy)
    tables = {**evidence.warehouse.tables, "RAW.TRADES": [row for row in rows if row is not gone]}
    damaged = replace(evidence, warehouse=replace(evidence.warehouse, tables=tables))
    check = next(check for check in judge(damaged).failed_beyond_waiting)
    assert check.name == "warehouse_rows_trades"
    assert code_of(judge(damaged)) == WRONG
    assert check.detail.startswith(f"ohlcv_raw/{busy}@{gone['KAFKA_OFFSET']} missing in RAW.TRADES")


def test_rows_beyond_the_position_of_a_loader_that_lags_are_damage(world: Build) -> None:
    whole = world()
    evidence, busy = lagging_at(whole, 9)
    assert evidence.warehouse is not None
    assert whole.warehouse is not None
    ahead = replace(evidence, warehouse=replace(evidence.warehouse, tables=whole.warehouse.tables))
    found = judge(ahead).failed
    assert f"ohlcv_raw/{busy}: position 9 is behind the last landed row" in found["load_offsets"].detail


# --- notifications -----------------------------------------------------------------------------------


def test_a_notification_that_never_came_is_named_with_its_channel(world: Build) -> None:
    evidence = world()
    assert evidence.recorded is not None
    told = [m for i, m in enumerate(evidence.recorded) if i != 0]
    found = judge(replace(evidence, recorded=told)).failed["notifications_delivered"]
    assert found.detail.startswith("telegram was not told of trading_signals/")
    assert int(found.expected) == int(found.actual) + 2


def test_a_channel_that_recorded_nothing_is_not_forgotten(world: Build) -> None:
    evidence = world()
    told = [m for m in evidence.recorded or () if m.channel == "telegram"]
    found = judge(replace(evidence, recorded=told)).failed
    assert found["notifications_delivered"].detail.startswith("discord was not told of")


def test_a_notification_of_something_that_never_was_is_named(world: Build) -> None:
    evidence = world()
    hold = next(s for s in evidence.records["trading_signals"] if s.event.signal_type == "HOLD")
    told = [*(evidence.recorded or ()), Message("telegram", f"what? {hold.where}")]
    found = judge(replace(evidence, recorded=told)).failed
    assert found["notifications_delivered"].detail == f"telegram was told of {hold.where}, which is no due record"


@pytest.mark.parametrize(("restarts", "ok"), [(0, False), (1, True), (None, True)])
def test_a_repeat_is_reported_and_fails_only_without_a_restart(world: Build, restarts: int | None, ok: bool) -> None:
    evidence = world()
    told = [*(evidence.recorded or ()), (evidence.recorded or ())[0]]
    verdict = judge(replace(evidence, recorded=told, notifier_restarts=restarts))
    check = next(check for check in verdict.checks if check.name == "notifications_repeated")
    assert check.ok is ok
    assert check.actual == 2


def test_starts_by_an_earlier_supervisor_count_as_restarts_of_the_notifier(tmp_path: Path) -> None:
    def process(name: str, starts: int) -> ProcessState:
        return ProcessState(name, "ready", None, 0, {}, "", "", starts)

    own = ProcessId(1, 1, "")
    processes = [process("executor", 5), process("notifier", 3), process("notifier-2", 1)]
    config = StackConfig(state=tmp_path)
    assert of_stack(config, StackState(own, processes)).notifier_restarts == 2
    assert of_stack(config, StackState(own, [process("notifier", 1)])).notifier_restarts == 0
    assert of_stack(config, StackState(own, [process("executor", 1)])).notifier_restarts is None


def test_a_notifier_that_repeats_everything_fails_even_if_nobody_counts_restarts(world: Build) -> None:
    evidence = world(minutes=8)
    evidence = replace(evidence, recorded=[*(evidence.recorded or ())] * 2, notifier_restarts=None)
    assert "notifications_repeated" in judge(evidence).failed
