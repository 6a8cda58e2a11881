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
from itertools import groupby
from operator import attrgetter
from typing import Any, Final, NamedTuple, Union, get_args, get_origin

import msgspec
import pyarrow as pa
from marketflow_common import codec, events, topics

__all__ = ["COORDINATES", "REJECTS", "TABLES", "Column", "Landing", "Records", "Row", "Table", "table_of"]

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
    """A record on its way, by itself: where it comes from, and its bytes."""

    topic: str
    """plain name, without prefix"""
    topic_name: str
    topic_id: str
    partition: int
    offset: int
    appended_ms: int
    key: bytes | None
    value: bytes | None


class Records(NamedTuple):
    """Records of one partition on their way, in order and as columns: where they come from, and their bytes."""

    topic: str
    """plain name, without prefix"""
    topic_name: str
    topic_id: str
    partition: int
    offsets: Sequence[int]
    appended_ms: Sequence[int]
    keys: Sequence[bytes | None]
    values: Sequence[bytes | None]

    def only(self, at: Sequence[int]) -> Records:
        """Those at these places."""
        columns = (self.offsets, self.appended_ms, self.keys, self.values)
        return Records(*self[:4], *([column[i] for i in at] for column in columns))  # type: ignore[arg-type]


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
    wanted = events.Trade if kind is events.WireTrade else kind
    return next(table for table in TABLES if wanted in table.kinds)


class Landing:
    """Rows of one flush, by table."""

    def __init__(self, landed_us: int) -> None:
        self._landed_us = landed_us
        self._parts: dict[str, list[pa.Table]] = {}

    def add(self, rows: Iterable[Row]) -> int:
        """As ``take``, for records one by one."""
        rejected = 0
        for place, run in groupby(rows, key=lambda row: row[:4]):
            rejected += self.take(Records(*place, *zip(*(row[4:] for row in run), strict=True)))
        return rejected

    def take(self, records: Records) -> int:
        """Read the records' bytes; what cannot be read or held goes to RAW.REJECTS. Returns how many did.

        A few hundred at a time are read fastest: what is decoded is used while it is in the processor's cache.
        """
        found = codec.decode_wire(records.values) if records.topic == topics.OHLCV_RAW else None
        if found is None:
            found = [_decoded(records.topic, value) for value in records.values]
        kinds: set[Any] = set(map(type, found))
        if len(kinds) == 1 and _Unreadable not in kinds:
            return self._put(table_of(kinds.pop()), records, found)
        places: dict[Any, list[int]] = {}
        for index, event in enumerate(found):
            places.setdefault(type(event), []).append(index)
        at = places.pop(_Unreadable, [])
        rejected = self._reject(records.only(at), [found[i].reason for i in at])
        by_table: dict[str, list[int]] = {}
        for kind, at in places.items():
            by_table.setdefault(table_of(kind).name, []).extend(at)
        for table in TABLES:
            at = sorted(by_table.get(table.name, []))
            if at:
                rejected += self._put(table, records.only(at), [found[i] for i in at])
        return rejected

    def tables(self) -> dict[str, pa.Table]:
        """Table's name to its rows, columns as in infra/snowflake-schema.sql. Empties the landing."""
        names = [*(table.name for table in TABLES), REJECTS]
        return {name: pa.concat_tables(self._parts.pop(name)) for name in names if name in self._parts}

    def _put(self, table: Table, records: Records, events_: Sequence[Any]) -> int:
        try:
            columns = {column.name: _array(column, events_) for column in table.columns}
        except OverflowError:
            # Rare: one value that no column can hold must not keep the others back.
            problems = [_problem(table, event) for event in events_]
            bad = [i for i, problem in enumerate(problems) if problem]
            good = [i for i, problem in enumerate(problems) if not problem]
            if good:
                self._put(table, records.only(good), [events_[i] for i in good])
            return self._reject(records.only(bad), [problems[i] or "" for i in bad])
        self._parts.setdefault(table.name, []).append(pa.table(self._coordinates(records) | columns))
        return 0

    def _reject(self, records: Records, reasons: Sequence[str]) -> int:
        if reasons:
            extra = {
                "REASON": pa.array(reasons, TEXT),
                "KEY_BASE64": pa.array(list(map(_base64, records.keys)), TEXT),
                "VALUE_BASE64": pa.array(list(map(_base64, records.values)), TEXT),
            }
            self._parts.setdefault(REJECTS, []).append(pa.table(self._coordinates(records) | extra))
        return len(reasons)

    def _coordinates(self, records: Records) -> dict[str, pa.Array]:
        count = len(records.offsets)
        values = (
            pa.repeat(pa.scalar(records.topic_name, TEXT), count),
            pa.repeat(pa.scalar(records.topic_id, TEXT), count),
            pa.repeat(pa.scalar(records.partition, INTEGER), count),
            pa.array(records.offsets, INTEGER),
            pa.array(records.appended_ms, pa.timestamp("ms", tz="UTC")).cast(TIME),
            pa.repeat(pa.scalar(self._landed_us, TIME), count),
        )
        return {name: array for (name, _), array in zip(COORDINATES, values, strict=True)}


class _Unreadable(NamedTuple):
    reason: str


def _decoded(topic: str, value: bytes | None) -> Any:
    try:
        return codec.decode(topic, value)
    except codec.Unreadable as error:
        return _Unreadable(str(error))


def _base64(data: bytes | None) -> str | None:
    return None if data is None else base64.b64encode(data).decode()


def _array(column: Column, events_: Sequence[Any]) -> pa.Array:
    """The column's values. Raises OverflowError where one does not fit its type."""
    values = list(map(column.value, events_))
    if column.type in (INTEGER, TIME):
        low, high = (0, _END_OF_TIME) if column.type == TIME else (-(2**63), 2**63)
        present = values if column.required else [value for value in values if value is not None]
        if present and not (low <= min(present) and max(present) < high):
            raise OverflowError(next(value for value in present if not low <= value < high))
    elif column.type == NUMBER and type(values[0]) is str:
        # Text of at most 20 and 18 digits (decode_wire): Arrow reads it faster than a Decimal is made.
        return pa.array(values, TEXT).cast(NUMBER)
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
