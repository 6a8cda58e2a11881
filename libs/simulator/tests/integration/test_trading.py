"""Orders through python-binance, a client that we did not write, and the ledger that has to agree with it."""

import hashlib
import hmac
import time
from collections.abc import Awaitable, Callable
from decimal import Decimal
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest
from binance.exceptions import BinanceAPIException
from websockets.asyncio.client import connect

Start = Callable[..., Awaitable[Any]]
Client = Callable[[Any], Any]


def signed(secret: str = "simulator-secret", **parameters: Any) -> str:
    query = urlencode({"timestamp": int(time.time() * 1000), **parameters})
    return f"{query}&signature={hmac.new(secret.encode(), query.encode(), hashlib.sha256).hexdigest()}"


async def test_a_client_trades_and_the_ledger_agrees_to_the_last_digit(start: Start, client: Client) -> None:
    sim = await start(speed=20, balances="USDT:10000,BTC:0.5")
    one = client(sim)
    assert (await one.get_symbol_info("BTCUSDT"))["status"] == "TRADING"
    bought = await one.create_order(
        symbol="BTCUSDT", side="BUY", type="MARKET", quantity="0.01", newClientOrderId="first"
    )
    assert (bought["status"], bought["executedQty"]) == ("FILLED", "0.01000000")
    sold = await one.create_order(symbol="ETHUSDT", side="BUY", type="MARKET", quoteOrderQty="500")
    resting = await one.create_order(
        symbol="BTCUSDT", side="SELL", type="LIMIT", timeInForce="GTC", quantity="0.1", price="80000"
    )
    assert resting["status"] == "NEW"
    assert [o["orderId"] for o in await one.get_open_orders()] == [resting["orderId"]]
    account = {b["asset"]: b for b in (await one.get_account())["balances"]}
    assert account["BTC"]["locked"] == "0.10000000"
    found = await one.get_order(symbol="BTCUSDT", origClientOrderId="first")
    assert found["cummulativeQuoteQty"] == bought["cummulativeQuoteQty"]
    assert (await one.cancel_order(symbol="BTCUSDT", orderId=resting["orderId"]))["status"] == "CANCELED"
    trades = await one.get_my_trades(symbol="BTCUSDT") + await one.get_my_trades(symbol="ETHUSDT")
    orders = await one.get_all_orders(symbol="BTCUSDT")
    ledger = await sim.get("/sim/ledger")
    assert [o["orderId"] for o in orders] == [1, 3]
    assert [o["status"] for o in ledger["orders"]] == ["FILLED", "FILLED", "CANCELED"]
    assert [{k: f[k] for k in trades[0]} for f in ledger["fills"]] == trades
    owned = {asset: Decimal(amount) for asset, amount in ledger["initial_balances"].items()}
    for fill in ledger["fills"]:
        base, sign = fill["symbol"].removesuffix("USDT"), 1 if fill["isBuyer"] else -1
        owned[base] = owned.get(base, Decimal(0)) + sign * Decimal(fill["qty"])
        owned["USDT"] -= sign * Decimal(fill["quoteQty"])
        owned[fill["commissionAsset"]] -= Decimal(fill["commission"])
    for asset, balance in ledger["balances"].items():
        assert Decimal(balance["free"]) + Decimal(balance["locked"]) == owned.get(asset, 0)
    assert sold["fills"][0]["commissionAsset"] == "ETH"
    assert ledger["requests"]["POST /api/v3/order"] == {"200": 3}


async def test_own_fills_do_not_show_in_the_public_trades(start: Start, client: Client) -> None:
    sim = await start(symbols="BTCUSDT", speed=50, minutes=1)
    one = client(sim)
    for _ in range(5):
        await one.create_order(symbol="BTCUSDT", side="BUY", type="MARKET", quantity="0.01")
    await sim.ended()
    other = await start(symbols="BTCUSDT", speed="max", minutes=1)
    async with connect(f"{other.ws}/ws/btcusdt@trade", max_queue=None):
        await other.ended()
    assert await sim.get("/sim/trades", symbol="BTCUSDT") == await other.get("/sim/trades", symbol="BTCUSDT")


