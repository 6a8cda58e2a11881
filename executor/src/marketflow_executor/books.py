"""The books: balances, positions and realized PnL as a fold over fills, exact to the last digit.

Pure. Must never round silently: the only division splits a cost, and what it gives is taken from the total, so
that totals stay exact.

For one symbol always ``realized - cost == change of the quote balance`` and ``qty == change of the base balance``,
fees in these two included. A fee in base makes a position smaller (or a sale larger), a fee in quote is taken from
the realized PnL of its fill, a fee in a third asset is kept under ``fees`` and in that asset's balance. Two conventions
say which cost leaves with a sale: a share of all that is held (average), or that of what was bought first (FIFO).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from decimal import Decimal, localcontext
from typing import NamedTuple

import msgspec
from marketflow_common.events import Convention, OrderFilled, Side
from marketflow_common.numbers import EXACT, ZERO, divide

__all__ = ["Assets", "Booked", "Books", "Fill", "Lot", "Position"]


class Assets(NamedTuple):
    """What a symbol is made of."""

    base: str
    quote: str


class Fill(msgspec.Struct, frozen=True):
    """One execution as the exchange states it; ``filled_at`` in microseconds.

    ``commission_price`` is what one unit of a third asset (BNB) was worth in quote; None where nobody knows.
    """

    fill_id: int
    price: Decimal
    qty: Decimal
    quote_qty: Decimal
    commission: Decimal
    commission_asset: str
    filled_at: int
    commission_price: Decimal | None = None

    def fee_price(self, assets: Assets) -> Decimal | None:
        """Quote per unit of the commission's asset, as far as it is known."""
        if self.commission_asset == assets.quote:
            return Decimal(1)
        return self.price if self.commission_asset == assets.base else self.commission_price


class Lot(msgspec.Struct, frozen=True):
    """What is left of one buy: base and the quote paid for it. Its quantity may be 0 where a fee has eaten it."""

    qty: Decimal
    cost: Decimal


