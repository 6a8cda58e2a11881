"""The events of the four topics: one definition each, JSON on the wire, ``type`` as tag.

Times are integer microseconds since the epoch, UTC. Must never hold a float, a service's logic or a clock.
Fields are only ever added at the end and with a default, so that old data and old readers survive.
"""

from __future__ import annotations

from decimal import Decimal
from typing import Literal

import msgspec

__all__ = [
    "AccountOpened",
    "Action",
    "Bar",
    "Candle",
    "Command",
    "Convention",
    "Event",
    "Gap",
    "IdRange",
    "Kline",
    "OrderAccepted",
    "OrderCanceled",
    "OrderEvent",
    "OrderExpired",
    "OrderFilled",
    "OrderIntended",
    "OrderRejected",
    "OrderType",
    "OrderUnresolved",
    "RawEvent",
    "Side",
    "Signal",
    "SignalEvent",
    "SignalSkipped",
    "SignalType",
    "TimeInForce",
    "Trade",
    "TradingState",
    "TradingStateChanged",
    "Watermark",
    "WireTrade",
]

Side = Literal["BUY", "SELL"]
SignalType = Literal["BUY", "SELL", "HOLD"]
Action = Literal["halt", "reduce_only", "resume", "flatten"]
TradingState = Literal["ACTIVE", "REDUCE_ONLY", "HALTED"]
OrderType = Literal["MARKET", "LIMIT", "LIMIT_MAKER", "STOP_LOSS_LIMIT", "TAKE_PROFIT_LIMIT"]
TimeInForce = Literal["GTC", "IOC", "FOK"]
Convention = Literal["average", "fifo"]
"""Which cost leaves with what is sold: the average of all that is held, or that of what was bought first."""
IdRange = tuple[int, int]
"""First and last trade id of a range, both inclusive."""


class Event(msgspec.Struct, frozen=True, tag_field="type", gc=False):
    """Base of all events."""


# --- ohlcv_raw ---------------------------------------------------------------------------------------


class Trade(Event, frozen=True, tag="trade", gc=False):
    """One trade of the exchange, published once and in order of ``trade_id`` within its symbol."""

    source: str
    symbol: str
    trade_id: int
    price: Decimal
    qty: Decimal
    buyer_is_maker: bool
    traded_at: int
    received_at: int


class WireTrade(Event, frozen=True, tag="trade", gc=False):
    """A trade as its record has it, the numbers still text: reading two of them costs as much as all the rest."""

    source: str
    symbol: str
    trade_id: int
    price: str
    qty: str
    buyer_is_maker: bool
    traded_at: int
    received_at: int

    def read(self) -> Trade:
        """The trade."""
        return Trade(
            self.source, self.symbol, self.trade_id, Decimal(self.price), Decimal(self.qty), self.buyer_is_maker,
            self.traded_at, self.received_at,
        )  # fmt: skip


class Kline(msgspec.Struct, frozen=True, gc=False):
    """A candlestick as the exchange itself states it (``@kline_1m``, closed)."""

    open_time: int
    close_time: int
    open: Decimal
    high: Decimal
    low: Decimal
    close: Decimal
    volume: Decimal
    quote_volume: Decimal
    trade_count: int
    taker_buy_volume: Decimal
    taker_buy_quote_volume: Decimal
    first_trade_id: int
    last_trade_id: int
    """First and last id as the exchange sends them: -1 for a minute without trades."""


class Watermark(Event, frozen=True, tag="watermark", gc=False):
    """Every trade of ``symbol`` before ``through`` has been published (``through`` is exclusive).

    ``last_trade_id`` is the last id published at or before it; ``kline`` is the exchange's own closed kline
    of the minute that ends there: the proof, and the yardstick for the candle.
    """

    source: str
    symbol: str
    through: int
    last_trade_id: int
    kline: Kline


