"""What the account's books consist of: orders, order lists, fills, transfers, and the steps that change them.

Plain data. Amounts are whole units of 1e-8, times wall-clock milliseconds, unless a field says otherwise.
"""

from typing import Any, Final, Literal

import msgspec

Side = Literal["BUY", "SELL"]
OrderType = Literal[
    "LIMIT", "LIMIT_MAKER", "MARKET", "STOP_LOSS", "STOP_LOSS_LIMIT", "TAKE_PROFIT", "TAKE_PROFIT_LIMIT"
]
TimeInForce = Literal["GTC", "IOC", "FOK"]
Status = Literal["NEW", "PARTIALLY_FILLED", "FILLED", "CANCELED", "EXPIRED"]
Execution = Literal["NEW", "TRADE", "CANCELED", "EXPIRED"]
"""Binance's execution type (field `x` of an executionReport)."""
FillRule = Literal["last_trade", "next_trade", "after_id"]

ALGO_TYPES: Final = frozenset({"STOP_LOSS", "STOP_LOSS_LIMIT", "TAKE_PROFIT", "TAKE_PROFIT_LIMIT"})
"""Types that wait for their stop price (filters.md: "algo" orders)."""
PRICED_TYPES: Final = frozenset({"LIMIT", "LIMIT_MAKER", "STOP_LOSS_LIMIT", "TAKE_PROFIT_LIMIT"})
MARKET_TYPES: Final = frozenset({"MARKET", "STOP_LOSS", "TAKE_PROFIT"})
"""Types that take any price once they work."""
OPEN: Final = frozenset({"NEW", "PARTIALLY_FILLED"})


class OrderRequest(msgspec.Struct, frozen=True):
    """A new order whose parameters and filters have been checked."""

    symbol: str
    side: Side
    type: OrderType
    time_in_force: TimeInForce
    price: int
    """0 for an order that takes any price."""
    qty: int
    quote_qty: int
    """`quoteOrderQty`, 0 if the order names its quantity."""
    client_order_id: str
    stop_price: int = 0
    strategy_id: int | None = None
    strategy_type: int | None = None
    stp: str = "NONE"
    """`selfTradePreventionMode`: kept and shown; one account's orders never meet each other here."""


class Order(msgspec.Struct):
    """An order as it stands."""

    order_id: int
    client_order_id: str
    symbol: str
    side: Side
    type: OrderType
    time_in_force: TimeInForce
    price: int
    qty: int
    quote_qty: int
    status: Status
    time_ms: int
    update_ms: int
    market_time_us: int
    """Market time when it was placed."""
    executed: int = 0
    quote_executed: int = 0
    fills: list[int] = []
    stop_price: int = 0
    working: bool = True
    """It is on the book; a stop order is not until its price is reached."""
    working_ms: int = 0
    list_id: int = -1
    locked: int = 0
    """What it holds of the asset that it pays with."""
    taking: bool = False
    """It meets the market with a public trade to come, not with the last one."""
    after_id: int = 0
    """`taking`: only with a trade whose id is above this one."""
    parts: int = 0
    """In how many parts the rest of it fills; 0: not decided, 1: in one."""
    expire_rest: bool = False
    """What the first part leaves expires."""
    strategy_id: int | None = None
    strategy_type: int | None = None
    stp: str = "NONE"
    expiry_reason: str | None = None

    @property
    def left(self) -> int:
        return self.qty - self.executed

    @property
    def is_open(self) -> bool:
        return self.status in OPEN


class OrderList(msgspec.Struct):
    """An OCO pair: the leg above the market price and the one below."""

    list_id: int
    client_order_id: str
    symbol: str
    order_ids: list[int]
    time_ms: int
    done: bool = False


class Fill(msgspec.Struct, frozen=True):
    """One execution of an order. `id` is from the account's own series, not of the public trades."""

    id: int
    order_id: int
    client_order_id: str
    symbol: str
    side: Side
    price: int
    qty: int
    quote_qty: int
    commission: int
    commission_asset: str
    time_ms: int
    is_maker: bool
    market_trade_id: int
    """The last public trade at that moment; its price made the order fill."""
    market_time_us: int
    list_id: int = -1


class Transfer(msgspec.Struct, frozen=True):
    """Something that came in or went out without a trade; `delta` is below 0 for a withdrawal."""

    asset: str
    delta: int
    time_ms: int
    market_time_us: int


class Change(msgspec.Struct):
    """One change of the books: an order as it is after it, its new fill, and the balances that changed."""

    order: Order | None
    fill: Fill | None
    free: dict[str, int]
    locked: dict[str, int]
    market_us: int
    """Market time of the change: every public trade up to it has been considered."""
    execution: Execution | None = None
    order_list: OrderList | None = None
    """The list as it is after the change, if it is the list that changed."""
    transfer: Transfer | None = None
    cancel_id: str = ""
    """The id that a cancel gave itself."""
    moved: bool = True
    """Balances changed with it."""
    number: int = 0
    """Execution id, from 1; 0 where it is not about an order."""
    filters: dict[str, list[dict[str, Any]]] | None = None
    """Filters that were set, by symbol, as exchangeInfo shows them."""


class Commission(msgspec.Struct, frozen=True):
    """What a fill costs: `rate` in units of 1e-8 of what it receives, taken in that asset.

    With a `discount` above 0 (units of 1e-8) it is taken in BNB instead, at BNB's last price and less the discount,
    as long as the account holds enough BNB.
    """

    rate: int
    discount: int = 0