class Position(msgspec.Struct, frozen=True):
    """What is held of one symbol: base ``qty``, the quote paid for it (``cost``), and the quote ``realized``.

    ``fees`` is the worth in quote of all fees, whatever they were taken in, as far as their prices are known: for
    information, as those in base and quote are in the other three already. ``lots`` are kept under FIFO only; their
    costs make ``cost``, their quantities ``qty`` where that is not negative.
    """

    qty: Decimal = ZERO
    cost: Decimal = ZERO
    realized: Decimal = ZERO
    fees: Decimal = ZERO
    lots: tuple[Lot, ...] = ()

    @property
    def average_price(self) -> Decimal | None:
        """Quote paid for one of what is held, to 18 places; None where nothing is held."""
        return divide(self.cost, self.qty, scale=18) if self.qty > 0 else None

    def unrealized(self, price: Decimal) -> Decimal:
        """What selling all at ``price`` would realize, before fees."""
        with localcontext(EXACT):
            return self.qty * price - self.cost

    def dust(self, least: Decimal) -> Decimal:
        """What is held but below ``least``, the smallest quantity that can be sold (``Instrument.least``)."""
        return self.qty if 0 < self.qty < least else ZERO


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
    """By asset, as they were taken."""
    unpriced_fees: Mapping[str, Decimal] = {}
    """Those of ``fees`` whose worth in quote is not known."""
    convention: Convention = "average"

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

    def unrealized(self, prices: Mapping[str, Decimal]) -> Decimal:
        """What selling all at these prices (by symbol) would realize. Raises KeyError for one that is missing."""
        with localcontext(EXACT):
            return sum((p.unrealized(prices[s]) for s, p in self.positions.items() if p.qty or p.cost), ZERO)

    def fill(self, symbol: str, side: Side, assets: Assets, fill: Fill) -> Booked:
        """Book one fill; what leaves with a sale follows from the convention."""
        before = self.position(symbol)
        fee_base = fill.commission if fill.commission_asset == assets.base else ZERO
        fee_quote = fill.commission if fill.commission_asset == assets.quote else ZERO
        fee_price = fill.fee_price(assets)
        fee = [(fill.commission_asset, fill.commission)]
        with localcontext(EXACT):
            sign = 1 if side == "BUY" else -1
            moves = [
                (assets.base, sign * fill.qty),
                (assets.quote, -sign * fill.quote_qty),
                (fill.commission_asset, -fill.commission),
            ]
            lots = before.lots
            if side == "BUY":
                qty, cost = before.qty + fill.qty - fee_base, before.cost + fill.quote_qty
                realized, profit = -fee_quote, None
                if self.convention == "fifo":
                    lots = _bought(lots, qty, fill.quote_qty)
            else:
                gone = fill.qty + fee_base
                # More than is held (coins from before the account was opened) has no known cost beyond the rest.
                if gone >= before.qty:
                    lots, sold_cost = (), before.cost
                elif self.convention == "fifo":
                    lots, sold_cost = _sold(lots, gone)
                else:
                    sold_cost = divide(before.cost * gone, before.qty)
                qty, cost = before.qty - gone, before.cost - sold_cost
                realized = fill.quote_qty - sold_cost - fee_quote
                profit = divide(realized * 100, sold_cost, scale=4) if sold_cost else None
            fees = before.fees + (fill.commission * fee_price if fee_price is not None else ZERO)
            after = Position(qty, cost, before.realized + realized, fees, lots)
        books = msgspec.structs.replace(
            self,
            balances=_moved(self.balances, moves),
            positions={**self.positions, symbol: after},
            fees=_moved(self.fees, fee),
            unpriced_fees=_moved(self.unpriced_fees, fee if fee_price is None and fill.commission else []),
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
            event.commission_price,
        )
        booked = self.fill(event.symbol, event.side, assets, fill)
        here, there = booked.position, (event.position_qty, event.position_cost)
        if (here.qty, here.cost) == there:
            return booked.books, None
        return booked.books, (
            f"after fill {event.fill_id} of {event.order_id} the fold holds {here.qty:f} {event.symbol} at cost "
            f"{here.cost:f}, order_events says {there[0]:f} at {there[1]:f}"
        )


def _bought(lots: tuple[Lot, ...], qty: Decimal, cost: Decimal) -> tuple[Lot, ...]:
    """The lots once ``qty`` is held, of which the last was bought for ``cost``."""
    missing = max(qty, ZERO) - sum((lot.qty for lot in lots), ZERO)
    if missing >= 0:
        return (*lots, Lot(missing, cost))
    # The fee in base was more than what was bought: it is taken from the oldest, whose costs stay.
    trimmed: list[Lot] = []
    for lot in lots:
        taken = min(lot.qty, -missing)
        trimmed.append(Lot(lot.qty - taken, lot.cost))
        missing += taken
    return (*trimmed, Lot(ZERO, cost))


def _sold(lots: tuple[Lot, ...], gone: Decimal) -> tuple[tuple[Lot, ...], Decimal]:
    """The lots without the oldest ``gone``, and the cost that left with it. Less than all lots hold must be gone."""
    cost = ZERO
    for number, lot in enumerate(lots):
        if gone < lot.qty:
            share = divide(lot.cost * gone, lot.qty)
            return (Lot(lot.qty - gone, lot.cost - share), *lots[number + 1 :]), cost + share
        gone -= lot.qty
        cost += lot.cost
    raise ValueError(f"{gone:f} more was sold than the lots hold")


def _moved(balances: Mapping[str, Decimal], moves: Iterable[tuple[str, Decimal]]) -> dict[str, Decimal]:
    result = dict(balances)
    for asset, amount in moves:
        result[asset] = EXACT.add(result.get(asset, ZERO), amount)
    return result
