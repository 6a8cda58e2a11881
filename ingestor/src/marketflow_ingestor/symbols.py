"""Which symbols are published: names and patterns against what the exchange lists.

Pure. Must never follow a symbol that nobody asked for.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

__all__ = ["NAME", "PATTERN", "TRADING", "Chosen", "choose"]

NAME: Final = re.compile(r"[A-Z0-9]{2,30}", re.ASCII)
PATTERN: Final = re.compile(r"[A-Z0-9*]{1,30}", re.ASCII)
TRADING: Final = "TRADING"


class Chosen(NamedTuple):
    """``trading``: to be published. ``halted``: asked for, and listed, but not trading now. ``wrong``: names that the
    exchange does not have, and patterns that no trading symbol fits, each with what may have been meant."""

    trading: tuple[str, ...]
    halted: tuple[str, ...]
    wrong: tuple[str, ...]


def choose(wanted: Sequence[str], listed: Mapping[str, str]) -> Chosen:
    """``wanted``: names, or patterns in which ``*`` stands for any letters; ``listed``: status by symbol.

    Names that are not letters and digits (the exchange has a few) fit no pattern.
    """
    found: dict[str, str] = {}
    wrong: list[str] = []
    for item in wanted:
        if "*" in item:
            fits = re.compile(item.replace("*", ".*"))
            matches = {s: status for s, status in listed.items() if fits.fullmatch(s) and NAME.fullmatch(s)}
            if TRADING not in matches.values():
                wrong.append(f"{item} (no trading symbol fits)")
            found |= dict(sorted(matches.items()))
        elif item in listed:
            found[item] = listed[item]
        else:
            near = difflib.get_close_matches(item, listed, n=1)
            wrong.append(item + (f" (did you mean {near[0]}?)" if near else ""))
    return Chosen(
        tuple(s for s, status in found.items() if status == TRADING),
        tuple(s for s, status in found.items() if status != TRADING),
        tuple(wrong),
    )
