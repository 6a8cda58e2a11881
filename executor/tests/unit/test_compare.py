"""A difference is one only if no order that rests explains it."""

from __future__ import annotations

from collections.abc import Callable
from decimal import Decimal
from types import SimpleNamespace
from typing import Any

import pytest
from executor_builders import ASSETS, OPENED, intended
from marketflow_common.events import OrderAccepted
from marketflow_executor.account import Account
from marketflow_executor.compare import difference, rests
from marketflow_executor.desk import Pending
from marketflow_executor.orders import Evidence, Unknown, Verdict

D = Decimal
USDT = {"USDT": D(1_000)}


def desk(
    balances: list[dict[str, Decimal]], learns: Callable[[Any], None] = lambda desk: None, verdict: Verdict = "open"
) -> Any:
    """An account with one order that rests, an exchange that has these balances one after the other."""
    account = Account("main", dict(ASSETS))
    account.apply(OPENED)
    order = intended(order_type="LIMIT", price=D(90), time_in_force="GTC")
    account.apply(order)
    account.apply(OrderAccepted("main", order.order_id, order.signal_id, "ETHUSDT", 7, 1))
    there = SimpleNamespace(
        balances=lambda: balances.pop(0),
        open_orders=lambda: {order.order_id: "BUY"},
        fills_from=lambda symbol, trade_id: [],
        ask=lambda intent: Unknown("asked"),
        now_ms=lambda: account.open[order.order_id].deadline_ms,
    )
    pending = {order.order_id: Pending(known=True)}
    made = SimpleNamespace(account=account, exchange=there, pending=pending, margin_ms=1_000, asked=0)

    def learn(intent: Any, answer: Any) -> Verdict:
        made.asked += 1
        learns(made)
        return verdict

    made.learn = learn
    return made


def test_what_agrees_is_not_asked_for() -> None:
    one = desk([USDT])
    assert difference(one) == ""
    assert one.asked == 0


def test_what_no_order_explains_is_a_difference() -> None:
    one = desk([{"USDT": D(900)}, {"USDT": D(900)}])
    assert (difference(one) or "").startswith("USDT: the exchange has 900, the books have 1000")
    assert one.asked == 1


def test_an_order_that_the_exchange_does_not_know_any_more_is_a_difference() -> None:
    one = desk([USDT, USDT])
    one.exchange.open_orders = dict
    assert (difference(one) or "").endswith("rests by the books, and is not open at the exchange")
    assert one.asked == 1


def test_what_an_order_explains_or_what_changes_meanwhile_is_looked_at_again() -> None:
    def fills(here: Any) -> None:
        here.account.books = here.account.books.opened({"USDT": D(900), "ETH": D(1)})

    assert difference(desk([{"USDT": D(900)}], fills)) is None

    def half(here: Any) -> None:
        here.pending["mf-s-1"].evidence = Evidence(executed=D(1))

    assert difference(desk([{"USDT": D(900)}], half)) is None
    assert difference(desk([{"USDT": D(900)}, {"USDT": D(800)}])) is None


def test_while_a_young_order_cannot_be_asked_for_nothing_is_a_difference_yet() -> None:
    one = desk([USDT, USDT], verdict="unknown")
    one.exchange.open_orders = dict
    assert difference(one) is None
    assert difference(desk([{"USDT": D(900)}], verdict="throttled")) is None


@pytest.mark.parametrize("verdict", ["unknown", "throttled"])
def test_an_older_order_that_cannot_be_asked_for_does_not_keep_a_difference_from_halting(verdict: Verdict) -> None:
    one = desk([{"USDT": D(900)}, {"USDT": D(900)}], verdict=verdict)
    [order] = one.account.open.values()
    one.exchange.now_ms = lambda: order.deadline_ms + one.margin_ms + 1
    assert (difference(one) or "").startswith("USDT: the exchange has 900, the books have 1000")


def test_an_order_rests_only_if_nothing_about_it_is_under_way() -> None:
    one = desk([])
    [pending] = one.pending.values()
    assert rests(one, "mf-s-1")
    for name, value in (("known", False), ("lost", "gone"), ("evidence", Evidence(end=("CANCELED", D(0), "")))):
        before = getattr(pending, name)
        setattr(pending, name, value)
        assert not rests(one, "mf-s-1")
        setattr(pending, name, before)
