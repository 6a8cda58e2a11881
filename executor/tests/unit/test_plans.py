"""Stops, targets and prices that follow the market, within what is held and what is allowed."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import msgspec
from executor_builders import instrument, intended
from hypothesis import given
from hypothesis import strategies as st
from marketflow_common.events import OrderIntended, Side
from marketflow_executor.account import Account
from marketflow_executor.filters import Draft, Market, Range, Refusal
from marketflow_executor.messages import in_place, oco_request
from marketflow_executor.orders import Order
from marketflow_executor.plans import chase, protect

D = Decimal
ETH = instrument(
    lot=Range(D("0.01"), D(1_000), D("0.01")),
    prices=Range(D("0.5"), D(100_000), D("0.5")),
    max_orders=3,
    max_algo_orders=1,
    max_position=D(10),
)
ENTRY = intended(order_type="LIMIT", qty=D(2), price=D(100), time_in_force="GTC")
AT_100 = Market(D(100))


def protected(market: Market = AT_100, **changes: Any) -> tuple[OrderIntended, ...] | Refusal:
    values: dict[str, Any] = {"held": D("1.998"), "stop": D("95.2"), "target": D("110.2"), "slip_pct": D(1)}
    return protect(ENTRY, **(values | changes), instrument=ETH, market=market, now_ms=9)


def test_what_was_bought_is_kept_between_a_stop_and_a_target_at_the_exchange() -> None:
    legs = protected()
    assert not isinstance(legs, Refusal)
    stop, target = legs
    assert (stop.order_id, stop.exchange_type, stop.time_in_force) == ("mf-s-1s", "STOP_LOSS_LIMIT", "GTC")
    assert (stop.side, stop.qty, stop.stop_price, stop.price) == ("SELL", D("1.99"), D("95.5"), D("94.5"))
    assert (target.order_id, target.exchange_type, target.time_in_force) == ("mf-s-1t", "LIMIT_MAKER", None)
    assert (target.side, target.qty, target.stop_price, target.price) == ("SELL", D("1.99"), None, D("110.5"))
    assert {leg.list_id for leg in legs} == {"mf-s-1"}
    assert {leg.timestamp_ms for leg in legs} == {9}
    assert in_place(legs) == (target, stop)
    assert oco_request(target, stop)["belowStopPrice"] == "95.50000000"


def test_a_stop_without_a_target_stands_alone() -> None:
    legs = protected(target=None)
    assert not isinstance(legs, Refusal)
    [stop] = legs
    assert (stop.order_id, stop.list_id) == ("mf-s-1s", "")


def test_a_price_on_the_wrong_side_of_the_market_is_refused_and_so_is_what_a_filter_refuses() -> None:
    for changes in (
        {"stop": D(100)},
        {"stop": D("99.9")},
        {"target": D(100)},
        {"market": Market(D(95))},
        {"market": Market(D(120))},
    ):
        found = protected(**changes)
        assert isinstance(found, Refusal)
        assert found.filter == "PRICES"
    for market, name in (
        (Market(D(100), open_orders=2), "MAX_NUM_ORDERS"),
        (Market(D(100), open_algo_orders=1), "MAX_NUM_ALGO_ORDERS"),
    ):
        found = protected(market=market)
        assert isinstance(found, Refusal)
        assert found.filter == name
    assert not isinstance(protected(market=Market(D(100), open_orders=2), target=None), Refusal)
    dust = protected(held=D("0.05"))
    assert isinstance(dust, Refusal)
    assert dust.filter == "NOTIONAL"


def chased(best: str, order: Order | None = None, bound: str = "2", market: Market = AT_100) -> OrderIntended | None:
    return chase(order or Order(ENTRY), D(best), D(bound), ETH, market, 9)


def test_a_resting_order_follows_the_market_within_its_bound_for_what_is_left() -> None:
    next_one = chased("101.3", Order(ENTRY, filled=D("0.5")))
    assert next_one is not None
    assert (next_one.order_id, next_one.attempt, next_one.replaces) == ("mf-s-2", 2, "mf-s-1")
    # A BUY costs no more than the one before it: 1.5 at 100.
    assert (next_one.price, next_one.qty, next_one.timestamp_ms) == (D(101), D("1.48"), 9)
    far = chased("150")
    assert far is not None
    assert far.price == D(102)
    sale = msgspec.structs.replace(ENTRY, side="SELL")
    down = chased("90", Order(sale))
    assert down is not None
    assert (down.side, down.price, down.qty) == ("SELL", D(98), D(2))


def test_an_order_stays_where_it_is_if_nothing_nearer_is_allowed_or_nothing_is_left() -> None:
    assert chased("100.4") is None
    assert chased("99") is None
    assert chased("150", Order(msgspec.structs.replace(ENTRY, price=D(102)))) is None
    assert chased("101", Order(ENTRY, filled=D("1.96"))) is None, "the rest is below the smallest value"
    assert chased("101", Order(ENTRY, ended=True)) is None
    assert chased("101", Order(msgspec.structs.replace(ENTRY, price=None, order_type="MARKET"))) is None


def test_the_order_that_is_replaced_takes_no_room_from_the_one_that_follows() -> None:
    assert chased("101", market=Market(D(100), open_orders=3, base=D(8), open_buys=D(2))) is not None


def test_the_account_knows_what_its_filters_look_at() -> None:
    account = Account("main", {"ETHUSDT": ETH.assets})
    stop = msgspec.structs.replace(ENTRY, order_id="a", side="SELL", exchange_type="STOP_LOSS_LIMIT", stop_price=D(95))
    market = msgspec.structs.replace(ENTRY, order_id="b", order_type="MARKET", price=None)
    for intent in (ENTRY, stop, market, msgspec.structs.replace(ENTRY, order_id="c", symbol="BTCUSDT")):
        account.apply(intent)
    assert account.market("ETHUSDT", D(7)) == Market(D(7), open_orders=2, open_algo_orders=1, base=D(0), open_buys=D(4))


@given(
    side=st.sampled_from(["BUY", "SELL"]),
    price=st.integers(50, 150),
    best=st.decimals(min_value=50, max_value=150, places=2),
    bound=st.decimals(min_value=0, max_value=20, places=1),
    filled=st.decimals(min_value=0, max_value=2, places=2),
)
def test_no_price_is_beyond_the_bound_or_further_than_before_and_no_quantity_more_than_what_is_left(
    side: Side, price: int, best: Decimal, bound: Decimal, filled: Decimal
) -> None:
    intent = msgspec.structs.replace(ENTRY, side=side, price=D(price))
    found = chase(Order(intent, filled=filled), best, bound, ETH, Market(D(100), base=D(5), open_buys=D(2)), 9)
    if found is None:
        return
    assert found.price is not None
    assert found.qty is not None
    assert found.qty <= 2 - filled
    sign = 1 if side == "BUY" else -1
    assert (found.price - price) * sign > 0
    assert (found.price - 100) * sign <= bound
    assert ETH.refusal(Draft(side, "LIMIT", found.qty, found.price), Market(D(100), base=D(5))) is None


@given(
    held=st.decimals(min_value=0, max_value=2_000, places=4),
    stop=st.decimals(min_value="0.01", max_value=120, places=2),
    target=st.none() | st.decimals(min_value=80, max_value=200, places=2),
    slip=st.decimals(min_value=0, max_value=50, places=1),
)
def test_a_plan_sells_no_more_than_is_held_and_passes_all_filters(
    held: Decimal, stop: Decimal, target: Decimal | None, slip: Decimal
) -> None:
    legs = protect(ENTRY, held, stop, target, slip, ETH, AT_100, 9)
    if isinstance(legs, Refusal):
        assert legs.detail
        return
    assert len(legs) == (1 if target is None else 2)
    assert len({leg.qty for leg in legs}) == 1
    for leg in legs:
        assert leg.qty is not None
        assert leg.qty <= held
        assert leg.price is not None
        assert leg.price > 100 if leg.stop_price is None else leg.price <= leg.stop_price < 100
        assert leg.exchange_type is not None
        draft = Draft("SELL", leg.exchange_type, leg.qty, leg.price, leg.stop_price)
        assert ETH.refusal(draft, AT_100) is None
