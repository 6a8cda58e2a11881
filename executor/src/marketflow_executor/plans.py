"""Orders that follow from orders: the stop and the target of what was bought, and the next price of one that rests.

Pure. Must never plan a sale of more than is held, nor follow a price beyond its bound.
"""

from __future__ import annotations

from decimal import Decimal, localcontext
from typing import Literal

import msgspec
from marketflow_common.events import OrderIntended, OrderType
from marketflow_common.numbers import EXACT, fixed

from .filters import ALGO, Draft, Instrument, Market, Refusal
from .orders import Order, order_id

__all__ = ["chase", "protect"]


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


def chase(
    order: Order, best: Decimal, bound_pct: Decimal, instrument: Instrument, market: Market, now_ms: int
) -> OrderIntended | None:
    """The order that takes the place of one that rests, at the market's ``best`` price of now; None if it may stay.

    It is for what is left, and never more than ``bound_pct`` worse than the signal's close.
    """
    intent, left = order.intent, order.remaining
    if intent.price is None or order.ended or left <= 0:
        return None
    buys = intent.side == "BUY"
    with localcontext(EXACT):
        room = (intent.signal_close * bound_pct).scaleb(-2)
        worst = intent.signal_close + room if buys else intent.signal_close - room
        price = min(best, worst) if buys else max(best, worst)
    order_type: OrderType = intent.exchange_type or "LIMIT"
    # The one that it replaces is open no more by then, and its rest is bought no more.
    after = msgspec.structs.replace(
        market,
        open_orders=max(market.open_orders - 1, 0),
        open_buys=EXACT.subtract(market.open_buys, left) if buys else market.open_buys,
    )
    found = instrument.fit(Draft(intent.side, order_type, left, price, intent.stop_price), after)
    if isinstance(found, Refusal) or found.price is None:
        return None
    beyond = found.price > worst if buys else found.price < worst
    nearer = found.price > intent.price if buys else found.price < intent.price
    if beyond or not nearer:
        return None
    return msgspec.structs.replace(
        intent,
        order_id=order_id(intent.signal_id, intent.attempt + 1),
        attempt=intent.attempt + 1,
        qty=fixed(found.qty),
        price=fixed(found.price),
        timestamp_ms=now_ms,
        replaces=intent.order_id,
    )


def _fixed(price: Decimal | None) -> Decimal | None:
    return None if price is None else fixed(price)
