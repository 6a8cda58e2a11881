"""Amounts keep every digit."""

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from marketflow_simulator.amounts import SCALE, quote8, scaled, text8


@given(st.integers(0, 10**18))
def test_text_and_units_are_the_same_number(units: int) -> None:
    assert scaled(text8(units)) == units
    assert Decimal(text8(units)) == Decimal(units) / SCALE


def test_amounts_are_printed_with_eight_decimals() -> None:
    assert text8(0) == "0.00000000"
    assert text8(268_380_000_000) == "2683.80000000"
    assert quote8(scaled("2683.8") * scaled("0.002")) == "5.36760000"


@pytest.mark.parametrize("text", ["", "-1", "1e3", "NaN", " 1", "1_0", ".5", "1.", "0.000000001", "١"])
def test_what_is_no_amount_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"is not a plain|more than eight"):
        scaled(text)
