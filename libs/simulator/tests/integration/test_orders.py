"""Stop orders, OCO pairs, cancel-replace, filters, fees and order faults, over REST as a client meets them."""

from collections.abc import Awaitable, Callable
from decimal import Decimal
from typing import Any

import pytest
from binance.exceptions import BinanceAPIException
from websockets.asyncio.client import connect

Start = Callable[..., Awaitable[Any]]
Client = Callable[[Any], Any]


async def refused(call: Awaitable[Any]) -> tuple[int, int, str]:
    with pytest.raises(BinanceAPIException) as error:
        await call
    return error.value.status_code, error.value.code, error.value.message


async def price_of(one: Any, symbol: str = "ETHUSDT") -> Decimal:
    return Decimal((await one.get_symbol_ticker(symbol=symbol))["price"])


def near(price: Decimal, share: str) -> str:
    return str((price * Decimal(share)).quantize(Decimal("0.01")))


async def waiting(start: Start, client: Client, **settings: Any) -> tuple[Any, Any, Decimal]:
    """A market that waits, a client and the last price of ETHUSDT."""
    usual = {"symbols": "ETHUSDT", "speed": "max", "minutes": 5, "autostart": False, "balances": "USDT:10000,ETH:5"}
    sim = await start(**{**usual, **settings})
    one = client(sim)
    return sim, one, await price_of(one)


async def run(sim: Any) -> None:
    async with connect(f"{sim.ws}/ws/ethusdt@kline_1m", max_queue=None):
        await sim.post("/sim/market/start")
        await sim.ended()


async def test_of_a_pair_the_market_fills_one_and_the_other_expires(start: Start, client: Client) -> None:
    sim, one, last = await waiting(start, client)
    pair = await one.create_oco_order(
        symbol="ETHUSDT",
        side="SELL",
        quantity="1",
        listClientOrderId="mine",
        aboveType="LIMIT_MAKER",
        abovePrice=near(last, "1.0004"),
        belowType="STOP_LOSS",
        belowStopPrice=near(last, "0.9996"),
        belowClientOrderId="stop",
        newOrderRespType="RESULT",
    )
    assert (pair["contingencyType"], pair["listOrderStatus"]) == ("OCO", "EXECUTING")
    above, below = pair["orderReports"]
    assert (above["type"], below["type"], below["clientOrderId"]) == ("LIMIT_MAKER", "STOP_LOSS", "stop")
    assert (above["workingTime"] > 0, below["workingTime"]) == (True, -1)
    assert below["stopPrice"] == f"{near(last, '0.9996')}000000"
    assert [p["orderListId"] for p in await one._get("openOrderList", True, data={})] == [1]
    assert [o["isWorking"] for o in await one.get_open_orders(symbol="ETHUSDT")] == [True, False]
    await run(sim)
    orders = await one.get_all_orders(symbol="ETHUSDT")
    assert sorted(order["status"] for order in orders) == ["EXPIRED", "FILLED"]
    expired = next(order for order in orders if order["status"] == "EXPIRED")
    assert expired["expiryReason"] == "OCO_TRIGGER"
    (fill,) = await one.get_my_trades(symbol="ETHUSDT")
    assert fill["orderListId"] == 1
    found = await one._get("orderList", True, data={"origClientOrderId": "mine"})
    assert found["listStatusType"] == "ALL_DONE"
    assert found == (await sim.get("/sim/ledger"))["order_lists"][0]
    trades = await sim.get("/sim/trades", symbol="ETHUSDT")
    ledger = (await sim.get("/sim/ledger"))["fills"][0]
    lowest, highest = Decimal(near(last, "0.9996")), Decimal(near(last, "1.0004"))
    reached = next(t for t in trades if not lowest < Decimal(t["price"]) < highest)
    assert ledger["marketTradeId"] == reached["id"]


