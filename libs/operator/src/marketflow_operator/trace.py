"""Follows an order back to the trades behind it: in Kafka, which is the truth, and in the warehouse.

Edge; what it finds is judged in lineage.py. Must never read a topic from end to end where time or an offset says where
to look, nor commit or change anything.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any, Final, TypeVar, get_args

import msgspec
from marketflow_common import events as kinds
from marketflow_common.codec import schema_of
from marketflow_common.events import (
    Candle,
    Command,
    OrderFilled,
    OrderIntended,
    Signal,
    Trade,
    TradingStateChanged,
)
from marketflow_common.topics import OHLCV_AGG, OHLCV_RAW, ORDER_EVENTS, TRADING_SIGNALS, partition_of

from .audit.delivery import row_problems
from .audit.model import Row, Seen, Where
from .audit.topics import CannotRead
from .lineage import FLATTEN, PROTECTION, Chain, Record, RowState, cause_of, judge
from .log import Log
from .session import Session
from .targets import Targets

__all__ = ["Unknown", "trace"]

ORDERS: Final = "ANALYTICS.ORDER_EVENTS"
SIGNALS: Final = "ANALYTICS.SIGNALS_STREAM"
COMMANDS: Final = "ANALYTICS.COMMANDS"
CANDLES: Final = "STAGING.OHLCV_STREAM"
TRADES: Final = "RAW.TRADES"
AROUND: Final = 2_000
"""Offsets before an order's first landed event and after its last in which Kafka is asked for events that did not."""
LATE: Final = 1_000
"""Trades of before a candle after which those of the candle are not looked for any further back."""
DEPTH: Final = 50
"""Orders that an order may follow from, one after the other."""
NEAR: Final = 5_000
"""The newest order ids among which a mistyped one is looked for."""
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_KINDS: Final[dict[str, Any]] = {
    **{schema_of(kind): kind for kind in get_args(kinds.OrderEvent)},
    SIGNALS: Signal,
    COMMANDS: Command,
    CANDLES: Candle,
    TRADES: Trade,
}
"""What a row tells of, by its table; in a table of several kinds, by EVENT_TYPE."""
Say = Callable[[str], None]
E = TypeVar("E", bound=kinds.Event)


class Unknown(Exception):
    """There is no such order, or more than one; the text names those that may be meant."""


def trace(places: Targets, wanted: str, account: str | None = None, say: Say = lambda _: None) -> Chain:
    """The chain of an order (its client id, or the exchange's number), judged.

    Raises Unknown, and CannotRead if neither Kafka nor the warehouse answers.
    """
    reader = _Trace(places, say)
    try:
        return reader.run(wanted, account)
    finally:
        reader.close()


@dataclass
class _Unread:
    """What could not be asked, and why."""

    words: list[str] = field(default_factory=list)

    def note(self, error: CannotRead) -> None:
        if str(error) not in self.words:
            self.words.append(str(error))


