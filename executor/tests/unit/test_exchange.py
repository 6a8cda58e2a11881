"""The REST edge: what each answer of Binance is taken for, and what goes out."""

from __future__ import annotations

import hashlib
import hmac
import json
import logging
import time
from collections.abc import Callable
from decimal import Decimal
from typing import Any
from urllib.parse import parse_qsl

import httpx
import pytest
from executor_builders import intended
from marketflow_common.events import OrderIntended
from marketflow_common.signing import hmac_sha256
from marketflow_executor.books import Fill
from marketflow_executor.exchange import BinanceRest, KeyRefused, Unavailable
from marketflow_executor.orders import NotCancelled, NotThere, Refused, Report, Throttled, TooLate, Unknown, Update
from marketflow_executor.rest import Rest
from pydantic import SecretStr

SECRET = "NhqPtmdSJYdKjVHjA7PZj4Mge3R5YNiP1e3UZjInClVN65XAbvqqM6A7H5fATj0j"
Handler = Callable[[httpx.Request], httpx.Response]
PLACED = {
    "symbol": "BTCUSDT",
    "orderId": 28,
    "clientOrderId": "mf-s-1",
    "transactTime": 1507725176595,
    "origQty": "10.00000000",
    "executedQty": "10.00000000",
    "cummulativeQuoteQty": "39989.50000000",
    "status": "FILLED",
    "fills": [
        {"price": "4000", "qty": "1", "commission": "4.0", "commissionAsset": "USDT", "tradeId": 56},
        {"price": "3999", "qty": "5", "commission": "19.995", "commissionAsset": "USDT", "tradeId": 57},
        {"price": "3998.625", "qty": "4", "commission": "7.99600000", "commissionAsset": "USDT", "tradeId": 58},
    ],
}


def intent(**changes: Any) -> OrderIntended:
    values: dict[str, Any] = {
        "symbol": "BTCUSDT",
        "side": "SELL",
        "qty": Decimal("10.00000000"),
        "timestamp_ms": 1507725176000,
        "signal_close": Decimal(4000),
    }
    return intended(**(values | changes))


def error(status: int, code: int, message: str = "no", headers: dict[str, str] | None = None) -> httpx.Response:
    return httpx.Response(status, json={"code": code, "msg": message}, headers=headers)


def rest(
    order: Handler, now_ms: int = 1507725176100, *, strategy_id: bool = False, **others: Handler
) -> tuple[BinanceRest, list[httpx.Request]]:
    """An exchange whose POST /order is ``order``; others by "METHOD_path"."""
    requests: list[httpx.Request] = []

    def answer(request: httpx.Request) -> httpx.Response:
        requests.append(request)
        name = f"{request.method}_{request.url.path.rpartition('/')[2]}"
        if name == "GET_time":
            return httpx.Response(200, json={"serverTime": now_ms})
        if name in ("GET_openOrders", "GET_allOrders", "GET_myTrades") and name not in others:
            return httpx.Response(200, json=[])
        return (order if name == "POST_order" else others[name])(request)

    sign = hmac_sha256(SecretStr(SECRET))
    transport = httpx.MockTransport(answer)
    sent = Rest("http://exchange", SecretStr("the-key"), sign, 3.0, 5000, transport)
    return BinanceRest(sent, strategy_id=strategy_id), requests


def test_the_signature_is_that_of_the_documentations_example() -> None:
    # Binance, "SIGNED Endpoint Examples for POST /api/v3/order", example 1.
    query = (
        "symbol=LTCBTC&side=BUY&type=LIMIT&timeInForce=GTC&quantity=1&price=0.1&recvWindow=5000&timestamp=1499827319559"
    )
    expected = "c8db56825ae71d6d79447849e617115f4a920fa2acdcab2b053c4b2838bd6b71"
    edge, requests = rest(lambda _: httpx.Response(200, json={}))
    edge._rest.send("POST", "/api/v3/order", dict(parse_qsl(query)), signed=True)
    assert requests[0].url.query.decode() == f"{query}&signature={expected}"
    assert requests[0].headers["X-MBX-APIKEY"] == "the-key"


def test_an_order_goes_out_exactly_as_it_was_intended() -> None:
    edge, requests = rest(lambda _: httpx.Response(200, json=PLACED))
    edge.place(intent())
    sent = dict(parse_qsl(requests[0].url.query.decode()))
    signature = sent.pop("signature")
    assert sent == {
        "symbol": "BTCUSDT",
        "side": "SELL",
        "type": "MARKET",
        "quantity": "10.00000000",
        "newClientOrderId": "mf-s-1",
        "newOrderRespType": "FULL",
        "recvWindow": "5000",
        "timestamp": "1507725176000",
    }
    unsigned = requests[0].url.query.decode().rpartition("&signature=")[0]
    assert signature == hmac.new(SECRET.encode(), unsigned.encode(), hashlib.sha256).hexdigest()


