"""What a symbol is: its assets, its tick and step, and the filters that exchangeInfo publishes.

Sizes of well-known symbols are Binance's own; others are derived from their name or from their trades.
"""

import hashlib
from typing import Any, Final, get_args

import msgspec

from marketflow_simulator.amounts import SCALE, scaled, text8
from marketflow_simulator.filters import Filters
from marketflow_simulator.records import OrderType

QUOTES: Final = ("USDT", "USDC", "FDUSD", "TUSD", "BTC", "ETH", "BNB", "EUR", "TRY", "BRL", "USD")

# base price of the synthetic market, tick, step, average trades a second of the synthetic market
_KNOWN: Final = {
    "BTCUSDT": ("42000", "0.01", "0.00001", 8.0),
    "ETHUSDT": ("2300", "0.01", "0.0001", 6.0),
    "SOLUSDT": ("100", "0.01", "0.001", 2.5),
    "BNBUSDT": ("310", "0.01", "0.001", 4.0),
    "XRPUSDT": ("0.62", "0.0001", "0.1", 4.0),
    "ADAUSDT": ("0.6", "0.0001", "0.1", 3.0),
    "DOGEUSDT": ("0.09", "0.00001", "1", 4.0),
    "AVAXUSDT": ("38", "0.01", "0.01", 3.0),
    "LTCUSDT": ("73", "0.01", "0.001", 2.5),
    "LINKUSDT": ("15", "0.01", "0.01", 2.5),
    "TRXUSDT": ("0.11", "0.0001", "0.1", 2.0),
    "DOTUSDT": ("8", "0.001", "0.01", 2.5),
}


class SymbolSpec(msgspec.Struct, frozen=True):
    """Price, tick and step in units of 1e-8; rate in trades a second."""

    symbol: str
    base: str
    quote: str
    tick: int
    step: int
    price: int
    rate: float


def split_symbol(symbol: str) -> tuple[str, str]:
    """Base and quote asset of a symbol; ValueError if its quote asset is none that Binance lists."""
    for quote in QUOTES:
        if symbol.endswith(quote) and len(symbol) > len(quote):
            return symbol.removesuffix(quote), quote
    raise ValueError(f"symbol {symbol!r} ends with none of the quote assets {', '.join(QUOTES)}")


def spec_of(symbol: str) -> SymbolSpec:
    """The symbol as the synthetic market trades it; ValueError if the name is no symbol."""
    if not (symbol.isascii() and symbol.isalnum() and symbol == symbol.upper()):
        raise ValueError(f"symbol {symbol!r} is not of capital letters and digits, such as BTCUSDT")
    base, quote = split_symbol(symbol)
    if symbol in _KNOWN:
        price, tick, step, rate = _KNOWN[symbol]
        return SymbolSpec(symbol, base, quote, scaled(tick), scaled(step), scaled(price), rate)
    draw = hashlib.blake2b(symbol.encode(), digest_size=4).digest()
    exponent = draw[0] % 6  # prices from 0.01 to 9,999
    price_units = (100 + draw[1] * 3) * 10 ** (exponent + 4)
    tick_units = 10 ** (exponent + 2)  # 1 in 10,000 to 1 in 86,500 of the price
    step_units = 10 ** (8 - exponent)
    return SymbolSpec(symbol, base, quote, tick_units, step_units, price_units, 2.0 + draw[2] / 64)


def spec_of_trades(symbol: str, price_unit: int, qty_unit: int, price: int) -> SymbolSpec:
    """The symbol as a recording shows it.

    `price_unit` and `qty_unit` are the greatest common divisors of all its prices and quantities;
    the known sizes hold where they divide these, otherwise the largest power of ten that does.
    """
    base, quote = split_symbol(symbol)
    tick, step, rate = _power_of_ten_in(price_unit), _power_of_ten_in(qty_unit), 0.0
    if symbol in _KNOWN:
        known = spec_of(symbol)
        tick = known.tick if price_unit % known.tick == 0 else tick
        step = known.step if qty_unit % known.step == 0 else step
        rate = known.rate
    while tick * step < SCALE:  # an order's amount never needs more than eight decimals
        step *= 10
    return SymbolSpec(symbol, base, quote, tick, step, price, rate)


def _power_of_ten_in(units: int) -> int:
    power = 1
    while units % (power * 10) == 0 and power < SCALE:
        power *= 10
    return power


