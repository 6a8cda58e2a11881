"""The exchange's trading rules in exact Decimal, against an independent check in whole numbers."""

from __future__ import annotations

from decimal import Decimal, localcontext
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from marketflow_common.numbers import EXACT, NotANumber
from marketflow_executor.filters import default_instrument, read_instrument

UNHURRIED = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
"""A busy machine makes no test fail."""


def info(**changes: dict[str, Any]) -> dict[str, Any]:
    """The symbol's entry as Binance's documentation of exchangeInfo and its filters prints it."""
    filters: dict[str, dict[str, Any]] = {
        "PRICE_FILTER": {"minPrice": "0.00000100", "maxPrice": "100000.00000000", "tickSize": "0.00000100"},
        "LOT_SIZE": {"minQty": "0.00100000", "maxQty": "100000.00000000", "stepSize": "0.00100000"},
        "MARKET_LOT_SIZE": {"minQty": "0.00000000", "maxQty": "3054.17250000", "stepSize": "0.00000000"},
        "NOTIONAL": {
            "minNotional": "10.00000000",
            "applyMinToMarket": False,
            "maxNotional": "10000.00000000",
            "applyMaxToMarket": False,
            "avgPriceMins": 5,
        },
        "MIN_NOTIONAL": {"minNotional": "0.00100000", "applyToMarket": True, "avgPriceMins": 5},
    }
    for name, values in changes.items():
        filters[name] = filters[name] | values
    return {
        "symbol": "ETHBTC",
        "status": "TRADING",
        "baseAsset": "ETH",
        "baseAssetPrecision": 8,
        "quoteAsset": "BTC",
        "filters": [{"filterType": name, **values} for name, values in filters.items()],
    }


def test_the_documented_filters_are_read() -> None:
    instrument = read_instrument(info())
    assert instrument.assets == ("ETH", "BTC")
    assert (instrument.step, instrument.min_qty) == (Decimal("0.001"), Decimal("0.001"))
    assert instrument.max_qty == Decimal("3054.1725")
    assert (instrument.min_notional, instrument.max_notional) == (Decimal("0.001"), 0)


def test_a_step_of_zero_asks_for_nothing_and_two_steps_ask_for_both() -> None:
    nothing = {"stepSize": "0.00000000"}
    assert read_instrument(info(LOT_SIZE=nothing)).step == Decimal("0.00000001")
    both = info(LOT_SIZE={"stepSize": "0.00400000"}, MARKET_LOT_SIZE={"stepSize": "0.00600000"})
    assert read_instrument(both).step == Decimal("0.012")


def test_a_filter_that_is_no_number_is_refused() -> None:
    with pytest.raises(NotANumber):
        read_instrument(info(LOT_SIZE={"stepSize": "NaN"}))


def test_without_an_exchange_a_symbol_is_split_at_its_quote() -> None:
    instrument = default_instrument("ETHUSDT")
    assert instrument is not None
    assert instrument.assets == ("ETH", "USDT")
    assert default_instrument("USDT") is None
    assert default_instrument("WHATEVER") is None


_units = st.integers(min_value=1, max_value=10**9)


@UNHURRIED
@given(
    lot=st.tuples(_units, _units, _units),
    market=st.tuples(st.integers(0, 10**6), st.integers(0, 10**9), st.integers(0, 10**6)),
    minimum=st.integers(0, 10**12),
    maximum=st.integers(0, 10**14),
    price=_units,
    qty=st.integers(0, 10**10),
    rounded=st.booleans(),
)
def test_a_quantity_passes_if_and_only_if_an_independent_check_lets_it(
    lot: tuple[int, int, int],
    market: tuple[int, int, int],
    minimum: int,
    maximum: int,
    price: int,
    qty: int,
    rounded: bool,
) -> None:
    def text(units: int) -> str:
        return f"{units // 10**8}.{units % 10**8:08d}"

    def lots(values: tuple[int, int, int]) -> dict[str, str]:
        return dict(zip(("minQty", "maxQty", "stepSize"), map(text, values), strict=True))

    instrument = read_instrument(
        info(
            LOT_SIZE=lots(lot),
            MARKET_LOT_SIZE=lots(market),
            NOTIONAL={
                "minNotional": text(minimum),
                "applyMinToMarket": True,
                "maxNotional": text(maximum),
                "applyMaxToMarket": True,
            },
            MIN_NOTIONAL={"minNotional": "0.00000000"},
        )
    )
    with localcontext(EXACT):
        asked = instrument.round_down(Decimal(qty).scaleb(-8)) if rounded else Decimal(qty).scaleb(-8)
        units = int(asked.scaleb(8))
        assert asked <= Decimal(qty).scaleb(-8)
        worth = price * units
        good = (
            units > 0
            and all(units >= low for low in (lot[0], market[0]))
            and all(units <= high for high in (lot[1], market[1]) if high)
            and all(units % step == 0 for step in (lot[2], market[2]) if step)
            and worth >= minimum * 10**8
            and (not maximum or worth <= maximum * 10**8)
        )
        assert (instrument.problem(asked, Decimal(price).scaleb(-8)) is None) == good