async def test_canceling_and_refusing_pairs(start: Start, client: Client) -> None:
    _, one, last = await waiting(start, client)
    good = {
        "symbol": "ETHUSDT",
        "side": "SELL",
        "quantity": "1",
        "aboveType": "LIMIT_MAKER",
        "abovePrice": near(last, "1.01"),
        "belowType": "STOP_LOSS_LIMIT",
        "belowPrice": near(last, "0.98"),
        "belowStopPrice": near(last, "0.99"),
        "belowTimeInForce": "GTC",
    }
    for change, code in (
        ({"aboveType": "MARKET"}, -1158),
        ({"side": "BUY"}, -1165),
        ({"belowType": "LIMIT_MAKER"}, -1166),
        ({"belowType": "TAKE_PROFIT"}, -1199),
        ({"aboveType": "STOP_LOSS"}, -1197),
        ({"belowStopPrice": near(last, "1.001")}, -2010),
        ({"quantity": "1.00001"}, -1013),
        ({"quantity": "6"}, -2010),
        ({"aboveIcebergQty": "1"}, -2010),
    ):
        assert (await refused(one.create_oco_order(**{**good, **change})))[1] == code, change
    old = await one._post(
        "order/oco",
        True,
        data={
            "symbol": "ETHUSDT",
            "side": "SELL",
            "quantity": "1",
            "price": near(last, "1.01"),
            "stopPrice": near(last, "0.99"),
            "stopLimitPrice": near(last, "0.98"),
            "stopLimitTimeInForce": "GTC",
            "limitClientOrderId": "limit",
        },
    )
    assert [o["clientOrderId"] == "limit" for o in old["orders"]] == [True, False]
    canceled = await one._delete("orderList", True, data={"symbol": "ETHUSDT", "orderListId": old["orderListId"]})
    assert (canceled["listOrderStatus"], [r["status"] for r in canceled["orderReports"]]) == (
        "ALL_DONE",
        ["CANCELED", "CANCELED"],
    )
    again = await one.create_oco_order(**good)
    both = await one.cancel_order(symbol="ETHUSDT", orderId=again["orders"][1]["orderId"])
    assert both["orderListId"] == again["orderListId"]
    assert await one.get_open_orders() == []
    assert (await one.get_asset_balance(asset="ETH"))["free"] == "5.00000000"


async def test_cancel_and_replace_says_which_of_the_two_was_done(start: Start, client: Client) -> None:
    _, one, last = await waiting(start, client, order_limit=20)

    async def replace(**known: Any) -> Any:
        usual = {"symbol": "ETHUSDT", "side": "BUY", "type": "LIMIT", "timeInForce": "GTC", "quantity": "0.5"}
        return await one._post("order/cancelReplace", True, data={**usual, **known})

    first = await one.create_order(
        symbol="ETHUSDT", side="BUY", type="LIMIT", timeInForce="GTC", quantity="0.5", price=near(last, "0.99")
    )
    good = {"cancelReplaceMode": "STOP_ON_FAILURE", "price": near(last, "0.98")}
    both = await replace(cancelOrderId=first["orderId"], **good)
    assert (both["cancelResult"], both["newOrderResult"]) == ("SUCCESS", "SUCCESS")
    assert (both["cancelResponse"]["status"], both["newOrderResponse"]["status"]) == ("CANCELED", "NEW")
    second = both["newOrderResponse"]["orderId"]
    assert await refused(replace(cancelOrderId=first["orderId"], **good)) == (
        400,
        -2022,
        "Order cancel-replace failed.",
    )
    allowed = {**good, "cancelReplaceMode": "ALLOW_FAILURE"}
    assert (await refused(replace(cancelOrderId=first["orderId"], **allowed)))[:2] == (409, -2021)
    assert len(await one.get_open_orders()) == 2
    assert (await refused(replace(cancelOrderId=second, **good, quantity="6")))[:2] == (409, -2021)
    assert (await one.get_order(symbol="ETHUSDT", orderId=second))["status"] == "CANCELED"
    (third,) = await one.get_open_orders()
    assert (await refused(replace(cancelOrderId=third["orderId"], **good, quantity="0.00001")))[1] == -1013
    assert (await refused(replace(**good)))[1] == -1102
    assert (await refused(replace(cancelOrderId=third["orderId"], **{**good, "cancelReplaceMode": "X"})))[1] == -1130
    only_part = {**good, "cancelRestrictions": "ONLY_PARTIALLY_FILLED"}
    assert (await refused(replace(cancelOrderId=third["orderId"], **only_part)))[1] == -2022
    assert len(await one.get_open_orders()) == 1


