"""Every filter lets pass exactly what its documented rule lets pass, at its edges to the last unit."""

from collections.abc import Callable
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from marketflow_simulator.amounts import scaled, text8
from marketflow_simulator.errors import ApiError
from marketflow_simulator.filters import Around, FilterError, Filters
from marketflow_simulator.records import Order, OrderRequest

AVERAGE = scaled("100")
LAST = scaled("110")


def request(qty: str = "1", price: str = "100", **known: Any) -> OrderRequest:
    kind = known.pop("type", "LIMIT")
    usual: dict[str, Any] = {
        "symbol": "AAAUSDT",
        "side": "BUY",
        "type": kind,
        "time_in_force": "GTC",
        "price": 0 if kind in ("MARKET", "STOP_LOSS", "TAKE_PROFIT") else scaled(price),
        "qty": scaled(qty),
        "quote_qty": 0,
        "client_order_id": "x",
    }
    return OrderRequest(**{**usual, **known})


def around(**known: Any) -> Around:
    averages: Callable[[int], int] = lambda minutes: AVERAGE if minutes else LAST  # noqa: E731 - as the market answers
    return Around(**{"last": LAST, "average": averages, **known})


def passes(
    entry: dict[str, Any], order: OrderRequest, comes: tuple[str, ...] = (), lists: int = 0, **known: Any
) -> bool:
    try:
        Filters([entry]).check(order, around(**known), comes or (order.type,), lists)
    except ApiError as error:
        assert (error.code, error.message) == (-1013, f"Filter failure: {entry['filterType']}")  # noqa: PT017
        return False
    return True


PRICE = {"filterType": "PRICE_FILTER", "minPrice": "0.50000000", "maxPrice": "200.00000000", "tickSize": "0.05000000"}
LOT = {"filterType": "LOT_SIZE", "minQty": "0.10000000", "maxQty": "9.00000000", "stepSize": "0.10000000"}
MARKET_LOT = {**LOT, "filterType": "MARKET_LOT_SIZE", "minQty": "0.00000000", "stepSize": "0.00000000"}
SIDES = {
    "filterType": "PERCENT_PRICE_BY_SIDE",
    "bidMultiplierUp": "1.2",
    "bidMultiplierDown": "0.2",
    "askMultiplierUp": "5",
    "askMultiplierDown": "0.8",
    "avgPriceMins": 1,
}
PERCENT = {"filterType": "PERCENT_PRICE", "multiplierUp": "1.3", "multiplierDown": "0.7", "avgPriceMins": 5}
LEAST = {"filterType": "MIN_NOTIONAL", "minNotional": "10.00000000", "applyToMarket": True, "avgPriceMins": 5}
NOTIONAL = {
    "filterType": "NOTIONAL",
    "minNotional": "10.00000000",
    "applyMinToMarket": False,
    "maxNotional": "1000.00000000",
    "applyMaxToMarket": True,
    "avgPriceMins": 0,
}


@pytest.mark.parametrize(
    ("entry", "order", "good"),
    [
        (PRICE, request(price="0.5"), True),
        (PRICE, request(price="0.45"), False),
        (PRICE, request(price="200"), True),
        (PRICE, request(price="200.05"), False),
        (PRICE, request(price="100.04"), False),
        (PRICE, request(type="MARKET"), True),
        (PRICE, request(type="STOP_LOSS", stop_price=scaled("100.05")), True),
        (PRICE, request(type="STOP_LOSS", stop_price=scaled("100.01")), False),
        (PRICE, request(type="STOP_LOSS_LIMIT", stop_price=scaled("300")), False),
        ({**PRICE, "maxPrice": "0.00000000"}, request(price="99999"), True),
        ({**PRICE, "tickSize": "0.00000000"}, request(price="100.00000001"), True),
        (LOT, request("0.1"), True),
        (LOT, request("0.05"), False),
        (LOT, request("9"), True),
        (LOT, request("9.1"), False),
        (LOT, request("0.15"), False),
        (LOT, request("0.15", type="MARKET"), False),
        (MARKET_LOT, request("0.12345678", type="MARKET"), True),
        (MARKET_LOT, request("9.00000001", type="MARKET"), False),
        (MARKET_LOT, request("99"), True),
        (SIDES, request(price="120"), True),
        (SIDES, request(price="120.00000001"), False),
        (SIDES, request(price="20"), True),
        (SIDES, request(price="19.99999999"), False),
        (SIDES, request(price="500", side="SELL"), True),
        (SIDES, request(price="79.99999999", side="SELL"), False),
        (SIDES, request(type="MARKET"), True),
        ({**SIDES, "avgPriceMins": 0}, request(price="132"), True),
        (PERCENT, request(price="130"), True),
        (PERCENT, request(price="130.00000001"), False),
        (PERCENT, request(price="69.99999999", side="SELL"), False),
        (LEAST, request("0.1"), True),
        (LEAST, request("0.09999999"), False),
        (LEAST, request("0.09999999", type="MARKET"), False),
        ({**LEAST, "applyToMarket": False}, request("0.00000001", type="MARKET"), True),
        (LEAST, request("0.1", type="STOP_LOSS", stop_price=scaled("99.99999999")), False),
        (NOTIONAL, request("10"), True),
        (NOTIONAL, request("10.00000001"), False),
        (NOTIONAL, request("0.09"), False),
        (NOTIONAL, request("0.01", type="MARKET"), True),
        (NOTIONAL, request("9.09090909", type="MARKET"), True),
        (NOTIONAL, request("9.0909091", type="MARKET"), False),
        (NOTIONAL, request("1", type="MARKET", quote_qty=scaled("1000.00000001")), False),
        ({"filterType": "ICEBERG_PARTS", "limit": 1}, request("1"), True),
    ],
)
def test_a_filter_holds_at_its_edges(entry: dict[str, Any], order: OrderRequest, good: bool) -> None:
    assert passes(entry, order) is good


