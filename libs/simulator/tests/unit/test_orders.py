"""New orders: which parameters and filters let them pass, and in which words they are refused."""

from typing import Any
from urllib.parse import urlencode

import pytest
from marketflow_simulator.amounts import scaled
from marketflow_simulator.errors import ApiError
from marketflow_simulator.filters import Around
from marketflow_simulator.orders import check_filters, read_order
from marketflow_simulator.params import Params
from marketflow_simulator.records import Order, OrderRequest
from marketflow_simulator.security import signature
from marketflow_simulator.symbols import MAX_NUM_ORDERS, default_filters, spec_of, spec_of_trades

BTC = spec_of("BTCUSDT")
PRICE = scaled("42000")
FILTERS = default_filters(BTC)


def order(**parameters: Any) -> OrderRequest:
    """Read and check an order at a market price of 42,000."""
    request, _ = read_order(Params(urlencode({"symbol": "BTCUSDT", **parameters}), ""), BTC)
    return check_filters(request, FILTERS, around())


def around(**known: Any) -> Around:
    return Around(**{"last": PRICE, "average": lambda minutes: PRICE, **known})


def market(**parameters: Any) -> OrderRequest:
    return order(**{"side": "BUY", "type": "MARKET", **parameters})


def limit(**parameters: Any) -> OrderRequest:
    usual = {"side": "BUY", "type": "LIMIT", "timeInForce": "GTC", "quantity": "0.01", "price": "41000"}
    chosen = {name: value for name, value in {**usual, **parameters}.items() if value is not None}
    return order(**chosen)


def test_a_plain_market_and_a_plain_limit_order_pass() -> None:
    assert market(quantity="0.01").qty == 1_000_000
    assert limit().price == scaled("41000")
    assert limit(type="LIMIT_MAKER", timeInForce=None).time_in_force == "GTC"
    assert limit(price="41000.010000000000").price == scaled("41000.01")


def test_a_quote_quantity_becomes_whole_steps_at_the_last_price() -> None:
    request = market(quoteOrderQty="100")
    assert (request.qty, request.quote_qty) == (scaled("0.00238"), scaled("100"))


@pytest.mark.parametrize(
    ("parameters", "code", "message"),
    [
        ({"side": "HOLD", "quantity": "1"}, -1117, "Invalid side."),
        ({"type": "FOO", "quantity": "1"}, -1116, "Invalid orderType."),
        ({"type": "STOP_LOSS", "quantity": "1"}, -1102, "Param 'stopPrice' or 'trailingDelta' must be sent"),
        ({"type": "STOP_LOSS", "quantity": "1", "stopPrice": "9", "price": "9"}, -1106, "Parameter 'price' sent when"),
        ({"type": "TAKE_PROFIT_LIMIT", "quantity": "1", "stopPrice": "9"}, -1102, "'timeInForce' was not sent"),
        ({}, -1102, "Param 'quantity' or 'quoteOrderQty' must be sent, but both were empty/null!"),
        ({"quantity": "1", "quoteOrderQty": "1"}, -1128, "Combination of optional parameters invalid."),
        ({"quantity": "1", "price": "1"}, -1106, "Parameter 'price' sent when not required."),
        ({"quantity": "1", "timeInForce": "GTC"}, -1106, "Parameter 'timeInForce' sent when not required."),
        ({"quantity": "x"}, -1100, "Illegal characters found in parameter 'quantity'"),
        ({"quantity": "1e-3"}, -1100, "Illegal characters found in parameter 'quantity'"),
        ({"quantity": "-1"}, -1100, "Illegal characters found in parameter 'quantity'"),
        ({"quantity": "0.010000001"}, -1111, "Parameter 'quantity' has too much precision."),
        ({"quantity": "0"}, -1013, "Invalid quantity."),
        ({"quantity": ""}, -1105, "Parameter 'quantity' was empty."),
        ({"quantity": "0.000015"}, -1013, "Filter failure: LOT_SIZE"),
        ({"quantity": "99999999"}, -1013, "Filter failure: LOT_SIZE"),
        ({"quantity": "91"}, -1013, "Filter failure: MARKET_LOT_SIZE"),
        ({"quantity": "0.00011"}, -1013, "Filter failure: NOTIONAL"),
        ({"quoteOrderQty": "4.99"}, -1013, "Filter failure: NOTIONAL"),
        ({"quantity": "1", "newClientOrderId": "a b"}, -1100, "parameter 'newClientOrderId'"),
        ({"quantity": "1", "newClientOrderId": "a" * 37}, -1100, "parameter 'newClientOrderId'"),
        ({"quantity": "1", "stopPrice": "1"}, -1106, "Parameter 'stopPrice' sent when not required."),
        ({"quantity": "1", "colour": "1"}, -1104, "Not all sent parameters were read; read '4'"),
        ({"quantity": "1", "trailingDelta": "1"}, -2010, "Trailing stop orders are not supported"),
        ({"quantity": "1", "pegPriceType": "MARKET_PEG"}, -2010, "Pegged orders are not supported"),
        ({"quantity": "1", "selfTradePreventionMode": "MAYBE"}, -1130, "'selfTradePreventionMode' is not valid"),
        ({"quantity": "1", "strategyType": "5"}, -1134, "strategyType was less than 1000000"),
        ({"quantity": "1", "icebergQty": "1"}, -2010, "Iceberg orders are not supported"),
    ],
)
def test_a_market_order_is_refused_as_documented(parameters: dict[str, str], code: int, message: str) -> None:
    with pytest.raises(ApiError) as error:
        market(**parameters)
    assert error.value.code == code
    assert message in error.value.message


