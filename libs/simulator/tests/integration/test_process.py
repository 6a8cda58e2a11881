"""The process: how it starts, stops, refuses to start, and goes on after a restart."""

import asyncio
import json
import os
import signal
import socket
import sys
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed

Spawn = Callable[..., Awaitable[Any]]
Client = Callable[[Any], Any]


async def refused(*arguments: str, **environment: str) -> str:
    """Start a simulator that must not start, and give what it says."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "marketflow_simulator",
        *arguments,
        env={**os.environ, **environment},
        stderr=asyncio.subprocess.PIPE,
    )
    _, errors = await asyncio.wait_for(process.communicate(), 60)
    assert process.returncode == 2
    lines = [line for line in errors.decode().splitlines() if not line.startswith("{")]
    assert len(lines) == 1, errors.decode()
    return lines[0]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_stops_it_cleanly_with_open_sockets(spawn: Spawn, number: signal.Signals) -> None:
    sim = await spawn(speed=10)
    async with connect(f"{sim.ws}/ws/btcusdt@trade") as one:
        await one.recv()
        sim.process.send_signal(number)
        assert await asyncio.wait_for(sim.process.wait(), 60) == 0
    assert sim.log[-1]["event"] == "stopped"
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection("127.0.0.1", sim.port)


async def test_what_keeps_it_from_starting_is_said_in_one_line(tmp_path: Path, capture: Path) -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = holder.getsockname()[1]
        message = await refused("--port", str(port))
        assert f"127.0.0.1:{port}: the port is taken" in message
    assert "MARKETFLOW_SIMULATOR_SPEED='fast'" in await refused(MARKETFLOW_SIMULATOR_SPEED="fast")
    assert f"cannot read {tmp_path}/none.jsonl" in await refused("--replay", str(tmp_path / "none.jsonl"))
    broken = tmp_path / "broken.jsonl"
    await asyncio.to_thread(broken.write_text, await asyncio.to_thread(capture.read_text) + "oops\n")
    assert f"{broken} line 1201:" in await refused("--replay", str(broken))


async def test_the_same_seed_gives_the_same_market_in_every_process(spawn: Spawn) -> None:
    seen = []
    for _ in range(2):
        sim = await spawn(symbols="BTCUSDT,SOLUSDT", seed=11, speed="max", minutes=2)
        async with connect(f"{sim.ws}/ws/btcusdt@trade"):
            await sim.ended()
        seen.append([await sim.get("/sim/trades", symbol=s, from_id=1) for s in ("BTCUSDT", "SOLUSDT")])
    assert seen[0] == seen[1]


async def test_after_a_kill_the_books_and_the_market_go_on(spawn: Spawn, client: Client, tmp_path: Path) -> None:
    settings = {"symbols": "ETHUSDT", "speed": 30, "state": tmp_path / "state"}
    sim = await spawn(**settings)

    async def moved() -> bool:
        return (await sim.get("/sim/market"))["symbols"]["ETHUSDT"]["published"] > 20

    await sim.until(moved)
    one = client(sim)
    await one.create_order(symbol="ETHUSDT", side="BUY", type="MARKET", quantity="1")
    last = Decimal((await one.get_symbol_ticker(symbol="ETHUSDT"))["price"])
    near = (last * Decimal("0.9995")).quantize(Decimal("0.01"))
    for price in (near, Decimal("1000")):
        await one.create_order(
            symbol="ETHUSDT", side="BUY", type="LIMIT", timeInForce="GTC", quantity="1", price=str(price)
        )
    ledger, trades = await sim.get("/sim/ledger"), await sim.get("/sim/trades", symbol="ETHUSDT")
    began, market, at = time.monotonic(), await sim.get("/sim/market"), time.monotonic()
    await sim.stop(kill=True)

    again = await spawn(**settings)
    back, after, now = time.monotonic(), await again.get("/sim/market"), time.monotonic()
    passed = (after["market_time_us"] - market["market_time_us"]) / 1e6 / 30
    assert back - at - 3 < passed < now - began + 3, "market time went on while the simulator was down"
    assert after["symbols"]["ETHUSDT"]["first_trade_id"] == market["symbols"]["ETHUSDT"]["first_trade_id"]
    then = await again.get("/sim/trades", symbol="ETHUSDT")
    assert then[: len(trades)] == trades
    resumed = await again.get("/sim/ledger")
    assert resumed["orders"][0] == ledger["orders"][0]
    assert resumed["fills"][:1] == ledger["fills"]
    assert [o["clientOrderId"] for o in resumed["orders"]] == [o["clientOrderId"] for o in ledger["orders"]]
    assert resumed["orders"][2]["status"] == "NEW"
    placed = ledger["orders"][1]["marketTimeUs"]
    missed = [t for t in then if placed < t["time_us"] <= after["market_time_us"]]
    reached = [t for t in missed if Decimal(t["price"]) <= near]
    if reached:  # what happened while it was down has filled the order, at its own price
        assert resumed["orders"][1]["status"] == "FILLED"
        assert resumed["fills"][1]["marketTradeId"] == reached[0]["id"]
        assert Decimal(resumed["fills"][1]["price"]) == near
    else:
        assert resumed["orders"][1]["status"] in ("NEW", "FILLED")


async def test_at_full_speed_a_restart_never_streams_a_trade_again(spawn: Spawn, tmp_path: Path) -> None:
    settings = {"symbols": "ETHUSDT", "speed": "max", "state": tmp_path / "state"}
    ids: list[int] = []
    for kill in (True, False, True):
        sim = await spawn(**settings)
        async with connect(f"{sim.ws}/ws/ethusdt@trade", max_queue=1) as one:
            for _ in range(700):
                ids.append(json.loads(await one.recv())["t"])
            await sim.stop(kill=kill)
            with suppress(ConnectionClosed):
                async for message in one:
                    ids.append(json.loads(message)["t"])
    assert ids == sorted(set(ids))
    assert len(ids) >= 2100


async def test_a_state_folder_of_another_market_is_refused(spawn: Spawn, tmp_path: Path) -> None:
    sim = await spawn(symbols="ETHUSDT", seed=1, state=tmp_path / "state")
    await sim.stop()
    message = await refused("--port", "0", "--symbols", "ETHUSDT", "--seed", "2", "--state", str(tmp_path / "state"))
    assert "belongs to a market with seed 1, this one has 2" in message
    (tmp_path / "state" / "books.jsonl").write_bytes(b"{}\n")
    message = await refused("--port", "0", "--symbols", "ETHUSDT", "--seed", "1", "--state", str(tmp_path / "state"))
    assert "books.jsonl line 1" in message


async def test_a_step_of_the_books_that_a_crash_cut_short_is_dropped(
    spawn: Spawn, client: Client, tmp_path: Path
) -> None:
    settings = {"symbols": "ETHUSDT", "state": tmp_path / "state"}
    sim = await spawn(**settings)
    one = client(sim)
    for _ in range(2):
        await one.create_order(symbol="ETHUSDT", side="BUY", type="MARKET", quantity="1")
    await sim.stop()
    journal = tmp_path / "state" / "books.jsonl"
    journal.write_bytes(journal.read_bytes()[:-30])
    again = await spawn(**settings)
    ledger = await again.get("/sim/ledger")
    assert len(ledger["orders"]) == len(ledger["fills"]) == 1
    assert ledger["balances"]["ETH"]["free"] == "0.99900000"
