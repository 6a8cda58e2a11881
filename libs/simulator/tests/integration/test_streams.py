"""The streams as a client sees them: the real `websockets` library against a real process."""

import asyncio
import json
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

Start = Callable[..., Awaitable[Any]]
SECOND_MINUTE_MS = 1_723_161_300_000


async def everything(sim: Any, socket: ClientConnection) -> list[Any]:
    """All messages until the end of the market; what was sent before the answer to a question has come by then."""

    async def ask() -> None:
        await sim.ended()
        await socket.send('{"method":"LIST_SUBSCRIPTIONS","id":"that was all"}')

    asking = asyncio.create_task(ask())
    seen: list[Any] = []
    while not seen or seen[-1].get("id") != "that was all":
        seen.append(json.loads(await asyncio.wait_for(socket.recv(), 60)))
    await asking
    return seen[:-1]


async def test_a_replay_at_full_speed_gives_every_trade_once_and_each_closed_minute(
    start: Start, capture: Path
) -> None:
    sim = await start(replay=capture, speed="max")
    async with connect(f"{sim.ws}/stream?streams=ethusdt@trade/ethusdt@kline_1m") as socket:
        seen = await everything(sim, socket)
    trades = [m["data"] for m in seen if m["stream"] == "ethusdt@trade"]
    assert [t["t"] for t in trades] == list(range(1000, 2200))
    recorded = await asyncio.to_thread(capture.read_text)
    original = [json.loads(row.partition(" ")[2])["data"] for row in recorded.splitlines()]
    without_event_time = [{k: v for k, v in t.items() if k != "E"} for t in trades]
    assert without_event_time == [{k: v for k, v in t.items() if k != "E"} for t in original]
    closed = [m["data"]["k"] for m in seen if m["stream"] == "ethusdt@kline_1m" and m["data"]["k"]["x"]]
    assert [(k["t"], k["n"], k["f"], k["L"]) for k in closed] == [
        (SECOND_MINUTE_MS - 60_000, 400, 1000, 1399),
        (SECOND_MINUTE_MS, 600, 1400, 1999),
        (SECOND_MINUTE_MS + 60_000, 0, -1, -1),
    ]
    # The closed kline comes after the last trade of its minute and before the first one of the next.
    order = [m["data"].get("t") or m["data"]["k"]["L"] for m in seen if m["data"].get("k", {"x": True})["x"]]
    assert order.index(1399) + 1 == len(order[: order.index(1400)]) - 1
    market = await sim.ended()
    assert market["symbols"]["ETHUSDT"] == {
        "first_trade_id": 1000,
        "last_trade_id": 2199,
        "first_time_us": original[0]["T"] * 1000,
        "last_time_us": original[-1]["T"] * 1000,
        "published": 1200,
    }
    assert (market["running"], market["synthetic"], market["seed"]) == (False, False, None)


async def test_at_full_speed_trades_wait_for_the_first_subscription(start: Start, capture: Path) -> None:
    sim = await start(replay=capture, speed="max")
    async with connect(f"{sim.ws}/ws") as socket:
        assert (await sim.get("/sim/market"))["symbols"]["ETHUSDT"]["published"] == 0
        await socket.send(json.dumps({"method": "SUBSCRIBE", "params": ["ethusdt@trade"], "id": 1}))
        seen = await everything(sim, socket)
    assert {"result": None, "id": 1} in seen
    assert [m["t"] for m in seen if "t" in m] == list(range(1000, 2200))


async def test_a_market_can_wait_for_its_start(start: Start, capture: Path) -> None:
    sim = await start(replay=capture, speed=1000, autostart=False)
    async with connect(f"{sim.ws}/ws/ethusdt@trade") as socket:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(socket.recv(), 0.3)
        assert not (await sim.get("/sim/market"))["running"]
        assert await sim.post("/sim/market/start") == {"running": True, "already_started": False}
        assert len(await everything(sim, socket)) == 1200


