"""How much a signal is worth: a fixed amount, a share of equity, or what a stop may lose.

Pure. Must never size an order on an equity or a stop that is not there; rounding goes down.
"""

from __future__ import annotations

from decimal import ROUND_DOWN, Decimal, localcontext
from typing import Literal

import msgspec
from marketflow_common.events import Signal
from marketflow_common.numbers import EXACT, ZERO, divide

from .risk import Standing

__all__ = ["Mode", "Sizing", "Unsized", "stop_below", "stop_price", "worth"]

Mode = Literal["quote", "equity_share", "risk"]
Unsized = Literal["no_equity", "no_stop"]
_HUNDREDTHS = -2


class Sizing(msgspec.Struct, frozen=True):
    """How orders are sized; percentages of equity or of the signal's close.

    ``stop_level`` names the level of a signal (``levels``) at which its trade would be given up; with an empty one the
    stop is ``stop_distance_pct`` below the close.
    """

    mode: Mode = "quote"
    equity_share_pct: Decimal = Decimal(2)
    risk_pct: Decimal = Decimal("0.5")
    stop_distance_pct: Decimal = Decimal(2)
    stop_level: str = ""


def stop_price(signal: Signal, sizing: Sizing) -> Decimal | None:
    """Where a BUY would be given up, below its close and above 0; None where the signal names no such level."""
    if not sizing.stop_level:
        stop = stop_below(signal.close, sizing)
        return stop if 0 < stop < signal.close else None
    level = signal.levels.get(sizing.stop_level)
    return level if level is not None and 0 < level < signal.close else None


def stop_below(close: Decimal, sizing: Sizing) -> Decimal:
    """The stop by its distance alone."""
    with localcontext(EXACT):
        return close - (close * sizing.stop_distance_pct).scaleb(_HUNDREDTHS)


def worth(
    signal: Signal, standing: Standing, sizing: Sizing, order_quote: Decimal
) -> Decimal | tuple[Unsized, str] | None:
    """What the signal's order is worth in quote, or why none; None for a SELL of everything that is held.

    What was bought by its risk was bought as a whole, so it is sold as a whole.
    """
    if sizing.mode == "quote":
        return order_quote
    if sizing.mode == "risk" and signal.signal_type == "SELL":
        return None
    if standing.equity <= ZERO:
        return "no_equity", f"equity is {standing.equity:f} {standing.quote}"
    with localcontext(EXACT):
        if sizing.mode == "equity_share":
            return (standing.equity * sizing.equity_share_pct).scaleb(_HUNDREDTHS)
        stop = stop_price(signal, sizing)
        if stop is None:
            where = f"level {sizing.stop_level!r} of {dict(signal.levels)}" if sizing.stop_level else "its stop"
            return "no_stop", f"{where} is not below its close {signal.close:f}"
        risked = (standing.equity * sizing.risk_pct).scaleb(_HUNDREDTHS)
        return divide(risked * signal.close, signal.close - stop, scale=18, rounding=ROUND_DOWN)
