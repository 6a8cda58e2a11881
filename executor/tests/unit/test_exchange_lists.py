"""Cancel-replace and order lists at the REST edge: each answer of Binance, for each order that it is about."""

from __future__ import annotations

import json
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import httpx
import pytest
from executor_builders import intended
from marketflow_common.signing import hmac_sha256
from marketflow_executor.exchange import BinanceRest
from marketflow_executor.orders import (
    NotCancelled,
    NotTried,
    Refused,
    Report,
    Throttled,
    TooLate,
    Unknown,
    Update,
)
from marketflow_executor.rest import Rest
from pydantic import SecretStr

MESSAGES: dict[str, Any] = json.loads((Path(__file__).parent / "binance" / "messages.json").read_text())
NOW_MS = 1_760_000_000_000
D = Decimal
LIMIT: dict[str, Any] = {"order_type": "LIMIT", "price": D(2300), "timestamp_ms": NOW_MS, "time_in_force": "GTC"}
NEXT = intended("s", 1, replaces="mf-r-1", **LIMIT)
LEGS = [
    intended("s", 1, order_id="mf-s-1s", list_id="mf-s-1", side="SELL", exchange_type="STOP_LOSS_LIMIT", **LIMIT)
    if leg == "s"
    else intended("s", 1, order_id="mf-s-1t", list_id="mf-s-1", side="SELL", **(LIMIT | {"price": D(2400)}))
    for leg in "st"
]


def rest(post: Callable[[httpx.Request], httpx.Response]) -> tuple[BinanceRest, list[httpx.Request]]:
    """An exchange that answers what changes something with ``post``, and knows no order."""
    asked: list[httpx.Request] = []

    def answer(request: httpx.Request) -> httpx.Response:
        if request.url.path.endswith("/time"):
            return httpx.Response(200, json={"serverTime": NOW_MS})
        if request.method == "GET":
            return httpx.Response(400, json={"code": -2013, "msg": "Order does not exist."})
        asked.append(request)
        return post(request)

    sign = hmac_sha256(SecretStr("x"))
    return BinanceRest(Rest("http://there", SecretStr("k"), sign, 3.0, 5_000, httpx.MockTransport(answer))), asked


def said(name: str, status: int = 200) -> Callable[[httpx.Request], httpx.Response]:
    return lambda _: httpx.Response(status, json=MESSAGES[name])


def failed(status: int, code: int) -> Callable[[httpx.Request], httpx.Response]:
    return lambda _: httpx.Response(status, json={"code": code, "msg": "no"}, headers={"Retry-After": "2"})


@pytest.mark.parametrize(
    ("answer", "old", "new"),
    [
        (said("replaced"), Update, Report),
        (said("replace_not_cancelled", 400), NotCancelled, NotTried),
        (said("replace_not_placed", 409), Update, Refused),
        (failed(400, -1013), None, Refused),
        (failed(400, -1021), None, TooLate),
        (failed(429, -1015), None, Throttled),
        (failed(503, -1007), None, Unknown),
        (lambda _: httpx.Response(200, json={}), None, Unknown),
    ],
)
def test_a_cancel_replace_tells_of_both_orders_or_of_the_new_one_alone(answer: Any, old: Any, new: Any) -> None:
    edge, asked = rest(answer)
    found = edge.replace(NEXT)
    assert isinstance(found["mf-s-1"], new), found
    assert isinstance(found["mf-r-1"], old) if old is not None else "mf-r-1" not in found
    # One that has a fill is not to be replaced by more than it has left.
    assert asked[0].url.params["cancelRestrictions"] == "ONLY_NEW"
    assert asked[0].url.params["cancelReplaceMode"] == "STOP_ON_FAILURE"
    assert len(asked) == 1


@pytest.mark.parametrize(
    ("answer", "each"),
    [
        (said("oco_placed"), Report),
        (failed(400, -2010), Refused),
        (failed(400, -1021), TooLate),
        (failed(429, -1003), Throttled),
        (failed(504, -1007), Unknown),
        (lambda _: httpx.Response(200, json={}), Unknown),
    ],
)
def test_an_order_list_tells_the_same_of_each_leg(answer: Any, each: Any) -> None:
    edge, asked = rest(answer)
    found = edge.place_list(LEGS)
    assert found.keys() == {"mf-s-1s", "mf-s-1t"}
    assert all(isinstance(one, each) for one in found.values()), found
    assert asked[0].url.path == "/api/v3/orderList/oco"
    assert len(asked) == 1


def test_a_leg_that_a_lists_answer_leaves_out_is_unknown() -> None:
    body = {**MESSAGES["oco_placed"], "orderReports": MESSAGES["oco_placed"]["orderReports"][:1]}
    edge, _ = rest(lambda _: httpx.Response(200, json=body))
    assert isinstance(edge.place_list(LEGS)["mf-s-1t"], Unknown)


def test_cancelling_a_leg_cancels_its_list_and_tells_of_the_leg() -> None:
    edge, _ = rest(said("oco_cancelled"))
    for leg, number in zip(LEGS, (10, 11), strict=True):
        assert edge.cancel(leg) == Update(number, "CANCELED", D(0), None)
