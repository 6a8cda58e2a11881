"""Exact decimal arithmetic for prices, quantities and money.

Must never round silently: sums and products are exact or raise, divisions state scale and rounding.
"""

from __future__ import annotations

import re
from decimal import (
    ROUND_HALF_EVEN,
    Context,
    Decimal,
    DecimalException,
    DivisionByZero,
    Inexact,
    InvalidOperation,
    Overflow,
)

__all__ = [
    "EXACT",
    "MAX_INTEGER_DIGITS",
    "MAX_SCALE",
    "ZERO",
    "NotANumber",
    "check",
    "divide",
    "fixed",
    "number",
]

MAX_SCALE = 18
"""Decimal places a number may have: the warehouse holds ``NUMBER(38,18)``."""
MAX_INTEGER_DIGITS = 20
"""Digits before the point: 38 - 18."""

EXACT = Context(prec=96, traps=[Inexact, InvalidOperation, DivisionByZero, Overflow])
"""Wide enough for a sum of products of two legal numbers (2 * 38 digits and 10**20 terms); traps rounding."""

ZERO = Decimal("0.00000000")
_NUMBER = re.compile(r"-?[0-9]{1,64}(?:\.[0-9]{1,64})?", re.ASCII)
_LIMIT = Decimal(10) ** MAX_INTEGER_DIGITS
_EIGHT_PLACES = Decimal("1E-8")
_WIDE = Context(prec=200)


class NotANumber(ValueError):
    """A value at an entrance is not a finite number of at most 20 + 18 digits."""


def number(text: str) -> Decimal:
    """Read a number as the exchange prints it (``"2683.80000000"``): fixed point, finite, at most 18 places.

    Raises NotANumber, naming the value, for anything else (``NaN``, ``1E+9``, ``" 1_0 "``, ``""``).
    """
    if not isinstance(text, str) or not _NUMBER.fullmatch(text):
        raise NotANumber(f"{text!r} is not a decimal number in fixed point")
    return check(Decimal(text))


def check(value: Decimal) -> Decimal:
    """Return the value if it is finite and fits NUMBER(38,18); raise NotANumber otherwise."""
    if value.same_quantum(_EIGHT_PLACES) and value.adjusted() < MAX_INTEGER_DIGITS:
        return value  # as the exchange prints it; this runs for every number of every record
    if not value.is_finite():
        raise NotANumber(f"{value} is not finite")
    if value.adjusted() >= MAX_INTEGER_DIGITS and abs(value) >= _LIMIT:
        raise NotANumber(f"{value} has more than {MAX_INTEGER_DIGITS} digits before the point")
    exponent = value.as_tuple().exponent
    if isinstance(exponent, int) and exponent < -MAX_SCALE and _WIDE.quantize(value, Decimal("1E-18")) != value:
        raise NotANumber(f"{value} has more than {MAX_SCALE} decimal places")
    return value


def fixed(value: Decimal) -> Decimal:
    """The same value with eight decimal places, as the exchange prints it; more only where it needs them.

    Raises NotANumber where 18 places do not hold it.
    """
    try:
        return EXACT.quantize(value, _EIGHT_PLACES)
    except DecimalException:
        trimmed = check(value).normalize(_WIDE)
        exponent = trimmed.as_tuple().exponent
        assert isinstance(exponent, int)
        return EXACT.quantize(trimmed, Decimal(1).scaleb(min(exponent, -8)))


def divide(dividend: Decimal, divisor: Decimal, *, scale: int = 8, rounding: str = ROUND_HALF_EVEN) -> Decimal:
    """The quotient to ``scale`` decimal places. The only division of the cores.

    Raises ZeroDivisionError (decimal.DivisionByZero) for a divisor of zero.
    """
    # Enough digits that rounding happens once: the inner quotient is truncated far below the wanted scale,
    # and a remainder is kept alive by a sticky last digit.
    context = Context(prec=160, traps=[InvalidOperation, DivisionByZero, Overflow], rounding="ROUND_05UP")
    quotient = context.divide(dividend, divisor)
    return Context(prec=160, rounding=rounding).quantize(quotient, Decimal(1).scaleb(-scale))
