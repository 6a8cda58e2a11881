"""The executor's check of an order and the simulator's own, which share no code, say the same of the same order."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from marketflow_common.events import OrderType, Side
from marketflow_executor.filters import ALGO, Draft, Market, Refusal, read_instrument
from marketflow_simulator.errors import ApiError
from marketflow_simulator.filters import Around, Filters
from marketflow_simulator.records import Order, OrderRequest

UNIT = 10**6
"""Amounts are whole hundredths, so that filters are met as often as not."""


def text(hundredths: int) -> str:
    return f"{hundredths // 100}.{hundredths % 100:02d}000000"


_any = st.integers(0, 400)
_step = st.sampled_from([0, 1, 2, 3, 5, 10])
_minutes = st.sampled_from([0, 1, 5])
_low, _high = st.integers(0, 60), st.sampled_from([0, 150, 250, 400])


@st.composite
def _filters(draw: st.DrawFn) -> list[dict[str, Any]]:
    """Some of the filters of exchangeInfo, in any order."""
    amount = st.builds(text, _any)

    def three(names: tuple[str, str, str]) -> dict[str, str]:
        return dict(zip(names, (text(draw(kind)) for kind in (_low, _high, _step)), strict=True))

    def factors(*names: str) -> dict[str, str]:
        low, high = st.sampled_from(["0", "0.5", "0.9"]), st.sampled_from(["1", "1.25", "3"])
        return {name: draw(high if name.endswith("Up") else low) for name in names}

    found: dict[str, dict[str, Any]] = {
        "PRICE_FILTER": three(("minPrice", "maxPrice", "tickSize")),
        "LOT_SIZE": three(("minQty", "maxQty", "stepSize")),
        "MARKET_LOT_SIZE": three(("minQty", "maxQty", "stepSize")),
        "PERCENT_PRICE": factors("multiplierUp", "multiplierDown") | {"avgPriceMins": draw(_minutes)},
        "PERCENT_PRICE_BY_SIDE": factors("bidMultiplierUp", "bidMultiplierDown", "askMultiplierUp", "askMultiplierDown")
        | {"avgPriceMins": draw(_minutes)},
        "MIN_NOTIONAL": {
            "minNotional": draw(amount),
            "applyToMarket": draw(st.booleans()),
            "avgPriceMins": draw(_minutes),
        },
        "NOTIONAL": {
            "minNotional": draw(amount),
            "applyMinToMarket": draw(st.booleans()),
            "maxNotional": text(draw(st.sampled_from([0, 300, 900, 90_000]))),
            "applyMaxToMarket": draw(st.booleans()),
            "avgPriceMins": draw(_minutes),
        },
        "MAX_NUM_ORDERS": {"maxNumOrders": draw(st.integers(0, 4))},
        "MAX_NUM_ALGO_ORDERS": {"maxNumAlgoOrders": draw(st.integers(0, 3))},
        "MAX_POSITION": {"maxPosition": text(draw(st.integers(0, 1_000)))},
    }
    names = draw(st.lists(st.sampled_from(sorted(found)), max_size=5, unique=True))
    return [{"filterType": name, **found[name]} for name in names]


def resting(number: int, side: Side, order_type: OrderType, hundredths: int) -> Order:
    return Order(
        number, f"r{number}", "ETHUSDT", side, order_type, "GTC", UNIT, hundredths * UNIT, 0, "NEW", 0, 0, 0
    )  # fmt: skip


_types = st.sampled_from(["MARKET", "LIMIT", "LIMIT_MAKER", "STOP_LOSS_LIMIT", "TAKE_PROFIT_LIMIT"])
_sides = st.sampled_from(["BUY", "SELL"])


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow], max_examples=600)
@given(
    entries=_filters(),
    side=_sides,
    order_type=_types,
    amounts=st.tuples(*[st.integers(1, 420)] * 3),
    last=st.integers(1, 300),
    averages=st.tuples(*[st.integers(1, 300)] * 2),
    others=st.lists(st.tuples(_sides, st.sampled_from(["LIMIT", "STOP_LOSS_LIMIT"]), st.integers(1, 200)), max_size=3),
    held=st.integers(0, 500),
    fitted=st.booleans(),
)
def test_an_order_passes_our_check_if_and_only_if_it_passes_the_simulators(
    entries: list[dict[str, Any]],
    side: Side,
    order_type: OrderType,
    amounts: tuple[int, int, int],
    last: int,
    averages: tuple[int, int],
    others: list[tuple[Side, OrderType, int]],
    held: int,
    fitted: bool,
) -> None:
    instrument = read_instrument(
        {
            "symbol": "ETHUSDT",
            "status": "TRADING",
            "baseAsset": "ETH",
            "baseAssetPrecision": 8,
            "quoteAsset": "USDT",
            "quoteAssetPrecision": 8,
            "filters": entries,
        }
    )
    by_minutes = {0: last, 1: averages[0], 5: averages[1]}
    market = Market(
        Decimal(text(last)),
        {minutes: Decimal(text(price)) for minutes, price in by_minutes.items() if minutes},
        open_orders=len(others),
        open_algo_orders=sum(kind in ALGO for _, kind, _ in others),
        base=Decimal(text(held)),
        open_buys=Decimal(text(sum(qty for whose, _, qty in others if whose == "BUY"))),
    )
    draft = Draft(
        side,
        order_type,
        Decimal(text(amounts[0])),
        Decimal(text(amounts[1])) if order_type != "MARKET" else None,
        Decimal(text(amounts[2])) if order_type in ALGO else None,
    )
    if fitted:
        found = instrument.fit(draft, market)
        if isinstance(found, Refusal):
            return
        draft = found
    qty, price, stop = (int((value or Decimal(0)).scaleb(8)) for value in (draft.qty, draft.price, draft.stop_price))
    request = OrderRequest("ETHUSDT", side, order_type, "GTC", price, qty, 0, "x", stop)
    around = Around(
        last * UNIT,
        lambda minutes: by_minutes[minutes] * UNIT,
        [resting(number, *other) for number, other in enumerate(others)],
        held * UNIT,
    )

    def theirs(some: list[dict[str, Any]]) -> bool:
        try:
            Filters(some).check(request, around, [order_type])
        except ApiError:
            return False
        return True

    ours = instrument.refusal(draft, market)
    assert (ours is None) == theirs(entries)
    if ours is not None:
        # The one that we name refuses it alone.
        assert not theirs([entry for entry in entries if entry["filterType"] == ours.filter])
    assert not fitted or ours is None