async def test_filters_are_as_a_test_sets_them(start: Start, client: Client) -> None:
    sim, one, last = await waiting(start, client)
    told = await sim.post(
        "/sim/symbols",
        {
            "symbol": "ETHUSDT",
            "filters": [
                {"filterType": "MAX_POSITION", "maxPosition": "6.00000000"},
                {"filterType": "MIN_NOTIONAL", "minNotional": "50.00000000", "applyToMarket": True, "avgPriceMins": 0},
                {"filterType": "PERCENT_PRICE", "multiplierUp": "1.1", "multiplierDown": "0.9", "avgPriceMins": 5},
                {"filterType": "LOT_SIZE", "minQty": "0.1", "maxQty": "100", "stepSize": "0.1"},
            ],
            "remove": ["NOTIONAL", "PERCENT_PRICE_BY_SIDE"],
        },
    )
    info = await one.get_symbol_info("ETHUSDT")
    assert info["filters"] == told["filters"]
    assert {"STOP_LOSS", "TAKE_PROFIT_LIMIT"} < set(info["orderTypes"])
    limit = {"symbol": "ETHUSDT", "side": "BUY", "type": "LIMIT", "timeInForce": "GTC", "price": near(last, "0.95")}
    for order, name in (
        ({**limit, "quantity": "1.1"}, "MAX_POSITION"),
        ({**limit, "quantity": "0.15"}, "LOT_SIZE"),
        ({**limit, "quantity": "1", "price": near(last, "0.85")}, "PERCENT_PRICE"),
    ):
        assert await refused(one.create_order(**order)) == (400, -1013, f"Filter failure: {name}")
        assert (await refused(one.create_test_order(**order)))[1] == -1013
    spent = await one.create_order(symbol="ETHUSDT", side="BUY", type="MARKET", quoteOrderQty="800")
    assert Decimal(spent["executedQty"]) % Decimal("0.1") == 0
    wrong = await sim.http.post("/sim/symbols", json={"symbol": "ETHUSDT", "filters": [{"filterType": "X"}]})
    assert (wrong.status_code, "none of PRICE_FILTER" in wrong.json()["error"]) == (400, True)


async def test_orders_that_stay_unfilled_run_into_the_limit_and_filled_ones_do_not(
    start: Start, client: Client
) -> None:
    sim, one, last = await waiting(start, client, order_limit=3, balances="USDT:100000")
    buy = {"symbol": "ETHUSDT", "side": "BUY", "type": "MARKET", "quantity": "0.01"}
    for _ in range(6):
        await one.create_order(**buy)
    rests = {**buy, "type": "LIMIT", "timeInForce": "GTC", "price": near(last, "0.9")}

    async def fill_up() -> Any:
        try:
            await one.create_order(**rests)
        except BinanceAPIException as error:
            return error
        return None

    error = await sim.until(fill_up)
    assert (error.status_code, error.code) == (429, -1015)
    assert error.message == "Too many new orders; current limit is 3 orders per 10 SECOND."
    assert 1 <= int(error.response.headers["Retry-After"]) <= 10
    counts = await one._get("rateLimit/order", True, data={})
    assert [c["limit"] for c in counts] == [3, 200000]
    assert counts[1]["count"] >= 3


