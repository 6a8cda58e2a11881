"""What the audit judges, as plain data: the exchange's ledger, the topics, the warehouse, the recording.

Must never fetch anything: whoever holds an Evidence holds everything, so that every check is a pure function.
Times are microseconds since the epoch (UTC) unless a name says ms; all numbers are exact Decimals.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, Final, NamedTuple, TypeVar

from marketflow_common import events, topics
from marketflow_common.events import Kline

__all__ = [
    "SHOWN",
    "Check",
    "Evidence",
    "Exchange",
    "ExchangeFill",
    "ExchangeOrder",
    "ExchangeTrade",
    "Message",
    "Position",
    "Row",
    "Seen",
    "SymbolFeed",
    "Warehouse",
    "Where",
    "could_not_run",
    "some_of",
    "verdict",
]

SHOWN: Final = 5
"""Offenders that a check names; the rest is counted."""

E = TypeVar("E", bound=events.Event)


class Where(NamedTuple):
    """Coordinates of a record, with the topic's plain name."""

    topic: str
    partition: int
    offset: int

    def __str__(self) -> str:
        return f"{self.topic}/{self.partition}@{self.offset}"


class Seen(NamedTuple):
    """One committed record of a topic. ``event`` is None where the bytes cannot be read; ``problem`` says why."""

    where: Where
    appended_ms: int
    key: str | None
    event: Any
    problem: str = ""


class ExchangeTrade(NamedTuple):
    """One public trade of the exchange's ledger."""

    trade_id: int
    price: Decimal
    qty: Decimal
    traded_at: int
    buyer_is_maker: bool


@dataclass(frozen=True)
class SymbolFeed:
    """One symbol of the exchange: its trades so far (rising ids) and its own closed klines by open time.

    ``streamed_from`` is the id of the first trade that was streamed; earlier ones are history. ``oldest`` is the
    id of the oldest trade the exchange has at all: its minute may be cut.
    """

    symbol: str
    trades: Sequence[ExchangeTrade]
    klines: Mapping[int, Kline]
    streamed_from: int
    oldest: int
    longer: Mapping[str, Mapping[int, Kline]] = field(default_factory=dict)
    """The exchange's own klines of longer intervals, by interval and open time, of those that are published."""


class ExchangeOrder(NamedTuple):
    """An order in the exchange's ledger."""

    symbol: str
    client_order_id: str
    order_id: int
    side: str
    order_type: str
    status: str
    executed_qty: Decimal
    executed_quote: Decimal


class ExchangeFill(NamedTuple):
    """A fill in the exchange's ledger; ``order_id`` is the exchange's number of the order."""

    symbol: str
    fill_id: int
    order_id: int
    side: str
    price: Decimal
    qty: Decimal
    quote_qty: Decimal
    commission: Decimal
    commission_asset: str


@dataclass(frozen=True)
class Exchange:
    """The exchange's whole ledger at one moment. ``ended``: no further trade will ever come."""

    feeds: Mapping[str, SymbolFeed]
    ended: bool
    market_time: int
    orders: Sequence[ExchangeOrder] = ()
    fills: Sequence[ExchangeFill] = ()
    balances: Mapping[str, Decimal] = field(default_factory=dict)
    assets: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    """Base and quote asset by symbol."""


Row = Mapping[str, Any]
"""A row of the warehouse: upper-case column to value."""


class Position(NamedTuple):
    """How far the loader says it has landed a partition of a topic (whole name, prefix included)."""

    topic: str
    topic_id: str
    partition: int
    next_offset: int


@dataclass(frozen=True)
class Warehouse:
    """Rows by table (``RAW.TRADES``), and the loader's positions."""

    tables: Mapping[str, Sequence[Row]]
    positions: Sequence[Position]


class Message(NamedTuple):
    """One message that a channel's stand-in has accepted."""

    channel: str
    text: str


@dataclass(frozen=True)
class Evidence:
    """Everything the audit looks at. What could not be had is None, with the reason in ``missing``.

    ``ends`` is, per topic and partition, where a read_committed reader stood when the records were read:
    warehouse and recording have to cover what lies before, and nothing is said of what comes after.
    """

    records: Mapping[str, Sequence[Seen]]
    partitions: int
    ends: Mapping[tuple[str, int], int]
    topic_ids: Mapping[str, str] = field(default_factory=dict)
    """Kafka's id of each topic, by plain name."""
    prefix: str = ""
    """What stands before the plain names of the topics in this cluster."""
    exchange: Exchange | None = None
    warehouse: Warehouse | None = None
    recorded: Sequence[Message] | None = None
    channels: Sequence[str] = ()
    notifier_restarts: int | None = None
    """How often the notifier was started again since the recording began; None if nobody counted."""
    until: Mapping[str, int] = field(default_factory=dict)
    """By symbol, the end of the last minute that had to come through while the market went on; later ones are not
    judged, because their candles may be on the way. A symbol that is not named is judged up to its last watermark."""
    from_start: bool = False
    """Whether the feed was only started once all services were ready: then the very first trade is due."""
    missing: Mapping[str, str] = field(default_factory=dict)
    pending: Sequence[str] = ()
    """What had still not happened when the waiting ended."""
    lagging: Mapping[tuple[str, int], int] = field(default_factory=dict)
    """By plain topic and partition, how far the loader had come when the waiting ended, where that was not the end:
    rows are due up to there. Read before the rows were."""

    def of(self, kind: type[E]) -> Iterator[tuple[Seen, E]]:
        """All events of a kind, by partition and offset."""
        topic = _TOPIC[kind]
        for seen in self.records.get(topic, ()):
            if type(seen.event) is kind:
                yield seen, seen.event


_TOPIC: Final[dict[type[events.Event], str]] = {
    **dict.fromkeys((events.Trade, events.Watermark, events.Gap, events.Bar), topics.OHLCV_RAW),
    events.Candle: topics.OHLCV_AGG,
    **dict.fromkeys((events.Signal, events.Command), topics.TRADING_SIGNALS),
    **dict.fromkeys(
        (
            events.AccountOpened,
            events.OrderIntended,
            events.OrderAccepted,
            events.OrderFilled,
            events.OrderRejected,
            events.OrderCanceled,
            events.OrderExpired,
            events.OrderUnresolved,
            events.SignalSkipped,
            events.TradingStateChanged,
        ),
        topics.ORDER_EVENTS,
    ),
}


@dataclass(frozen=True)
class Check:
    """One statement about the evidence. ``ok`` None: it could not be judged, which never counts as holding."""

    name: str
    expected: int | str
    actual: int | str
    ok: bool | None
    detail: str = ""


def verdict(name: str, expected: int | str, actual: int | str, offenders: Iterable[str] = (), note: str = "") -> Check:
    """A check that holds if expected and actual are the same and nobody offends; names the first offenders."""
    found = list(offenders)
    detail = "; ".join(filter(None, (some_of(found), note)))
    return Check(name, expected, actual, not found and expected == actual, detail)


def some_of(texts: Sequence[str]) -> str:
    """The first of them in one line, and how many more there are."""
    rest = [f"and {len(texts) - SHOWN:,} more"] if len(texts) > SHOWN else []
    return "; ".join([*texts[:SHOWN], *rest])


def could_not_run(name: str, why: str) -> Check:
    """A check for which something was not reachable."""
    return Check(name, "to be checked", "not checked", None, why)