async def test_a_resting_order_fills_when_a_public_trade_reaches_its_price(start: Start, client: Client) -> None:
    sim = await start(symbols="ETHUSDT", speed="max", minutes=10, autostart=False)
    one = client(sim)
    last = Decimal((await one.get_symbol_ticker(symbol="ETHUSDT"))["price"])
    price = str((last * Decimal("0.9995")).quantize(Decimal("0.01")))
    order = await one.create_order(symbol="ETHUSDT", side="BUY", type="LIMIT_MAKER", quantity="0.5", price=price)
    assert "status" not in order, "LIMIT_MAKER answers ACK unless asked for more"
    async with connect(f"{sim.ws}/ws/ethusdt@kline_1m", max_queue=None):
        await sim.post("/sim/market/start")
        await sim.ended()
    filled = await one.get_order(symbol="ETHUSDT", orderId=order["orderId"])
    assert (filled["status"], filled["price"], filled["executedQty"]) == ("FILLED", f"{price}000000", "0.50000000")
    (fill,) = (await sim.get("/sim/ledger"))["fills"]
    trades = await sim.get("/sim/trades", symbol="ETHUSDT")
    reached = next(t for t in trades if Decimal(t["price"]) <= Decimal(price))
    assert fill["marketTradeId"] == reached["id"]
    assert fill["isMaker"]


async def test_at_the_end_of_a_recording_orders_still_fill_at_the_last_price(
    start: Start, client: Client, capture: Path
) -> None:
    sim = await start(replay=capture, speed="max")
    async with connect(f"{sim.ws}/ws/ethusdt@trade", max_queue=None):
        await sim.ended()
        one = client(sim)
        last = (await one.get_recent_trades(symbol="ETHUSDT", limit=1))[0]
        order = await one.create_order(symbol="ETHUSDT", side="BUY", type="MARKET", quantity="0.1")
        assert order["fills"][0]["price"] == last["price"]


async def test_errors_reach_the_client_with_the_documented_codes(start: Start, client: Client) -> None:
    sim = await start(balances="USDT:100")
    one = client(sim)
    for code, call in (
        (-2010, one.create_order(symbol="BTCUSDT", side="BUY", type="MARKET", quantity="1")),
        (-1013, one.create_order(symbol="BTCUSDT", side="BUY", type="MARKET", quantity="0.00001")),
        (-1111, one.create_order(symbol="BTCUSDT", side="BUY", type="MARKET", quantity="0.000000001")),
        (-1121, one.create_order(symbol="NOSUCH", side="BUY", type="MARKET", quantity="1")),
        (-2011, one.cancel_order(symbol="BTCUSDT", orderId=77)),
        (-2013, one.get_order(symbol="BTCUSDT", orderId=77)),
        (-1102, one.get_order(symbol="BTCUSDT")),
        (-1127, one.get_all_orders(symbol="BTCUSDT", startTime=1, endTime=10**8)),
    ):
        with pytest.raises(BinanceAPIException) as error:
            await call
        assert (error.value.code, error.value.status_code) == (code, 400)
    assert await one.create_test_order(symbol="BTCUSDT", side="BUY", type="MARKET", quantity="0.001") == {}
    ledger = await sim.get("/sim/ledger")
    assert ledger["orders"] == ledger["fills"] == []


async def test_only_a_rightly_signed_and_timely_request_is_let_in(start: Start) -> None:
    sim = await start()
    key = {"X-MBX-APIKEY": "simulator"}
    now = int(time.time() * 1000)
    for headers, query, status, code in (
        ({}, signed(), 401, -2014),
        ({"X-MBX-APIKEY": "wrong"}, signed(), 401, -2015),
        (key, f"timestamp={now}", 400, -1102),
        (key, signed(secret="wrong"), 400, -1022),
        (key, signed() + "&recvWindow=60000", 400, -1022),
        (key, signed(timestamp=now - 6000), 400, -1021),
        (key, signed(timestamp=now + 5000), 400, -1021),
        (key, signed(recvWindow=60001), 400, -1131),
    ):
        answer = await sim.http.get(f"/api/v3/account?{query}", headers=headers)
        assert (answer.status_code, answer.json()["code"]) == (status, code)
    for query in (
        signed(timestamp=now - 6000, recvWindow=20000),
        signed(timestamp=now * 1000),
        signed()
        .replace("signature=", "signature=")
        .upper()
        .replace("TIMESTAMP", "timestamp")
        .replace("SIGNATURE", "signature"),
    ):
        assert (await sim.http.get(f"/api/v3/account?{query}", headers=key)).status_code == 200
    body = signed(symbol="BTCUSDT", side="BUY", type="MARKET", quantity="0.01")
    form = {**key, "Content-Type": "application/x-www-form-urlencoded"}
    answer = await sim.http.post("/api/v3/order", content=body, headers=form)
    assert answer.json()["status"] == "FILLED"
    assert answer.headers["X-MBX-ORDER-COUNT-10S"] == "1"
