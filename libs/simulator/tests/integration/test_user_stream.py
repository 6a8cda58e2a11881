"""The WebSocket API: who gets in, which events come in which order, and what faults keep back."""

import asyncio
import base64
import hashlib
import hmac
import json
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.rsa import generate_private_key
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from marketflow_simulator.app import Simulator, StartError
from marketflow_simulator.settings import parse
from websockets.asyncio.client import ClientConnection, connect

Start = Callable[..., Awaitable[Any]]
Client = Callable[[Any], Any]


class User:
    """One connection to the WebSocket API."""

    def __init__(self, socket: ClientConnection, key: Ed25519PrivateKey | None = None) -> None:
        self.socket = socket
        self.key = key
        self.events: list[dict[str, Any]] = []

    def signed(self, **params: Any) -> dict[str, Any]:
        params = {"apiKey": "simulator-ed25519" if self.key else "simulator", **params}
        params.setdefault("timestamp", int(time.time() * 1000))
        payload = "&".join(f"{name}={value}" for name, value in sorted(params.items()))
        if self.key is not None:
            sign = base64.b64encode(self.key.sign(payload.encode())).decode()
        else:
            sign = hmac.new(b"simulator-secret", payload.encode(), hashlib.sha256).hexdigest()
        return {**params, "signature": sign}

    async def ask(self, method: str, **params: Any) -> Any:
        """The answer to a request; events that come before it are kept."""
        await self.socket.send(json.dumps({"id": method, "method": method, "params": params}))
        while True:
            message = json.loads(await asyncio.wait_for(self.socket.recv(), 20))
            if "event" not in message:
                assert message["id"] == method
                return message
            self.events.append(message)

    async def subscribe(self) -> int:
        answer = await self.ask("userDataStream.subscribe.signature", **self.signed())
        return int(answer["result"]["subscriptionId"])

    async def next(self, kind: str) -> dict[str, Any]:
        """The next event of that kind."""
        while True:
            for index, message in enumerate(self.events):
                if message["event"]["e"] == kind:
                    del self.events[: index + 1]
                    return message["event"]
            self.events.append(json.loads(await asyncio.wait_for(self.socket.recv(), 20)))


def key_pair() -> tuple[Ed25519PrivateKey, str]:
    private = Ed25519PrivateKey.generate()
    pem = private.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    return private, pem.decode()


async def test_orders_fills_and_balances_come_in_the_order_of_the_books(start: Start, client: Client) -> None:
    sim = await start(symbols="ETHUSDT", balances="USDT:10000")
    one = client(sim)
    async with connect(f"{sim.ws}/ws-api/v3") as socket:
        user = User(socket)
        assert await user.subscribe() == 0
        bought = await one.create_order(
            symbol="ETHUSDT", side="BUY", type="MARKET", quantity="0.5", newClientOrderId="b", strategyId=7
        )
        new, trade = await user.next("executionReport"), await user.next("executionReport")
        assert (new["x"], new["X"], new["c"], new["w"], new["t"], new["N"]) == ("NEW", "NEW", "b", True, -1, None)
        assert (trade["x"], trade["X"], trade["z"], trade["j"]) == ("TRADE", "FILLED", "0.50000000", 7)
        (fill,) = bought["fills"]
        assert (trade["L"], trade["l"], trade["n"], trade["N"], trade["t"]) == (
            fill["price"],
            fill["qty"],
            fill["commission"],
            "ETH",
            fill["tradeId"],
        )
        assert (trade["i"], trade["O"], trade["Z"]) == (bought["orderId"], bought["transactTime"], trade["Y"])
        assert trade["I"] > new["I"]
        position = await user.next("outboundAccountPosition")
        assert {b["a"]: b["f"] for b in position["B"]} == {
            balance["asset"]: balance["free"] for balance in (await one.get_account())["balances"]
        }
        price = f"{float(fill['price']) * 1.1:.2f}"
        await one.create_order(
            symbol="ETHUSDT", side="SELL", type="LIMIT", timeInForce="GTC", quantity="0.1", price=price
        )
        await one.cancel_order(symbol="ETHUSDT", orderId=2, newClientOrderId="why")
        await user.next("executionReport")
        canceled = await user.next("executionReport")
        assert (canceled["x"], canceled["X"], canceled["c"]) == ("CANCELED", "CANCELED", "why")
        assert canceled["C"] not in ("", "why")
        await sim.post("/sim/balance", {"asset": "USDT", "delta": "-5"})
        moved = await user.next("balanceUpdate")
        assert (moved["a"], moved["d"]) == ("USDT", "-5.00000000")
        await user.next("outboundAccountPosition")
        await one.create_oco_order(
            symbol="ETHUSDT",
            side="SELL",
            quantity="0.1",
            aboveType="LIMIT_MAKER",
            abovePrice=price,
            belowType="STOP_LOSS",
            belowStopPrice=f"{float(fill['price']) * 0.9:.2f}",
        )
        above, below = await user.next("executionReport"), await user.next("executionReport")
        listed = await user.next("listStatus")
        assert (above["g"], below["g"], listed["g"], listed["l"]) == (1, 1, 1, "EXEC_STARTED")
        assert (above["w"], below["w"], "W" in below) == (True, False, False)
        assert [o["i"] for o in listed["O"]] == [above["i"], below["i"]]
        await sim.post("/sim/orders/cancel", {"symbol": "ETHUSDT", "order_id": above["i"]})
        assert (await user.next("listStatus"))["L"] == "ALL_DONE"


