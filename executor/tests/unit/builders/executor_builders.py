"""What the executor's tests start from: each builder has defaults, and takes what a test wants otherwise by name."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import msgspec
from marketflow_common.events import AccountOpened, OrderEvent, OrderFilled, OrderIntended, Signal
from marketflow_common.intervals import MINUTE
from marketflow_executor.books import Assets, Books, Fill, Position
from marketflow_executor.decision import Limits, View
from marketflow_executor.filters import Instrument, Notional, Range
from marketflow_executor.orders import Answer, Evidence, Learned, Order, learn

ETH = Assets("ETH", "USDT")
ASSETS = {"ETHUSDT": ETH, "BTCUSDT": Assets("BTC", "USDT")}
OPENED = AccountOpened("main", "testnet", {"USDT": Decimal(1_000)}, 1)
OPEN = 28_000_000 * MINUTE
"""When the candle of a signal opens."""

_LIMITS = Limits(
    account="main",
    mode="testnet",
    order_quote=Decimal(200),
    max_position_quote=Decimal(1_000),
    max_exposure_quote=Decimal(2_000),
    max_signal_age_ms=0,
    max_attempts=3,
    recv_window_ms=5_000,
)
_INSTRUMENT = Instrument(
    symbol="ETHUSDT",
    assets=ETH,
    trading=True,
    lot=Range(Decimal("0.0001"), Decimal(900), Decimal("0.0001")),
    notionals=(Notional("NOTIONAL", Decimal(5)),),
)
_VIEW = View(Position(), Decimal(0), Decimal(10_000), "ACTIVE", False)
_SIGNAL = Signal(
    id="s",
    strategy="test",
    parameters="",
    symbol="ETHUSDT",
    interval="1m",
    open_time=OPEN,
    close=Decimal(100),
    volume=Decimal(1),
    momentum=Decimal(0),
    signal_type="BUY",
    last_trade_id=1,
    levels={},
    reasons=(),
)


def limits(**changes: Any) -> Limits:
    """Limits of the account "main": orders of 200, and a signal may be of any age."""
    return msgspec.structs.replace(_LIMITS, **changes)


def instrument(**changes: Any) -> Instrument:
    """The rules of ETHUSDT: lots of 0.0001, and no order below 5."""
    return msgspec.structs.replace(_INSTRUMENT, **changes)


def view(**changes: Any) -> View:
    """An account that holds nothing and has 10000 to spend."""
    return msgspec.structs.replace(_VIEW, **changes)


def signal(**changes: Any) -> Signal:
    """A signal to buy ETHUSDT at 100."""
    return msgspec.structs.replace(_SIGNAL, **changes)


def intended(signal_id: str = "s", attempt: int = 1, **changes: Any) -> OrderIntended:
    """An order to buy one ETH at the market; its id follows from its signal and its attempt."""
    values: dict[str, Any] = {
        "account": "main",
        "order_id": f"mf-{signal_id}-{attempt}",
        "signal_id": signal_id,
        "attempt": attempt,
        "symbol": "ETHUSDT",
        "side": "BUY",
        "order_type": "MARKET",
        "qty": Decimal(1),
        "quote_qty": None,
        "price": None,
        "timestamp_ms": 1,
        "recv_window_ms": 5_000,
        "mode": "testnet",
        "signal_close": Decimal(100),
        "signal_last_trade_id": 1,
    }
    return OrderIntended(**(values | changes))


def fill(
    number: int,
    price: Decimal | str,
    qty: Decimal | str,
    commission: str = "0",
    asset: str = "USDT",
    at: int | None = None,
) -> Fill:
    """A fill, without a fee and at the time ``number`` unless told otherwise."""
    price, qty = Decimal(price), Decimal(qty)
    return Fill(number, price, qty, price * qty, Decimal(commission), asset, number if at is None else at)


class Life:
    """An order of ETHUSDT that hears answers, with the events and the books that follow from them."""

    def __init__(self, intent: OrderIntended, margin_ms: int = 0) -> None:
        self.order, self.books, self.log = Order(intent), Books(), list[OrderEvent]()
        self._margin_ms = margin_ms

    def hear(self, answer: Answer, evidence: Evidence | None = None) -> Learned:
        """What is learned from an answer, once it is in the log and in the books."""
        learned = learn(self.order, answer, self.books, ETH, self._margin_ms, evidence)
        for event in learned.events:
            assert not self.order.ended, event
            self.log.append(event)
            self.order = self.order.follow(event)
            if isinstance(event, OrderFilled):
                self.books, difference = self.books.fold(event, ETH)
                assert difference is None, difference
        assert self.order.ended == (learned.verdict == "ended"), learned
        return learned