def test_a_full_answer_is_a_report_with_its_fills() -> None:
    edge, requests = rest(lambda _: httpx.Response(200, json=PLACED))
    report = edge.place(intent())
    assert isinstance(report, Report)
    assert (report.exchange_order_id, report.status, report.executed_qty) == (28, "FILLED", Decimal(10))
    assert report.fills[0] == Fill(
        56, Decimal(4000), Decimal(1), Decimal(4000), Decimal("4.0"), "USDT", 1507725176595000
    )
    assert len(requests) == 1


def test_fills_that_do_not_add_up_are_asked_for() -> None:
    trade = {
        "id": 56,
        "orderId": 28,
        "price": "4000",
        "qty": "10",
        "quoteQty": "39989.50000000",
        "commission": "1",
        "commissionAsset": "BNB",
        "time": 1507725176600,
    }
    placed = PLACED | {"fills": PLACED["fills"][:1]}  # type: ignore[index]
    edge, requests = rest(
        lambda _: httpx.Response(200, json=placed), GET_myTrades=lambda _: httpx.Response(200, json=[trade])
    )
    report = edge.place(intent())
    assert isinstance(report, Report)
    assert [fill.quote_qty for fill in report.fills] == [Decimal("39989.50000000")]
    assert dict(parse_qsl(requests[-1].url.query.decode()))["orderId"] == "28"


def boom(request: httpx.Request) -> httpx.Response:
    raise httpx.ReadTimeout("slow", request=request)


@pytest.mark.parametrize(
    "answer",
    [
        boom,
        lambda _: error(500, -1000),
        lambda _: error(503, -1008),
        lambda _: error(503, -2010, "looks definite"),
        lambda _: error(400, -1006),
        lambda _: error(400, -1007),
        lambda _: httpx.Response(502, text="<html>bad gateway</html>"),
        lambda _: httpx.Response(403, text="<html>firewall</html>"),
        lambda _: httpx.Response(200, text="half an ans"),
        lambda _: httpx.Response(200, json=PLACED | {"status": "A_NEW_ONE"}),
        lambda _: httpx.Response(200, json=PLACED | {"executedQty": "NaN"}),
    ],
)
def test_an_answer_that_says_nothing_leaves_the_order_unknown(answer: Handler) -> None:
    edge, _ = rest(answer)
    assert isinstance(edge.place(intent()), Unknown)


def test_a_refusal_by_code_is_definite() -> None:
    edge, _ = rest(lambda _: error(400, -1013, "Filter failure: LOT_SIZE"))
    assert edge.place(intent()) == Refused(-1013, "Filter failure: LOT_SIZE")


def test_a_refusal_that_may_mean_a_duplicate_is_checked() -> None:
    there, _ = rest(
        lambda _: error(400, -2010, "Duplicate order sent."), GET_order=lambda _: httpx.Response(200, json=PLACED)
    )
    assert isinstance(there.place(intent()), Report)
    not_there, _ = rest(
        lambda _: error(400, -2010, "Account has insufficient balance"), GET_order=lambda _: error(400, -2013)
    )
    assert not_there.place(intent()) == Refused(-2010, "Account has insufficient balance")
    unclear, _ = rest(lambda _: error(400, -2010), GET_order=boom)
    assert isinstance(unclear.place(intent()), Unknown)


def test_an_order_called_a_duplicate_but_not_found_yet_is_not_taken_for_refused() -> None:
    edge, _ = rest(lambda _: error(400, -2010, "Duplicate order sent."), GET_order=lambda _: error(400, -2013))
    assert isinstance(edge.place(intent()), NotThere)


def test_a_request_outside_of_its_window_was_not_accepted_and_the_clock_is_measured_again() -> None:
    edge, requests = rest(lambda _: error(400, -1021))
    assert isinstance(edge.place(intent()), TooLate)
    assert requests[-1].url.path == "/api/v3/time"


@pytest.mark.parametrize("status", [429, 418])
def test_throttling_stops_all_requests_for_as_long_as_the_exchange_says(status: int) -> None:
    edge, requests = rest(lambda _: error(status, -1003, headers={"Retry-After": "7"}))
    assert edge.place(intent()) == Throttled(7.0)
    assert 6 < edge.paused_s() <= 7
    again = edge.place(intent())
    assert isinstance(again, Throttled)
    assert len(requests) == 1


