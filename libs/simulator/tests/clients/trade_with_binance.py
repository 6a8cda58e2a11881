"""Trades on the simulator with python-binance, hears of it by its user socket, and prints what it got as JSON.

Arguments: the simulator's address, the API key, and its secret or the file of an Ed25519 private key.
"""

import asyncio
import json
import sys
from pathlib import Path

from binance import AsyncClient, BinanceSocketManager
from binance.exceptions import BinanceAPIException


async def main(url: str, api_key: str, secret: str) -> dict[str, object]:
    key_file = Path(secret) if secret.endswith(".pem") else None
    client = AsyncClient(api_key, None if key_file else secret, private_key=key_file)
    client.API_URL = f"{url}/api"
    client.ws_api._url = f"{url.replace('http', 'ws')}/ws-api/v3"
    symbol = "ETHUSDT"
    events = []
    try:
        last = float((await client.get_symbol_ticker(symbol=symbol))["price"])

        def price(share: float) -> str:
            return f"{last * share:.2f}"

        async with BinanceSocketManager(client).user_socket() as socket:
            known = {"symbol": symbol, "side": "BUY", "type": "LIMIT", "timeInForce": "GTC", "quantity": "0.1"}
            resting = await client.create_order(**known, price=price(0.95), newClientOrderId="by-binance")
            found = await client.get_order(symbol=symbol, origClientOrderId="by-binance")
            canceled = await client.cancel_order(symbol=symbol, orderId=resting["orderId"])
            market = await client.create_order(symbol=symbol, side="BUY", type="MARKET", quantity="0.5")
            pair = await client.create_oco_order(
                symbol=symbol,
                side="SELL",
                quantity="0.1",
                aboveType="LIMIT_MAKER",
                abovePrice=price(1.05),
                belowType="STOP_LOSS",
                belowStopPrice=price(0.95),
            )
            by_socket = await client.ws_create_order(**known, price=price(0.9))
            while len(events) < 16 and not (events and events[-1].get("i") == by_socket["orderId"]):
                events.append(await asyncio.wait_for(socket.recv(), 20))
        refusals = []
        for quantity in ("0.00001", "1000"):
            try:
                await client.create_order(**{**known, "quantity": quantity}, price=price(1))
            except BinanceAPIException as error:
                refusals.append(error.code)
        return {
            "resting": [resting["status"], found["orderId"] == resting["orderId"]],
            "canceled": canceled["status"],
            "market": [market["status"], market["executedQty"]],
            "pair": [order["isWorking"] for order in await client.get_open_orders(symbol=symbol)][:2],
            "listed": pair["listOrderStatus"],
            "events": [[event["e"], event.get("x")] for event in events],
            "trades": [trade["qty"] for trade in await client.get_my_trades(symbol=symbol)],
            "refusals": refusals,
        }
    finally:
        await client.close_connection()


if __name__ == "__main__":
    print(json.dumps(asyncio.run(main(*sys.argv[1:4]))))
