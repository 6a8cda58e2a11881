"""The books: balances, positions and realized PnL as a fold over fills, exact to the last digit.

Pure. Must never round silently: the only division splits a cost, and what it gives is taken from the total, so
that totals stay exact.

For one symbol always ``realized - cost == change of the quote balance`` and ``qty == change of the base balance``,
fees in these two included. A fee in base makes a position smaller (or a sale larger), a fee in quote is taken from
the realized PnL of its fill, a fee in a third asset is kept under ``fees`` and in that asset's balance.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from decimal import Decimal, localcontext
from typing import NamedTuple

import msgspec
from marketflow_common.events import OrderFilled, Side
from marketflow_common.numbers import EXACT, ZERO, divide

__all__ = ["Assets", "Booked", "Books", "Fill", "Position"]


class Assets(NamedTuple):
    """What a symbol is made of."""

    base: str
    quote: str


class Fill(msgspec.Struct, frozen=True):
    """One execution as the exchange states it; ``filled_at`` in microseconds."""

    fill_id: int
    price: Decimal
    qty: Decimal
    quote_qty: Decimal
    commission: Decimal
    commission_asset: str
    filled_at: int


class Position(msgspec.Struct, frozen=True):
    """What is held of one symbol: base ``qty``, the quote paid for it (``cost``), and the quote ``realized``."""

    qty: Decimal = ZERO
    cost: Decimal = ZERO
    realized: Decimal = ZERO


class Booked(NamedTuple):
    """The books after a fill, and what the fill itself brought."""

    books: Books
    position: Position
    realized_pnl: Decimal
    profit_pct: Decimal | None


class Books(msgspec.Struct, frozen=True):
    """All positions and balances of an account. Fills may be folded in any order between symbols."""

    balances: Mapping[str, Decimal] = {}
    positions: Mapping[str, Position] = {}
    fees: Mapping[str, Decimal] = {}

    def position(self, symbol: str) -> Position:
        """The position of a symbol, empty if it was never traded."""
        return self.positions.get(symbol, Position())

    def balance(self, asset: str) -> Decimal:
        """Free plus locked."""
        return self.balances.get(asset, ZERO)

    def exposure(self) -> Decimal:
        """Quote paid for everything that is held."""
        with localcontext(EXACT):
            return sum((position.cost for position in self.positions.values()), ZERO)

    def opened(self, balances: Mapping[str, Decimal]) -> Books:
        """With the balances that the account had before its first order."""
        return msgspec.structs.replace(self, balances=_moved(self.balances, balances.items()))

    def fill(self, symbol: str, side: Side, assets: Assets, fill: Fill) -> Booked:
        """Book one fill. Costs leave in proportion to the quantity sold (average cost)."""
        before = self.position(symbol)
        fee_base = fill.commission if fill.commission_asset == assets.base else ZERO
        fee_quote = fill.commission if fill.commission_asset == assets.quote else ZERO
        with localcontext(EXACT):
            sign = 1 if side == "BUY" else -1
            moves = [
                (assets.base, sign * fill.qty),
                (assets.quote, -sign * fill.quote_qty),
                (fill.commission_asset, -fill.commission),
            ]
            if side == "BUY":
                qty, cost = before.qty + fill.qty - fee_base, before.cost + fill.quote_qty
                realized, profit = -fee_quote, None
            else:
                gone = fill.qty + fee_base
                # More than is held (coins from before the account was opened) has no known cost beyond the rest.
                sold_cost = before.cost if gone >= before.qty else divide(before.cost * gone, before.qty)
                qty, cost = before.qty - gone, before.cost - sold_cost
                realized = fill.quote_qty - sold_cost - fee_quote
                profit = divide(realized * 100, sold_cost, scale=4) if sold_cost else None
            after = Position(qty, cost, before.realized + realized)
        books = Books(
            _moved(self.balances, moves),
            {**self.positions, symbol: after},
            _moved(self.fees, [(fill.commission_asset, fill.commission)]),
        )
        return Booked(books, after, realized, profit)

    def fold(self, event: OrderFilled, assets: Assets) -> tuple[Books, str | None]:
        """Book a fill from the log; also says, in words, where the log's own position differs from the fold's."""
        fill = Fill(
            event.fill_id,
            event.price,
            event.qty,
            event.quote_qty,
            event.commission,
            event.commission_asset,
            event.filled_at,
        )
        booked = self.fill(event.symbol, event.side, assets, fill)
        here, there = booked.position, (event.position_qty, event.position_cost)
        if (here.qty, here.cost) == there:
            return booked.books, None
        return booked.books, (
            f"after fill {event.fill_id} of {event.order_id} the fold holds {here.qty:f} {event.symbol} at cost "
            f"{here.cost:f}, order_events says {there[0]:f} at {there[1]:f}"
        )


def _moved(balances: Mapping[str, Decimal], moves: Iterable[tuple[str, Decimal]]) -> dict[str, Decimal]:
    result = dict(balances)
    for asset, amount in moves:
        result[asset] = EXACT.add(result.get(asset, ZERO), amount)
    return result
