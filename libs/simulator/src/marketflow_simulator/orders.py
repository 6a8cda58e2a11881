"""Checks a new order's parameters and the symbol's filters, in words and codes as documented.

It only says yes or no; balances and matching are the books' business.
"""

import re
import secrets
from decimal import Decimal
from typing import Final, cast, get_args

from marketflow_simulator.amounts import SCALE, scaled
from marketflow_simulator.books import OrderRequest, OrderType, Side, TimeInForce
from marketflow_simulator.errors import ApiError, illegal, missing
from marketflow_simulator.params import Params
from marketflow_simulator.symbols import (
    ASK_MULTIPLIER_DOWN,
    ASK_MULTIPLIER_UP,
    BID_MULTIPLIER_DOWN,
    BID_MULTIPLIER_UP,
    MAX_NOTIONAL,
    MAX_NUM_ORDERS,
    MIN_NOTIONAL,
    SymbolSpec,
    max_market_qty,
    max_price,
    max_qty,
)

PARAMETERS: Final = frozenset(
    [
        "symbol",
        "side",
        "type",
        "timeInForce",
        "quantity",
        "quoteOrderQty",
        "price",
        "newClientOrderId",
        "strategyId",
        "strategyType",
        "newOrderRespType",
        "selfTradePreventionMode",
        "recvWindow",
        "timestamp",
        "signature",
        "computeCommissionRates",
    ]
)
"""Parameters of a new order that are understood; any other is refused, never ignored."""

_CLIENT_ID: Final = re.compile(r"[.A-Z:/a-z0-9_-]{1,36}", re.ASCII)
_OTHER_TYPES: Final = {
    "STOP_LOSS": "Stop loss orders are not supported for this symbol.",
    "STOP_LOSS_LIMIT": "Stop loss limit orders are not supported for this symbol.",
    "TAKE_PROFIT": "Take profit orders are not supported for this symbol.",
    "TAKE_PROFIT_LIMIT": "Take profit limit orders are not supported for this symbol.",
}


def read_order(params: Params, spec: SymbolSpec) -> tuple[OrderRequest, str]:
    """The order that the parameters describe, filters not yet checked, and its response type."""
    side = params.required("side")
    if side not in get_args(Side):
        raise ApiError(-1117, "Invalid side.")
    kind = params.required("type")
    if kind in _OTHER_TYPES:
        raise ApiError(-2010, _OTHER_TYPES[kind])
    if kind not in get_args(OrderType):
        raise ApiError(-1116, "Invalid orderType.")
    if "icebergQty" in params:
        raise ApiError(-2010, "Iceberg orders are not supported for this symbol.")
    unread = params.names() - PARAMETERS
    if unread:
        total = len(params.names())
        read = total - len(unread)
        raise ApiError(-1104, f"Not all sent parameters were read; read '{read}' parameter(s) but was sent '{total}'.")
    price, qty, quote_qty = (_amount(params, name) for name in ("price", "quantity", "quoteOrderQty"))
    tif = _time_in_force(params, kind)
    if kind == "MARKET":
        if price is not None:
            raise _not_required("price")
        if qty is None and quote_qty is None:
            raise ApiError(-1102, "Param 'quantity' or 'quoteOrderQty' must be sent, but both were empty/null!")
        if qty is not None and quote_qty is not None:
            raise ApiError(-1128, "Combination of optional parameters invalid.")
    else:
        if quote_qty is not None:
            raise _not_required("quoteOrderQty")
        if qty is None:
            raise missing("quantity")
        if price is None:
            raise missing("price")
        if price == 0:
            raise ApiError(-1013, "Invalid price.")
    if qty == 0 or quote_qty == 0:
        raise ApiError(-1013, "Invalid quantity.")
    response = params.text("newOrderRespType") or ("ACK" if kind == "LIMIT_MAKER" else "FULL")
    if response not in ("ACK", "RESULT", "FULL"):
        raise illegal("newOrderRespType", "ACK, RESULT, FULL")
    client_id = params.text("newClientOrderId") or secrets.token_hex(11)
    if not _CLIENT_ID.fullmatch(client_id):
        raise illegal("newClientOrderId", "^[\\.A-Z\\:/a-z0-9_-]{1,36}$")
    request = OrderRequest(
        symbol=spec.symbol,
        side=cast(Side, side),
        type=cast(OrderType, kind),
        time_in_force=tif,
        price=price or 0,
        qty=qty or 0,
        quote_qty=quote_qty or 0,
        client_order_id=client_id,
    )
    return request, response