async def test_commission_in_bnb_and_fills_at_the_next_trade(start: Start, client: Client) -> None:
    sim = await start(
        symbols="ETHUSDT,BNBUSDT", speed=50, balances="USDT:10000,BNB:1", bnb_discount="0.25", fill="next_trade"
    )
    one = client(sim)
    before = (await sim.get("/sim/market"))["symbols"]["ETHUSDT"]["last_trade_id"] or 0
    order = await one.create_order(symbol="ETHUSDT", side="BUY", type="MARKET", quantity="0.5")
    assert (order["status"], order["fills"]) == ("NEW", [])

    async def filled() -> Any:
        found = await one.get_order(symbol="ETHUSDT", orderId=order["orderId"])
        return found if found["status"] == "FILLED" else None

    await sim.until(filled)
    (fill,) = (await sim.get("/sim/ledger"))["fills"]
    assert fill["commissionAsset"] == "BNB"
    assert fill["marketTradeId"] > before
    (trade,) = await sim.get("/sim/trades", symbol="ETHUSDT", from_id=fill["marketTradeId"], limit=1)
    assert fill["price"] == trade["price"]
    assert (await one._get("account/commission", True, data={"symbol": "ETHUSDT"}))["discount"]["enabledForAccount"]


async def test_orders_and_answers_go_astray_as_asked_for(start: Start, client: Client) -> None:
    sim, one, last = await waiting(start, client)
    rests = {"symbol": "ETHUSDT", "side": "BUY", "type": "LIMIT", "timeInForce": "GTC", "price": near(last, "0.9")}

    async def placed(name: str) -> Any:
        return await one.create_order(**rests, quantity="0.1", newClientOrderId=name.replace(" ", "-"))

    await sim.post("/sim/faults", {"kind": "reject", "code": -2010, "message": "This account may not place orders."})
    assert (await refused(placed("a")))[1:] == (-2010, "This account may not place orders.")
    await sim.post("/sim/faults", {"kind": "order_429", "count": 2, "retry_after": 7})
    for _ in range(2):
        with pytest.raises(BinanceAPIException) as error:
            await placed("a")
        assert (error.value.code, error.value.response.headers["Retry-After"]) == (-1015, "7")
    await sim.post("/sim/faults", {"kind": "not_found", "seconds": 0.6})
    order = await placed("a")
    assert (await refused(one.get_order(symbol="ETHUSDT", origClientOrderId="a")))[1] == -2013
    assert await one.get_open_orders() == await one.get_all_orders(symbol="ETHUSDT") == []

    async def found() -> Any:
        return await one.get_open_orders()

    assert [o["orderId"] for o in await sim.until(found)] == [order["orderId"]]
    await sim.post("/sim/faults", {"kind": "order_late", "seconds": 0.3, "status": 504})
    assert (await refused(placed("b")))[:2] == (504, -1007)
    assert (await refused(one.get_order(symbol="ETHUSDT", origClientOrderId="b")))[1] == -2013

    async def late() -> Any:
        return len(await one.get_open_orders()) == 2

    await sim.until(late)
    one.REQUEST_RECVWINDOW = 100
    await sim.post("/sim/faults", {"kind": "order_late", "seconds": 0.3, "status": 504, "count": 2})
    assert (await refused(placed("too late")))[1] == -1007
    one.REQUEST_RECVWINDOW = 10000
    assert (await refused(placed("in time")))[1] == -1007

    async def in_time() -> Any:
        return [o["clientOrderId"] for o in await one.get_open_orders()][2:]

    assert await sim.until(in_time) == ["in-time"]
    await sim.post("/sim/faults", {"kind": "cancel_lost_answer", "status": 503})
    assert (await refused(one.cancel_order(symbol="ETHUSDT", origClientOrderId="b")))[0] == 503
    assert (await one.get_order(symbol="ETHUSDT", origClientOrderId="b"))["status"] == "CANCELED"
    await sim.post("/sim/faults", {"kind": "partial_fill", "parts": 2, "expire": True})
    part = await one.create_order(symbol="ETHUSDT", side="BUY", type="MARKET", quantity="0.1")
    assert (part["status"], part["executedQty"], part["expiryReason"]) == (
        "EXPIRED",
        "0.05000000",
        "INSUFFICIENT_LIQUIDITY",
    )