MAX_NUM_ORDERS: Final = 200
MAX_NUM_ALGO_ORDERS: Final = 5
MAX_NUM_ORDER_LISTS: Final = 20
STP_MODES: Final = ("NONE", "EXPIRE_TAKER", "EXPIRE_MAKER", "EXPIRE_BOTH")
MIN_NOTIONAL: Final = 5 * SCALE
MAX_NOTIONAL: Final = 9_000_000 * SCALE
AVG_PRICE_MINS: Final = 5
BID_MULTIPLIER_UP: Final = "5"
BID_MULTIPLIER_DOWN: Final = "0.2"
ASK_MULTIPLIER_UP: Final = "5"
ASK_MULTIPLIER_DOWN: Final = "0.2"


def max_price(spec: SymbolSpec) -> int:
    """Highest price an order may name: a hundred million ticks, at most 1,000,000."""
    return min(1_000_000 * SCALE, spec.tick * 100_000_000)


def max_qty(spec: SymbolSpec) -> int:
    """Largest quantity of a limit order: ninety million steps, at most 9,000,000."""
    return min(9_000_000 * SCALE, spec.step * 90_000_000)


def max_market_qty(spec: SymbolSpec) -> int:
    """Largest quantity of a market order: a tenth of the largest limit order."""
    return max_qty(spec) // 10


def default_filters(spec: SymbolSpec) -> Filters:
    """The filters with which a symbol begins; a test may set others."""
    return Filters(
        [
            {
                "filterType": "PRICE_FILTER",
                "minPrice": text8(spec.tick),
                "maxPrice": text8(max_price(spec)),
                "tickSize": text8(spec.tick),
            },
            {
                "filterType": "PERCENT_PRICE_BY_SIDE",
                "bidMultiplierUp": BID_MULTIPLIER_UP,
                "bidMultiplierDown": BID_MULTIPLIER_DOWN,
                "askMultiplierUp": ASK_MULTIPLIER_UP,
                "askMultiplierDown": ASK_MULTIPLIER_DOWN,
                "avgPriceMins": AVG_PRICE_MINS,
            },
            {
                "filterType": "LOT_SIZE",
                "minQty": text8(spec.step),
                "maxQty": text8(max_qty(spec)),
                "stepSize": text8(spec.step),
            },
            {
                "filterType": "MARKET_LOT_SIZE",
                "minQty": text8(0),
                "maxQty": text8(max_market_qty(spec)),
                "stepSize": text8(0),
            },
            {
                "filterType": "NOTIONAL",
                "minNotional": text8(MIN_NOTIONAL),
                "applyMinToMarket": True,
                "maxNotional": text8(MAX_NOTIONAL),
                "applyMaxToMarket": False,
                "avgPriceMins": AVG_PRICE_MINS,
            },
            {"filterType": "ICEBERG_PARTS", "limit": 10},
            {"filterType": "MAX_NUM_ORDERS", "maxNumOrders": MAX_NUM_ORDERS},
            {"filterType": "MAX_NUM_ALGO_ORDERS", "maxNumAlgoOrders": MAX_NUM_ALGO_ORDERS},
            {"filterType": "MAX_NUM_ORDER_LISTS", "maxNumOrderLists": MAX_NUM_ORDER_LISTS},
        ]
    )


def symbol_info(spec: SymbolSpec, trading: bool, filters: Filters) -> dict[str, Any]:
    """The symbol's entry in exchangeInfo, as documented."""
    return {
        "symbol": spec.symbol,
        "status": "TRADING" if trading else "BREAK",
        "baseAsset": spec.base,
        "baseAssetPrecision": 8,
        "quoteAsset": spec.quote,
        "quotePrecision": 8,
        "quoteAssetPrecision": 8,
        "baseCommissionPrecision": 8,
        "quoteCommissionPrecision": 8,
        "orderTypes": list(get_args(OrderType)),
        "icebergAllowed": False,
        "ocoAllowed": True,
        "otoAllowed": False,
        "opoAllowed": False,
        "quoteOrderQtyMarketAllowed": True,
        "allowTrailingStop": False,
        "cancelReplaceAllowed": True,
        "amendAllowed": False,
        "pegInstructionsAllowed": False,
        "isSpotTradingAllowed": True,
        "isMarginTradingAllowed": False,
        "filters": filters.shown(),
        "permissions": [],
        "permissionSets": [["SPOT"]],
        "defaultSelfTradePreventionMode": "NONE",
        "allowedSelfTradePreventionModes": list(STP_MODES),
    }
