"""Trades on the simulator with ccxt and prints what it got as JSON. Argument: the simulator's address, then the key."""

import json
import sys

import ccxt


def main(url: str, api_key: str, secret: str) -> dict[str, object]:
    exchange = ccxt.binance(
        {
            "apiKey": api_key,
            "secret": secret,
            "options": {"fetchCurrencies": False, "fetchMargins": False, "fetchMarkets": {"types": ["spot"]}},
        }
    )
    for name in ("public", "private", "v1"):
        exchange.urls["api"][name] = f"{url}/api/v3"
    markets = exchange.load_markets()
    symbol = "ETH/USDT"
    last = float(exchange.public_get_ticker_price({"symbol": "ETHUSDT"})["price"])

    def price(share: float) -> float:
        return float(exchange.price_to_precision(symbol, last * share))

    resting = exchange.create_order(symbol, "limit", "buy", 0.1, price(0.95), {"clientOrderId": "by-ccxt"})
    found = exchange.fetch_order(resting["id"], symbol)
    by_client = exchange.fetch_order("", symbol, {"origClientOrderId": "by-ccxt"})
    open_before = [order["id"] for order in exchange.fetch_open_orders(symbol)]
    replaced = exchange.edit_order(resting["id"], symbol, "limit", "buy", 0.2, price(0.94))
    canceled = exchange.cancel_order(replaced["id"], symbol)
    market = exchange.create_order(symbol, "market", "buy", 0.5)
    stop = exchange.create_order(symbol, "limit", "sell", 0.1, price(0.94), {"stopLossPrice": price(0.95)})
    stopped = exchange.fetch_order(stop["id"], symbol)
    exchange.cancel_all_orders(symbol)
    refusals = []
    for amount, at in ((0.1, price(0.1)), (1000.0, price(1.0))):
        try:
            exchange.create_order(symbol, "limit", "buy", amount, at)
        except ccxt.BaseError as error:
            refusals.append(type(error).__name__)
    return {
        "limits": markets[symbol]["limits"]["amount"],
        "resting": [
            resting["status"],
            found["status"],
            by_client["id"] == resting["id"],
            open_before == [resting["id"]],
        ],
        "replaced": [replaced["status"], replaced["amount"]],
        "canceled": canceled["status"],
        "market": [market["status"], market["filled"], [fee["currency"] for fee in market["fees"]]],
        "stop": [stopped["type"], stopped["status"], stopped["triggerPrice"] == price(0.95)],
        "trades": [[trade["order"] == market["id"], trade["amount"]] for trade in exchange.fetch_my_trades(symbol)],
        "held": exchange.fetch_balance()["ETH"],
        "open": len(exchange.fetch_open_orders(symbol)),
        "refusals": refusals,
    }


if __name__ == "__main__":
    print(json.dumps(main(*sys.argv[1:4])))