async def test_a_finite_speed_keeps_the_time_of_the_trades(start: Start, capture: Path) -> None:
    sim = await start(replay=capture, speed=100, autostart=False)
    arrived = []
    async with connect(f"{sim.ws}/ws/ethusdt@trade") as socket:
        await sim.post("/sim/market/start")
        for _ in range(1200):
            trade = json.loads(await socket.recv())
            arrived.append(time.monotonic() - (trade["T"] - SECOND_MINUTE_MS) / 1000 / 100)
    lateness = sorted(at - min(arrived) for at in arrived)
    assert lateness[len(lateness) // 2] < 0.5, "two seconds of trades are not sent at once or late"


async def test_klines_and_aggregates_agree_with_the_trades(start: Start) -> None:
    sim = await start(symbols="SOLUSDT", speed="max", minutes=7)
    streams = "solusdt@trade/solusdt@aggTrade/solusdt@kline_1m/solusdt@kline_5m"
    async with connect(f"{sim.ws}/stream?streams={streams}") as socket:
        seen = await everything(sim, socket)
    by_stream: dict[str, list[Any]] = {name: [] for name in streams.split("/")}
    for message in seen:
        by_stream[message["stream"]].append(message["data"])
    trades, aggs = by_stream["solusdt@trade"], by_stream["solusdt@aggTrade"]
    assert all(b["t"] == a["t"] + 1 for a, b in pairwise(trades))
    assert all((b["a"], b["f"]) == (a["a"] + 1, a["l"] + 1) for a, b in pairwise(aggs))
    assert (aggs[0]["f"], aggs[-1]["l"]) == (trades[0]["t"], trades[-1]["t"])
    minutes = [m["k"] for m in by_stream["solusdt@kline_1m"] if m["k"]["x"]]
    assert len(minutes) == 7
    assert sum(k["n"] for k in minutes) == len(trades)
    assert any(k["n"] == 0 and (k["f"], k["L"]) == (-1, -1) for k in minutes)
    fives = [m["k"] for m in by_stream["solusdt@kline_5m"] if m["k"]["x"]]
    assert [(k["n"], k["L"]) for k in fives] == [(sum(k["n"] for k in minutes[:5]), minutes[4]["L"])]
    events = [m["E"] for m in by_stream["solusdt@kline_1m"]]
    assert all(b - a >= 2000 for a, b in pairwise(events))
    rows = await sim.get("/sim/klines", symbol="SOLUSDT")
    assert [(r[0], r[8], r[12], r[13]) for r in rows] == [(k["t"], k["n"], k["f"], k["L"]) for k in minutes]
    rest = await sim.get("/api/v3/klines", symbol="SOLUSDT", interval="1m", startTime=minutes[0]["t"])
    assert [row[:12] for row in rows] == rest[:7]
    assert rest[7][8] == 0, "the minute after the end is open"


async def test_subscriptions_are_changed_listed_and_refused_as_documented(start: Start) -> None:
    sim = await start(autostart=False)
    async with connect(f"{sim.ws}/ws/btcusdt@trade") as socket:
        talk = [
            ({"method": "SUBSCRIBE", "params": ["ethusdt@trade"], "id": 1}, {"result": None, "id": 1}),
            ({"method": "UNSUBSCRIBE", "params": ["btcusdt@trade"], "id": "x"}, {"result": None, "id": "x"}),
            ({"method": "LIST_SUBSCRIPTIONS", "id": 3}, {"result": ["ethusdt@trade"], "id": 3}),
            ({"method": "GET_PROPERTY", "params": ["combined"], "id": 4}, {"result": False, "id": 4}),
        ]
        for request, answer in talk:
            await socket.send(json.dumps(request))
            assert json.loads(await socket.recv()) == answer
    async with connect(f"{sim.ws}/stream") as socket:
        for text, code in (
            ("{", 3),
            ('{"params":[]}', 2),
            ('{"method":"FOO","id":1}', 2),
            ('{"method":"SET_PROPERTY","params":["combined",1],"id":1}', 1),
        ):
            await socket.send(text)
            assert json.loads(await socket.recv())["code"] == code
    async with connect(f"{sim.ws}/stream") as socket:
        await socket.send('{"method":"SET_PROPERTY","params":["combined",false],"id":5}')
        assert json.loads(await socket.recv()) == {"result": None, "id": 5}
        await socket.send('{"method":"GET_PROPERTY","params":["foo"],"id":2}')
        assert json.loads(await socket.recv()) == {"code": 0, "msg": "Unknown property", "id": 2}


async def test_it_answers_pings_and_cuts_off_who_talks_too_much(start: Start) -> None:
    sim = await start(autostart=False)
    async with connect(f"{sim.ws}/ws") as socket:
        await asyncio.wait_for(await socket.ping(), 60)
        answered = 0
        with suppress(ConnectionClosed):
            for number in range(50):
                await socket.send(json.dumps({"method": "LIST_SUBSCRIPTIONS", "id": number}))
                await socket.recv()
                answered += 1
        assert 4 <= answered <= 5


async def test_a_reader_that_takes_nothing_is_cut_off_and_the_others_get_everything(start: Start) -> None:
    sim = await start(symbols="BTCUSDT", speed="max", minutes=90, autostart=False)
    reader, writer = await asyncio.open_connection("127.0.0.1", sim.port, limit=1024)
    writer.write(
        b"GET /ws/btcusdt@trade HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
    )
    await reader.readuntil(b"\r\n\r\n")
    async with connect(f"{sim.ws}/ws/btcusdt@trade", max_queue=None) as socket:
        await sim.post("/sim/market/start")
        seen = await everything(sim, socket)
    ids = [m["t"] for m in seen]
    assert ids == list(range(ids[0], ids[0] + len(ids)))
    market = await sim.ended()
    assert len(ids) == market["symbols"]["BTCUSDT"]["published"]
    assert market["connections"] == 0
    writer.transport.abort()


async def test_a_websocket_path_without_a_handshake_is_a_bad_request(start: Start) -> None:
    sim = await start()
    answer: httpx.Response = await sim.http.get("/ws/btcusdt@trade")
    assert answer.status_code == 400
