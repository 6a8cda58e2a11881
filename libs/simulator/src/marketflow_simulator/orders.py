"""Checks a new order's parameters and the symbol's filters, in words and codes as documented.

It only says yes or no; balances and matching are the books' business.
"""

import re
import secrets
from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Final, cast, get_args

import msgspec

from marketflow_simulator.amounts import SCALE
from marketflow_simulator.errors import ApiError, illegal, missing
from marketflow_simulator.filters import Around, Filters
from marketflow_simulator.params import Params
from marketflow_simulator.records import ALGO_TYPES, PRICED_TYPES, OrderRequest, OrderType, Side, TimeInForce
from marketflow_simulator.symbols import STP_MODES, SymbolSpec

_COMMON: Final = frozenset({"symbol", "side", "newOrderRespType", "selfTradePreventionMode"})
_SIGNED: Final = frozenset({"recvWindow", "timestamp", "signature", "apiKey"})
_ORDER: Final = frozenset(
    [
        "type",
        "timeInForce",
        "quantity",
        "quoteOrderQty",
        "price",
        "stopPrice",
        "newClientOrderId",
        "strategyId",
        "strategyType",
        "computeCommissionRates",
    ]
)
PARAMETERS: Final = _COMMON | _SIGNED | _ORDER
"""Parameters of a new order that are understood; any other is refused, never ignored."""
REPLACE_PARAMETERS: Final = PARAMETERS | {
    "cancelReplaceMode",
    "cancelNewClientOrderId",
    "cancelOrigClientOrderId",
    "cancelOrderId",
    "cancelRestrictions",
    "orderRateLimitExceededMode",
}
_LEG: Final = ("Type", "ClientOrderId", "Price", "StopPrice", "TimeInForce", "StrategyId", "StrategyType")
_PAIR: Final = (
    _COMMON
    | _SIGNED
    | {"listClientOrderId", "quantity"}
    | {f"{side}{name}" for side in ("above", "below") for name in _LEG}
)
_OLD_PAIR: Final[Mapping[str, str]] = {
    "price": "limit Price",
    "limitClientOrderId": "limit ClientOrderId",
    "limitStrategyId": "limit StrategyId",
    "limitStrategyType": "limit StrategyType",
    "stopPrice": "stop StopPrice",
    "stopLimitPrice": "stop Price",
    "stopLimitTimeInForce": "stop TimeInForce",
    "stopClientOrderId": "stop ClientOrderId",
    "stopStrategyId": "stop StrategyId",
    "stopStrategyType": "stop StrategyType",
}
"""Parameters of the deprecated OCO, by leg and their names there."""

_CLIENT_ID: Final = re.compile(r"[.A-Z:/a-z0-9_-]{1,36}", re.ASCII)
_LIMIT_LIKE: Final = ("LIMIT_MAKER", "TAKE_PROFIT", "TAKE_PROFIT_LIMIT")
_STOPS: Final = ("STOP_LOSS", "STOP_LOSS_LIMIT")


def read_order(params: Params, spec: SymbolSpec, understood: frozenset[str] = PARAMETERS) -> tuple[OrderRequest, str]:
    """The order that the parameters describe, filters not yet checked, and its response type."""
    side = _side(params)
    kind = params.required("type")
    if kind not in get_args(OrderType):
        raise ApiError(-1116, "Invalid orderType.")
    _refuse_unsupported(params)
    _refuse_unread(params, understood)
    response = _response(params, "FULL" if kind in ("MARKET", "LIMIT") else "ACK")
    client_id = client_order_id(params, "newClientOrderId")
    return _read(params, spec, side, cast(OrderType, kind), client_id), response


def read_pair(params: Params, spec: SymbolSpec) -> tuple[OrderRequest, OrderRequest, str, str]:
    """The leg above and the leg below of `orderList/oco`, the list's client id, and its response type."""
    side = _side(params)
    _refuse_unsupported(params)
    _refuse_unread(params, _PAIR)
    legs = []
    for where in ("above", "below"):
        kind = params.required(f"{where}Type")
        _check_leg(side, where, kind)
        client_id = client_order_id(params, f"{where}ClientOrderId")
        legs.append(_read(params, spec, side, cast(OrderType, kind), client_id, where))
    response = _response(params, "ACK")
    return legs[0], legs[1], client_order_id(params, "listClientOrderId"), response


def modern_pair(params: Params) -> Params:
    """Parameters of the deprecated `order/oco` as `orderList/oco` names them."""
    limit, stop = ("below", "above") if params.text("side") == "BUY" else ("above", "below")
    for name in ("price", "stopPrice"):
        params.required(name)
    values = {}
    for name in params.names():
        where, _, new = _OLD_PAIR.get(name, "").partition(" ")
        values[f"{limit if where == 'limit' else stop}{new}" if new else name] = params.text(name) or ""
    values[f"{limit}Type"] = "LIMIT_MAKER"
    values[f"{stop}Type"] = "STOP_LOSS_LIMIT" if "stopLimitPrice" in params else "STOP_LOSS"
    return Params.of(values)


def _check_leg(side: str, where: str, kind: str) -> None:
    if kind not in (*_LIMIT_LIKE, *_STOPS):
        raise ApiError(-1158, "Order type not supported in OCO.")
    stop_is_here = (side == "BUY") == (where == "above")
    if stop_is_here == (kind in _STOPS):
        return
    if kind in _STOPS:
        if side == "BUY":
            raise ApiError(-1196, "A stop loss order in a buy OCO must be above.")
        raise ApiError(-1197, "A stop loss order in a sell OCO must be below.")
    if kind == "LIMIT_MAKER":
        if side == "BUY":
            raise ApiError(-1165, "A limit order in a buy OCO must be below.")
        raise ApiError(-1166, "A limit order in a sell OCO must be above.")
    if side == "BUY":
        raise ApiError(-1198, "A take profit order in a buy OCO must be below.")
    raise ApiError(-1199, "A take profit order in a sell OCO must be above.")


