"""The exchange's trading rules in exact Decimal, against an independent check in whole numbers."""

from __future__ import annotations

from decimal import Decimal, localcontext
from typing import Any

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from marketflow_common.events import OrderType, Side
from marketflow_common.numbers import EXACT, NotANumber
from marketflow_executor.books import Assets
from marketflow_executor.filters import (
    Draft,
    Instrument,
    Market,
    Notional,
    Percent,
    Range,
    Refusal,
    default_instrument,
    read_instrument,
)


def info(**changes: dict[str, Any]) -> dict[str, Any]:
    """The symbol's entry as Binance's documentation of exchangeInfo and its filters prints it."""
    filters: dict[str, dict[str, Any]] = {
        "PRICE_FILTER": {"minPrice": "0.00000100", "maxPrice": "100000.00000000", "tickSize": "0.00000100"},
        "LOT_SIZE": {"minQty": "0.00100000", "maxQty": "100000.00000000", "stepSize": "0.00100000"},
        "MARKET_LOT_SIZE": {"minQty": "0.00000000", "maxQty": "3054.17250000", "stepSize": "0.00000000"},
        "NOTIONAL": {
            "minNotional": "10.00000000",
            "applyMinToMarket": False,
            "maxNotional": "10000.00000000",
            "applyMaxToMarket": False,
            "avgPriceMins": 5,
        },
        "MIN_NOTIONAL": {"minNotional": "0.00100000", "applyToMarket": True, "avgPriceMins": 5},
        "PERCENT_PRICE": {"multiplierUp": "1.3000", "multiplierDown": "0.7000", "avgPriceMins": 5},
        "PERCENT_PRICE_BY_SIDE": {
            "bidMultiplierUp": "1.2",
            "bidMultiplierDown": "0.2",
            "askMultiplierUp": "5",
            "askMultiplierDown": "0.8",
            "avgPriceMins": 1,
        },
        "MAX_NUM_ORDERS": {"maxNumOrders": 25},
        "MAX_NUM_ALGO_ORDERS": {"maxNumAlgoOrders": 5},
        "MAX_POSITION": {"maxPosition": "10.00000000"},
    }
    for name, values in changes.items():
        filters[name] = filters[name] | values
    return {
        "symbol": "ETHBTC",
        "status": "TRADING",
        "baseAsset": "ETH",
        "baseAssetPrecision": 8,
        "quoteAsset": "BTC",
        "filters": [{"filterType": name, **values} for name, values in filters.items()],
    }


D = Decimal
PLAIN = Instrument(
    symbol="ETHUSDT",
    assets=Assets("ETH", "USDT"),
    trading=True,
    lot=Range(D("0.01"), D(100), D("0.01")),
    market_lot=Range(D(0), D(50), D(0)),
    prices=Range(D("0.5"), D(10_000), D("0.5")),
    notionals=(Notional("NOTIONAL", D(5), D(1_000), minutes=5),),
    percents=(Percent("PERCENT_PRICE_BY_SIDE", (D("0.2"), D("1.2")), (D("0.8"), D(5)), 1),),
    max_orders=3,
    max_algo_orders=2,
    max_position=D(20),
)
AT_100 = Market(last=D(100))


def refused(draft: Draft, market: Market = AT_100, instrument: Instrument = PLAIN) -> str | None:
    found = instrument.refusal(draft, market)
    if found is None:
        return None
    assert found.detail
    return found.filter


def limit(side: Side, qty: str, price: str, order_type: OrderType = "LIMIT", stop: str | None = None) -> Draft:
    return Draft(side, order_type, D(qty), D(price), None if stop is None else D(stop))


def test_the_documented_filters_are_read() -> None:
    instrument = read_instrument(info())
    assert instrument.assets == ("ETH", "BTC")
    assert instrument.step() == instrument.step("LIMIT") == D("0.001")
    assert instrument.market_lot == Range(D(0), D("3054.1725"), D(0))
    assert instrument.prices == Range(D("0.000001"), D(100_000), D("0.000001"))
    assert [(n.name, n.bounds("MARKET"), n.bounds("LIMIT")) for n in instrument.notionals] == [
        ("MIN_NOTIONAL", (D("0.001"), 0), (D("0.001"), 0)),
        ("NOTIONAL", (0, 0), (D(10), D(10_000))),
    ]
    assert [(p.name, p.buy, p.sell, p.minutes) for p in instrument.percents] == [
        ("PERCENT_PRICE", (D("0.7"), D("1.3")), (D("0.7"), D("1.3")), 5),
        ("PERCENT_PRICE_BY_SIDE", (D("0.2"), D("1.2")), (D("0.8"), D(5)), 1),
    ]
    assert (instrument.max_orders, instrument.max_algo_orders, instrument.max_position) == (25, 5, D(10))


