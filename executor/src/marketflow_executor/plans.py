"""On which terms orders are made, and those that follow from orders: stop and target, the next price of one that rests.

Pure. Must never plan a sale of more than is held, nor follow a price beyond its bound.
"""

from __future__ import annotations

from decimal import Decimal, localcontext
from typing import Final, Literal

import msgspec
from marketflow_common.events import OrderIntended, OrderType, Side, TimeInForce
from marketflow_common.numbers import EXACT, ZERO, fixed

from .filters import ALGO, Draft, Instrument, Market, Refusal
from .orders import Order, order_id

__all__ = [
    "Kind",
    "OnShutdown",
    "Protection",
    "Terms",
    "chase",
    "give_up",
    "is_protection",
    "is_standing",
    "protect",
    "protection_id",
]

Kind = Literal["market", "limit", "limit_ioc", "limit_fok", "limit_maker"]
OnShutdown = Literal["keep", "cancel_resting", "cancel_all"]
Protection = Literal["none", "stop", "oco"]
_PROTECTION: Final = "protect:"
_IN_FORCE: Final[dict[Kind, TimeInForce]] = {"limit": "GTC", "limit_ioc": "IOC", "limit_fok": "FOK"}


class Terms(msgspec.Struct, frozen=True):
    """How a signal's order is made and what protects what it has bought; percentages of the signal's close.

    ``offset_pct`` above 0 is better for the account (a BUY below the close, a SELL above it), below 0 worse. 0 switches
    ``limit_ms`` (how long an order may rest) and ``chase_pct`` (how much worse than the close it may become) off.
    """

    kind: Kind = "market"
    offset_pct: Decimal = ZERO
    limit_ms: int = 0
    chase_pct: Decimal = ZERO
    protection: Protection = "none"
    stop_slip_pct: Decimal = Decimal(1)
    target_pct: Decimal = Decimal(4)
    on_shutdown: OnShutdown = "keep"

    @property
    def order_type(self) -> OrderType:
        """The exchange's word for the kind of order."""
        if self.kind == "market":
            return "MARKET"
        return "LIMIT_MAKER" if self.kind == "limit_maker" else "LIMIT"

    @property
    def time_in_force(self) -> TimeInForce | None:
        """None where the type of the order takes none."""
        return _IN_FORCE.get(self.kind)

    def price(self, side: Side, close: Decimal) -> Decimal | None:
        """The limit of an order, before it is fitted to ticks; None for a market order."""
        if self.kind == "market":
            return None
        with localcontext(EXACT):
            better = (close * self.offset_pct).scaleb(-2)
            return close - better if side == "BUY" else close + better

    def target(self, close: Decimal) -> Decimal | None:
        """Where what was bought at a signal's close is sold with its profit."""
        if self.protection != "oco":
            return None
        with localcontext(EXACT):
            return close + (close * self.target_pct).scaleb(-2)


def protection_id(symbol: str, trade_id: int) -> str:
    """The signal id of the orders that protect what is held of a symbol after a trade of the account."""
    return f"{_PROTECTION}{symbol}:{trade_id}"


def is_protection(signal_id: str) -> bool:
    """Whether an order protects what is held, and follows from no signal of its own."""
    return signal_id.startswith(_PROTECTION)


def is_standing(intent: OrderIntended) -> bool:
    """Whether an order waits at the exchange as a stop or target, and is no entry and no sale of now."""
    return is_protection(intent.signal_id) and intent.price is not None