def _read(
    params: Params, spec: SymbolSpec, side: Side, kind: OrderType, client_id: str, where: str = ""
) -> OrderRequest:
    """One order; of a pair the leg `where`, whose parameters begin with that."""

    def name(plain: str) -> str:
        return f"{where}{plain[0].upper()}{plain[1:]}" if where else plain

    price, stop = (_amount(params, name(plain)) for plain in ("price", "stopPrice"))
    qty, quote_qty = _amount(params, "quantity"), _amount(params, "quoteOrderQty")
    tif = _time_in_force(params, kind, name("timeInForce"))
    if kind == "MARKET":
        if qty is None and quote_qty is None:
            raise ApiError(-1102, "Param 'quantity' or 'quoteOrderQty' must be sent, but both were empty/null!")
        if qty is not None and quote_qty is not None:
            raise ApiError(-1128, "Combination of optional parameters invalid.")
    else:
        if quote_qty is not None:
            raise _not_required("quoteOrderQty")
        if qty is None:
            raise missing("quantity")
    if kind in PRICED_TYPES:
        if price is None:
            raise missing(name("price"))
        if price == 0:
            raise ApiError(-1013, "Invalid price.")
    elif price is not None:
        raise _not_required(name("price"))
    if kind in ALGO_TYPES:
        if stop is None:
            both = f"Param '{name('stopPrice')}' or '{name('trailingDelta')}' must be sent, but both were empty/null!"
            raise ApiError(-1102, both)
        if stop == 0:
            raise ApiError(-1013, "Invalid stopPrice.")
    elif stop is not None:
        raise _not_required(name("stopPrice"))
    if qty == 0 or quote_qty == 0:
        raise ApiError(-1013, "Invalid quantity.")
    strategy_type = params.integer(name("strategyType"))
    if strategy_type is not None and strategy_type < 1_000_000:
        raise ApiError(-1134, "strategyType was less than 1000000.")
    return OrderRequest(
        symbol=spec.symbol,
        side=side,
        type=kind,
        time_in_force=tif,
        price=price or 0,
        qty=qty or 0,
        quote_qty=quote_qty or 0,
        client_order_id=client_id,
        stop_price=stop or 0,
        strategy_id=params.integer(name("strategyId")),
        strategy_type=strategy_type,
        stp=_stp(params),
    )


def check_filters(
    request: OrderRequest, filters: Filters, around: Around, comes: Sequence[str] = (), lists: int = 0
) -> OrderRequest:
    """The order with its quantity, if all filters let it pass; otherwise ApiError.

    `comes` and `lists`: the types of all orders of the request where that is more than this one, and its order lists.
    """
    if request.quote_qty:
        step = filters.step
        request = msgspec.structs.replace(request, qty=request.quote_qty * SCALE // around.last // step * step)
    filters.check(request, around, comes or (request.type,), lists)
    return request


def client_order_id(params: Params, name: str) -> str:
    """The client's own id, or one that is made now."""
    client_id = params.text(name) or secrets.token_hex(11)
    if not _CLIENT_ID.fullmatch(client_id):
        raise illegal(name, "^[\\.A-Z\\:/a-z0-9_-]{1,36}$")
    return client_id


def _side(params: Params) -> Side:
    side = params.required("side")
    if side not in get_args(Side):
        raise ApiError(-1117, "Invalid side.")
    return cast(Side, side)


def _response(params: Params, usual: str) -> str:
    response = params.text("newOrderRespType") or usual
    if response not in ("ACK", "RESULT", "FULL"):
        raise illegal("newOrderRespType", "ACK, RESULT, FULL")
    return response


def _stp(params: Params) -> str:
    mode = params.text("selfTradePreventionMode") or "NONE"
    if mode not in STP_MODES:
        raise ApiError(-1130, "Data sent for parameter 'selfTradePreventionMode' is not valid.")
    return mode


def _refuse_unsupported(params: Params) -> None:
    names = params.names()
    if any(name.lower().endswith("icebergqty") for name in names):
        raise ApiError(-2010, "Iceberg orders are not supported for this symbol.")
    if any(name.lower().endswith("trailingdelta") for name in names):
        raise ApiError(-2010, "Trailing stop orders are not supported for this symbol.")
    if any("peg" in name.lower() for name in names):
        raise ApiError(-2010, "Pegged orders are not supported for this symbol.")


def _refuse_unread(params: Params, understood: frozenset[str]) -> None:
    unread = params.names() - understood
    if unread:
        total = len(params.names())
        read = total - len(unread)
        raise ApiError(-1104, f"Not all sent parameters were read; read '{read}' parameter(s) but was sent '{total}'.")


def _not_required(name: str) -> ApiError:
    return ApiError(-1106, f"Parameter '{name}' sent when not required.")


def _time_in_force(params: Params, kind: str, name: str) -> TimeInForce:
    tif = params.text(name)
    if kind in PRICED_TYPES and kind != "LIMIT_MAKER":
        if tif is None:
            raise missing(name)
        if tif not in get_args(TimeInForce):
            raise ApiError(-1115, "Invalid timeInForce.")
        return cast(TimeInForce, tif)
    if tif is not None:
        raise _not_required(name)
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