async def test_a_session_logs_on_with_ed25519_and_then_needs_no_more_keys(start: Start, tmp_path: Path) -> None:
    private, pem = key_pair()
    (tmp_path / "public.pem").write_text(pem)
    sim = await start(symbols="ETHUSDT", ed25519_public_key=tmp_path / "public.pem")
    async with connect(f"{sim.ws}/ws-api/v3") as socket:
        user = User(socket, private)
        assert (await user.ask("ping"))["result"] == {}
        assert abs((await user.ask("v3/time"))["result"]["serverTime"] - time.time() * 1000) < 5000
        assert (await user.ask("userDataStream.subscribe"))["error"]["code"] == -2015
        assert (await user.ask("session.logon", **User(socket).signed()))["error"]["code"] == -4056
        state = (await user.ask("session.logon", **user.signed()))["result"]
        assert (state["apiKey"], state["userDataStream"]) == ("simulator-ed25519", False)
        assert (await user.ask("userDataStream.subscribe"))["result"] == {"subscriptionId": 0}
        assert (await user.ask("userDataStream.subscribe"))["error"]["code"] == -2035
        order = await user.ask(
            "order.place",
            symbol="ETHUSDT",
            side="BUY",
            type="MARKET",
            quantity="0.01",
            newClientOrderId="mine",
            timestamp=int(time.time() * 1000),
        )
        assert (order["result"]["status"], [limit["rateLimitType"] for limit in order["rateLimits"]]) == (
            "FILLED",
            ["ORDERS", "ORDERS", "REQUEST_WEIGHT"],
        )
        assert (await user.next("executionReport"))["c"] == "mine"
        found = await user.ask("order.status", **user.signed(symbol="ETHUSDT", origClientOrderId="mine"))
        assert found["result"]["orderId"] == order["result"]["orderId"]
        gone = await user.ask("order.cancel", **user.signed(symbol="ETHUSDT", orderId=9))
        assert (gone["status"], gone["error"]["code"]) == (400, -2011)
        assert (await user.ask("session.subscriptions"))["result"] == [{"subscriptionId": 0}]
        assert (await user.ask("session.logout"))["result"]["userDataStream"] is False
        await user.next("eventStreamTerminated")
        assert (await user.ask("session.status"))["result"]["apiKey"] is None
        assert (await user.ask("userDataStream.unsubscribe"))["error"]["code"] == -2036
        assert await user.subscribe() == 1
        assert (await user.ask("userDataStream.unsubscribe", subscriptionId=1))["result"] == {}
        await user.next("eventStreamTerminated")
        assert (await user.ask("no.such"))["status"] == 400
        await socket.send("{")
        assert json.loads(await socket.recv())["error"]["code"] == -1135


async def test_ed25519_signs_rest_requests_too(start: Start) -> None:
    private, pem = key_pair()
    sim = await start(symbols="ETHUSDT", ed25519_public_key=pem.replace("\n", "\\n"))
    headers = {"X-MBX-APIKEY": "simulator-ed25519"}
    query = urlencode({"timestamp": int(time.time() * 1000)})
    sign = base64.b64encode(private.sign(query.encode())).decode()
    answer = await sim.http.get(f"/api/v3/account?{query}&{urlencode({'signature': sign})}", headers=headers)
    assert answer.status_code == 200
    for wrong in (sign.swapcase(), "x", base64.b64encode(bytes(64)).decode()):
        answer = await sim.http.get(f"/api/v3/account?{query}&{urlencode({'signature': wrong})}", headers=headers)
        assert (answer.status_code, answer.json()["code"]) == (400, -1022)


@pytest.mark.parametrize("kind", ["no file", "no PEM", "no Ed25519"])
def test_a_public_key_that_cannot_be_read_is_named_at_the_start(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "key.pem"
    if kind == "no PEM":
        path.write_text("-----BEGIN nothing-----")
    elif kind == "no Ed25519":
        rsa = generate_private_key(65537, 2048).public_key()
        path.write_bytes(rsa.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    with pytest.raises(StartError, match="public key"):
        Simulator(parse(["--port", "0", "--ed25519-public-key", str(path)]))


async def test_a_wrong_signature_and_an_old_request_do_not_get_in(start: Start) -> None:
    sim = await start(symbols="ETHUSDT")
    async with connect(f"{sim.ws}/ws-api/v3") as socket:
        user = User(socket)
        for params, code in (
            ({}, -1102),
            ({**user.signed(), "signature": "00"}, -1022),
            (user.signed(apiKey="other"), -2015),
            (user.signed(timestamp=int(time.time() * 1000) - 6000), -1021),
        ):
            assert (await user.ask("userDataStream.subscribe.signature", **params))["error"]["code"] == code


async def test_a_silent_stream_never_tells_what_happened_and_a_cut_one_ends(start: Start, client: Client) -> None:
    sim = await start(symbols="ETHUSDT")
    one = client(sim)
    buy = {"symbol": "ETHUSDT", "side": "BUY", "type": "MARKET", "quantity": "0.01"}
    async with connect(f"{sim.ws}/ws-api/v3") as socket:
        user = User(socket)
        await user.subscribe()
        await sim.post("/sim/faults", {"kind": "user_stream_silent", "seconds": 0.5})
        await one.create_order(**buy)
        assert (await user.ask("ping"))["status"] == 200
        assert user.events == []

        async def heard() -> Any:
            await one.create_order(**buy)
            await user.ask("ping")
            return user.events

        events = await sim.until(heard)
        assert events[0]["event"]["i"] > 1
        await sim.post("/sim/faults", {"kind": "server_shutdown", "seconds": 60})
        await user.next("serverShutdown")
        await sim.post("/sim/faults", {"kind": "user_stream_cut"})
        await asyncio.wait_for(socket.wait_closed(), 20)