class Gap(Event, frozen=True, tag="gap", gc=False):
    """Trades ``first_trade_id`` to ``last_trade_id`` (inclusive) could not be had from the exchange in time.

    ``final`` says that nobody will try again. A final gap that is empty (``first_trade_id == last_trade_id + 1``,
    where ``last_trade_id`` is the symbol's last) closes the symbol: it trades no more, until a later trade follows.
    As a symbol's very first record it says that nobody has asked what is before its first trade.
    """

    source: str
    symbol: str
    first_trade_id: int
    last_trade_id: int
    reason: str
    final: bool


class Bar(Event, frozen=True, tag="bar", gc=False):
    """A bar of a source that publishes bars only."""

    source: str
    symbol: str
    interval: str
    open_time: int
    close_time: int
    open: Decimal
    high: Decimal
    low: Decimal
    close: Decimal
    volume: Decimal


RawEvent = Trade | Watermark | Gap | Bar

# --- ohlcv_agg ---------------------------------------------------------------------------------------


class Candle(Event, frozen=True, tag="candle", gc=False):
    """A candle that equals the exchange's kline in every field.

    ``close_time`` is the last microsecond of the window (inclusive, as the exchange's). ``first_trade_id`` and
    ``last_trade_id`` bound the window; a window without trades has ``first_trade_id == last_trade_id + 1``,
    where ``last_trade_id`` is the last trade before it. So always
    ``trade_count == last_trade_id - first_trade_id + 1 - (ids in missing)``.
    ``revision`` is 0 for the first statement and grows when a missing trade arrives late.
    """

    symbol: str
    interval: str
    open_time: int
    close_time: int
    open: Decimal
    high: Decimal
    low: Decimal
    close: Decimal
    volume: Decimal
    quote_volume: Decimal
    trade_count: int
    taker_buy_volume: Decimal
    taker_buy_quote_volume: Decimal
    first_trade_id: int
    last_trade_id: int
    missing: tuple[IdRange, ...] = ()
    revision: int = 0


# --- trading_signals ---------------------------------------------------------------------------------


class Signal(Event, frozen=True, tag="signal", gc=False):
    """What one strategy says of one candle: a pure function of the last ``lookback`` candles.

    ``id`` is derived from strategy, parameters, symbol, interval and open time, so that the same candle always
    gives the same id. ``last_trade_id`` is the last trade the signal has seen. ``momentum`` is the relative
    change of the close over the strategy's momentum window, to eight places.
    """

    id: str
    strategy: str
    parameters: str
    symbol: str
    interval: str
    open_time: int
    close: Decimal
    volume: Decimal
    momentum: Decimal
    signal_type: SignalType
    last_trade_id: int
    levels: dict[str, Decimal]
    reasons: tuple[str, ...]


class Command(Event, frozen=True, tag="command", gc=False):
    """An operator's order to the executor of ``account``, keyed by account.

    ``signature`` is empty or see marketflow_common.commands. A halt never expires, whatever ``expires_at`` says.
    """

    id: str
    account: str
    action: Action
    asked_by: str
    issued_at: int
    expires_at: int | None
    signature: str
    reason: str = ""


SignalEvent = Signal | Command

# --- order_events ------------------------------------------------------------------------------------


class AccountOpened(Event, frozen=True, tag="account_opened", gc=False):
    """Balances (free plus locked) of the account before its first order: what the books start from.

    ``convention`` is how its books tell cost from profit, for as long as the account lives.
    """

    account: str
    mode: str
    balances: dict[str, Decimal]
    opened_at: int
    convention: Convention = "average"