def protect(
    entry: OrderIntended,
    held: Decimal,
    stop: Decimal,
    target: Decimal | None,
    slip_pct: Decimal,
    instrument: Instrument,
    market: Market,
    now_ms: int,
) -> tuple[OrderIntended, ...] | Refusal:
    """The sales that give up what an order bought at ``stop`` and, with a ``target``, take its profit there.

    The stop sells down to ``slip_pct`` below its trigger. One leg stands alone; two are an OCO and have one quantity.
    Refused where a price is on the wrong side of the market (PRICES: it would trigger at once) or a filter says so.
    """
    if not stop < market.last or (target is not None and not target > market.last):
        aim = "" if target is None else f", target {target:f}"
        return Refusal("PRICES", f"the last price {market.last:f} is not between its stop {stop:f}{aim}")
    with localcontext(EXACT):
        limit = stop - (stop * slip_pct).scaleb(-2)
    drafts = [Draft("SELL", "STOP_LOSS_LIMIT", held, limit, stop)]
    if target is not None:
        drafts.append(Draft("SELL", "LIMIT_MAKER", held, target))
        # Both come at once, so either finds the other one open.
        market = msgspec.structs.replace(market, open_orders=market.open_orders + 1)
    fitted: list[Draft] = []
    for draft in drafts:
        found = instrument.fit(draft, market)
        if isinstance(found, Refusal):
            return found
        if found.stop_price is not None and found.stop_price >= market.last:
            return Refusal("PRICES", f"a tick above its stop {stop:f} is the last price {market.last:f}")
        fitted.append(found)
    qty = min(draft.qty for draft in fitted)
    legs: list[OrderIntended] = []
    for draft in fitted:
        same = msgspec.structs.replace(draft, qty=qty)
        if refusal := instrument.refusal(same, market):
            return refusal
        leg: Literal["s", "t"] = "s" if draft.order_type in ALGO else "t"
        legs.append(
            msgspec.structs.replace(
                entry,
                order_id=order_id(entry.signal_id, entry.attempt, leg),
                side="SELL",
                order_type="LIMIT",
                exchange_type=draft.order_type,
                # A maker-only order takes no time in force.
                time_in_force="GTC" if leg == "s" else None,
                qty=fixed(qty),
                price=_fixed(draft.price),
                stop_price=_fixed(draft.stop_price),
                timestamp_ms=now_ms,
                list_id=entry.order_id if target is not None else "",
                replaces="",
            )
        )
    return tuple(legs)


def give_up(
    entry: OrderIntended, held: Decimal, instrument: Instrument, market: Market, now_ms: int
) -> OrderIntended | Refusal:
    """The sale at the market of what should be protected and is already beyond its stop or target."""
    found = instrument.fit(Draft("SELL", "MARKET", held), market)
    if isinstance(found, Refusal):
        return found
    return msgspec.structs.replace(
        entry,
        side="SELL",
        order_type="MARKET",
        exchange_type=None,
        time_in_force=None,
        qty=fixed(found.qty),
        quote_qty=None,
        price=None,
        stop_price=None,
        timestamp_ms=now_ms,
        list_id="",
        replaces="",
    )


def chase(
    order: Order, best: Decimal, bound_pct: Decimal, instrument: Instrument, market: Market, now_ms: int
) -> OrderIntended | None:
    """The order that takes the place of one that rests, at the market's ``best`` price of now; None if it may stay.

    It is for what is left, and never more than ``bound_pct`` worse than the signal's close. A BUY at a higher price is
    for less.
    """
    intent, left = order.intent, order.remaining
    if intent.price is None or order.ended or left <= 0:
        return None
    buys = intent.side == "BUY"
    with localcontext(EXACT):
        room = (intent.signal_close * bound_pct).scaleb(-2)
        worst = intent.signal_close + room if buys else intent.signal_close - room
        price = min(best, worst) if buys else max(best, worst)
        if buys:
            # It costs what the order before it would have, and no more: that was within the limits, and was there.
            left = min(left, instrument.affordable(left * intent.price, price, "LIMIT"))
    order_type: OrderType = intent.exchange_type or "LIMIT"
    # The one that it replaces is open no more by then, and its rest is bought no more.
    after = msgspec.structs.replace(
        market,
        open_orders=max(market.open_orders - 1, 0),
        open_buys=EXACT.subtract(market.open_buys, order.remaining) if buys else market.open_buys,
    )
    found = instrument.fit(Draft(intent.side, order_type, left, price, intent.stop_price), after)
    if isinstance(found, Refusal) or found.price is None:
        return None
    beyond = found.price > worst if buys else found.price < worst
    nearer = found.price > intent.price if buys else found.price < intent.price
    if beyond or not nearer:
        return None
    # Above every one that was tried in its place: a client id is used once.
    attempt = max(intent.attempt, order.latest) + 1
    return msgspec.structs.replace(
        intent,
        order_id=order_id(intent.signal_id, attempt),
        attempt=attempt,
        qty=fixed(found.qty),
        price=fixed(found.price),
        timestamp_ms=now_ms,
        replaces=intent.order_id,
    )


def _fixed(price: Decimal | None) -> Decimal | None:
    return None if price is None else fixed(price)
