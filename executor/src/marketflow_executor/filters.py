"""An exchange's trading rules for one symbol (``filters`` of exchangeInfo), in exact Decimal.

Pure. Must never let an order pass that the exchange's own check would refuse, nor make one larger than asked.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from decimal import Decimal, localcontext
from typing import Any, Literal, NamedTuple

import msgspec
from marketflow_common.events import OrderType, Side
from marketflow_common.numbers import EXACT, ZERO, number

from .books import Assets

__all__ = [
    "ALGO",
    "Draft",
    "Instrument",
    "Market",
    "Notional",
    "Percent",
    "Range",
    "Refusal",
    "default_instrument",
    "read_instrument",
]

_UNIT = Decimal("1E-18")
_QUOTES = ("USDT", "USDC", "FDUSD", "TUSD", "BTC", "ETH", "BNB", "EUR", "TRY", "BRL", "USD")
ALGO = frozenset({"STOP_LOSS_LIMIT", "TAKE_PROFIT_LIMIT"})
"""What MAX_NUM_ALGO_ORDERS counts."""


class Draft(msgspec.Struct, frozen=True):
    """An order before it is one; ``price`` of a MARKET order and ``stop_price`` of what has none are None."""

    side: Side
    order_type: OrderType
    qty: Decimal
    price: Decimal | None = None
    stop_price: Decimal | None = None


class Market(msgspec.Struct, frozen=True):
    """What the filters look at besides the order.

    ``averages`` are the exchange's average prices by their minutes (``avgPriceMins``); ``last``, its last price, stands
    in for one that is not known. ``base`` is free plus locked, ``open_buys`` the base that open buys may still bring.
    """

    last: Decimal
    averages: Mapping[int, Decimal] = {}
    open_orders: int = 0
    open_algo_orders: int = 0
    base: Decimal = ZERO
    open_buys: Decimal = ZERO

    def price(self, minutes: int) -> Decimal:
        """The price that a filter with this ``avgPriceMins`` compares with."""
        return self.averages.get(minutes, self.last) if minutes else self.last


class Refusal(NamedTuple):
    """Which filter refuses an order, by the exchange's name for it, and why in words."""

    filter: str
    detail: str


class Range(msgspec.Struct, frozen=True):
    """PRICE_FILTER, LOT_SIZE or MARKET_LOT_SIZE. Zero switches the minimum, the maximum or the step off."""

    minimum: Decimal = ZERO
    maximum: Decimal = ZERO
    step: Decimal = ZERO

    def problem(self, value: Decimal) -> str | None:
        """Why the value does not pass; None if it does."""
        if value < self.minimum:
            return f"{value:f} is below the smallest, {self.minimum:f}"
        if self.maximum and value > self.maximum:
            return f"{value:f} is above the largest, {self.maximum:f}"
        if self.step and EXACT.remainder(value, self.step):
            return f"{value:f} is not a multiple of {self.step:f}"
        return None


class Notional(msgspec.Struct, frozen=True):
    """MIN_NOTIONAL or NOTIONAL: bounds of price times quantity. A maximum of zero is none."""

    name: Literal["MIN_NOTIONAL", "NOTIONAL"]
    minimum: Decimal
    maximum: Decimal = ZERO
    min_to_market: bool = True
    max_to_market: bool = False
    minutes: int = 0

    def bounds(self, order_type: OrderType) -> tuple[Decimal, Decimal]:
        """Smallest and largest (0: none) value of an order of this type."""
        if order_type != "MARKET":
            return self.minimum, self.maximum
        return self.minimum if self.min_to_market else ZERO, self.maximum if self.max_to_market else ZERO


class Percent(msgspec.Struct, frozen=True):
    """PERCENT_PRICE or PERCENT_PRICE_BY_SIDE: how far a price may be from the average, as factors by side."""

    name: Literal["PERCENT_PRICE", "PERCENT_PRICE_BY_SIDE"]
    buy: tuple[Decimal, Decimal]
    sell: tuple[Decimal, Decimal]
    minutes: int = 0


