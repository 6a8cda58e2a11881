"""What lands where: the warehouse's tables, derived from the events, and rows of events as Arrow tables.

Pure: no Kafka, no warehouse, no clock. Must never round or drop a value, nor know how a table is loaded.
"""

from __future__ import annotations

import base64
import re
import types
from collections.abc import Callable, Iterable, Sequence
from decimal import Decimal
from functools import cache
from operator import attrgetter
from typing import Any, Final, NamedTuple, Union, get_args, get_origin

import msgspec
import pyarrow as pa
from marketflow_common import codec, events, topics

__all__ = ["COORDINATES", "REJECTS", "TABLES", "Column", "Landing", "Row", "Table", "table_of"]

NUMBER: Final = pa.decimal128(38, 18)
TIME: Final = pa.timestamp("us", tz="UTC")
INTEGER: Final = pa.int64()
TEXT: Final = pa.string()
TRUTH: Final = pa.bool_()

_TIMES: Final = re.compile(r"(_at|_time|^through)$")
"""Fields that hold microseconds since the epoch; ``timestamp_ms`` stays the number that was signed."""
_END_OF_TIME: Final = 253_402_300_800_000_000
"""Year 10000 in microseconds: the warehouse's timestamps end before it."""


class Column(NamedTuple):
    """One column: its name in the warehouse, its Arrow type, and how to get its value from an event."""

    name: str
    type: pa.DataType
    value: Callable[[Any], Any]
    required: bool


class Table(NamedTuple):
    """One landed table: its name with schema, the topic it is fed from, the kinds of event, and their columns."""

    name: str
    topic: str
    kinds: tuple[type[events.Event], ...]
    columns: tuple[Column, ...]


class Row(NamedTuple):
    """A record on its way: where it comes from, and its bytes."""

    topic: str
    """plain name, without prefix"""
    topic_name: str
    topic_id: str
    partition: int
    offset: int
    appended_ms: int
    key: bytes | None
    value: bytes | None


COORDINATES: Final = (
    ("KAFKA_TOPIC", TEXT),
    ("KAFKA_TOPIC_ID", TEXT),
    ("KAFKA_PARTITION", INTEGER),
    ("KAFKA_OFFSET", INTEGER),
    ("KAFKA_APPENDED_AT", TIME),
    ("LANDED_AT", TIME),
)


def _json(value: Any) -> str | None:
    """A list or map as JSON; amounts as strings in fixed point, as on the wire."""
    if value is None:
        return None
    if isinstance(value, dict):
        value = {name: format(v, "f") if isinstance(v, Decimal) else v for name, v in value.items()}
    return msgspec.json.encode(value).decode()


def _column(name: str, annotation: Any, get: Callable[[Any], Any], required: bool) -> Column:
    union = get_origin(annotation) in (Union, types.UnionType)
    parts = [part for part in get_args(annotation) if part is not type(None)] if union else [annotation]
    required = required and not (union and type(None) in get_args(annotation))
    origin = get_origin(parts[0]) or parts[0]
    kind: pa.DataType
    if origin is Decimal:
        kind = NUMBER
    elif origin is bool:
        kind = TRUTH
    elif origin is int:
        kind = TIME if _TIMES.search(name) else INTEGER
    elif origin in (dict, tuple):
        kind = TEXT
        return Column(name.upper(), kind, lambda event: _json(get(event)), required)
    else:
        kind = TEXT
    return Column(name.upper(), kind, get, required)


def _fields(kind: type[msgspec.Struct], several: bool) -> list[Column]:
    columns = []
    for field in msgspec.structs.fields(kind):
        if field.type is events.Kline:
            for inner in msgspec.structs.fields(events.Kline):
                path = attrgetter(f"{field.name}.{inner.name}")
                get = _optional(events.Watermark, path) if several else path
                columns.append(_column(f"{field.name}_{inner.name}", inner.type, get, not several))
            continue
        get = (lambda name: lambda event: getattr(event, name, None))(field.name) if several else attrgetter(field.name)
        columns.append(_column(field.name, field.type, get, True))
    return columns


def _optional(kind: type, get: Callable[[Any], Any]) -> Callable[[Any], Any]:
    return lambda event: get(event) if isinstance(event, kind) else None


def _table(name: str, topic: str, *kinds: type[events.Event]) -> Table:
    """A table of one kind has exactly its fields; one of several kinds has EVENT_TYPE and the union."""
    several = len(kinds) > 1
    columns: dict[str, Column] = {}
    if several:
        columns["EVENT_TYPE"] = Column("EVENT_TYPE", TEXT, codec.schema_of, True)
    per_kind = [_fields(kind, several) for kind in kinds]
    everywhere = set.intersection(*({c.name for c in found if c.required} for found in per_kind))
    for found in per_kind:
        for column in found:
            columns.setdefault(column.name, column._replace(required=column.name in everywhere))
    return Table(name, topic, kinds, tuple(columns.values()))


