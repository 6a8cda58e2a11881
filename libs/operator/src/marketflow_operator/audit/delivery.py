"""Checks of what left the topics: rows in the warehouse, messages in the channels.

Pure functions from evidence to verdicts. Must never use a service's code: what is checked is not its own yardstick.
"""

from __future__ import annotations

import json
import re
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from itertools import groupby
from typing import Any, Final

import msgspec
from marketflow_common.codec import schema_of
from marketflow_common.events import (
    OrderCanceled,
    OrderExpired,
    OrderFilled,
    OrderRejected,
    OrderUnresolved,
    Signal,
    TradingStateChanged,
    Watermark,
)
from marketflow_common.topics import ALL, OHLCV_AGG, OHLCV_RAW, ORDER_EVENTS, TRADING_SIGNALS

from .model import Check, Evidence, Row, Seen, Warehouse, Where, verdict

__all__ = [
    "CHANNEL_CHECKS",
    "REJECTS",
    "TABLES",
    "WAREHOUSE_CHECKS",
    "due_notifications",
    "load_offsets",
    "notification_counts",
    "notifications_delivered",
    "notifications_repeated",
    "rejects_equal_unreadable",
    "row_problems",
    "rows_landed",
    "told_of",
    "warehouse_rows",
    "warehouse_values",
]

TABLES: Final[Mapping[str, tuple[str, tuple[str, ...]]]] = {
    "RAW.TRADES": (OHLCV_RAW, ("trade",)),
    "RAW.FEED_EVENTS": (OHLCV_RAW, ("watermark", "gap", "bar")),
    "STAGING.OHLCV_STREAM": (OHLCV_AGG, ("candle",)),
    "ANALYTICS.SIGNALS_STREAM": (TRADING_SIGNALS, ("signal",)),
    "ANALYTICS.COMMANDS": (TRADING_SIGNALS, ("command",)),
    "ANALYTICS.ORDER_EVENTS": (
        ORDER_EVENTS,
        (
            "account_opened",
            "order_intended",
            "order_accepted",
            "order_filled",
            "order_rejected",
            "order_canceled",
            "order_expired",
            "order_unresolved",
            "signal_skipped",
            "trading_state_changed",
        ),
    ),
}
"""Which records of which topic each table holds (infra/snowflake-schema.sql)."""
REJECTS: Final = "RAW.REJECTS"

_DUE: Final = (OrderFilled, OrderRejected, OrderExpired, OrderCanceled, OrderUnresolved, TradingStateChanged)
_REFERENCE: Final = re.compile(rf"\b({'|'.join(ALL)})/(\d+)@(\d+)")
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_COORDINATES: Final = frozenset(
    ("KAFKA_TOPIC", "KAFKA_TOPIC_ID", "KAFKA_PARTITION", "KAFKA_OFFSET", "KAFKA_APPENDED_AT", "LANDED_AT")
)
_TIMES: Final = frozenset(("OPEN_TIME", "CLOSE_TIME", "THROUGH", "KLINE_OPEN_TIME", "KLINE_CLOSE_TIME"))


# --- warehouse ---------------------------------------------------------------------------------------


def _due(evidence: Evidence, table: str) -> dict[Where, Seen]:
    topic, kinds = TABLES[table] if table != REJECTS else ("", ())
    if table == REJECTS:
        return {s.where: s for topic in ALL for s in evidence.records.get(topic, ()) if s.event is None}
    return {
        seen.where: seen
        for seen in evidence.records.get(topic, ())
        if seen.event is not None and schema_of(seen.event) in kinds
    }


def _landed(evidence: Evidence, warehouse: Warehouse, table: str) -> Iterator[tuple[Where, Row]]:
    """Rows of a table that came from before the ends of what was read of the topics."""
    for row in warehouse.tables.get(table, ()):
        where = Where(
            str(row["KAFKA_TOPIC"]).removeprefix(evidence.prefix), int(row["KAFKA_PARTITION"]), int(row["KAFKA_OFFSET"])
        )
        if where.offset < evidence.ends.get(where[:2], where.offset + 1):
            yield where, row