def check_filters(request: OrderRequest, spec: SymbolSpec, last: int, average: int, open_orders: int) -> OrderRequest:
    """The order with its quantity, if all filters let it pass; otherwise ApiError.

    `last` is the last trade's price and `average` the weighted one that exchangeInfo's avgPriceMins
    means, `open_orders` the number of orders that rest on the symbol.
    """
    if request.type == "MARKET":
        qty = request.qty
        if request.quote_qty:
            qty = request.quote_qty * SCALE // last // spec.step * spec.step
            if request.quote_qty < MIN_NOTIONAL:
                raise _failure("NOTIONAL")
        _check_lot(qty, spec)
        if qty > max_market_qty(spec):
            raise _failure("MARKET_LOT_SIZE")
        if not request.quote_qty and average * qty < MIN_NOTIONAL * SCALE:
            raise _failure("NOTIONAL")
        return OrderRequest(
            request.symbol,
            request.side,
            request.type,
            request.time_in_force,
            0,
            qty,
            request.quote_qty,
            request.client_order_id,
        )
    price = request.price
    if not spec.tick <= price <= max_price(spec) or price % spec.tick:
        raise _failure("PRICE_FILTER")
    up, down = (
        (BID_MULTIPLIER_UP, BID_MULTIPLIER_DOWN) if request.side == "BUY" else (ASK_MULTIPLIER_UP, ASK_MULTIPLIER_DOWN)
    )
    if not average * scaled(down) <= price * SCALE <= average * scaled(up):
        raise _failure("PERCENT_PRICE_BY_SIDE")
    _check_lot(request.qty, spec)
    if not MIN_NOTIONAL * SCALE <= price * request.qty <= MAX_NOTIONAL * SCALE:
        raise _failure("NOTIONAL")
    if open_orders >= MAX_NUM_ORDERS:
        raise _failure("MAX_NUM_ORDERS")
    return request


def _check_lot(qty: int, spec: SymbolSpec) -> None:
    if not spec.step <= qty <= max_qty(spec) or qty % spec.step:
        raise _failure("LOT_SIZE")


def _failure(name: str) -> ApiError:
    return ApiError(-1013, f"Filter failure: {name}")


def _not_required(name: str) -> ApiError:
    return ApiError(-1106, f"Parameter '{name}' sent when not required.")


def _time_in_force(params: Params, kind: str) -> TimeInForce:
    tif = params.text("timeInForce")
    if kind == "LIMIT":
        if tif is None:
            raise missing("timeInForce")
        if tif not in get_args(TimeInForce):
            raise ApiError(-1115, "Invalid timeInForce.")
        return cast(TimeInForce, tif)
    if tif is not None:
        raise _not_required("timeInForce")
    return "GTC"


def _amount(params: Params, name: str) -> int | None:
    """An amount in units of 1e-8, or None if it was not sent; too many decimals are an error."""
    value = params.decimal(name)
    if value is None:
        return None
    exponent = value.normalize().as_tuple().exponent
    if isinstance(exponent, int) and exponent < -8:
        raise ApiError(-1111, f"Parameter '{name}' has too much precision.")
    if value >= Decimal(10) ** 11:
        raise ApiError(-1108, f"Parameter '{name}' overflowed.")
    return int(value * SCALE)
