"""Faults on demand: the stream and the answers go wrong, the truth behind them does not."""

import asyncio
import json
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed

Start = Callable[..., Awaitable[Any]]
Client = Callable[[Any], Any]


@pytest.mark.parametrize(
    ("fault", "expected"),
    [
        ({"kind": "skip", "count": 10, "from_id": 1100}, [*range(1000, 1100), *range(1110, 2200)]),
        ({"kind": "repeat", "count": 1, "from_id": 1500}, [*range(1000, 1501), *range(1500, 2200)]),
        (
            {"kind": "reorder", "count": 3, "from_id": 1500, "symbol": "ETHUSDT"},
            [*range(1000, 1500), 1502, 1501, 1500, *range(1503, 2200)],
        ),
    ],
)
async def test_the_stream_has_the_fault_and_rest_has_the_truth(
    start: Start, capture: Path, fault: dict[str, Any], expected: list[int]
) -> None:
    sim = await start(replay=capture, speed="max", autostart=False)
    await sim.post("/sim/faults", fault)
    assert len((await sim.get("/sim/faults"))["waiting"]) == 1
    async with connect(f"{sim.ws}/stream?streams=ethusdt@trade/ethusdt@kline_1m") as socket:
        await sim.post("/sim/market/start")
        await sim.ended()
        seen = []
        while len(seen) < len(expected):
            message = json.loads(await asyncio.wait_for(socket.recv(), 60))
            if message["stream"] == "ethusdt@trade":
                seen.append(message["data"]["t"])
    assert seen == expected
    page = await sim.get("/api/v3/historicalTrades", symbol="ETHUSDT", fromId=1095, limit=20)
    assert [t["id"] for t in page] == list(range(1095, 1115))
    assert (await sim.get("/sim/market"))["symbols"]["ETHUSDT"]["published"] == 1200
    assert sum(row[8] for row in await sim.get("/sim/klines", symbol="ETHUSDT")) == 1000
    assert (await sim.get("/sim/faults"))["waiting"] == []


async def test_disconnect_cuts_all_sockets_and_the_market_goes_on(start: Start) -> None:
    sim = await start(symbols="BTCUSDT", speed=20)
    async with connect(f"{sim.ws}/ws/btcusdt@trade") as one, connect(f"{sim.ws}/ws") as other:
        last = json.loads(await one.recv())["t"]
        await sim.post("/sim/faults", {"kind": "disconnect"})
        for socket in (one, other):
            with suppress(ConnectionClosed):
                async with asyncio.timeout(5):
                    while True:
                        last = json.loads(await socket.recv())["t"]
    async with connect(f"{sim.ws}/ws/btcusdt@trade") as again:
        assert json.loads(await again.recv())["t"] > last


async def test_a_stall_is_silence_without_loss(start: Start) -> None:
    sim = await start(symbols="BTCUSDT", speed=20)
    async with connect(f"{sim.ws}/ws/btcusdt@trade", close_timeout=0.1) as socket:
        last = json.loads(await socket.recv())["t"]
        await sim.post("/sim/faults", {"kind": "stall", "seconds": 1.5})
        longest, at = 0.0, time.monotonic()
        while longest < 1.0:
            trade = json.loads(await asyncio.wait_for(socket.recv(), 60))
            assert trade["t"] == last + 1
            last, now = trade["t"], time.monotonic()
            longest, at = max(longest, now - at), now


async def test_a_stalled_socket_is_dead_without_being_closed_and_a_new_one_is_healthy(start: Start) -> None:
    sim = await start(symbols="BTCUSDT", speed=20)
    async with (
        connect(f"{sim.ws}/ws/btcusdt@trade", close_timeout=0.1) as dead,
        connect(f"{sim.ws}/ws/btcusdt@trade", close_timeout=0.1) as quiet,
    ):
        await dead.recv()
        await sim.post("/sim/faults", {"kind": "stall", "seconds": 3, "pings": True})
        pong = await quiet.ping()
        await asyncio.wait_for(pong, 60)
        while True:
            try:
                await asyncio.wait_for(quiet.recv(), 0.5)
            except TimeoutError:
                break
        await sim.post("/sim/faults", {"kind": "stall", "seconds": 60})
        pong = await dead.ping()
        await dead.send('{"method":"LIST_SUBSCRIPTIONS","id":1}')
        with suppress(TimeoutError):
            while True:
                await asyncio.wait_for(dead.recv(), 0.5)
        assert not pong.done()
        async with connect(f"{sim.ws}/ws/btcusdt@trade", close_timeout=0.1) as again:
            assert "t" in json.loads(await asyncio.wait_for(again.recv(), 60))
        assert (await sim.get("/sim/market"))["connections"] >= 2


