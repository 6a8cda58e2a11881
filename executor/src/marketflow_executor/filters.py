"""An exchange's trading rules for one symbol (``filters`` of exchangeInfo), in exact Decimal.

Pure. Must never let a quantity pass that the exchange's own check would refuse for its size.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from decimal import Decimal, localcontext
from typing import Any

import msgspec
from marketflow_common.numbers import EXACT, ZERO, number

from .books import Assets

__all__ = ["Instrument", "default_instrument", "read_instrument"]

_UNIT = Decimal("1E-18")
_QUOTES = ("USDT", "USDC", "FDUSD", "TUSD", "BTC", "ETH", "BNB", "EUR", "TRY", "BRL", "USD")


class Instrument(msgspec.Struct, frozen=True):
    """What a market order of a symbol must obey. Zero as a maximum means: none."""

    symbol: str
    assets: Assets
    trading: bool
    step: Decimal
    min_qty: Decimal
    max_qty: Decimal
    min_notional: Decimal
    max_notional: Decimal

    def round_down(self, qty: Decimal) -> Decimal:
        """The largest quantity up to ``qty`` that is a multiple of the step."""
        with localcontext(EXACT):
            return qty // self.step * self.step

    def affordable(self, quote: Decimal, price: Decimal) -> Decimal:
        """The largest orderable quantity that costs at most ``quote`` at ``price``, and at most the maximum."""
        with localcontext(EXACT):
            qty = quote // (price * self.step) * self.step
        return min(qty, self.round_down(self.max_qty)) if self.max_qty else qty

    def problem(self, qty: Decimal, price: Decimal) -> str | None:
        """Why the exchange would refuse a market order of this size at this price; None if it would not."""
        with localcontext(EXACT):
            notional = qty * price
            if qty <= 0 or qty < self.min_qty:
                return f"{qty:f} is below the smallest quantity {self.min_qty:f}"
            if self.max_qty and qty > self.max_qty:
                return f"{qty:f} is above the largest quantity {self.max_qty:f}"
            if qty % self.step:
                return f"{qty:f} is not a multiple of {self.step:f}"
            if notional < self.min_notional:
                return f"{notional:f} is below the smallest value {self.min_notional:f} {self.assets.quote}"
            if self.max_notional and notional > self.max_notional:
                return f"{notional:f} is above the largest value {self.max_notional:f} {self.assets.quote}"
        return None


def read_instrument(info: Mapping[str, Any]) -> Instrument:
    """The rules in a symbol's entry of exchangeInfo. Raises KeyError or NotANumber where it is malformed."""
    filters: dict[str, Mapping[str, Any]] = {f["filterType"]: f for f in info["filters"]}
    lots = [filters[name] for name in ("LOT_SIZE", "MARKET_LOT_SIZE") if name in filters]
    steps = [number(lot["stepSize"]) for lot in lots]
    maxima = [maximum for lot in lots if (maximum := number(lot["maxQty"]))]
    notional, minimum = filters.get("NOTIONAL"), filters.get("MIN_NOTIONAL")
    lowest, highest = ZERO, ZERO
    if notional is not None:
        lowest = number(notional["minNotional"]) if notional["applyMinToMarket"] else ZERO
        highest = number(notional["maxNotional"]) if notional["applyMaxToMarket"] else ZERO
    if minimum is not None and minimum["applyToMarket"]:
        lowest = max(lowest, number(minimum["minNotional"]))
    return Instrument(
        symbol=info["symbol"],
        assets=Assets(info["baseAsset"], info["quoteAsset"]),
        trading=info["status"] == "TRADING",
        step=_common_step(steps, int(info.get("baseAssetPrecision", 8))),
        min_qty=max((number(lot["minQty"]) for lot in lots), default=ZERO),
        max_qty=min(maxima, default=ZERO),
        min_notional=lowest,
        max_notional=highest,
    )


def default_instrument(symbol: str) -> Instrument | None:
    """Rules for paper trading without an exchange: eight decimals, at least 5 in quote. None for no known quote."""
    for quote in _QUOTES:
        if symbol.endswith(quote) and symbol != quote:
            assets, step = Assets(symbol.removesuffix(quote), quote), Decimal("0.00000001")
            return Instrument(symbol, assets, True, step, step, ZERO, Decimal(5), ZERO)
    return None


def _common_step(steps: Sequence[Decimal], precision: int) -> Decimal:
    """The smallest step that is a multiple of all; a step of 0 (MARKET_LOT_SIZE often has it) asks for nothing."""
    with localcontext(EXACT):
        units = [int(step / _UNIT) for step in steps if step]
        return math.lcm(*units) * _UNIT if units else Decimal(1).scaleb(-precision)