@pytest.mark.parametrize(
    ("parameters", "code", "message"),
    [
        ({"timeInForce": None}, -1102, "Mandatory parameter 'timeInForce' was not sent"),
        ({"timeInForce": "GTX"}, -1115, "Invalid timeInForce."),
        ({"price": None}, -1102, "Mandatory parameter 'price' was not sent"),
        ({"quantity": None}, -1102, "Mandatory parameter 'quantity' was not sent"),
        ({"quoteOrderQty": "5"}, -1106, "Parameter 'quoteOrderQty' sent when not required."),
        ({"price": "0"}, -1013, "Invalid price."),
        ({"price": "41000.005"}, -1013, "Filter failure: PRICE_FILTER"),
        ({"price": "2000000"}, -1013, "Filter failure: PRICE_FILTER"),
        ({"price": "210000.01", "quantity": "1"}, -1013, "Filter failure: PERCENT_PRICE_BY_SIDE"),
        ({"price": "8399.99", "quantity": "1"}, -1013, "Filter failure: PERCENT_PRICE_BY_SIDE"),
        ({"price": "41000", "quantity": "0.00012"}, -1013, "Filter failure: NOTIONAL"),
        ({"price": "41000", "quantity": "300"}, -1013, "Filter failure: NOTIONAL"),
        ({"price": "41000", "quantity": "0.010005"}, -1013, "Filter failure: LOT_SIZE"),
    ],
)
def test_a_limit_order_is_refused_as_documented(parameters: dict[str, str | None], code: int, message: str) -> None:
    with pytest.raises(ApiError) as error:
        limit(**parameters)
    assert error.value.code == code
    assert message in error.value.message


def test_the_edges_of_the_filters_are_inside() -> None:
    limit(price="210000", quantity="0.00003")
    limit(price="8400", quantity="0.01")
    limit(price="40000", quantity="0.000125".replace("125", "13"))
    market(quantity="0.00012")
    market(quantity="90")


def test_only_so_many_orders_may_rest_on_a_symbol() -> None:
    request = limit()
    resting = [Order(1, "a", "BTCUSDT", "BUY", "LIMIT", "GTC", 1, 1, 0, "NEW", 0, 0, 0)] * MAX_NUM_ORDERS
    check_filters(request, FILTERS, around(resting=resting[1:]))
    with pytest.raises(ApiError, match="MAX_NUM_ORDERS"):
        check_filters(request, FILTERS, around(resting=resting))


def test_a_recording_of_an_unknown_symbol_shows_its_own_tick_and_step() -> None:
    spec = spec_of_trades("NEWUSDT", scaled("0.0005"), scaled("0.3"), scaled("1.5"))
    assert (spec.tick, spec.step) == (scaled("0.0001"), scaled("0.1"))
    fine = spec_of_trades("FINEUSDT", 1, 1, 1)
    assert fine.tick * fine.step >= 10**8


def test_the_signature_is_that_of_the_documented_example() -> None:
    secret = b"NhqPtmdSJYdKjVHjA7PZj4Mge3R5YNiP1e3UZjInClVN65XAbvqqM6A7H5fATj0j"
    query = "symbol=LTCBTC&side=BUY&type=LIMIT&timeInForce=GTC"
    body = "quantity=1&price=0.1&recvWindow=5000&timestamp=1499827319559"
    expected = "c8db56825ae71d6d79447849e617115f4a920fa2acdcab2b053c4b2838bd6b71"
    assert signature(secret, f"{query}&{body}", "") == expected
    assert signature(secret, "", f"{query}&{body}&signature=x") == expected
    assert signature(secret, f"{query}&", f"{body}&signature=x") == expected
    assert signature(secret, query, body) != expected