def _rows(name: str, table: str, evidence: Evidence, warehouse: Warehouse) -> Check:
    known = _due(evidence, table)
    due = {where: seen for where, seen in known.items() if _had_to_land(evidence, where)}
    times: Counter[Where] = Counter()
    offenders = []
    for where, row in _landed(evidence, warehouse, table):
        times[where] += 1
        made = evidence.topic_ids.get(where.topic)
        if made is not None and row["KAFKA_TOPIC_ID"] != made:
            offenders.append(f"{table} has {where} of topic id {row['KAFKA_TOPIC_ID']}, but the topic is {made}")
    offenders += [f"{span} missing in {table}" for span in _spans(sorted(due), due.keys() - times.keys())]
    offenders += [f"{where} stands {count} times in {table}" for where, count in sorted(times.items()) if count > 1]
    offenders += [f"{where} in {table} is no such record of the topic" for where in sorted(times.keys() - known.keys())]
    landed = sum(count for where, count in times.items() if _had_to_land(evidence, where))
    ahead = len(known) - len(due)
    note = f"{ahead} beyond the loader's position are not judged" if ahead else ""
    return verdict(name, len(due), landed, offenders, note)


def _had_to_land(evidence: Evidence, where: Where) -> bool:
    """Whether the record lies before the loader's position; beyond it nothing is missing yet, only on its way."""
    until = evidence.lagging.get(where[:2])
    return until is None or where.offset < until


def _spans(ordered: Sequence[Where], wanted: Collection[Where]) -> Iterator[str]:
    """The wanted ones of some records, those next to each other as one: ``ohlcv_raw/0@3 to 17 (9)``."""
    for (topic, partition), group in groupby(ordered, key=lambda where: where[:2]):
        for is_wanted, run in groupby(group, key=lambda where: where in wanted):
            if is_wanted:
                offsets = [where.offset for where in run]
                more = f" to {offsets[-1]} ({len(offsets)})" if len(offsets) > 1 else ""
                yield f"{topic}/{partition}@{offsets[0]}{more}"


def warehouse_rows(evidence: Evidence, warehouse: Warehouse) -> list[Check]:
    """Per table: every record that a read_committed reader sees has landed exactly once, and nothing else has."""
    return [_rows(f"warehouse_rows_{table.partition('.')[2].lower()}", table, evidence, warehouse) for table in TABLES]


def rejects_equal_unreadable(evidence: Evidence, warehouse: Warehouse) -> list[Check]:
    """Every record that cannot be read lies once in RAW.REJECTS, and nothing else does."""
    return [_rows("rejects_equal_unreadable", REJECTS, evidence, warehouse)]


def rows_landed(evidence: Evidence, warehouse: Warehouse, table: str = "RAW.TRADES") -> int:
    """Distinct records of the topic that stand in a table."""
    due = _due(evidence, table)
    return len({where for where, _ in _landed(evidence, warehouse, table) if where in due})


def warehouse_values(evidence: Evidence, warehouse: Warehouse) -> list[Check]:
    """Every column of every landed row says what the record says, numbers exactly and times to the microsecond."""
    offenders, compared, equal = [], 0, 0
    for table in TABLES:
        due = _due(evidence, table)
        for where, row in _landed(evidence, warehouse, table):
            seen = due.get(where)
            if seen is None:
                continue
            compared += 1
            wrong = list(row_problems(seen, row))
            equal += not wrong
            if wrong:
                offenders.append(f"{table} {where}: {', '.join(wrong)}")
    return [verdict("warehouse_values", compared, equal, offenders)]