def test_throttled_questions_after_an_order_do_not_read_as_if_the_order_could_be_sent_again() -> None:
    placed = PLACED | {"fills": []}
    edge, _ = rest(lambda _: httpx.Response(200, json=placed), GET_myTrades=lambda _: error(429, -1003))
    assert isinstance(edge.place(intent()), Unknown)
    edge, _ = rest(lambda _: error(400, -2010), GET_order=lambda _: error(418, -1003))
    assert isinstance(edge.place(intent()), Unknown)


def test_not_there_carries_the_exchanges_own_time_once_it_could_prove_something() -> None:
    now = 1507725190000
    edge, requests = rest(boom, now_ms=now, GET_order=lambda _: error(400, -2013))
    answer = edge.ask(intent())
    assert isinstance(answer, NotThere)
    assert now <= answer.exchange_ms < now + 5_000
    paths = [request.url.path for request in requests]
    assert paths[:3] == ["/api/v3/time", "/api/v3/time", "/api/v3/order"]


def test_a_question_with_a_wrong_clock_is_asked_again() -> None:
    answers = [
        error(400, -1021),
        httpx.Response(200, json={"balances": [{"asset": "BTC", "free": "1", "locked": "2"}]}),
    ]
    edge, _ = rest(boom, GET_account=lambda _: answers.pop(0))
    assert edge.balances() == {"BTC": Decimal(3)}


def test_a_refused_key_is_no_reason_to_wait() -> None:
    edge, _ = rest(boom, GET_account=lambda _: error(401, -2015, "Invalid API-key"))
    with pytest.raises(KeyRefused, match="API_KEY"):
        edge.balances()


def test_an_unknown_symbol_is_none_and_no_answer_is_not() -> None:
    edge, _ = rest(boom, GET_exchangeInfo=lambda _: error(400, -1121))
    assert edge.instrument("NOPE") is None
    edge, _ = rest(boom, GET_exchangeInfo=boom)
    with pytest.raises(Unavailable):
        edge.instrument("BTCUSDT")


def test_the_rules_of_many_symbols_are_one_question() -> None:
    names = [f"S{number}USDT" for number in range(40)]

    def info(request: httpx.Request) -> httpx.Response:
        asked = request.url.params.get("symbol")
        rules = [
            {"symbol": name, "status": "TRADING", "baseAsset": name[:-4], "quoteAsset": "USDT", "filters": []}
            for name in names
            if asked in (None, name)
        ]
        return httpx.Response(200, json={"symbols": rules}) if rules else error(400, -1121)

    edge, requests = rest(boom, GET_exchangeInfo=info)
    found = [edge.instrument(name) for name in names]
    assert [one and one.symbol for one in found] == names
    asked = len(requests)
    assert asked == 6
    edge.refresh()
    assert [edge.instrument(name) for name in names] == found
    assert not [request for request in requests[asked:] if request.url.path.endswith("exchangeInfo")]
    assert edge.instrument("NOPE") is None
    assert len({str(edge.instrument("NOPE")) for _ in range(3)}) == 1


def test_the_clock_never_runs_ahead_of_the_exchanges() -> None:
    edge, _ = rest(boom, now_ms=1_000)
    first = edge.now_ms()
    since = time.monotonic()
    assert first >= 1_000
    assert edge.now_ms() <= 1_000 + (time.monotonic() - since) * 1_000 + 50


def test_neither_key_nor_secret_is_shown_when_things_go_wrong(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "marketflow")
    edge, _ = rest(boom, GET_account=boom, GET_order=boom)
    shown = [str(edge.place(intent())), str(edge.ask(intent()))]
    with pytest.raises(Unavailable) as raised:
        edge.balances()
    everything = json.dumps([*shown, str(raised.value), caplog.text, repr(vars(edge))])
    assert SECRET not in everything
    assert "the-key" not in everything


# --- where else an order may be found ----------------------------------------------------------------

LATE = 1507725176000 + 5_001
QUERIED = {key: value for key, value in PLACED.items() if key not in ("fills", "transactTime")} | {
    "time": 1507725176595,
    "executedQty": "0",
    "cummulativeQuoteQty": "0",
    "status": "NEW",
}
TRADE = {
    "id": 56,
    "orderId": 28,
    "price": "4000",
    "qty": "1",
    "quoteQty": "4000",
    "commission": "4",
    "commissionAsset": "USDT",
    "time": 1507725176595,
}


def hidden(request: httpx.Request) -> httpx.Response:
    """The question by client id finds nothing, that by the exchange's own id does."""
    return httpx.Response(200, json=QUERIED) if "orderId" in request.url.params else error(400, -2013)


def given(*rows: dict[str, Any]) -> Handler:
    return lambda _: httpx.Response(200, json=list(rows))


OTHER = QUERIED | {"clientOrderId": "web-1", "orderId": 27}