def test_a_step_of_zero_asks_for_nothing_and_two_steps_ask_for_both() -> None:
    nothing = {"stepSize": "0.00000000"}
    assert read_instrument(info(LOT_SIZE=nothing)).step() == D("0.00000001")
    both = read_instrument(info(LOT_SIZE={"stepSize": "0.00400000"}, MARKET_LOT_SIZE={"stepSize": "0.00600000"}))
    assert (both.step(), both.step("LIMIT")) == (D("0.012"), D("0.004"))


def test_a_filter_that_is_no_number_is_refused() -> None:
    with pytest.raises(NotANumber):
        read_instrument(info(LOT_SIZE={"stepSize": "NaN"}))


def test_without_an_exchange_a_symbol_is_split_at_its_quote() -> None:
    instrument = default_instrument("ETHUSDT")
    assert instrument is not None
    assert instrument.assets == ("ETH", "USDT")
    assert default_instrument("USDT") is None
    assert default_instrument("WHATEVER") is None


@pytest.mark.parametrize(
    ("draft", "name"),
    [
        (limit("BUY", "1", "100"), None),
        (limit("BUY", "1", "100.2"), "PRICE_FILTER"),
        (limit("BUY", "1", "0"), "PRICE_FILTER"),
        (limit("BUY", "1", "10000.5"), "PRICE_FILTER"),
        (limit("SELL", "1", "100", "STOP_LOSS_LIMIT", "99.9"), "PRICE_FILTER"),
        (limit("BUY", "0.005", "100"), "LOT_SIZE"),
        (limit("BUY", "0", "100"), "LOT_SIZE"),
        (limit("BUY", "1.005", "100"), "LOT_SIZE"),
        (limit("BUY", "100.01", "1"), "LOT_SIZE"),
        (limit("SELL", "60", "10"), "PERCENT_PRICE_BY_SIDE"),
        (limit("SELL", "10", "80"), None),
        (limit("BUY", "10", "120"), "NOTIONAL"),
        (limit("BUY", "8", "120.5"), "PERCENT_PRICE_BY_SIDE"),
        (limit("BUY", "8", "120"), None),
        (limit("BUY", "8", "19.5"), "PERCENT_PRICE_BY_SIDE"),
        (limit("BUY", "0.04", "100"), "NOTIONAL"),
        (limit("BUY", "21", "40"), "MAX_POSITION"),
        (Draft("BUY", "MARKET", D("0.05")), None),
        (Draft("BUY", "MARKET", D("0.04")), "NOTIONAL"),
        (Draft("SELL", "MARKET", D("50.01")), "MARKET_LOT_SIZE"),
        (Draft("SELL", "MARKET", D(50)), None),
    ],
)
def test_the_filter_that_refuses_is_named(draft: Draft, name: str | None) -> None:
    assert refused(draft) == name


def test_what_rests_at_the_exchange_is_counted_and_a_market_order_does_not_rest() -> None:
    full = Market(D(100), open_orders=3, open_algo_orders=2)
    assert refused(limit("BUY", "1", "100"), full) == "MAX_NUM_ORDERS"
    assert refused(Draft("BUY", "MARKET", D(1)), full) is None
    algo = Market(D(100), open_orders=2, open_algo_orders=2)
    assert refused(limit("BUY", "1", "100"), algo) is None
    assert refused(limit("SELL", "1", "99", "STOP_LOSS_LIMIT", "99"), algo) == "MAX_NUM_ALGO_ORDERS"


def test_what_is_held_and_what_open_buys_bring_counts_for_the_position_and_sales_pass() -> None:
    held = Market(D(100), base=D(15), open_buys=D(4))
    assert refused(limit("BUY", "1", "100"), held) is None
    assert refused(limit("BUY", "1.01", "100"), held) == "MAX_POSITION"
    assert refused(limit("SELL", "1.01", "100"), held) is None


def test_a_market_order_is_worth_the_average_of_its_filters_minutes_and_the_last_price_without_one() -> None:
    order = Draft("BUY", "MARKET", D("0.05"))
    assert refused(order, Market(D(100), {5: D(99)})) == "NOTIONAL"
    assert refused(order, Market(D(99), {5: D(100)})) is None
    assert refused(order, Market(D(99), {1: D(100)})) == "NOTIONAL"
    by_last = msgspec.structs.replace(PLAIN, notionals=(Notional("NOTIONAL", D(5)),))
    assert refused(order, Market(D(99), {0: D(100)}), by_last) == "NOTIONAL"