class _Trace:
    def __init__(self, places: Targets, say: Say) -> None:
        self._prefix, self._say, self._unread = places.kafka.topic_prefix, say, _Unread()
        self._log: Log | None = None
        self._positions: dict[tuple[str, str, int], int] | None = None
        self._session = Session(places.snowflake, "trace")
        try:
            self._log = Log(places.kafka)
        except CannotRead as error:
            self._unread.note(error)
        try:
            self._positions = {
                (r["KAFKA_TOPIC"], r["KAFKA_TOPIC_ID"], int(r["KAFKA_PARTITION"])): int(r["NEXT_OFFSET"])
                for r in self._session.rows(
                    "SELECT KAFKA_TOPIC, KAFKA_TOPIC_ID, KAFKA_PARTITION, NEXT_OFFSET FROM RAW.LOAD_OFFSETS"
                )
            }
        except CannotRead as error:
            self._unread.note(error)
        if self._log is None and self._positions is None:
            raise CannotRead("; ".join(self._unread.words))

    def close(self) -> None:
        self._session.close()
        if self._log is not None:
            self._log.close()

    def run(self, wanted: str, account: str | None) -> Chain:
        self._say(f"looking for order {wanted}")
        found = self._orders(wanted, account)
        return self._chain(*found, depth=0)

    # --- the order -----------------------------------------------------------------------------------

    def _orders(self, wanted: str, account: str | None) -> tuple[str, str, Sequence[Record]]:
        """Order id, account and events of what is meant. Raises Unknown."""
        number = int(wanted) if wanted.isdecimal() and len(wanted) < 19 else None

        others: set[str] = set()

        def meant(event: Any) -> bool:
            if getattr(event, "order_id", None) != wanted and (
                number is None or getattr(event, "exchange_order_id", None) != number
            ):
                return False
            if account is not None and event.account != account:
                others.add(event.account)
                return False
            return True

        condition, values = "ORDER_ID = %s", list[Any]([wanted])
        if number is not None:
            condition, values = "(ORDER_ID = %s OR EXCHANGE_ORDER_ID = %s)", [wanted, number]
        anyones, of_any = condition, values
        if account is not None:
            condition, values = f"{condition} AND ACCOUNT = %s", [*values, account]
        rows = self._rows(ORDERS, ORDER_EVENTS, condition, *values)
        known: list[str] = []

        def heard(event: Any) -> bool:
            if isinstance(event, OrderIntended) and account in (None, event.account):
                known.append(event.order_id)
            return meant(event)

        seen = self._events_of(rows, heard)
        if not seen and not rows and self._log is not None:
            # Not landed, or not there at all: only then the topic is read from its beginning.
            self._say("reading order_events from its beginning")
            seen = [one for p in range(self._log.partitions) for one in self._log.read(ORDER_EVENTS, p, heard)]
        records = self._records(ORDERS, ORDER_EVENTS, seen, rows)
        orders = {(r.event.order_id, r.event.account, r.event.symbol) for r in records}
        if not orders:
            none = f"there is no order {wanted!r}" + (f" of account {account!r}" if account is not None else "")
            if account is not None:
                # Kafka may no longer have it, or not be there to be asked.
                others |= {str(row["ACCOUNT"]) for row in self._rows(ORDERS, ORDER_EVENTS, anyones, *of_any)}
            if others:
                raise Unknown(f"{none}; it is of account {', '.join(sorted(others))}")
            raise Unknown(f"{none}{self._near(wanted, account, known)}")
        if len(orders) > 1:
            names = "; ".join(f"{order} of account {who} ({symbol})" for order, who, symbol in sorted(orders))
            raise Unknown(f"{wanted} may be any of these: {names}. Name its client order id, or --account")
        [(order_id, who, _)] = orders
        if order_id != wanted:
            return self._orders(order_id, who)  # by its own name: its intent does not know the exchange's number
        return order_id, who, records

    def _events_of(self, rows: Sequence[Row], meant: Callable[[Any], bool]) -> list[Seen]:
        """What Kafka has near the landed events of an order, and what has not landed yet."""
        log = self._log
        if log is None:
            return []
        found: list[Seen] = []
        for partition in range(log.partitions):
            mine = [int(r["KAFKA_OFFSET"]) for r in rows if self._is_here(r, ORDER_EVENTS, partition)]
            landed = self._position(ORDER_EVENTS, partition)
            until = max(mine) + AROUND if mine else 0
            if mine:
                found += log.read(ORDER_EVENTS, partition, meant, min(mine) - AROUND, min(until, landed))
            found += log.read(ORDER_EVENTS, partition, meant, landed)
        return found

    def _near(self, wanted: str, account: str | None, known: Iterable[str]) -> str:
        names = set(list(known)[-NEAR:])
        mine, values = ("AND ACCOUNT = %s ", [account]) if account is not None else ("", [])
        try:
            if self._positions is not None:
                rows = self._session.rows(
                    f"SELECT ORDER_ID FROM {ORDERS} WHERE EVENT_TYPE = 'order_intended' {mine}"
                    f"ORDER BY KAFKA_APPENDED_AT DESC LIMIT {NEAR}",
                    *values,
                )
                names |= {str(r["ORDER_ID"]) for r in rows}
        except CannotRead as error:
            self._unread.note(error)
        near = difflib.get_close_matches(wanted, sorted(names), n=3, cutoff=0.6)
        near += [name for name in sorted(names) if wanted in name and name not in near][:3]
        if near:
            return f"; did you mean {', '.join(near)}?"
        whose = " of it" if account is not None else ""
        return f"; {len(names):,} orders{whose} are known" if names else f"; no order{whose} is known at all"

    # --- what led to it ------------------------------------------------------------------------------

    def _chain(self, order_id: str, account: str, records: Sequence[Record], depth: int) -> Chain:
        chain = Chain(order_id, account, records)
        intended = next((record for record in records if isinstance(record.event, OrderIntended)), None)
        if intended is not None:
            intent: OrderIntended = intended.event
            chain.cause = cause_of(intent.signal_id)
            if chain.cause == "signal":
                self._from_signal(chain, intent, intended.appended_ms)
            elif chain.cause == "protection":
                self._from_fill(chain, intent, intended, depth)
            else:
                self._from_command(chain, intent, intended.appended_ms)
        chain.unread = tuple(self._unread.words)
        chain.links = judge(chain)
        return chain

    def _from_signal(self, chain: Chain, intent: OrderIntended, before_ms: int) -> None:
        self._say(f"signal {intent.signal_id}")
        partition = self._partition(intent.symbol)
        rows = self._rows(SIGNALS, TRADING_SIGNALS, "ID = %s", intent.signal_id)
        chain.signal = self._found(
            SIGNALS, TRADING_SIGNALS, partition, before_ms, rows, Signal, lambda e: e.id == intent.signal_id
        )
        if len(chain.signal) != 1:
            return
        record = chain.signal[0]
        signal: Signal = record.event
        self._say(f"candle {signal.symbol} {signal.interval}")
        chain.candles = self._candles(signal, partition, record.appended_ms)
        if chain.candles:
            chain.trades = self._trades(chain.candles, partition)
            last: Candle = chain.candles[-1].event
            if not chain.trades and last.last_trade_id >= 0:
                chain.before = self._trade_before(last, partition, chain.candles[-1].appended_ms)

    def _candles(self, signal: Signal, partition: int, before_ms: int) -> list[Record]:
        """Every revision of the signal's candle, in order."""

        def wanted(candle: Candle) -> bool:
            return (candle.symbol, candle.interval, candle.open_time) == (
                signal.symbol, signal.interval, signal.open_time
            )  # fmt: skip

        rows = self._rows(
            CANDLES, OHLCV_AGG, 'SYMBOL = %s AND "INTERVAL" = %s AND OPEN_TIME = %s::TIMESTAMP_LTZ',
            signal.symbol, signal.interval, _moment(signal.open_time).isoformat(),
        )  # fmt: skip
        log = self._log
        seen: dict[Where, Seen] = {}
        if log is not None:

            def meant(event: Any) -> bool:
                return isinstance(event, Candle) and wanted(event)

            first = log.back(OHLCV_AGG, partition, before_ms, meant, lambda e: meant(e) and e.revision == 0)
            later = first[-1].where.offset + 1 if first else 0
            # A later revision is where its row says, or has not landed yet; without a warehouse, anywhere behind.
            first += log.read(OHLCV_AGG, partition, meant, max(later, self._position(OHLCV_AGG, partition)))
            seen = {one.where: one for one in first}
        found = self._records(CANDLES, OHLCV_AGG, [seen[where] for where in sorted(seen)], rows)
        return sorted(found, key=lambda record: (record.event.revision, record.where))

    def _trades(self, candles: Sequence[Record], partition: int) -> list[Record]:
        """The trades of a candle: before its first statement; those that came late, before the revision they made."""
        first: Candle = candles[0].event
        low, high = first.first_trade_id, max(record.event.last_trade_id for record in candles)
        if high < low:
            return []
        self._say(f"trades {low} to {high} of {first.symbol}")
        rows = self._rows(TRADES, OHLCV_RAW, "SYMBOL = %s AND TRADE_ID BETWEEN %s AND %s", first.symbol, low, high)
        log, seen = self._log, dict[Where, Seen]()
        if log is not None:

            def mine(event: Any) -> bool:
                return isinstance(event, Trade) and event.symbol == first.symbol and low <= event.trade_id <= high

            due = set(range(low, high + 1)) - _ids(first.missing)
            for found in log.back(OHLCV_RAW, partition, candles[0].appended_ms, mine, _Met(first.symbol, due)):
                seen[found.where] = found
            for before, after in pairwise(candles):
                late = _Met(first.symbol, _ids(before.event.missing) - _ids(after.event.missing))
                floor = min((where.offset for where in seen), default=0)
                for found in log.back(OHLCV_RAW, partition, after.appended_ms, mine, late, floor):
                    seen[found.where] = found
        records = self._records(TRADES, OHLCV_RAW, [seen[where] for where in sorted(seen)], rows)
        return sorted(records, key=lambda record: (record.event.trade_id, record.where))

    def _trade_before(self, candle: Candle, partition: int, before_ms: int) -> list[Record]:
        """The trade whose price a candle without trades stands at."""
        number = candle.first_trade_id - 1
        rows = self._rows(TRADES, OHLCV_RAW, "SYMBOL = %s AND TRADE_ID = %s", candle.symbol, number)
        seen: list[Seen] = []
        if self._log is not None:
            seen = self._log.back(
                OHLCV_RAW, partition, before_ms,
                lambda e: isinstance(e, Trade) and (e.symbol, e.trade_id) == (candle.symbol, number),
                lambda e: isinstance(e, Trade) and e.symbol == candle.symbol and e.trade_id <= number,
            )  # fmt: skip
        return self._records(TRADES, OHLCV_RAW, seen, rows)

    def _from_fill(self, chain: Chain, intent: OrderIntended, intended: Record, depth: int) -> None:
        symbol, _, text = intent.signal_id.removeprefix(PROTECTION).rpartition(":")
        if not text.isdecimal():
            return
        number = int(text)
        self._say(f"fill {number} of {symbol}")
        rows = self._rows(
            ORDERS, ORDER_EVENTS,
            "EVENT_TYPE = 'order_filled' AND ACCOUNT = %s AND SYMBOL = %s AND FILL_ID = %s",
            intent.account, symbol, number,
        )  # fmt: skip
        chain.fill = self._found(
            ORDERS, ORDER_EVENTS, self._partition(symbol), intended.appended_ms, rows, OrderFilled,
            lambda e: (e.account, e.symbol, e.fill_id) == (intent.account, symbol, number),
        )  # fmt: skip
        if len(chain.fill) != 1 or depth >= DEPTH or chain.fill[0].where >= intended.where:
            return
        fill: OrderFilled = chain.fill[0].event
        chain.entry = self._chain(*self._orders(fill.order_id, fill.account), depth=depth + 1)

    def _from_command(self, chain: Chain, intent: OrderIntended, before_ms: int) -> None:
        name = intent.signal_id.removeprefix(FLATTEN).rpartition(":")[0]
        self._say(f"command {name}")
        partition = self._partition(intent.account)
        rows = self._rows(ORDERS, ORDER_EVENTS, "ACCOUNT = %s AND COMMAND_ID = %s", intent.account, name)
        chain.state = self._found(
            ORDERS, ORDER_EVENTS, partition, before_ms, rows, TradingStateChanged,
            lambda e: (e.account, e.command_id) == (intent.account, name),
        )  # fmt: skip
        rows = self._rows(COMMANDS, TRADING_SIGNALS, "ID = %s AND ACCOUNT = %s", name, intent.account)
        before_ms = chain.state[0].appended_ms if chain.state else before_ms
        chain.command = self._found(
            COMMANDS, TRADING_SIGNALS, partition, before_ms, rows, Command,
            lambda e: (e.account, e.id) == (intent.account, name),
        )  # fmt: skip

    # --- records and rows ----------------------------------------------------------------------------

    def _found(
        self,
        table: str,
        topic: str,
        partition: int,
        before_ms: int,
        rows: Sequence[Row],
        kind: type[E],
        wanted: Callable[[E], bool],
    ) -> list[Record]:
        """The record of a kind that was appended last before a time, and rows that say the same."""

        def meant(event: Any) -> bool:
            return isinstance(event, kind) and wanted(event)

        seen = self._log.back(topic, partition, before_ms, meant, meant) if self._log is not None else []
        return self._records(table, topic, seen, rows)

    def _records(self, table: str, topic: str, seen: Sequence[Seen], rows: Sequence[Row]) -> list[Record]:
        """What Kafka has, each with its row, and rows whose records Kafka has no more; by coordinates."""
        seen = [*seen, *self._at(topic, rows, {one.where for one in seen})]
        by_place: dict[tuple[str, Where], list[Row]] = {}
        for row in rows:
            where = Where(topic, int(row["KAFKA_PARTITION"]), int(row["KAFKA_OFFSET"]))
            by_place.setdefault((str(row["KAFKA_TOPIC_ID"]), where), []).append(row)
        found = []
        current = self._log.ids[topic] if self._log is not None else ""
        for one in seen:
            mine = by_place.pop((current, one.where), [])
            problems = [problem for row in mine for problem in row_problems(one, row)]
            if len(mine) > 1:
                problems.append(f"it stands {len(mine)} times in {table}")
            state: RowState = "landed" if mine else self._missing(one.where)
            at = _aware(mine[0]["LANDED_AT"]) if mine else None
            found.append(
                Record(one.where, current, one.appended_ms, one.event, table, True, state, at, tuple(problems))
            )
        for (topic_id, where), alone in by_place.items():
            row = alone[0]
            problems = [f"it stands {len(alone)} times in {table}"] if len(alone) > 1 else []
            if self._log is not None and topic_id == current and where.offset >= self._log.low(topic, where.partition):
                problems.append(f"{table} has it, and Kafka has no such record there")
            appended = _micros(row["KAFKA_APPENDED_AT"]) // 1_000
            event, at = event_of(row, table), _aware(row["LANDED_AT"])
            found.append(Record(where, topic_id, appended, event, table, False, "landed", at, tuple(problems)))
        return sorted(found, key=lambda record: (record.appended_ms, record.where))

    def _at(self, topic: str, rows: Sequence[Row], known: set[Where]) -> list[Seen]:
        """Records that rows say there are and that were not met: read where they should lie, before that is doubted."""
        log = self._log
        if log is None:
            return []
        places = sorted(
            {
                Where(topic, int(row["KAFKA_PARTITION"]), int(row["KAFKA_OFFSET"]))
                for row in rows
                if row["KAFKA_TOPIC_ID"] == log.ids[topic]
            }
            - known
        )
        found: list[Seen] = []
        for run in _runs(places):
            wanted = set(run)
            stretch = log.read(topic, run[0].partition, lambda _: True, run[0].offset, run[-1].offset + 1)
            found += [one for one in stretch if one.where in wanted]
        return found

    def _missing(self, where: Where) -> RowState:
        """Of a record that has no row."""
        if self._positions is None:
            return "not asked"
        return "missing" if where.offset < self._position(where.topic, where.partition) else "not landed yet"

    def _rows(self, table: str, topic: str, condition: str, *values: Any) -> Sequence[Row]:
        if self._positions is None:
            return ()
        try:
            statement = f"SELECT * FROM {table} WHERE KAFKA_TOPIC = %s AND {condition}"
            return self._session.rows(statement, self._prefix + topic, *values)
        except CannotRead as error:
            self._unread.note(error)
            self._positions = None
            return ()

    def _is_here(self, row: Row, topic: str, partition: int) -> bool:
        """Whether Kafka still has the record of a row, as far as its topic and partition tell."""
        return (
            self._log is not None
            and row["KAFKA_TOPIC_ID"] == self._log.ids[topic]
            and int(row["KAFKA_PARTITION"]) == partition
        )

    def _position(self, topic: str, partition: int) -> int:
        """How far the partition has landed; 0 if that is not known."""
        ids = self._log.ids if self._log is not None else {}
        return (self._positions or {}).get((self._prefix + topic, ids.get(topic, ""), partition), 0)

    def _partition(self, key: str) -> int:
        return partition_of(key, self._log.partitions) if self._log is not None else 0