@pytest.mark.parametrize(
    "lists",
    [
        {"GET_openOrders": given(OTHER, QUERIED)},
        {"GET_allOrders": given(OTHER, QUERIED)},
        {"GET_myTrades": given(TRADE)},
    ],
    ids=["openOrders", "allOrders", "myTrades"],
)
def test_an_order_that_its_question_does_not_find_is_found_in_the_lists(lists: dict[str, Handler]) -> None:
    edge, requests = rest(hidden, LATE, GET_order=hidden, **lists)
    found = edge.ask(intent())
    assert isinstance(found, Report)
    assert (found.exchange_order_id, found.status) == (28, "NEW")
    assert all(r.method == "GET" for r in requests)


def test_only_three_empty_lists_say_that_an_order_is_not_there() -> None:
    edge, requests = rest(hidden, LATE, GET_order=hidden)
    answer = edge.ask(intent())
    assert isinstance(answer, NotThere)
    assert answer.exchange_ms >= LATE
    asked = [r.url.path.rpartition("/")[2] for r in requests if "time" not in r.url.path]
    assert asked == ["order", "openOrders", "allOrders", "myTrades"]


@pytest.mark.parametrize("name", ["GET_openOrders", "GET_allOrders", "GET_myTrades"])
def test_a_list_that_does_not_answer_leaves_the_order_unknown(name: str) -> None:
    edge, _ = rest(hidden, LATE, GET_order=hidden, **{name: lambda _: error(503, -1001)})
    assert isinstance(edge.ask(intent()), Unknown)


def test_inside_of_its_window_no_list_is_asked() -> None:
    edge, requests = rest(hidden, GET_order=hidden)
    assert isinstance(edge.ask(intent()), NotThere)
    assert not any("openOrders" in r.url.path for r in requests)


def test_open_orders_and_fills_are_read_for_the_reconciliation() -> None:
    edge, requests = rest(hidden, GET_openOrders=given(QUERIED | {"side": "SELL"}), GET_myTrades=given(TRADE))
    assert edge.open_orders() == {"mf-s-1": "SELL 10.00000000 BTCUSDT"}
    assert [fill.fill_id for fill in edge.fills_from("BTCUSDT", 50)] == [56]
    assert requests[-1].url.params["fromId"] == "50"
    away, _ = rest(hidden, GET_openOrders=lambda _: error(503, -1001), GET_myTrades=lambda _: error(503, -1001))
    with pytest.raises(Unavailable, match="openOrders"):
        away.open_orders()
    with pytest.raises(Unavailable, match="myTrades"):
        away.fills_from("BTCUSDT", 0)


def test_a_cancellation_is_taken_for_what_it_says_and_a_refused_one_for_unknown() -> None:
    gone = QUERIED | {"origClientOrderId": "mf-s-1", "clientOrderId": "x", "status": "CANCELED"}
    edge, requests = rest(hidden, DELETE_order=lambda _: httpx.Response(200, json=gone))
    assert edge.cancel(intent()) == Update(28, "CANCELED", Decimal(0), None)
    assert requests[-1].url.params["origClientOrderId"] == "mf-s-1"
    edge, _ = rest(hidden, DELETE_order=lambda _: error(400, -2011, "Unknown order sent."))
    assert edge.cancel(intent()) == NotCancelled(-2011, "Unknown order sent.")


@pytest.mark.parametrize("wanted", [True, False])
def test_the_last_trade_of_the_signal_goes_along_where_it_is_wanted(wanted: bool) -> None:
    edge, requests = rest(lambda _: httpx.Response(200, json=PLACED), strategy_id=wanted)
    edge.place(intent(signal_last_trade_id=77))
    sent = dict(parse_qsl(requests[-1].url.query.decode()))
    assert sent.get("strategyId") == ("77" if wanted else None)


def test_what_the_budget_has_no_room_for_is_not_sent_and_orders_come_before_questions() -> None:
    used = iter(["3700", "5990", "6000"])
    edge, requests = rest(
        lambda _: httpx.Response(200, json=PLACED, headers={"X-MBX-USED-WEIGHT-1M": next(used)}),
        GET_order=given(QUERIED),
    )
    edge.refresh()
    assert isinstance(edge.place(intent()), Report)
    with pytest.raises(Unavailable, match=r"account: Throttled"):
        edge.balances()
    assert not isinstance(edge.ask(intent()), Throttled)
    assert isinstance(edge.place(intent()), Report)
    assert isinstance(edge.ask(intent()), Throttled)
    assert isinstance(edge.place(intent()), Report)
    sent = len(requests)
    answer = edge.place(intent())
    assert isinstance(answer, Throttled)
    assert 0 < answer.seconds <= 60
    assert len(requests) == sent
