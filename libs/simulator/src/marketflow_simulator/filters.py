"""A symbol's trading rules (filters.md of Binance's documentation), and whether a new order obeys them.

An exchange's own check: whole numbers of 1e-8 and products of them, no division, nothing shared with any client's.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import msgspec

from marketflow_simulator.amounts import SCALE, scaled, text8
from marketflow_simulator.errors import ApiError
from marketflow_simulator.records import ALGO_TYPES, PRICED_TYPES, Order, OrderRequest

_AMOUNTS: Final[Mapping[str, tuple[str, ...]]] = {
    "PRICE_FILTER": ("minPrice", "maxPrice", "tickSize"),
    "PERCENT_PRICE": ("multiplierUp", "multiplierDown"),
    "PERCENT_PRICE_BY_SIDE": ("bidMultiplierUp", "bidMultiplierDown", "askMultiplierUp", "askMultiplierDown"),
    "LOT_SIZE": ("minQty", "maxQty", "stepSize"),
    "MIN_NOTIONAL": ("minNotional",),
    "NOTIONAL": ("minNotional", "maxNotional"),
    "ICEBERG_PARTS": (),
    "MARKET_LOT_SIZE": ("minQty", "maxQty", "stepSize"),
    "MAX_NUM_ORDERS": (),
    "MAX_NUM_ALGO_ORDERS": (),
    "MAX_NUM_ORDER_LISTS": (),
    "MAX_POSITION": ("maxPosition",),
}
_COUNTS: Final[Mapping[str, str]] = {
    "PERCENT_PRICE": "avgPriceMins",
    "PERCENT_PRICE_BY_SIDE": "avgPriceMins",
    "MIN_NOTIONAL": "avgPriceMins",
    "NOTIONAL": "avgPriceMins",
    "ICEBERG_PARTS": "limit",
    "MAX_NUM_ORDERS": "maxNumOrders",
    "MAX_NUM_ALGO_ORDERS": "maxNumAlgoOrders",
    "MAX_NUM_ORDER_LISTS": "maxNumOrderLists",
}
_SWITCHES: Final[Mapping[str, tuple[str, ...]]] = {
    "MIN_NOTIONAL": ("applyToMarket",),
    "NOTIONAL": ("applyMinToMarket", "applyMaxToMarket"),
}
_FACTORS: Final = ("PERCENT_PRICE", "PERCENT_PRICE_BY_SIDE")


class FilterError(ValueError):
    """An entry is no filter that is known here; the message says which and what was expected."""


class Around(msgspec.Struct, frozen=True):
    """What a check has to know besides the order itself; amounts in units of 1e-8."""

    last: int
    """The last trade's price."""
    average: Callable[[int], int]
    """The volume-weighted price of the last so many minutes; of 0 minutes, the last price."""
    resting: Sequence[Order] = ()
    """The symbol's open orders."""
    held: int = 0
    """Of the base asset, free and locked."""
    open_lists: int = 0


class Filters:
    """The filters of one symbol, in the order in which exchangeInfo shows them and orders meet them."""

    def __init__(self, entries: Sequence[Mapping[str, Any]]) -> None:
        """From entries as in exchangeInfo; FilterError where one is not as documented."""
        self._values: dict[str, dict[str, int]] = {}
        for entry in entries:
            name, values = _read(entry)
            self._values[name] = values

    def changed(self, entries: Sequence[Mapping[str, Any]], removed: Sequence[str] = ()) -> "Filters":
        """The same with these filters in place of those of their types, and without the removed ones."""
        for name in removed:
            if name not in _AMOUNTS:
                raise FilterError(f"filterType {name!r} is none of {', '.join(_AMOUNTS)}")
        new = Filters(())
        new._values = {name: values for name, values in self._values.items() if name not in removed}
        new._values |= dict(_read(entry) for entry in entries)
        return new

    def shown(self) -> list[dict[str, Any]]:
        """The entries as exchangeInfo shows them."""
        return [_show(name, values) for name, values in self._values.items()]

    @property
    def step(self) -> int:
        """Quantities that the exchange chooses itself are multiples of this."""
        return self._values.get("LOT_SIZE", {}).get("stepSize", 0) or 1

    def check(self, request: OrderRequest, around: Around, comes: Sequence[str], lists: int = 0) -> None:
        """ApiError if a filter does not let the order pass, with the name of the first one.

        `comes`: the types of all orders that come with this request, its own included; `lists`: how many order lists.
        """
        for name, values in self._values.items():
            if not _passes(name, values, request, around, comes, lists):
                raise ApiError(-1013, f"Filter failure: {name}")