def row_problems(seen: Seen, row: Row) -> Iterator[str]:
    """What a landed row says otherwise than its record, in words."""
    fields = _columns(seen.event)
    for name in fields.keys() - row.keys():
        yield f"there is no column {name}"
    for name, value in row.items():
        if name in _COORDINATES:
            continue
        if name == "EVENT_TYPE":
            if value != schema_of(seen.event):
                yield f"EVENT_TYPE {value} instead of {schema_of(seen.event)}"
            continue
        due = fields.get(name)
        if not _same(name, due, value):
            yield f"{name} {value} instead of {due}"
    appended = _micros(row["KAFKA_APPENDED_AT"])
    if appended != seen.appended_ms * 1000:
        yield f"KAFKA_APPENDED_AT {row['KAFKA_APPENDED_AT']} instead of {_moment(seen.appended_ms * 1000)}"


def _columns(event: Any) -> dict[str, Any]:
    fields = {name.upper(): getattr(event, name) for name in event.__struct_fields__}
    if isinstance(event, Watermark):
        kline = fields.pop("KLINE")
        fields |= {f"KLINE_{name.upper()}": getattr(kline, name) for name in kline.__struct_fields__}
    return fields


def _is_time(name: str) -> bool:
    return name.endswith("_AT") or name in _TIMES


def _same(name: str, due: Any, value: Any) -> bool:
    if due is None:
        # fakesnow hands a NULL timestamp over as 1970-01-01.
        return value is None or (_is_time(name) and _micros(value) == 0)
    if value is None:
        return False
    if _is_time(name):
        return bool(_micros(value) == due)
    if isinstance(due, tuple | dict | list):
        return bool(json.loads(value) == json.loads(msgspec.json.encode(due)))
    if isinstance(due, bool):
        return value is due
    if isinstance(due, Decimal | int):
        return isinstance(value, Decimal | int) and bool(value == due)
    return bool(value == due)


def _micros(moment: Any) -> int | None:
    if not isinstance(moment, datetime):
        return None
    aware = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    return (aware - _EPOCH) // timedelta(microseconds=1)


def _moment(micros: int) -> datetime:
    return _EPOCH + timedelta(microseconds=micros)


def load_offsets(evidence: Evidence, warehouse: Warehouse) -> list[Check]:
    """The loader's position of every partition is past its last record and past every landed row.

    Where it is still on its way to the last record, that is pending (see ``drained``), and no damage.
    """
    positions: dict[tuple[str, int], list[tuple[int, str]]] = defaultdict(list)
    for position in warehouse.positions:
        plain = position.topic.removeprefix(evidence.prefix)
        positions[plain, position.partition].append((position.next_offset, position.topic_id))
    needed: dict[tuple[str, int], int] = {}
    for topic in ALL:
        for seen in evidence.records.get(topic, ()):
            needed[seen.where[:2]] = max(needed.get(seen.where[:2], 0), seen.where.offset + 1)
    landed: dict[tuple[str, int], int] = {}
    for table in (*TABLES, REJECTS):
        for row in warehouse.tables.get(table, ()):
            key = (str(row["KAFKA_TOPIC"]).removeprefix(evidence.prefix), int(row["KAFKA_PARTITION"]))
            landed[key] = max(landed.get(key, 0), int(row["KAFKA_OFFSET"]) + 1)
    offenders, right = [], 0
    for key, end in sorted(needed.items()):
        held = positions.get(key, [])
        due = evidence.lagging.get(key, end)
        problem = _position_problem(held, due, landed.get(key, 0), evidence.topic_ids.get(key[0]))
        right += not problem
        if problem:
            offenders.append(f"{key[0]}/{key[1]}: {problem}")
    return [verdict("load_offsets", len(needed), right, offenders)]


def _position_problem(held: Sequence[tuple[int, str]], end: int, landed: int, topic_id: str | None) -> str:
    if not held and not end and not landed:
        return ""  # it has not begun with this partition
    if len(held) != 1:
        return f"{len(held)} positions in RAW.LOAD_OFFSETS" if held else "no position in RAW.LOAD_OFFSETS"
    offset, made = held[0]
    if topic_id is not None and made != topic_id:
        return f"the position belongs to topic id {made}, but the topic is {topic_id}"
    if offset < end:
        return f"position {offset} is behind the last record, {end - 1}"
    if offset < landed:
        return f"position {offset} is behind the last landed row, {landed - 1}"
    return ""


