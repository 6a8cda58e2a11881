"""Binance's messages in the order machine's words: every kind that its documentation has, field by field as documented.

binance/messages.json holds them with values of our own: one order of 3 ETH, its replacement, and an OCO.
"""

from __future__ import annotations

import copy
import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import msgspec
import pytest
from executor_builders import Life, intended
from marketflow_common.codec import schema_of
from marketflow_common.events import OrderCanceled, OrderEvent, OrderExpired, OrderIntended, OrderRejected
from marketflow_executor.messages import (
    ListReport,
    Named,
    Unreadable,
    in_place,
    oco_request,
    order_request,
    read_cancelled,
    read_execution,
    read_list,
    read_list_status,
    read_order,
    read_replaced,
    read_trade,
    replace_request,
)
from marketflow_executor.orders import Answer, NotCancelled, NotTried, Refused, Report, Update

MESSAGES: dict[str, Any] = json.loads((Path(__file__).parent / "binance" / "messages.json").read_text())
T = 1_760_000_000_000
D = Decimal
INTENT = intended(
    order_type="LIMIT", qty=D(3), price=D("2300.5"), time_in_force="GTC", timestamp_ms=T, signal_close=D(2300)
)
READERS = {
    "report_": read_execution,
    "oco_": read_list,
    "list_status": read_list_status,
    "replace": read_replaced,
    "cancelled": read_cancelled,
    "trade": read_trade,
    "": read_order,
}


def read(name: str, **changes: Any) -> Any:
    reader = next(reader for start, reader in READERS.items() if name.startswith(start))
    return reader(copy.deepcopy(MESSAGES[name]) | changes)  # type: ignore[operator]


def folded(*answers: Answer) -> tuple[list[OrderEvent], str]:
    """The events of an order that hears these answers, and the last verdict."""
    life, evidence, verdict = Life(INTENT), None, ""
    for answer in answers:
        learned = life.hear(answer, evidence)
        verdict, evidence = learned.verdict, learned.evidence
    return life.log, verdict


def kinds(log: list[OrderEvent]) -> list[str]:
    return [schema_of(event).removeprefix("order_") for event in log]


def test_every_kind_of_answer_to_an_order_is_read_and_folds() -> None:
    for name, expected, verdict in (
        ("ack", ["accepted"], "open"),
        ("result", ["accepted"], "open"),  # filled, but by what is to be asked
        ("full", ["accepted", "filled", "filled"], "ended"),
        ("expired_ioc", ["accepted", "filled", "expired"], "ended"),
        ("query", ["accepted"], "open"),
    ):
        named = read(name)
        assert named[:2] == ("ETHUSDT", "mf-s-1")
        log, found = folded(named.message)
        assert (name, kinds(log), found) == (name, expected, verdict)
    log, _ = folded(read("expired_ioc").message)
    assert isinstance(log[-1], OrderExpired)
    assert log[-1].reason == "expired at the exchange: UNFILLED_IOC_QUANTITY_EXPIRED"


def test_fills_whose_quote_amounts_do_not_add_up_are_to_be_asked_for() -> None:
    assert isinstance(read("full").message, Report)
    assert isinstance(read("full", cummulativeQuoteQty="10.00000000").message, Update)
    # Not to be had any more, as the documentation says of old orders.
    assert isinstance(read("full", cummulativeQuoteQty="-1.00000000").message, Update)


def test_every_kind_of_execution_report_is_read_and_folds() -> None:
    for name, expected, verdict in (
        ("report_new", ["accepted"], "open"),
        ("report_trade", ["accepted", "filled"], "open"),
        ("report_last_trade", ["accepted"], "open"),  # the first fill is missing
        ("report_cancelled", ["accepted", "canceled"], "ended"),
        ("report_expired", ["accepted", "expired"], "ended"),
        ("report_rejected", ["rejected"], "ended"),
        ("report_prevented", ["accepted", "expired"], "ended"),
    ):
        named = read(name)
        assert named[:2] == ("ETHUSDT", "mf-s-1")
        log, found = folded(named.message)
        assert (name, kinds(log), found) == (name, expected, verdict)
    [rejected] = folded(read("report_rejected").message)[0]
    assert isinstance(rejected, OrderRejected)
    assert rejected.reason == "rejected by the exchange's matching: INSUFFICIENT_BALANCES"


