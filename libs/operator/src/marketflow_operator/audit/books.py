"""The audit's own books: positions, PnL and balances folded from fills, by its own arithmetic.

Pure. Must stay independent of the executor's books, which it checks: nothing here is shared with them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from decimal import Decimal

from marketflow_common.events import Convention, OrderFilled
from marketflow_common.numbers import EXACT, divide

__all__ = ["Fold", "Position", "fold_balances", "fold_position"]

NONE = Decimal(0)


@dataclass(frozen=True)
class Position:
    """Base held and the quote paid for it; by FIFO also ``queue``, base and quote of each buy, oldest first."""

    qty: Decimal = NONE
    cost: Decimal = NONE
    queue: tuple[tuple[Decimal, Decimal], ...] = ()


@dataclass(frozen=True)
class Fold:
    """What one fill makes of a position; ``profit_pct`` is percent of the cost of what was sold, closing fills only."""

    position: Position
    realized: Decimal
    profit_pct: Decimal | None


def fold_position(
    before: Position, fill: OrderFilled, base: str, quote: str, convention: Convention = "average"
) -> Fold:
    """The position after one fill and the PnL it realizes, fees included.

    A fee in base lessens what is held, a fee in quote what is realized. By FIFO the queue is cut from its front to what
    is held: what a buy's fee takes beyond the buy itself leaves its cost behind, what a sale takes takes it along.
    """
    base_fee = fill.commission if fill.commission_asset == base else NONE
    quote_fee = fill.commission if fill.commission_asset == quote else NONE
    if fill.side == "BUY":
        held = EXACT.subtract(EXACT.add(before.qty, fill.qty), base_fee)
        queue: tuple[tuple[Decimal, Decimal], ...] = ()
        if convention == "fifo":
            has = sum_of(qty for qty, _ in before.queue)
            more = EXACT.subtract(max(held, NONE), has)
            kept, _ = cut(before.queue, EXACT.minus(min(more, NONE)), with_cost=False)
            queue = (*kept, (max(more, NONE), fill.quote_qty))
        cost = EXACT.add(before.cost, fill.quote_qty)
        return Fold(Position(held, cost, queue), EXACT.minus(quote_fee), None)
    leaving = EXACT.add(fill.qty, base_fee)
    whole = leaving >= before.qty
    rest: tuple[tuple[Decimal, Decimal], ...] = ()
    if whole:
        gone = before.cost
    elif convention == "fifo":
        rest, gone = cut(before.queue, leaving, with_cost=True)
    else:
        gone = divide(EXACT.multiply(before.cost, leaving), before.qty)
    realized = EXACT.subtract(EXACT.subtract(fill.quote_qty, quote_fee), gone)
    percent = divide(EXACT.multiply(realized, Decimal(100)), gone, scale=4) if gone else None
    after = Position(EXACT.subtract(before.qty, leaving), EXACT.subtract(before.cost, gone), rest)
    return Fold(after, realized, percent)


def sum_of(amounts: Iterable[Decimal]) -> Decimal:
    """The exact sum."""
    total = NONE
    for amount in amounts:
        total = EXACT.add(total, amount)
    return total


def cut(
    queue: Iterable[tuple[Decimal, Decimal]], leaving: Decimal, *, with_cost: bool
) -> tuple[tuple[tuple[Decimal, Decimal], ...], Decimal]:
    """The queue without the oldest ``leaving``, and the cost that went with it."""
    rest: list[tuple[Decimal, Decimal]] = []
    gone = NONE
    for qty, cost in queue:
        taken = min(qty, leaving)
        leaving = EXACT.subtract(leaving, taken)
        share = NONE
        if with_cost and not rest:
            share = cost if taken == qty else divide(EXACT.multiply(cost, taken), qty)
        gone = EXACT.add(gone, share)
        # Behind the first that stays all stay, also a buy whose quantity a fee has eaten: its cost is still there.
        if taken < qty or rest or not with_cost:
            rest.append((EXACT.subtract(qty, taken), EXACT.subtract(cost, share)))
    return tuple(rest), gone


def fold_balances(
    opened: Mapping[str, Decimal], fills: Iterable[OrderFilled], assets: Mapping[str, tuple[str, str]]
) -> dict[str, Decimal]:
    """Balances after the fills: base and quote change hands, the commission leaves."""
    balances = dict(opened)

    def move(asset: str, amount: Decimal) -> None:
        balances[asset] = EXACT.add(balances.get(asset, NONE), amount)

    for fill in fills:
        base, quote = assets[fill.symbol]
        sign = Decimal(1 if fill.side == "BUY" else -1)
        move(base, EXACT.multiply(sign, fill.qty))
        move(quote, EXACT.multiply(EXACT.minus(sign), fill.quote_qty))
        move(fill.commission_asset, EXACT.minus(fill.commission))
    return balances