def _passes(
    name: str, f: Mapping[str, int], order: OrderRequest, around: Around, comes: Sequence[str], lists: int
) -> bool:
    market = order.type == "MARKET"
    match name:
        case "PRICE_FILTER":
            prices = [price for price in (order.price, order.stop_price) if price]
            return all(_within(price, f["minPrice"], f["maxPrice"], f["tickSize"]) for price in prices)
        case "LOT_SIZE":
            return _within(order.qty, f["minQty"], f["maxQty"], f["stepSize"])
        case "MARKET_LOT_SIZE":
            return not market or _within(order.qty, f["minQty"], f["maxQty"], f["stepSize"])
        case "PERCENT_PRICE" | "PERCENT_PRICE_BY_SIDE":
            which = "multiplier"
            if name == "PERCENT_PRICE_BY_SIDE":
                which = "bidMultiplier" if order.side == "BUY" else "askMultiplier"
            up, down = f[f"{which}Up"], f[f"{which}Down"]
            price, average = order.price * SCALE, around.average(f["avgPriceMins"])
            return order.type not in PRICED_TYPES or average * down <= price <= average * up
        case "MIN_NOTIONAL":
            return bool(market and not f["applyToMarket"]) or _worth(order, f, around) >= f["minNotional"] * SCALE
        case "NOTIONAL":
            worth = _worth(order, f, around)
            low = bool(market and not f["applyMinToMarket"]) or worth >= f["minNotional"] * SCALE
            high = (
                bool(market and not f["applyMaxToMarket"]) or not f["maxNotional"] or worth <= f["maxNotional"] * SCALE
            )
            return low and high
        case "MAX_NUM_ORDERS":
            return market or len(around.resting) + len(comes) <= f["maxNumOrders"]
        case "MAX_NUM_ALGO_ORDERS":
            algo = sum(kind in ALGO_TYPES for kind in (*comes, *(other.type for other in around.resting)))
            return order.type not in ALGO_TYPES or algo <= f["maxNumAlgoOrders"]
        case "MAX_NUM_ORDER_LISTS":
            return not lists or around.open_lists + lists <= f["maxNumOrderLists"]
        case "MAX_POSITION":
            bought = sum(other.left for other in around.resting if other.side == "BUY")
            return order.side == "SELL" or around.held + bought + order.qty <= f["maxPosition"]
    return True  # ICEBERG_PARTS: an iceberg order does not come this far


def _within(value: int, least: int, most: int, step: int) -> bool:
    """Between least and most and a multiple of step; what is 0 does not count."""
    return value >= least and (not most or value <= most) and (not step or value % step == 0)


def _worth(order: OrderRequest, f: Mapping[str, int], around: Around) -> int:
    """Price times quantity in units of 1e-16; the average price or the stop price where the order has none.

    An order that names what it wants to spend is worth just that.
    """
    if order.type == "MARKET":
        return order.quote_qty * SCALE if order.quote_qty else around.average(f["avgPriceMins"]) * order.qty
    return (order.price or order.stop_price) * order.qty


def _read(entry: Mapping[str, Any]) -> tuple[str, dict[str, int]]:
    name = entry.get("filterType")
    if not isinstance(name, str) or name not in _AMOUNTS:
        raise FilterError(f"filterType {name!r} is none of {', '.join(_AMOUNTS)}")
    values: dict[str, int] = {}
    counts = (_COUNTS[name],) if name in _COUNTS else ()
    fields = (*_AMOUNTS[name], *counts, *_SWITCHES.get(name, ()))
    if set(entry) != {"filterType", *fields}:
        raise FilterError(
            f"{name} has {', '.join(fields)}; told were {', '.join(k for k in entry if k != 'filterType')}"
        )
    for field in fields:
        value = entry[field]
        if field in _AMOUNTS[name]:
            if not isinstance(value, str):
                raise FilterError(f"{name}.{field} is {value!r}, it has to be a decimal number in quotes")
            try:
                values[field] = scaled(value)
            except ValueError as error:
                raise FilterError(f"{name}.{field}: {error}") from error
        elif field in counts:
            if isinstance(value, bool) or not isinstance(value, int) or value < 0:
                raise FilterError(f"{name}.{field} is {value!r}, it has to be a whole number, 0 or more")
            values[field] = value
        else:
            if not isinstance(value, bool):
                raise FilterError(f"{name}.{field} is {value!r}, it has to be true or false")
            values[field] = int(value)
    return name, values


def _show(name: str, values: Mapping[str, int]) -> dict[str, Any]:
    shown: dict[str, Any] = {"filterType": name}
    for field, value in values.items():
        if field in _SWITCHES.get(name, ()):
            shown[field] = bool(value)
        elif field == _COUNTS.get(name):
            shown[field] = value
        else:
            text = text8(value)
            shown[field] = text.rstrip("0").rstrip(".") if name in _FACTORS else text
    return shown
