"""Clients of Binance that we did not write trade on the simulator: the contract that it speaks Binance's language.

ccxt and python-binance live in an environment of their own (tests/clients/requirements.txt), made once in the user's
cache. Where that cannot be made, because the package index is out of reach, the tests say NOT RUN.
"""

import asyncio
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from marketflow_stack.environments import environment_of
from marketflow_stack.errors import StackError

Start = Callable[..., Awaitable[Any]]
CLIENTS = Path(__file__).parents[1] / "clients"


@pytest.fixture(scope="session")
def python() -> Path:
    """The interpreter of the clients' environment."""
    try:
        return environment_of(CLIENTS / "requirements.txt", "clients") / "bin" / "python"
    except StackError as error:
        pytest.skip(f"NOT RUN: {error}")


async def run(python: Path, script: str, *arguments: str) -> Any:
    """What the client's script printed."""
    process = await asyncio.create_subprocess_exec(
        str(python),
        "-W",
        "ignore",
        str(CLIENTS / script),
        *arguments,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        out, problem = await asyncio.wait_for(process.communicate(), 120)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode == 0, problem.decode()[-3000:]
    return json.loads(out)


def keys(folder: Path) -> tuple[Path, Path]:
    """Files of a new Ed25519 key pair: the private and the public key."""
    key = Ed25519PrivateKey.generate()
    private, public = folder / "private.pem", folder / "public.pem"
    private.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    public.write_bytes(key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    return private, public


async def test_ccxt_places_queries_replaces_and_cancels_orders_with_an_hmac_key(start: Start, python: Path) -> None:
    sim = await start(symbols="ETHUSDT", autostart=False)
    got = await run(python, "trade_with_ccxt.py", sim.url, "simulator", "simulator-secret")
    assert got["limits"]["min"] == 0.0001
    assert got["resting"] == ["open", "open", True, True]
    assert got["replaced"] == ["open", 0.2]
    assert got["canceled"] == "canceled"
    assert got["market"] == ["closed", 0.5, ["ETH"]]
    assert got["stop"] == ["limit", "open", True]
    assert got["trades"] == [[True, 0.5]]
    assert (got["held"]["total"], got["held"]["used"], got["open"]) == (0.4995, 0, 0)
    assert got["refusals"] == ["InvalidOrder", "InsufficientFunds"]
    ledger = await sim.get("/sim/ledger")
    statuses = [(order["type"], order["status"]) for order in ledger["orders"]]
    assert statuses == [("LIMIT", "CANCELED")] * 2 + [("MARKET", "FILLED"), ("STOP_LOSS_LIMIT", "CANCELED")]


async def test_python_binance_trades_with_an_ed25519_key_and_hears_of_it_by_its_user_socket(
    start: Start, python: Path, tmp_path: Path
) -> None:
    private, public = keys(tmp_path)
    sim = await start(symbols="ETHUSDT", autostart=False, ed25519_public_key=public)
    got = await run(python, "trade_with_binance.py", sim.url, "simulator-ed25519", str(private))
    assert got["resting"] == ["NEW", True]
    assert got["canceled"] == "CANCELED"
    assert got["market"] == ["FILLED", "0.50000000"]
    assert (got["pair"], got["listed"]) == ([True, False], "EXECUTING")
    assert got["trades"] == ["0.50000000"]
    assert got["refusals"] == [-1013, -2010]
    executions = [how for name, how in got["events"] if name == "executionReport"]
    assert executions == ["NEW", "CANCELED", "NEW", "TRADE", "NEW", "NEW", "NEW"]
    assert {name for name, _ in got["events"]} == {"executionReport", "outboundAccountPosition", "listStatus"}
