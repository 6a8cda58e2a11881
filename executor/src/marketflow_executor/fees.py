"""What a fee in a third asset (BNB) is worth, by the exchange's price of the moment in which its fill is learned.

Must never hold up a fill, nor price an old one by a price of now.
"""

from __future__ import annotations

from decimal import Decimal
from typing import Final

import msgspec

from .books import Assets, Fill
from .exchange import Exchange, Unavailable
from .orders import Answer, Report, Update

__all__ = ["priced"]

FRESH_MS: Final = 60_000
"""A fill that is found out later than this keeps its fee in the fee's asset alone."""


def priced(answer: Answer, assets: Assets, exchange: Exchange) -> Answer:
    """The answer, its fees in third assets with their price in quote where the exchange tells one."""
    known: dict[str, Decimal | None] = {}

    def with_price(fill: Fill) -> Fill:
        asset = fill.commission_asset
        if fill.commission_price is not None or not fill.commission or asset in assets:
            return fill
        if asset not in known:
            known[asset] = _price(asset, fill, assets, exchange)
        return msgspec.structs.replace(fill, commission_price=known[asset])

    match answer:
        case Report(fills=fills) if fills:
            return msgspec.structs.replace(answer, fills=tuple(map(with_price, fills)))
        case Update(fill=Fill() as fill):
            return msgspec.structs.replace(answer, fill=with_price(fill))
        case _:
            return answer


def _price(asset: str, fill: Fill, assets: Assets, exchange: Exchange) -> Decimal | None:
    try:
        if exchange.now_ms() - fill.filled_at // 1_000 > FRESH_MS:
            return None
        return exchange.last_price(asset + assets.quote) or None
    except Unavailable:
        return None  # Not listed against the quote asset, or no answer: the fee stays in its own asset.