async def test_what_is_done_from_outside_shows_in_the_account(start: Start, client: Client) -> None:
    sim, one, last = await waiting(start, client)
    rests = {"symbol": "ETHUSDT", "side": "BUY", "type": "LIMIT", "timeInForce": "GTC", "price": near(last, "0.9")}
    for name in ("a", "b", "c"):
        await one.create_order(**rests, quantity="0.1", newClientOrderId=name)
    done = await sim.post("/sim/orders/cancel", {"symbol": "ETHUSDT", "client_order_id": "a"})
    assert done["status"] == "CANCELED"
    done = await sim.post("/sim/orders/cancel", {"symbol": "ETHUSDT", "order_id": 2, "expire": True})
    assert (done["status"], done["expiryReason"]) == ("EXPIRED", "EXCHANGE_CANCELED")
    await sim.post("/sim/orders/cancel", {"symbol": "ETHUSDT", "client_order_id": "c", "rename": "web_c"})
    assert (await refused(one.get_order(symbol="ETHUSDT", origClientOrderId="c")))[1] == -2013
    assert (await one.get_order(symbol="ETHUSDT", origClientOrderId="web_c"))["orderId"] == 3
    await sim.post("/sim/balance", {"asset": "USDT", "delta": "-2500.5"})
    assert (await one.get_asset_balance(asset="USDT"))["free"] == "7499.50000000"
    too_much = await sim.http.post("/sim/balance", json={"asset": "USDT", "delta": "-7499.50000001"})
    assert too_much.status_code == 400
    ledger = await sim.get("/sim/ledger")
    assert [(t["asset"], t["delta"]) for t in ledger["transfers"]] == [("USDT", "-2500.50000000")]


async def test_all_of_it_survives_a_kill(spawn: Start, client: Client, tmp_path: Any) -> None:
    known = {"symbols": "ETHUSDT", "speed": "1", "autostart": False, "balances": "USDT:10000,ETH:5"}
    sim = await spawn(state=tmp_path / "state", **known)
    one = client(sim)
    last = await price_of(one)
    await sim.post("/sim/faults", {"kind": "partial_fill", "parts": 2})
    await one.create_order(symbol="ETHUSDT", side="BUY", type="MARKET", quantity="0.1")
    await one.create_oco_order(
        symbol="ETHUSDT",
        side="SELL",
        quantity="1",
        aboveType="LIMIT_MAKER",
        abovePrice=near(last, "1.1"),
        belowType="STOP_LOSS",
        belowStopPrice=near(last, "0.9"),
    )
    await sim.post("/sim/balance", {"asset": "BTC", "delta": "1"})
    await sim.post("/sim/symbols", {"symbol": "ETHUSDT", "filters": [{"filterType": "ICEBERG_PARTS", "limit": 77}]})
    rules = (await one.get_symbol_info("ETHUSDT"))["filters"]
    before = await sim.get("/sim/ledger")
    assert [o["status"] for o in before["orders"]] == ["PARTIALLY_FILLED", "NEW", "NEW"]
    await sim.stop(kill=True)
    again = await spawn(state=tmp_path / "state", **known)
    after = await again.get("/sim/ledger")
    assert {**after, "requests": {}} == {**before, "requests": {}}
    other = client(again)
    assert (await other.get_symbol_info("ETHUSDT"))["filters"] == rules
    await other.cancel_order(symbol="ETHUSDT", orderId=2)
    assert (await other.get_asset_balance(asset="ETH"))["locked"] == "0.00000000"
