"""Prices and quantities of the public market as whole numbers of 1e-8, and their text.

Never a float: text goes in, text comes out, and every digit between them is exact.
"""

import re
from typing import Final

SCALE: Final = 100_000_000
"""Binance prints and keeps eight decimals of everything."""

_NUMBER: Final = re.compile(r"(\d{1,11})(?:\.(\d{1,18}))?", re.ASCII)


def scaled(text: str) -> int:
    """The non-negative decimal `text` in units of 1e-8; ValueError if it is no such number or finer than that."""
    match = _NUMBER.fullmatch(text)
    if match is None:
        raise ValueError(f"{text!r} is not a plain non-negative decimal number")
    whole, fraction = match[1], match[2] or ""
    if len(fraction) > 8 and fraction[8:].strip("0"):
        raise ValueError(f"{text!r} has more than eight decimals")
    return int(whole) * SCALE + int(fraction[:8].ljust(8, "0"))


def text8(units: int) -> str:
    """Units of 1e-8 as Binance prints them: `268380000000` is `2683.80000000`."""
    return f"{units // SCALE}.{units % SCALE:08d}"


def quote8(product: int) -> str:
    """A price times a quantity (units of 1e-16), or a sum of such, with eight decimals.

    Binance's tick and step sizes of one symbol never have more than eight decimals together, so
    nothing is cut off; a capture that breaks this rule is cut after the eighth decimal.
    """
    return text8(product // SCALE)