@pytest.mark.parametrize("combined", [False, True])
async def test_a_shutdown_is_announced_and_then_closes_the_sockets_of_that_moment(start: Start, combined: bool) -> None:
    sim = await start(symbols="BTCUSDT", speed=20)
    path = "stream?streams=btcusdt@trade" if combined else "ws/btcusdt@trade"
    async with connect(f"{sim.ws}/{path}") as socket:
        await socket.recv()
        await sim.post("/sim/faults", {"kind": "server_shutdown", "seconds": 0.5})
        seen: list[Any] = []
        async with connect(f"{sim.ws}/{path}", close_timeout=0.1) as later:
            async for message in socket:  # ends when the exchange says that it is going away
                seen.append(json.loads(message))
            assert socket.close_code == 1001
            await later.recv()
    event = next(m for m in seen if "serverShutdown" in json.dumps(m))
    if combined:
        assert event["stream"] == "!serverShutdown"
        event = event["data"]
    assert event.keys() == {"e", "E"}
    assert event["e"] == "serverShutdown"


async def test_asking_on_while_limited_leads_to_a_ban_and_while_banned_to_a_longer_one(start: Start) -> None:
    sim = await start()
    await sim.post("/sim/faults", {"kind": "rate_limit", "seconds": 30})
    answers = [await sim.http.get("/api/v3/ping") for _ in range(6)]
    assert [a.status_code for a in answers] == [429, 429, 429, 418, 418, 418]
    assert [a.headers["Retry-After"] for a in answers] == ["30", "30", "30", "30", "60", "120"]
    assert "IP banned until" in answers[-1].json()["msg"]
    assert all("X-MBX-USED-WEIGHT-1M" in a.headers for a in answers)
    await sim.post("/sim/faults", {"kind": "ban", "seconds": 0.2})
    assert (await sim.http.get("/api/v3/ping")).status_code == 418

    async def free() -> bool:
        market = await sim.get("/sim/faults")
        return len(market["done"]) == 2 and time.monotonic() > began + 0.3

    began = time.monotonic()
    await sim.until(free)
    assert (await sim.http.get("/api/v3/ping")).status_code == 200


async def test_rest_can_be_away_for_some_market_time(start: Start) -> None:
    sim = await start(symbols="BTCUSDT", speed=20)
    begin = (await sim.get("/sim/market"))["market_time_us"] + 10_000_000
    await sim.post("/sim/faults", {"kind": "rest_away", "at_us": begin, "seconds": 10})
    assert (await sim.http.get("/api/v3/time")).status_code == 200

    async def asked(wanted: int) -> bool:
        return (await sim.http.get("/api/v3/time")).status_code == wanted

    await sim.until(lambda: asked(503))
    await sim.until(lambda: asked(200))
    assert (await sim.get("/sim/market"))["market_time_us"] >= begin + 10_000_000
    assert (await sim.get("/sim/faults"))["done"][0]["used"] >= 1


async def test_a_delisted_symbol_is_in_break_and_its_streams_are_silent(start: Start) -> None:
    sim = await start(symbols="BTCUSDT,ETHUSDT", speed=60)

    async def statuses() -> dict[str, str]:
        return {s["symbol"]: s["status"] for s in (await sim.get("/api/v3/exchangeInfo"))["symbols"]}

    async with connect(
        f"{sim.ws}/stream?streams=ethusdt@trade/ethusdt@kline_1m/btcusdt@kline_1m", close_timeout=0.1
    ) as socket:
        await socket.recv()
        await sim.post("/sim/faults", {"kind": "delist", "symbol": "ETHUSDT"})

        async def in_break() -> bool:
            return await statuses() == {"BTCUSDT": "TRADING", "ETHUSDT": "BREAK"}

        await sim.until(in_break)
        last = (await sim.get("/sim/market"))["symbols"]["ETHUSDT"]["last_trade_id"]
        at, seen = (await sim.get("/sim/market"))["market_time_us"], list[str]()
        closed = 0
        while closed < 2:
            message = json.loads(await asyncio.wait_for(socket.recv(), 60))
            if message["data"]["E"] * 1000 > at:
                seen.append(message["stream"])
                closed += bool(message["data"].get("k", {}).get("x"))
        assert set(seen) == {"btcusdt@kline_1m"}
        await sim.post("/sim/faults", {"kind": "list", "symbol": "ETHUSDT"})
        while message["stream"] != "ethusdt@trade":
            message = json.loads(await asyncio.wait_for(socket.recv(), 60))
        assert message["data"]["t"] == last + 1
        assert await statuses() == {"BTCUSDT": "TRADING", "ETHUSDT": "TRADING"}