def test_an_order_is_rounded_to_what_passes_for_the_better_of_the_account() -> None:
    assert PLAIN.fit(limit("BUY", "1.239", "100.3"), AT_100) == limit("BUY", "1.23", "100.0")
    assert PLAIN.fit(limit("SELL", "1.239", "100.3"), AT_100) == limit("SELL", "1.23", "100.5")
    stop = limit("SELL", "1", "98.2", "STOP_LOSS_LIMIT", "98.7")
    assert PLAIN.fit(stop, AT_100) == limit("SELL", "1.00", "98.5", "STOP_LOSS_LIMIT", "99.0")
    assert PLAIN.fit(limit("BUY", "90", "100"), AT_100) == limit("BUY", "10.00", "100.0")
    assert PLAIN.fit(limit("BUY", "9", "0.7"), Market(D("0.6"))) == Refusal(
        "NOTIONAL", "4.500 is below the smallest value 5"
    )
    # Down would be too far from the average; up is what remains.
    near = Market(D("100.1"))
    percents = (Percent("PERCENT_PRICE", (D(1), D(2)), (D(1), D(2)), 0),)
    upward = msgspec.structs.replace(PLAIN, percents=percents)
    assert upward.fit(limit("BUY", "1", "100.3"), near) == limit("BUY", "1.00", "100.5")


_units = st.integers(min_value=1, max_value=10**9)


def whole(units: int) -> Decimal:
    """So many hundred-millionths."""
    return D(units).scaleb(-8)


@given(
    lot=st.tuples(st.integers(0, 10**6), st.integers(0, 10**9), st.integers(0, 10**6)),
    market_lot=st.tuples(st.integers(0, 10**6), st.integers(0, 10**9), st.integers(0, 10**6)),
    prices=st.tuples(st.integers(0, 10**6), st.integers(0, 10**9), st.integers(0, 10**4)),
    bounds=st.tuples(st.integers(0, 10**12), st.integers(0, 10**14)),
    to_market=st.tuples(st.booleans(), st.booleans()),
    factors=st.tuples(*[st.integers(1, 60) for _ in range(4)]),
    counts=st.tuples(st.integers(0, 2), st.integers(0, 2), st.integers(0, 2), st.integers(0, 2)),
    position=st.tuples(st.integers(0, 10**10), st.integers(0, 10**10), st.integers(0, 10**9)),
    average=_units,
    last=_units,
    side=st.sampled_from(["BUY", "SELL"]),
    order_type=st.sampled_from(["MARKET", "LIMIT", "LIMIT_MAKER", "STOP_LOSS_LIMIT", "TAKE_PROFIT_LIMIT"]),
    asked=st.tuples(st.integers(0, 10**10), _units, _units),
    fitted=st.booleans(),
)
def test_an_order_passes_if_and_only_if_an_independent_check_in_whole_numbers_lets_it(
    lot: tuple[int, int, int],
    market_lot: tuple[int, int, int],
    prices: tuple[int, int, int],
    bounds: tuple[int, int],
    to_market: tuple[bool, bool],
    factors: tuple[int, int, int, int],
    counts: tuple[int, int, int, int],
    position: tuple[int, int, int],
    average: int,
    last: int,
    side: Side,
    order_type: OrderType,
    asked: tuple[int, int, int],
    fitted: bool,
) -> None:
    def text(units: int) -> str:
        return f"{units // 10**8}.{units % 10**8:08d}"

    def three(names: tuple[str, str, str], values: tuple[int, int, int]) -> dict[str, str]:
        return dict(zip(names, map(text, values), strict=True))

    sizes = ("minQty", "maxQty", "stepSize")
    bid_down, bid_up, ask_down, ask_up = factors
    entry = info(
        PRICE_FILTER=three(("minPrice", "maxPrice", "tickSize"), prices),
        LOT_SIZE=three(sizes, lot),
        MARKET_LOT_SIZE=three(sizes, market_lot),
        NOTIONAL={
            "minNotional": text(bounds[0]),
            "applyMinToMarket": to_market[0],
            "maxNotional": text(bounds[1]),
            "applyMaxToMarket": to_market[1],
        },
        MIN_NOTIONAL={"minNotional": "0.00000000"},
        PERCENT_PRICE={"multiplierUp": "1000", "multiplierDown": "0"},
        PERCENT_PRICE_BY_SIDE={
            "bidMultiplierDown": f"{bid_down / 10:.1f}",
            "bidMultiplierUp": f"{bid_up / 10:.1f}",
            "askMultiplierDown": f"{ask_down / 10:.1f}",
            "askMultiplierUp": f"{ask_up / 10:.1f}",
        },
        MAX_NUM_ORDERS={"maxNumOrders": counts[0]},
        MAX_NUM_ALGO_ORDERS={"maxNumAlgoOrders": counts[1]},
        MAX_POSITION={"maxPosition": text(position[0])},
    )
    instrument = read_instrument(entry)
    market = Market(
        whole(last),
        {5: whole(average), 1: whole(average)},
        open_orders=counts[2],
        open_algo_orders=counts[3],
        base=whole(position[1]),
        open_buys=whole(position[2]),
    )
    priced, triggered = order_type != "MARKET", order_type in ("STOP_LOSS_LIMIT", "TAKE_PROFIT_LIMIT")
    draft = Draft(
        side,
        order_type,
        whole(asked[0]),
        whole(asked[1]) if priced else None,
        whole(asked[2]) if triggered else None,
    )
    if fitted:
        found = instrument.fit(draft, market)
        if isinstance(found, Refusal):
            return
        assert found.qty <= draft.qty
        tick = whole(prices[2] or 1)
        assert found.price is None or abs(found.price - whole(asked[1])) < tick
        draft = found
    with localcontext(EXACT):
        qty, price, stop = (int((v or D(0)).scaleb(8)) for v in (draft.qty, draft.price, draft.stop_price))
    down, up = (bid_down, bid_up) if side == "BUY" else (ask_down, ask_up)
    worth = qty * (price if priced else average)
    good = (
        qty > 0
        and all(
            qty >= low and (not high or qty <= high) and (not step or qty % step == 0)
            for low, high, step in ([lot] if priced else [lot, market_lot])
        )
        and all(
            p > 0 and p >= prices[0] and (not prices[1] or p <= prices[1]) and (not prices[2] or p % prices[2] == 0)
            for p, there in ((price, priced), (stop, triggered))
            if there
        )
        and (not priced or average * down <= price * 10 <= average * up)
        and (worth >= bounds[0] * 10**8 or not (priced or to_market[0]))
        and (not bounds[1] or worth <= bounds[1] * 10**8 or not (priced or to_market[1]))
        and (not priced or counts[2] < counts[0])
        and (not triggered or counts[3] < counts[1])
        and (side == "SELL" or position[1] + position[2] + qty <= position[0])
    )
    assert (instrument.refusal(draft, market) is None) == good