class OrderIntended(Event, frozen=True, tag="order_intended", gc=False):
    """The order that will be sent, exactly: written in the transaction that commits the signal's offset.

    ``timestamp_ms`` and ``recv_window_ms`` are signed into the request, so the exchange itself refuses it once
    ``timestamp_ms + recv_window_ms`` has passed. Exactly one of ``qty`` (base) and ``quote_qty`` is set.

    ``order_type`` is LIMIT for all orders with a price; ``exchange_type`` is the exchange's own word where that says
    more. Orders with the same ``list_id`` are the legs of one order list (OCO). ``replaces`` is the order that this one
    takes the place of, cancelled in the same request.
    """

    account: str
    order_id: str
    signal_id: str
    attempt: int
    symbol: str
    side: Side
    order_type: Literal["MARKET", "LIMIT"]
    qty: Decimal | None
    quote_qty: Decimal | None
    price: Decimal | None
    timestamp_ms: int
    recv_window_ms: int
    mode: str
    signal_close: Decimal
    signal_last_trade_id: int
    exchange_type: OrderType | None = None
    time_in_force: TimeInForce | None = None
    stop_price: Decimal | None = None
    list_id: str = ""
    replaces: str = ""


class OrderAccepted(Event, frozen=True, tag="order_accepted", gc=False):
    """The exchange has the order."""

    account: str
    order_id: str
    signal_id: str
    symbol: str
    exchange_order_id: int
    accepted_at: int


class OrderFilled(Event, frozen=True, tag="order_filled", gc=False):
    """One fill (an exchange's own trade of this order), and the books after it.

    ``position_qty`` is the base held after the fill and its fee, ``position_cost`` the quote paid for what is
    still held. ``realized_pnl`` is in quote, after this fill's commission where that was taken in quote;
    ``profit_pct`` (percent of the cost of what was sold, four places) is set on closing fills only.
    ``complete`` marks the last fill of the order. ``commission_price`` is the worth in quote of one unit of the
    commission's asset; None where it is not known.
    """

    account: str
    order_id: str
    signal_id: str
    symbol: str
    side: Side
    exchange_order_id: int
    fill_id: int
    price: Decimal
    qty: Decimal
    quote_qty: Decimal
    commission: Decimal
    commission_asset: str
    realized_pnl: Decimal
    profit_pct: Decimal | None
    position_qty: Decimal
    position_cost: Decimal
    filled_at: int
    complete: bool
    commission_price: Decimal | None = None


class OrderRejected(Event, frozen=True, tag="order_rejected", gc=False):
    """The exchange refused the order, for certain."""

    account: str
    order_id: str
    signal_id: str
    symbol: str
    code: int
    reason: str


class OrderCanceled(Event, frozen=True, tag="order_canceled", gc=False):
    """The order was cancelled at the exchange; what was filled before stays filled."""

    account: str
    order_id: str
    signal_id: str
    symbol: str
    reason: str


class OrderExpired(Event, frozen=True, tag="order_expired", gc=False):
    """The order ended without a (further) fill: by the exchange's rule, or it provably never arrived in time."""

    account: str
    order_id: str
    signal_id: str
    symbol: str
    reason: str


class OrderUnresolved(Event, frozen=True, tag="order_unresolved", gc=False):
    """The outcome is unknown and being asked for; not an end of the order."""

    account: str
    order_id: str
    signal_id: str
    symbol: str
    reason: str


class SignalSkipped(Event, frozen=True, tag="signal_skipped", gc=False):
    """A BUY or SELL signal that led to no order, and why; ``decided_at`` is the exchange's time."""

    account: str
    signal_id: str
    symbol: str
    signal_type: SignalType
    reason: str
    detail: str
    signal_close: Decimal | None = None
    decided_at: int | None = None


class TradingStateChanged(Event, frozen=True, tag="trading_state_changed", gc=False):
    """The account's trading state, keyed by account.

    Where a command has set it, ``command_id`` and ``action`` are the command's; a flatten stands until another command.
    """

    account: str
    state: TradingState
    reason: str
    changed_by: str
    changed_at: int
    command_id: str = ""
    action: Literal["", "halt", "reduce_only", "resume", "flatten"] = ""


OrderEvent = (
    AccountOpened
    | OrderIntended
    | OrderAccepted
    | OrderFilled
    | OrderRejected
    | OrderCanceled
    | OrderExpired
    | OrderUnresolved
    | SignalSkipped
    | TradingStateChanged
)