async def test_rest_errors_come_as_often_as_asked_for(start: Start) -> None:
    sim = await start()
    for fault, status, retry, code in (
        ({"status": 429}, 429, "1", -1003),
        ({"status": 418, "retry_after": 7}, 418, "7", -1003),
        ({"status": 503}, 503, None, -1008),
        ({"status": 400, "code": -1000}, 400, None, -1000),
    ):
        await sim.post("/sim/faults", {"kind": "rest_error", "count": 2, "path": "/time", **fault})
        assert (await sim.http.get("/api/v3/ping")).status_code == 200
        for _ in range(2):
            answer = await sim.http.get("/api/v3/time")
            assert (answer.status_code, answer.json()["code"]) == (status, code)
            assert answer.headers.get("Retry-After") == retry
        assert (await sim.http.get("/api/v3/time")).status_code == 200
    await sim.post("/sim/faults", {"kind": "rest_error", "status": 0})
    with pytest.raises(httpx.RemoteProtocolError):
        await sim.http.get("/api/v3/time")


async def test_an_answer_can_be_late(start: Start) -> None:
    sim = await start()
    await sim.post("/sim/faults", {"kind": "late_answer", "seconds": 0.7, "path": "/ping"})
    began = time.monotonic()
    await sim.get("/api/v3/ping")
    assert time.monotonic() - began >= 0.7
    assert (await sim.get("/sim/faults"))["waiting"] == []


async def test_the_exchange_clock_can_be_wrong(start: Start, client: Client) -> None:
    sim = await start()
    one = client(sim)
    await sim.post("/sim/faults", {"kind": "clock_skew", "ms": -20_000})
    assert abs((await one.get_server_time())["serverTime"] - time.time() * 1000 + 20_000) < 2_000
    with pytest.raises(Exception, match="1000ms ahead of the server's time"):
        await one.get_account()
    await sim.http.delete("/sim/faults")
    await one.get_account()


async def test_an_order_can_be_accepted_without_an_answer_or_lost_on_the_way(start: Start, client: Client) -> None:
    sim = await start()
    one = client(sim)

    async def buy(name: str) -> Any:
        return await one.create_order(
            symbol="BTCUSDT", side="BUY", type="MARKET", quantity="0.01", newClientOrderId=name
        )

    await sim.post("/sim/faults", {"kind": "order_lost_answer"})
    with pytest.raises(Exception, match="-1006"):
        await buy("answered-503")
    await sim.post("/sim/faults", {"kind": "order_lost_answer", "status": 0})
    with pytest.raises(Exception, match="disconnected"):
        await buy("never-answered")
    await sim.post("/sim/faults", {"kind": "order_lost_request", "symbol": "BTCUSDT"})
    with pytest.raises(Exception, match="disconnected"):
        await buy("never-arrived")
    for name in ("answered-503", "never-answered"):
        found = await one.get_order(symbol="BTCUSDT", origClientOrderId=name)
        assert found["status"] == "FILLED"
    with pytest.raises(Exception, match="-2013"):
        await one.get_order(symbol="BTCUSDT", origClientOrderId="never-arrived")
    ledger = await sim.get("/sim/ledger")
    assert [o["clientOrderId"] for o in ledger["orders"]] == ["answered-503", "never-answered"]
    assert ledger["requests"]["POST /api/v3/order"] == {"503": 1, "closed": 2}


@pytest.mark.parametrize(
    "payload",
    [{"kind": "meteor"}, {"kind": "skip", "symbol": "NOSUCH"}, {"kind": "skip", "often": 1}, ["skip"]],
)
async def test_a_fault_that_does_not_exist_is_refused_with_its_reason(start: Start, payload: Any) -> None:
    sim = await start()
    answer = await sim.http.post("/sim/faults", json=payload)
    assert answer.status_code == 400
    assert "no such fault" in answer.json()["error"]