class _Met:
    """Told of records one after the other: whether all these trades have been met, or enough of before them.

    Ids rise but for trades that came late, which are few: a thousand lower ones are not all late.
    """

    def __init__(self, symbol: str, ids: set[int]) -> None:
        self._symbol, self._left, self._first = symbol, ids, min(ids, default=0)
        self._lower = 0

    def __call__(self, event: Any) -> bool:
        if isinstance(event, Trade) and event.symbol == self._symbol:
            self._left.discard(event.trade_id)
            self._lower += event.trade_id < self._first
        return not self._left or self._lower > LATE


def _runs(places: Iterable[Where]) -> list[list[Where]]:
    """Sorted places in groups that are read at once: of one partition, and near to each other."""
    found: list[list[Where]] = []
    for place in places:
        last = found[-1][-1] if found else None
        if last is not None and last.partition == place.partition and place.offset - last.offset < AROUND:
            found[-1].append(place)
        else:
            found.append([place])
    return found


def _ids(ranges: Iterable[tuple[int, int]]) -> set[int]:
    return {number for first, last in ranges for number in range(first, last + 1)}


def event_of(row: Row, table: str) -> Any:
    """The event that a landed row came from."""
    kind = _KINDS[str(row["EVENT_TYPE"])] if table == ORDERS else _KINDS[table]
    values: dict[str, Any] = {"type": schema_of(kind)}
    for one in msgspec.structs.fields(kind):
        value = row[one.name.upper()]
        if isinstance(value, datetime):
            value = _micros(value)
            if not value and type(None) in getattr(one.type, "__args__", ()):
                value = None  # the local warehouse hands a NULL timestamp over as 1970-01-01
        elif isinstance(value, str) and _is_json(one.type):
            value = json.loads(value)
        if value is None and not one.required:
            continue  # what is newer than the row has its default
        values[one.name] = value
    return msgspec.convert(values, kind)


def _is_json(annotation: Any) -> bool:
    return getattr(annotation, "__origin__", None) in (dict, tuple)


def _micros(moment: datetime) -> int:
    return (_aware(moment) - _EPOCH) // timedelta(microseconds=1)


def _moment(micros: int) -> datetime:
    return _EPOCH + timedelta(microseconds=micros)


def _aware(moment: datetime) -> datetime:
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)
