"""Fixtures: a simulator as a real process, and small recordings made on the spot."""

import asyncio
import json
import sys
import time
import warnings
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from marketflow_simulator.app import Simulator
from marketflow_simulator.settings import parse

with warnings.catch_warnings():  # python-binance imports a deprecated part of websockets, unused here
    warnings.simplefilter("ignore", DeprecationWarning)
    from binance import AsyncClient


class Running:
    """A simulator that listens, and a way to talk to it."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.url = f"http://127.0.0.1:{port}"
        self.ws = f"ws://127.0.0.1:{port}"
        self.http = httpx.AsyncClient(base_url=self.url, timeout=60)

    async def get(self, path: str, **params: Any) -> Any:
        answer = await self.http.get(path, params=params)
        answer.raise_for_status()
        return answer.json()

    async def post(self, path: str, payload: Any = None) -> Any:
        answer = await self.http.post(path, json=payload)
        answer.raise_for_status()
        return answer.json()

    async def until(self, holds: Callable[[], Awaitable[Any]], seconds: float = 60.0) -> Any:
        """Wait until `holds` gives something true, and give that."""
        deadline = time.monotonic() + seconds
        while True:
            value = await holds()
            if value:
                return value
            if time.monotonic() > deadline:
                raise AssertionError(f"not within {seconds} s; last seen: {value!r}")
            await asyncio.sleep(0.02)

    async def ended(self) -> Any:
        """Wait for the end of the market."""

        async def look() -> Any:
            market = await self.get("/sim/market")
            return market if market["ended"] else None

        return await self.until(look)


class Process(Running):
    """The same as a process of its own."""

    def __init__(self, process: asyncio.subprocess.Process, port: int, log: list[dict[str, Any]]) -> None:
        super().__init__(port)
        self.process = process
        self.log = log

    async def stop(self, *, kill: bool = False) -> int:
        """End the process and give its exit code."""
        if self.process.returncode is None:
            self.process.kill() if kill else self.process.terminate()
        await self.http.aclose()
        return await asyncio.wait_for(self.process.wait(), 60)


def arguments_of(settings: dict[str, Any]) -> list[str]:
    arguments = []
    for name, value in {"port": 0, **settings}.items():
        text = str(value).lower() if isinstance(value, bool) else str(value)
        arguments += [f"--{name.replace('_', '-')}", text]
    return arguments


@pytest.fixture
async def start() -> AsyncIterator[Callable[..., Awaitable[Running]]]:
    """Starts simulators within the test's process, with settings as keywords, on real sockets."""
    begun: list[tuple[Simulator, Running]] = []

    async def begin(**settings: Any) -> Running:
        simulator = Simulator(parse(arguments_of(settings)))
        await simulator.start()
        begun.append((simulator, Running(simulator.port)))
        return begun[-1][1]

    yield begin
    for simulator, running in begun:
        await running.http.aclose()
        await simulator.stop()


@pytest.fixture
async def spawn() -> AsyncIterator[Callable[..., Awaitable[Process]]]:
    """Starts simulators as processes, with settings as keywords; all are ended after the test."""
    processes: list[asyncio.subprocess.Process] = []
    running: list[Process] = []
    readers: list[asyncio.Task[None]] = []

    async def begin(**settings: Any) -> Process:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "marketflow_simulator",
            *arguments_of(settings),
            stderr=asyncio.subprocess.PIPE,
        )
        processes.append(process)
        assert process.stderr is not None
        log: list[dict[str, Any]] = []
        listening: asyncio.Future[int] = asyncio.get_running_loop().create_future()

        async def read(stream: asyncio.StreamReader) -> None:
            async for line in stream:
                log.append(json.loads(line) if line.startswith(b"{") else {"text": line.decode()})
                if log[-1].get("event") == "listening":
                    listening.set_result(int(log[-1]["url"].rpartition(":")[2]))
            if not listening.done():
                listening.set_exception(AssertionError(f"the simulator did not start: {log}"))

        readers.append(asyncio.create_task(read(process.stderr)))
        running.append(Process(process, await asyncio.wait_for(listening, 60), log))
        return running[-1]

    yield begin
    for one in running:
        await one.stop()
    for process in processes:
        if process.returncode is None:
            process.kill()
            await process.wait()
    await asyncio.gather(*readers)


@pytest.fixture
async def client() -> AsyncIterator[Callable[[Running], Any]]:
    """Makes python-binance clients of simulators; all are closed after the test."""
    clients: list[Any] = []

    def make(sim: Running) -> Any:
        one = AsyncClient("simulator", "simulator-secret")
        one.API_URL = f"{sim.url}/api"
        clients.append(one)
        return one

    yield make
    for one in clients:
        await one.close_connection()


def trade_line(
    trade_id: int, time_ms: int, price: str = "2683.80000000", qty: str = "0.00200000", maker: bool = True
) -> str:
    """One line of a capture."""
    data = {
        "e": "trade",
        "E": time_ms + 1,
        "s": "ETHUSDT",
        "t": trade_id,
        "p": price,
        "q": qty,
        "T": time_ms,
        "m": maker,
        "M": True,
    }
    message = json.dumps({"stream": "ethusdt@trade", "data": data}, separators=(",", ":"))
    return f"{time_ms * 1_000_000} {message}\n"


@pytest.fixture
def line() -> Callable[..., str]:
    return trade_line


@pytest.fixture
def capture(tmp_path: Path) -> Path:
    """A capture of 1,200 trades of ETHUSDT over four minutes, the third of them without any trade.

    The first begins 20 s into its minute, the last ends 40 s into its own.
    """
    start_ms = 1_723_161_260_000
    times = [start_ms + i * 100 for i in range(1_000)]  # until 00:41:59.9 of minute two
    times += [start_ms + 160_000 + i * 200 for i in range(200)]  # minute four
    lines = []
    for i, time_ms in enumerate(times):
        price = f"{2683 + (i * 7 % 31) / 100:.8f}"
        qty = f"{0.002 + (i * 13 % 17) / 1000:.8f}"
        lines.append(trade_line(1_000 + i, time_ms, price, qty, i % 3 == 0))
    path = tmp_path / "ethusdt.jsonl"
    path.write_text("".join(lines))
    return path
