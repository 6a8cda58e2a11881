"""Limits from signals: their prices, types and sizes; and the settings that name them."""

from __future__ import annotations

from decimal import Decimal

import pytest
from executor_builders import instrument, limits, signal, view
from hypothesis import given
from hypothesis import strategies as st
from marketflow_common.events import OrderIntended, Side, SignalSkipped
from marketflow_common.settings import InvalidSettings, load
from marketflow_executor.books import Position
from marketflow_executor.decision import decide, sell_all
from marketflow_executor.filters import Draft, Market, Percent, Range
from marketflow_executor.plans import Kind, Terms
from marketflow_executor.settings import ExecutorSettings

D = Decimal
ETH = instrument(prices=Range(D("0.5"), D(100_000), D("0.5")))
HELD = view(position=Position(D(2), D(200)), base=D(2))


def order(side: Side, kind: Kind, offset: str = "0") -> OrderIntended:
    terms = Terms(kind=kind, offset_pct=D(offset))
    made = decide(signal(signal_type=side), 1, HELD, ETH, limits(terms=terms), 1)
    assert isinstance(made, OrderIntended), made
    return made


def test_an_offset_above_zero_is_better_and_below_zero_worse_for_either_side() -> None:
    assert [order(side, "limit", "1").price for side in ("BUY", "SELL")] == [D(99), D(101)]
    assert [order(side, "limit", "-1").price for side in ("BUY", "SELL")] == [D(101), D(99)]


@pytest.mark.parametrize(
    ("kind", "exchange_type", "in_force"),
    [
        ("limit", None, "GTC"),
        ("limit_ioc", None, "IOC"),
        ("limit_fok", None, "FOK"),
        ("limit_maker", "LIMIT_MAKER", None),
    ],
)
def test_each_kind_has_the_exchanges_words(kind: Kind, exchange_type: str | None, in_force: str | None) -> None:
    made = order("BUY", kind)
    assert (made.order_type, made.exchange_type, made.time_in_force) == ("LIMIT", exchange_type, in_force)
    assert made.qty == D(2)
    market = order("BUY", "market")
    assert (market.order_type, market.price, market.time_in_force) == ("MARKET", None, None)


def test_a_flatten_sells_at_the_market_whatever_the_terms_are() -> None:
    made = sell_all(signal(signal_type="SELL"), 1, HELD, ETH, limits(terms=Terms(kind="limit", offset_pct=D(5))), 1)
    assert isinstance(made, OrderIntended)
    assert (made.order_type, made.price) == ("MARKET", None)


def test_a_limit_far_from_the_average_is_not_sent() -> None:
    far = instrument(percents=(Percent("PERCENT_PRICE", (D("0.9"), D("1.1")), (D("0.9"), D("1.1")), 5),))
    assert far.averaged
    assert not instrument().averaged
    seen = view(averages={5: D(150)})
    found = decide(signal(), 1, seen, far, limits(terms=Terms(kind="limit")), 1)
    assert isinstance(found, SignalSkipped)
    assert found.reason == "filter"
    assert found.detail.startswith("PERCENT_PRICE")
    near = decide(signal(), 1, view(averages={5: D(101)}), far, limits(terms=Terms(kind="limit")), 1)
    assert isinstance(near, OrderIntended)


@given(
    side=st.sampled_from(["BUY", "SELL"]),
    kind=st.sampled_from(["market", "limit", "limit_ioc", "limit_fok", "limit_maker"]),
    close=st.decimals(min_value=1, max_value=10_000, places=2),
    offset=st.decimals(min_value=-20, max_value=20, places=1),
)
def test_what_is_decided_passes_all_filters_and_costs_no_more_than_its_size(
    side: Side, kind: Kind, close: Decimal, offset: Decimal
) -> None:
    settings = limits(terms=Terms(kind=kind, offset_pct=offset))
    made = decide(signal(signal_type=side, close=close), 1, HELD, ETH, settings, 1)
    if isinstance(made, SignalSkipped):
        return
    assert made.qty is not None
    price = close if made.price is None else made.price
    assert ETH.refusal(Draft(side, settings.terms.order_type, made.qty, made.price), Market(close, base=D(2))) is None
    assert made.qty * price <= D(200) + ETH.prices.step * made.qty or made.qty == HELD.position.qty


def test_what_paper_does_not_have_is_refused_and_so_is_a_protected_order_without_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in (("ORDER_TYPE", "limit"), ("PROTECT", "stop")):
        monkeypatch.setenv(f"MARKETFLOW_EXECUTOR_{name}", value)
        with pytest.raises(InvalidSettings, match=f"MARKETFLOW_EXECUTOR_{name}: .*mode paper has market orders"):
            load(ExecutorSettings)
        monkeypatch.delenv(f"MARKETFLOW_EXECUTOR_{name}")
    values = {
        "MODE": "testnet",
        "REST_URL": "http://127.0.0.1:1",
        "API_KEY": "k",
        "API_SECRET": "s",
        "ORDER_TYPE": "limit_maker",
        "PROTECT": "oco",
    }
    for name, value in values.items():
        monkeypatch.setenv(f"MARKETFLOW_EXECUTOR_{name}", value)
    with pytest.raises(InvalidSettings, match=r"MARKETFLOW_EXECUTOR_PROTECT: .*set LIMIT_S"):
        load(ExecutorSettings)
    monkeypatch.setenv("MARKETFLOW_EXECUTOR_LIMIT_S", "30")
    terms = load(ExecutorSettings).limits().terms
    assert (terms.kind, terms.protection, terms.limit_ms) == ("limit_maker", "oco", 30_000)
