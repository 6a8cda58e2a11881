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
            message = json.loads(await asyncio.wait_for(socket.recv(), 5))
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
    async with connect(f"{sim.ws}/ws/btcusdt@trade") as socket:
        last = json.loads(await socket.recv())["t"]
        await sim.post("/sim/faults", {"kind": "stall", "seconds": 1.5})
        longest, at = 0.0, time.monotonic()
        while longest < 1.0:
            trade = json.loads(await asyncio.wait_for(socket.recv(), 5))
            assert trade["t"] == last + 1
            last, now = trade["t"], time.monotonic()
            longest, at = max(longest, now - at), now


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