class Instrument(msgspec.Struct, frozen=True):
    """What an order of a symbol must obey. The numbers of orders and the position are None where there is no limit."""

    symbol: str
    assets: Assets
    trading: bool
    lot: Range = Range()
    market_lot: Range = Range()
    prices: Range = Range()
    notionals: tuple[Notional, ...] = ()
    percents: tuple[Percent, ...] = ()
    max_orders: int | None = None
    max_algo_orders: int | None = None
    max_position: Decimal | None = None
    base_precision: int = 8
    quote_precision: int = 8

    @property
    def averaged(self) -> bool:
        """Whether a filter compares an order's price with an average."""
        return any(percent.minutes for percent in self.percents)

    # --- quantities ----------------------------------------------------------------------------------

    def lots(self, order_type: OrderType = "MARKET") -> Iterator[tuple[str, Range]]:
        """The filters of quantity that apply to an order of this type."""
        yield "LOT_SIZE", self.lot
        if order_type == "MARKET":
            yield "MARKET_LOT_SIZE", self.market_lot

    def step(self, order_type: OrderType = "MARKET") -> Decimal:
        """The smallest step of quantity that all filters allow, or the asset's precision where none has a step."""
        return _common_step([lot.step for _, lot in self.lots(order_type)], self.base_precision)

    def round_down(self, qty: Decimal, order_type: OrderType = "MARKET") -> Decimal:
        """The largest quantity up to ``qty``, and to the largest allowed, that is a multiple of the step."""
        step = self.step(order_type)
        ceilings = [lot.maximum for _, lot in self.lots(order_type) if lot.maximum]
        with localcontext(EXACT):
            return min([qty, *ceilings]) // step * step

    def affordable(self, quote: Decimal, price: Decimal, order_type: OrderType = "MARKET") -> Decimal:
        """The largest orderable quantity that costs at most ``quote`` at ``price``; 0 where there is none."""
        step = self.step(order_type)
        with localcontext(EXACT):
            return self.round_down(max(quote, ZERO) // (price * step) * step, order_type)

    def least(self, price: Decimal, order_type: OrderType = "MARKET") -> Decimal:
        """The smallest quantity that can be ordered at ``price``: what is less is dust."""
        step = self.step(order_type)
        with localcontext(EXACT):
            lowest = max([rule.bounds(order_type)[0] for rule in self.notionals], default=ZERO)
            floors = [(step, step), (lowest, price * step)]
            floors += [(lot.minimum, step) for _, lot in self.lots(order_type)]
            return max(_steps(floor, unit) for floor, unit in floors) * step

    # --- all filters ---------------------------------------------------------------------------------

    def refusal(self, draft: Draft, market: Market) -> Refusal | None:
        """The filter that the exchange would refuse the order for; None if it would take it."""
        with localcontext(EXACT):
            for what, price in (("price", draft.price), ("stopPrice", draft.stop_price)):
                if price is None:
                    continue
                # What lies below one tick is rounded to 0, which a filter without a minimum does not name.
                problem = f"{price:f} is not above 0" if price <= 0 else self.prices.problem(price)
                if problem:
                    return Refusal("PRICE_FILTER", f"{what} {problem}")
            if draft.qty <= 0:
                return Refusal("LOT_SIZE", f"{draft.qty:f} is below the smallest, {self.least(market.last):f}")
            for name, lot in self.lots(draft.order_type):
                if problem := lot.problem(draft.qty):
                    return Refusal(name, problem)
            for percent in self.percents:
                if draft.price is not None and (problem := _far(percent, draft.side, draft.price, market)):
                    return Refusal(percent.name, problem)
            for notional in self.notionals:
                lowest, highest = notional.bounds(draft.order_type)
                price = market.price(notional.minutes) if draft.price is None else draft.price
                worth = draft.qty * price
                if worth < lowest:
                    return Refusal(notional.name, f"{worth:f} is below the smallest value {lowest:f}")
                if highest and worth > highest:
                    return Refusal(notional.name, f"{worth:f} is above the largest value {highest:f}")
            return self._crowded(draft, market)

    def fit(self, draft: Draft, market: Market) -> Draft | Refusal:
        """The largest order up to the one asked for that passes, its prices moved by less than a tick; else why none.

        Prices of a BUY go down and of a SELL up, to the worse for the fill and the better for the account; the other
        way only where that alone passes.
        """
        first: Refusal | None = None
        for up in (draft.side == "SELL", draft.side != "SELL"):
            with localcontext(EXACT):
                priced = msgspec.structs.replace(
                    draft, price=self._tick(draft.price, up), stop_price=self._tick(draft.stop_price, up)
                )
                tops = [draft.qty]
                for notional in self.notionals:
                    _, highest = notional.bounds(draft.order_type)
                    price = market.price(notional.minutes) if priced.price is None else priced.price
                    if highest and price > 0:
                        tops.append(self.affordable(highest, price, draft.order_type))
                if draft.side == "BUY" and self.max_position is not None:
                    tops.append(max(self.max_position - market.base - market.open_buys, ZERO))
                priced = msgspec.structs.replace(priced, qty=self.round_down(min(tops), draft.order_type))
            refusal = self.refusal(priced, market)
            if refusal is None:
                return priced
            first = first or refusal
        assert first is not None
        return first

    def _tick(self, price: Decimal | None, up: bool) -> Decimal | None:
        if price is None:
            return None
        tick = self.prices.step or Decimal(1).scaleb(-self.quote_precision)
        return (_steps(price, tick) if up else price // tick) * tick

    def _crowded(self, draft: Draft, market: Market) -> Refusal | None:
        """The filters that count: what rests at the exchange, and the position."""
        resting = draft.order_type != "MARKET"
        if resting and self.max_orders is not None and market.open_orders >= self.max_orders:
            return Refusal("MAX_NUM_ORDERS", f"{market.open_orders} of {self.max_orders} orders are open")
        algo = draft.order_type in ALGO
        if algo and self.max_algo_orders is not None and market.open_algo_orders >= self.max_algo_orders:
            return Refusal("MAX_NUM_ALGO_ORDERS", f"{market.open_algo_orders} of {self.max_algo_orders} are open")
        if draft.side == "BUY" and self.max_position is not None:
            after = market.base + market.open_buys + draft.qty
            if after > self.max_position:
                return Refusal("MAX_POSITION", f"{after:f} would be above the largest, {self.max_position:f}")
        return None


def _far(percent: Percent, side: Side, price: Decimal, market: Market) -> str | None:
    average = market.price(percent.minutes)
    down, up = percent.buy if side == "BUY" else percent.sell
    if price > average * up:
        return f"{price:f} is above {up:f} times the average {average:f}"
    if price < average * down:
        return f"{price:f} is below {down:f} times the average {average:f}"
    return None


def _steps(value: Decimal, step: Decimal) -> Decimal:
    """How many steps reach at least the value."""
    whole, rest = divmod(value, step)
    return whole + 1 if rest else whole


# --- reading -----------------------------------------------------------------------------------------


def read_instrument(info: Mapping[str, Any]) -> Instrument:
    """The rules in a symbol's entry of exchangeInfo. Raises KeyError or NotANumber where it is malformed."""
    filters: dict[str, Mapping[str, Any]] = {f["filterType"]: f for f in info["filters"]}
    notionals: list[Notional] = []
    if rule := filters.get("MIN_NOTIONAL"):
        notionals.append(
            Notional(
                "MIN_NOTIONAL",
                number(rule["minNotional"]),
                min_to_market=bool(rule["applyToMarket"]),
                minutes=int(rule.get("avgPriceMins", 0)),
            )
        )
    if rule := filters.get("NOTIONAL"):
        notionals.append(
            Notional(
                "NOTIONAL",
                number(rule["minNotional"]),
                number(rule["maxNotional"]),
                bool(rule["applyMinToMarket"]),
                bool(rule["applyMaxToMarket"]),
                int(rule.get("avgPriceMins", 0)),
            )
        )
    percents: list[Percent] = []
    if rule := filters.get("PERCENT_PRICE"):
        both = (number(rule["multiplierDown"]), number(rule["multiplierUp"]))
        percents.append(Percent("PERCENT_PRICE", both, both, int(rule.get("avgPriceMins", 0))))
    if rule := filters.get("PERCENT_PRICE_BY_SIDE"):
        percents.append(
            Percent(
                "PERCENT_PRICE_BY_SIDE",
                (number(rule["bidMultiplierDown"]), number(rule["bidMultiplierUp"])),
                (number(rule["askMultiplierDown"]), number(rule["askMultiplierUp"])),
                int(rule.get("avgPriceMins", 0)),
            )
        )
    orders, algo, position = (filters.get(n) for n in ("MAX_NUM_ORDERS", "MAX_NUM_ALGO_ORDERS", "MAX_POSITION"))
    return Instrument(
        symbol=info["symbol"],
        assets=Assets(info["baseAsset"], info["quoteAsset"]),
        trading=info["status"] == "TRADING",
        lot=_range(filters.get("LOT_SIZE"), "minQty", "maxQty", "stepSize"),
        market_lot=_range(filters.get("MARKET_LOT_SIZE"), "minQty", "maxQty", "stepSize"),
        prices=_range(filters.get("PRICE_FILTER"), "minPrice", "maxPrice", "tickSize"),
        notionals=tuple(notionals),
        percents=tuple(percents),
        max_orders=int(orders["maxNumOrders"]) if orders else None,
        max_algo_orders=int(algo["maxNumAlgoOrders"]) if algo else None,
        max_position=number(position["maxPosition"]) if position else None,
        base_precision=int(info.get("baseAssetPrecision", 8)),
        quote_precision=int(info.get("quoteAssetPrecision", 8)),
    )


def default_instrument(symbol: str) -> Instrument | None:
    """Rules for paper trading without an exchange: eight decimals, at least 5 in quote. None for no known quote."""
    for quote in _QUOTES:
        if symbol.endswith(quote) and symbol != quote:
            step = Decimal("0.00000001")
            return Instrument(
                symbol,
                Assets(symbol.removesuffix(quote), quote),
                True,
                lot=Range(step, ZERO, step),
                notionals=(Notional("NOTIONAL", Decimal(5)),),
            )
    return None


def _range(rule: Mapping[str, Any] | None, low: str, high: str, step: str) -> Range:
    return Range(number(rule[low]), number(rule[high]), number(rule[step])) if rule else Range()


def _common_step(steps: Sequence[Decimal], precision: int) -> Decimal:
    """The smallest step that is a multiple of all; a step of 0 (MARKET_LOT_SIZE often has it) asks for nothing."""
    with localcontext(EXACT):
        units = [int(step / _UNIT) for step in steps if step]
        return (math.lcm(*units) * _UNIT).normalize() if units else Decimal(1).scaleb(-precision)
