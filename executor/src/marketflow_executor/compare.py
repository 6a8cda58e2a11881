"""The books beside the exchange: what differs, told from an order that has just filled.

Must never take for a difference what an order of ours explains that has not been asked for yet.
"""

from __future__ import annotations

from marketflow_common import logs

from .desk import Desk

__all__ = ["difference", "rests"]

_log = logs.get("executor")


def rests(desk: Desk, order_id: str) -> bool:
    """Whether an order is known to wait at the exchange, with nothing about it under way."""
    pending, order = desk.pending[order_id], desk.account.open[order_id]
    heard = pending.evidence is not None and (pending.evidence.executed > order.filled or pending.evidence.end)
    return order.intent.price is not None and pending.known and not pending.lost and not heard


def difference(desk: Desk) -> str | None:
    """Where the exchange and the books differ, in words; None if that is to be looked at again. Raises Unavailable.

    To be asked only while all orders rest or were lost.
    """
    found = _compare(desk)
    resting = [order_id for order_id in desk.pending if rests(desk, order_id)]
    if not found or not resting:
        return found
    # An order that rests may have filled a moment ago: what its question does not explain is a difference.
    before = desk.account.books, set(desk.account.open)
    for order_id in resting:
        if order_id in desk.pending:
            order = desk.account.open[order_id]
            # Where the exchange does not show a young order yet, its lists do not either. An older one that cannot be
            # asked for excuses nothing: money that is missing halts, whatever else does not answer.
            young = desk.exchange.now_ms() <= order.deadline_ms + desk.margin_ms
            if desk.learn(order.intent, desk.exchange.ask(order.intent)) in ("unknown", "throttled") and young:
                _log.warning("books_differ", detail=found, effect="looked at again", unanswered=order_id)
                return None
    if before != (desk.account.books, set(desk.account.open)) or not all(
        pending.lost or rests(desk, order_id) for order_id, pending in desk.pending.items()
    ):
        return None
    return found if _compare(desk) == found else None


def _compare(desk: Desk) -> str:
    balances = desk.exchange.balances()
    if balances is None:
        return ""
    account, last = desk.account, desk.account.last_fill
    open_orders = desk.exchange.open_orders()
    fills = {s: desk.exchange.fills_from(s, last[s] + 1 if s in last else None) for s in account.seen}
    return account.differs(balances, open_orders, fills)