def resting(kind: str, side: str = "BUY", qty: int = 1, executed: int = 0) -> Order:
    return Order(1, "a", "AAAUSDT", side, kind, "GTC", 1, qty, 0, "NEW", 0, 0, 0, executed)  # type: ignore[arg-type]


def test_counts_include_what_comes_with_the_request() -> None:
    few = {"filterType": "MAX_NUM_ORDERS", "maxNumOrders": 3}
    two = [resting("LIMIT"), resting("STOP_LOSS")]
    assert passes(few, request(), resting=two)
    assert not passes(few, request(), ("LIMIT_MAKER", "STOP_LOSS"), resting=two)
    assert passes(few, request(type="MARKET"), resting=two * 2)
    algo = {"filterType": "MAX_NUM_ALGO_ORDERS", "maxNumAlgoOrders": 2}
    stop = request(type="STOP_LOSS", stop_price=1)
    assert passes(algo, stop, resting=two)
    assert not passes(algo, stop, ("TAKE_PROFIT", "STOP_LOSS"), resting=two)
    assert passes(algo, request(), resting=two * 3)
    lists = {"filterType": "MAX_NUM_ORDER_LISTS", "maxNumOrderLists": 1}
    assert passes(lists, request(), open_lists=1)
    assert not passes(lists, request(), lists=1, open_lists=1)


def test_the_position_counts_what_is_held_what_may_be_bought_and_the_order() -> None:
    entry = {"filterType": "MAX_POSITION", "maxPosition": "10.00000000"}
    buys = [resting("LIMIT", "BUY", scaled("4"), scaled("1")), resting("LIMIT", "SELL", scaled("50"))]
    assert passes(entry, request("5"), held=scaled("2"), resting=buys)
    assert not passes(entry, request("5.00000001"), held=scaled("2"), resting=buys)
    assert passes(entry, request("50", side="SELL"), held=scaled("2"), resting=buys)


def test_filters_are_replaced_by_type_and_shown_as_they_were_told() -> None:
    filters = Filters([PRICE, LOT, SIDES]).changed([{**LOT, "minQty": "0.20000000"}, NOTIONAL], ["PRICE_FILTER"])
    assert filters.shown() == [{**LOT, "minQty": "0.20000000"}, SIDES, NOTIONAL]
    assert (filters.step, Filters([MARKET_LOT]).step) == (scaled("0.1"), 1)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"filterType": "NONSENSE"}, "'NONSENSE' is none of PRICE_FILTER"),
        ({"filterType": "LOT_SIZE", "minQty": "1"}, "LOT_SIZE has minQty, maxQty, stepSize"),
        ({**LOT, "minQty": 1}, "LOT_SIZE.minQty is 1"),
        ({**LOT, "minQty": "-1"}, "LOT_SIZE.minQty: '-1' is not a plain"),
        ({**PERCENT, "avgPriceMins": "5"}, "PERCENT_PRICE.avgPriceMins is '5'"),
        ({**LEAST, "applyToMarket": 1}, "MIN_NOTIONAL.applyToMarket is 1"),
    ],
)
def test_an_entry_that_is_not_as_documented_is_refused_in_words(entry: dict[str, Any], message: str) -> None:
    with pytest.raises(FilterError, match=message):
        Filters([entry])


units = st.integers(0, 10**12)


@settings(max_examples=300, deadline=None)
@given(units, units, st.integers(0, 10**6), units, units)
def test_whole_number_arithmetic_agrees_with_decimals(least: int, most: int, step: int, price: int, qty: int) -> None:
    """The same rules in Decimal, by another formula, for any numbers at all."""
    lot = {"filterType": "LOT_SIZE", "minQty": text8(least), "maxQty": text8(most), "stepSize": text8(step)}
    q, lo, hi, s = (Decimal(text8(n)) for n in (qty, least, most, step))
    expected = q >= lo and (hi == 0 or q <= hi) and (s == 0 or (q / s) == (q / s).to_integral_value())
    order = request(price=text8(price), qty=text8(qty))
    assert passes(lot, order) is expected
    worth = Decimal(text8(price)) * q
    notional = {**NOTIONAL, "minNotional": text8(least), "maxNotional": text8(most)}
    assert passes(notional, order) is (lo <= worth and (hi == 0 or worth <= hi))