def test_answers_and_reports_of_the_same_order_give_the_same_events() -> None:
    by_stream = folded(*(read(name).message for name in ("report_new", "report_trade", "report_last_trade")))
    backwards = folded(*(read(name).message for name in ("report_last_trade", "report_trade", "report_new")))
    assert by_stream == backwards
    assert kinds(by_stream[0]) == ["accepted", "filled", "filled"]
    fill = by_stream[0][2]
    assert read("trade") == (7, read("report_last_trade").message.fill)
    assert (fill.commission_asset, fill.commission, fill.complete) == ("BNB", D("0.00075"), True)  # type: ignore[union-attr]


def test_a_cancellation_does_not_say_when_the_order_was_made_so_an_unknown_order_is_asked_for() -> None:
    named = read("cancelled")
    assert named == Named("ETHUSDT", "mf-s-1", Update(7, "CANCELED", D(0), None))
    assert kinds(folded(named.message)[0]) == ["unresolved"]
    log, verdict = folded(read("ack").message, named.message)
    assert (kinds(log), verdict) == (["accepted", "canceled"], "ended")
    assert isinstance(log[-1], OrderCanceled)


def test_cancel_replace_says_what_became_of_both_orders() -> None:
    both = read("replaced")
    assert both.cancelled == read("cancelled").message
    assert both.placed == Report(8, "NEW", D(0), (), (T + 8) * 1_000)
    kept = read("replace_not_cancelled")
    assert kept.cancelled == NotCancelled(-2011, "Unknown order sent.")
    assert kept.placed == NotTried("its place was not free: Unknown order sent.")
    assert folded(kept.placed) == ([], "never_arrived")
    lost = read("replace_not_placed")
    assert lost.cancelled == read("cancelled").message
    assert lost.placed == Refused(-2010, "Order would immediately match and take.")
    neither = read("replace_both_failed")
    assert (type(neither.cancelled), type(neither.placed)) == (NotCancelled, Refused)


def test_the_legs_of_an_oco_are_orders_of_their_own() -> None:
    placed = read("oco_placed")
    assert placed[:5] == ("mf-s-1", "ETHUSDT", False, "", ("mf-s-1s", "mf-s-1t"))
    assert [named.order_id for named in placed.reports] == ["mf-s-1s", "mf-s-1t"]
    assert all(named.message.status == "NEW" for named in placed.reports)
    gone = read("oco_cancelled")
    assert gone.done
    assert [(named.order_id, named.message.status) for named in gone.reports] == [
        ("mf-s-1s", "CANCELED"),
        ("mf-s-1t", "CANCELED"),
    ]
    status = read("list_status")
    assert status == ListReport("mf-s-1", "ETHUSDT", False, "", ("mf-s-1s", "mf-s-1t"), ())
    assert read("list_status", r="OCO_BAD_PRICES").rejected == "OCO_BAD_PRICES"


@pytest.mark.parametrize("name", sorted(MESSAGES))
def test_what_cannot_be_read_is_refused_and_named(name: str) -> None:
    reader = next(reader for start, reader in READERS.items() if name.startswith(start))
    for body in (None, [], "text", {}):
        with pytest.raises(Unreadable):
            reader(body)  # type: ignore[operator]
    needed = {
        "ack": "orderId", "result": "executedQty", "full": "cummulativeQuoteQty", "expired_ioc": "status",
        "query": "clientOrderId", "cancelled": "origClientOrderId", "trade": "quoteQty", "list_status": "O",
    }  # fmt: skip
    field = needed.get(name, "z" if name.startswith("report_") else "orders" if name.startswith("oco_") else "")
    if field:
        with pytest.raises(Unreadable, match=field):
            reader({key: value for key, value in MESSAGES[name].items() if key != field})  # type: ignore[operator]