WAREHOUSE_CHECKS: Final = (warehouse_rows, rejects_equal_unreadable, warehouse_values, load_offsets)


# --- notifications -----------------------------------------------------------------------------------


def due_notifications(evidence: Evidence) -> list[Where]:
    """Records that people are to be told of: BUY and SELL signals, ends and fills of orders, trading states."""
    due = [seen.where for seen, signal in evidence.of(Signal) if signal.signal_type != "HOLD"]
    due += [seen.where for seen in evidence.records.get(ORDER_EVENTS, ()) if isinstance(seen.event, _DUE)]
    return due


def _references(evidence: Evidence) -> dict[str, Counter[Where]]:
    """By channel, how many messages name each record."""
    told: dict[str, Counter[Where]] = {channel: Counter() for channel in evidence.channels}
    for message in evidence.recorded or ():
        found = {Where(t, int(p), int(o)) for t, p, o in _REFERENCE.findall(message.text)}
        told.setdefault(message.channel, Counter()).update(found)
    return told


def told_of(evidence: Evidence) -> tuple[set[Where], Mapping[str, Counter[Where]]]:
    """The due records, and by channel how many messages name each record."""
    return set(due_notifications(evidence)), _references(evidence)


def notification_counts(evidence: Evidence) -> dict[str, int]:
    """Over all channels: ``due``, ``delivered``, ``lost`` and ``repeated`` notifications."""
    due, told = told_of(evidence)
    delivered = sum(len(due & found.keys()) for found in told.values())
    return {
        "due": len(due) * len(told),
        "delivered": delivered,
        "lost": len(due) * len(told) - delivered,
        "repeated": sum(count - 1 for found in told.values() for where, count in found.items() if where in due),
    }


def notifications_delivered(evidence: Evidence) -> Check:
    """Every channel was told of every due record, and of nothing that is not there."""
    due = due_notifications(evidence)
    wanted = set(due)
    offenders, delivered = [], 0
    told = _references(evidence)
    if not told:
        offenders.append("no channel has recorded anything, and none is known")
    for channel, found in sorted(told.items()):
        delivered += sum(where in found for where in wanted)
        offenders += [f"{channel} was not told of {where}" for where in due if where not in found]
        offenders += [
            f"{channel} was told of {where}, which is no due record"
            for where in sorted(found.keys() - wanted)
            if where.offset < evidence.ends.get(where[:2], 0)
        ]
    return verdict("notifications_delivered", len(due) * len(told), delivered, offenders)


def notifications_repeated(evidence: Evidence) -> Check:
    """Repeats are counted. A restart may repeat the one message in flight per channel, so more than that offends.

    Where nobody counted the notifier's restarts, one repeated message in ten (at least one) is let pass: what it
    would take a commit that never works to produce is far more.
    """
    due = set(due_notifications(evidence))
    offenders, repeated, notes = [], 0, []
    restarts = evidence.notifier_restarts
    by_channel: dict[str, list[str]] = defaultdict(list)
    for message in evidence.recorded or ():
        by_channel[message.channel].append(message.text)
    for channel, texts in sorted(by_channel.items()):
        met: set[Where] = set()
        again = []
        for text in texts:
            found = {Where(t, int(p), int(o)) for t, p, o in _REFERENCE.findall(text)} & due
            again += [sorted(found & met)] if found & met else []
            met |= found
        allowed = restarts if restarts is not None else max(1, len(texts) // 10)
        repeated += sum(map(len, again))
        if len(again) > allowed:
            offenders += [f"{channel} was told again of {', '.join(map(str, wheres))}" for wheres in again]
        elif again:
            notes.append(f"{channel}: {len(again)} repeated after a restart, from {again[0][0]}")
    expected: int | str = "1 in 10" if restarts is None else 0 if restarts == 0 else f"at most {restarts}"
    check = verdict("notifications_repeated", repeated, repeated, offenders, "; ".join(notes))
    return Check(check.name, expected, repeated, check.ok, check.detail)


CHANNEL_CHECKS: Final = (notifications_delivered, notifications_repeated)