_small = st.integers(min_value=0, max_value=12)


@given(
    lot=st.tuples(_small, _small, st.integers(1, 4)),
    prices=st.tuples(_small, _small, st.integers(1, 4)),
    bounds=st.tuples(_small, st.integers(0, 80)),
    max_position=st.none() | _small,
    side=st.sampled_from(["BUY", "SELL"]),
    order_type=st.sampled_from(["MARKET", "LIMIT"]),
    asked=st.tuples(st.integers(0, 14), st.integers(1, 14)),
)
# Less than a tick: rounded down it would be a price of 0.
@example(
    lot=(0, 0, 1), prices=(0, 0, 2), bounds=(0, 0), max_position=None, side="BUY", order_type="LIMIT", asked=(1, 1)
)
def test_no_larger_order_would_pass_than_the_one_that_is_found(
    lot: tuple[int, int, int],
    prices: tuple[int, int, int],
    bounds: tuple[int, int],
    max_position: int | None,
    side: Side,
    order_type: OrderType,
    asked: tuple[int, int],
) -> None:
    instrument = Instrument(
        "ETHUSDT",
        Assets("ETH", "USDT"),
        True,
        lot=Range(*map(D, lot)),
        prices=Range(*map(D, prices)),
        notionals=(Notional("NOTIONAL", D(bounds[0]), D(bounds[1]), max_to_market=True),),
        max_position=None if max_position is None else D(max_position),
        base_precision=0,
        quote_precision=0,
    )
    market, tick = Market(D(7)), prices[2]
    draft = Draft(side, order_type, D(asked[0]), D(asked[1]) if order_type == "LIMIT" else None)
    found = instrument.fit(draft, market)
    near: list[Decimal | None] = (
        [None]
        if order_type == "MARKET"
        else [D(p) for p in range(max(1, asked[1] - tick + 1), asked[1] + tick) if p % tick == 0]
    )
    passing = [
        (qty, price)
        for qty in range(asked[0] + 1)
        for price in near
        if instrument.refusal(Draft(side, order_type, D(qty), price), market) is None
    ]
    if isinstance(found, Refusal):
        assert passing == []
    else:
        assert found.qty == max(qty for qty, price in passing if price == found.price)
        least = instrument.least(found.price or market.last, order_type)
        assert least == min(qty for qty, price in passing if price == found.price)