def test_a_value_that_is_none_of_its_kind_is_refused_and_named() -> None:
    for name, field, value in (
        ("full", "executedQty", "NaN"),
        ("full", "executedQty", 3),
        ("full", "status", "HALF_FILLED"),
        ("full", "fills", [{}]),
        ("report_new", "i", "seven"),
        ("report_new", "e", "outboundAccountPosition"),
        ("report_trade", "n", "1e-3"),
        ("list_status", "e", "executionReport"),
        ("replaced", "newOrderResult", "PERHAPS"),
    ):
        with pytest.raises(Unreadable):
            read(name, **{field: value})


# --- requests ----------------------------------------------------------------------------------------


def leg(which: str, **changes: Any) -> OrderIntended:
    return msgspec.structs.replace(INTENT, order_id=f"mf-s-1{which}", side="SELL", list_id="mf-s-1", **changes)


def test_an_order_is_requested_with_the_parameters_of_its_type_and_no_other() -> None:
    signed = {"newOrderRespType": "FULL", "recvWindow": 5_000, "timestamp": T}
    ordered = {"symbol": "ETHUSDT", "side": "BUY", "quantity": "3", "newClientOrderId": "mf-s-1", **signed}
    market = msgspec.structs.replace(INTENT, order_type="MARKET", price=None, time_in_force=None)
    assert order_request(market) == ordered | {"type": "MARKET"}
    assert order_request(INTENT) == ordered | {"type": "LIMIT", "timeInForce": "GTC", "price": "2300.5"}
    maker = msgspec.structs.replace(INTENT, exchange_type="LIMIT_MAKER", time_in_force=None)
    assert order_request(maker) == ordered | {"type": "LIMIT_MAKER", "price": "2300.5"}
    stop = msgspec.structs.replace(INTENT, exchange_type="STOP_LOSS_LIMIT", stop_price=D("2310"))
    assert order_request(stop) == ordered | {
        "type": "STOP_LOSS_LIMIT", "timeInForce": "GTC", "price": "2300.5", "stopPrice": "2310",
    }  # fmt: skip
    assert replace_request(msgspec.structs.replace(INTENT, replaces="mf-r-1")) == order_request(INTENT) | {
        "cancelReplaceMode": "STOP_ON_FAILURE", "cancelOrigClientOrderId": "mf-r-1",
    }  # fmt: skip


def test_an_oco_is_requested_with_its_higher_leg_above() -> None:
    stop = leg("s", exchange_type="STOP_LOSS_LIMIT", price=D(2200), stop_price=D(2210))
    profit = leg("t", exchange_type="LIMIT_MAKER", price=D(2400), time_in_force=None)
    assert in_place([stop, profit]) == in_place([profit, stop]) == (profit, stop)
    assert oco_request(profit, stop) == {
        "symbol": "ETHUSDT",
        "listClientOrderId": "mf-s-1",
        "side": "SELL",
        "quantity": "3",
        "aboveType": "LIMIT_MAKER",
        "aboveClientOrderId": "mf-s-1t",
        "abovePrice": "2400",
        "belowType": "STOP_LOSS_LIMIT",
        "belowClientOrderId": "mf-s-1s",
        "belowTimeInForce": "GTC",
        "belowPrice": "2200",
        "belowStopPrice": "2210",
        "newOrderRespType": "FULL",
        "recvWindow": 5_000,
        "timestamp": T,
    }
    with pytest.raises(ValueError, match="differ in qty"):
        oco_request(profit, msgspec.structs.replace(stop, qty=D(2)))
    with pytest.raises(ValueError, match="no quantity"):
        order_request(msgspec.structs.replace(INTENT, qty=None))
    with pytest.raises(ValueError, match="no price"):
        in_place([stop, msgspec.structs.replace(profit, price=None)])
