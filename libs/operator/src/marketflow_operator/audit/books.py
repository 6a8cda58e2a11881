"""The audit's own books: positions, PnL and balances folded from fills, by its own arithmetic.

Pure. Must stay independent of the executor's books, which it checks: nothing here is shared with them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from decimal import Decimal

from marketflow_common.events import OrderFilled
from marketflow_common.numbers import EXACT, divide

__all__ = ["Fold", "Position", "fold_balances", "fold_position"]

NONE = Decimal(0)


@dataclass(frozen=True)
class Position:
    """Base held and the quote paid for it (average cost)."""

    qty: Decimal = NONE
    cost: Decimal = NONE


@dataclass(frozen=True)
class Fold:
    """What one fill makes of a position; ``profit_pct`` is percent of the cost of what was sold, closing fills only."""

    position: Position
    realized: Decimal
    profit_pct: Decimal | None


def fold_position(before: Position, fill: OrderFilled, base: str, quote: str) -> Fold:
    """The position after one fill and the PnL it realizes, fees included.

    A fee in base lessens what is held, a fee in quote what is realized.
    """
    base_fee = fill.commission if fill.commission_asset == base else NONE
    quote_fee = fill.commission if fill.commission_asset == quote else NONE
    if fill.side == "BUY":
        held = EXACT.subtract(EXACT.add(before.qty, fill.qty), base_fee)
        return Fold(Position(held, EXACT.add(before.cost, fill.quote_qty)), EXACT.minus(quote_fee), None)
    leaving = EXACT.add(fill.qty, base_fee)
    whole = leaving >= before.qty
    gone = before.cost if whole else divide(EXACT.multiply(before.cost, leaving), before.qty)
    realized = EXACT.subtract(EXACT.subtract(fill.quote_qty, quote_fee), gone)
    percent = divide(EXACT.multiply(realized, Decimal(100)), gone, scale=4) if gone else None
    return Fold(Position(EXACT.subtract(before.qty, leaving), EXACT.subtract(before.cost, gone)), realized, percent)


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