TABLES: Final[tuple[Table, ...]] = (
    _table("RAW.TRADES", topics.OHLCV_RAW, events.Trade),
    _table("RAW.FEED_EVENTS", topics.OHLCV_RAW, events.Watermark, events.Gap, events.Bar),
    _table("STAGING.OHLCV_STREAM", topics.OHLCV_AGG, events.Candle),
    _table("ANALYTICS.SIGNALS_STREAM", topics.TRADING_SIGNALS, events.Signal),
    _table("ANALYTICS.COMMANDS", topics.TRADING_SIGNALS, events.Command),
    _table("ANALYTICS.ORDER_EVENTS", topics.ORDER_EVENTS, *get_args(events.OrderEvent)),
)
REJECTS: Final = "RAW.REJECTS"


@cache
def table_of(kind: type[events.Event]) -> Table:
    """The table that a kind of event lands in."""
    return next(table for table in TABLES if kind in table.kinds)


class Landing:
    """Rows of one flush, by table."""

    def __init__(self, landed_us: int) -> None:
        self._landed_us = landed_us
        self._rows: dict[str, tuple[list[Row], list[Any]]] = {}

    def add(self, rows: Iterable[Row]) -> int:
        """Read the rows' bytes; what cannot be read or held goes to RAW.REJECTS. Returns how many did."""
        rejected = 0
        for row in rows:
            try:
                event = codec.decode(row.topic, row.value)
            except codec.Unreadable as error:
                self._put(REJECTS, row, str(error))
                rejected += 1
                continue
            kind: type[events.Event] = type(event)
            self._put(table_of(kind).name, row, event)
        return rejected

    def tables(self) -> dict[str, pa.Table]:
        """Table's name to its rows, columns as in infra/snowflake-schema.sql. Empties the landing."""
        found: dict[str, pa.Table] = {}
        for table in TABLES:
            rows, events_ = self._rows.pop(table.name, ([], []))
            if rows:
                found |= self._built(table, rows, events_)
        rows, reasons = self._rows.pop(REJECTS, ([], []))
        if rows:
            extra = {
                "REASON": pa.array(reasons, TEXT),
                "KEY_BASE64": pa.array([_base64(row.key) for row in rows], TEXT),
                "VALUE_BASE64": pa.array([_base64(row.value) for row in rows], TEXT),
            }
            found[REJECTS] = pa.table(self._coordinates(rows) | extra)
        return found

    def _put(self, table: str, row: Row, what: Any) -> None:
        rows, values = self._rows.setdefault(table, ([], []))
        rows.append(row)
        values.append(what)

    def _built(self, table: Table, rows: list[Row], events_: list[Any]) -> dict[str, pa.Table]:
        try:
            columns = {column.name: _array(column, events_) for column in table.columns}
        except OverflowError:
            # Rare: one value that no column can hold must not keep the others back.
            good = []
            for row, event in zip(rows, events_, strict=True):
                problem = _problem(table, event)
                if problem:
                    self._put(REJECTS, row, problem)
                else:
                    good.append((row, event))
            if not good:
                return {}
            rows = [row for row, _ in good]
            columns = {column.name: _array(column, [event for _, event in good]) for column in table.columns}
        return {table.name: pa.table(self._coordinates(rows) | columns)}

    def _coordinates(self, rows: Sequence[Row]) -> dict[str, pa.Array]:
        values: tuple[list[Any], ...] = (
            [row.topic_name for row in rows],
            [row.topic_id for row in rows],
            [row.partition for row in rows],
            [row.offset for row in rows],
            [row.appended_ms * 1_000 for row in rows],
            [self._landed_us] * len(rows),
        )
        return {name: pa.array(v, kind) for (name, kind), v in zip(COORDINATES, values, strict=True)}


def _base64(data: bytes | None) -> str | None:
    return None if data is None else base64.b64encode(data).decode()


def _array(column: Column, events_: Sequence[Any]) -> pa.Array:
    """The column's values. Raises OverflowError where one does not fit its type."""
    values = list(map(column.value, events_))
    if column.type in (INTEGER, TIME):
        low, high = (0, _END_OF_TIME) if column.type == TIME else (-(2**63), 2**63)
        for value in values:
            if value is not None and not low <= value < high:
                raise OverflowError(value)
    return pa.array(values, column.type)


def _problem(table: Table, event: Any) -> str | None:
    """Why an event has no place in its table; None if it has."""
    for column in table.columns:
        try:
            _array(column, [event])
        except OverflowError as error:
            holds = "times from 1970 to 9999" if column.type == TIME else "64-bit numbers"
            return f"{column.name} is {error}, but holds {holds}"
    return None
