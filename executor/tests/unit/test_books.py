"""The books are exact: whatever is filled, for whatever fee, they equal what the exchange's balances do."""

from __future__ import annotations

from collections import defaultdict
from decimal import Decimal, localcontext

import msgspec
import pytest
from executor_builders import ETH, fill
from hypothesis import given
from hypothesis import strategies as st
from marketflow_common.events import Convention, OrderFilled, Side
from marketflow_common.numbers import EXACT, divide
from marketflow_executor.books import Assets, Books, Fill, Lot, Position


def with_price(filled: Fill, commission_price: str) -> Fill:
    return msgspec.structs.replace(filled, commission_price=Decimal(commission_price))


def test_a_position_costs_what_was_paid_and_realizes_by_average_cost() -> None:
    books = Books().fill("ETHUSDT", "BUY", ETH, fill(1, "100", "1")).books
    books = books.fill("ETHUSDT", "BUY", ETH, fill(2, "200", "1")).books
    booked = books.fill("ETHUSDT", "SELL", ETH, fill(3, "180", "1"))
    assert booked.position == Position(Decimal(1), Decimal(150), Decimal(30))
    assert (booked.realized_pnl, booked.profit_pct) == (Decimal(30), Decimal("20.0000"))
    assert booked.books.balances == {"ETH": Decimal(1), "USDT": Decimal(-120)}


def test_a_fee_in_base_makes_the_position_smaller_and_keeps_its_cost() -> None:
    booked = Books().fill("ETHUSDT", "BUY", ETH, fill(1, "100", "2", "0.002", "ETH"))
    assert booked.position == Position(Decimal("1.998"), Decimal(200), Decimal(0), Decimal("0.2"))
    assert booked.books.balance("ETH") == Decimal("1.998")


def test_a_fee_in_quote_is_taken_from_the_realized_profit_of_its_fill() -> None:
    bought = Books().fill("ETHUSDT", "BUY", ETH, fill(1, "100", "1", "0.1"))
    assert (bought.realized_pnl, bought.profit_pct) == (Decimal("-0.1"), None)
    sold = bought.books.fill("ETHUSDT", "SELL", ETH, fill(2, "110", "1", "0.11"))
    assert (sold.realized_pnl, sold.profit_pct) == (Decimal("9.89"), Decimal("9.8900"))
    assert sold.books.balance("USDT") == Decimal("9.79")


def test_a_fee_in_a_third_asset_is_kept_apart() -> None:
    booked = Books().fill("ETHUSDT", "BUY", ETH, fill(1, "100", "1", "0.0002", "BNB"))
    assert booked.position == Position(Decimal(1), Decimal(100), Decimal(0))
    assert booked.books.balance("BNB") == Decimal("-0.0002")
    assert booked.books.fees == booked.books.unpriced_fees == {"BNB": Decimal("0.0002")}


def test_fees_are_worth_what_their_asset_costs_and_kept_as_they_were_taken() -> None:
    books = Books().fill("ETHUSDT", "BUY", ETH, fill(1, "100", "1", "0.001", "ETH")).books
    books = books.fill("ETHUSDT", "BUY", ETH, fill(2, "100", "1", "0.2")).books
    booked = books.fill("ETHUSDT", "BUY", ETH, with_price(fill(3, "100", "1", "0.0002", "BNB"), "600"))
    assert booked.position.fees == Decimal("0.42")
    assert booked.books.fees == {"ETH": Decimal("0.001"), "USDT": Decimal("0.2"), "BNB": Decimal("0.0002")}
    assert booked.books.unpriced_fees == {}
    # Only what was taken in quote is in the profit: the rest is in the position and in the balance of BNB.
    assert booked.position.realized == Decimal("-0.2")


def test_by_fifo_what_was_bought_first_is_sold_first() -> None:
    books = Books(convention="fifo").fill("ETHUSDT", "BUY", ETH, fill(1, "100", "1")).books
    books = books.fill("ETHUSDT", "BUY", ETH, fill(2, "200", "1")).books
    first = books.fill("ETHUSDT", "SELL", ETH, fill(3, "180", "0.5"))
    assert (first.realized_pnl, first.profit_pct) == (Decimal(40), Decimal("80.0000"))
    second = first.books.fill("ETHUSDT", "SELL", ETH, fill(4, "180", "1"))
    assert second.position.lots == (Lot(Decimal("0.5"), Decimal(100)),)
    assert (second.realized_pnl, second.position.cost) == (Decimal(30), Decimal(100))
    last = second.books.fill("ETHUSDT", "SELL", ETH, fill(5, "180", "0.5"))
    assert last.position == Position(Decimal(0), Decimal(0), Decimal(60))


def test_a_position_knows_its_average_price_what_it_would_bring_and_what_of_it_is_dust() -> None:
    position = Position(Decimal("0.3"), Decimal(100))
    assert position.average_price == Decimal("333.333333333333333333")
    assert position.unrealized(Decimal(350)) == Decimal(5)
    assert Position().average_price is None
    assert Books(positions={"A": position, "B": Position()}).unrealized({"A": Decimal(300)}) == Decimal(-10)
    assert [position.dust(Decimal(least)) for least in ("0.3", "0.31")] == [0, Decimal("0.3")]


def test_selling_all_leaves_no_cost_behind() -> None:
    books = Books()
    for number, price in enumerate(("3", "7", "11"), start=1):
        books = books.fill("ETHUSDT", "BUY", ETH, fill(number, price, "0.33333333")).books
    books = books.fill("ETHUSDT", "SELL", ETH, fill(4, "9", "0.1")).books
    booked = books.fill("ETHUSDT", "SELL", ETH, fill(5, "9", "0.89999999"))
    assert (booked.position.qty, booked.position.cost) == (0, 0)


def test_the_fold_says_where_the_log_disagrees_with_it() -> None:
    event = OrderFilled(
        account="main",
        order_id="mf-x-1",
        signal_id="x",
        symbol="ETHUSDT",
        side="BUY",
        exchange_order_id=1,
        fill_id=1,
        price=Decimal(100),
        qty=Decimal(1),
        quote_qty=Decimal(100),
        commission=Decimal(0),
        commission_asset="ETH",
        realized_pnl=Decimal(0),
        profit_pct=None,
        position_qty=Decimal(2),
        position_cost=Decimal(100),
        filled_at=1,
        complete=True,
    )
    books, difference = Books().fold(event, ETH)
    assert books.position("ETHUSDT").qty == 1
    assert difference is not None
    assert "the fold holds 1.00000000 ETHUSDT" in difference


_ASSETS = {"ETHUSDT": ETH, "BTCUSDT": Assets("BTC", "USDT"), "ETHBTC": Assets("ETH", "BTC")}
_numbers = st.decimals(min_value="0.00000001", max_value="100000", places=8)
_fills = st.lists(
    st.tuples(
        st.sampled_from(sorted(_ASSETS)),
        st.sampled_from(["BUY", "SELL"]),
        _numbers,
        _numbers,
        st.decimals(min_value=0, max_value=10, places=8),
        st.sampled_from(["base", "quote", "BNB"]),
    ),
    max_size=30,
)


@given(_fills, st.sampled_from(["average", "fifo"]))
def test_realized_minus_cost_is_the_change_in_quote_and_the_position_the_change_in_base(
    fills: list[tuple[str, Side, Decimal, Decimal, Decimal, str]], convention: Convention
) -> None:
    books = Books(convention=convention).opened({"USDT": Decimal("5.5"), "XRP": Decimal(3)})
    moved: dict[str, Decimal] = defaultdict(Decimal, {"USDT": Decimal("5.5"), "XRP": Decimal(3)})
    by_symbol: dict[str, dict[str, Decimal]] = defaultdict(lambda: defaultdict(Decimal))
    realized: dict[str, Decimal] = defaultdict(Decimal)
    with localcontext(EXACT):
        for number, (symbol, side, price, qty, fee, where) in enumerate(fills):
            base, quote = _ASSETS[symbol]
            asset = {"base": base, "quote": quote}.get(where, where)
            booked = books.fill(
                symbol, side, _ASSETS[symbol], Fill(number, price, qty, price * qty, fee, asset, number)
            )
            books = booked.books
            realized[symbol] += booked.realized_pnl
            sign = 1 if side == "BUY" else -1
            # The exchange's own bookkeeping, by asset alone.
            for whose in (moved, by_symbol[symbol]):
                whose[base] += sign * qty
                whose[quote] -= sign * price * qty
                whose[asset] -= fee
            lots = booked.position.lots
            assert all(lot.qty >= 0 for lot in lots)
            if convention == "fifo":
                assert sum((lot.cost for lot in lots), Decimal(0)) == booked.position.cost
                assert sum((lot.qty for lot in lots), Decimal(0)) == max(booked.position.qty, Decimal(0))
            else:
                assert lots == ()
        assert {a: v for a, v in books.balances.items() if v} == {a: v for a, v in moved.items() if v}
        for symbol, position in books.positions.items():
            base, quote = _ASSETS[symbol]
            assert position.realized == realized[symbol]
            assert position.realized - position.cost == by_symbol[symbol][quote]
            assert position.qty == by_symbol[symbol][base]


@given(st.lists(st.tuples(st.integers(1, 50), st.integers(1, 50), st.integers(0, 50)), min_size=1, max_size=12))
def test_by_fifo_profits_are_those_of_a_queue_of_single_coins(rounds: list[tuple[int, int, int]]) -> None:
    """Bought coin by coin, and sold coin by coin from the front: no division, so no rounding, is involved."""
    books, queue = Books(convention="fifo"), list[int]()
    for number, (price, bought, sold) in enumerate(rounds):
        books = books.fill("ETHUSDT", "BUY", ETH, fill(2 * number, str(price), str(bought))).books
        queue += [price] * bought
        sold = min(sold, len(queue))
        if not sold:
            continue
        booked = books.fill("ETHUSDT", "SELL", ETH, fill(2 * number + 1, "30", str(sold)))
        books = booked.books
        assert booked.realized_pnl == 30 * sold - sum(queue[:sold])
        assert booked.profit_pct == divide(booked.realized_pnl * 100, Decimal(sum(queue[:sold])), scale=4)
        queue = queue[sold:]
    assert books.position("ETHUSDT").cost == sum(queue)
    assert books.position("ETHUSDT").qty == len(queue)


@pytest.mark.parametrize("convention", ["average", "fifo"])
@given(fills=_fills)
def test_both_conventions_have_earned_the_same_once_all_is_sold(
    convention: Convention, fills: list[tuple[str, Side, Decimal, Decimal, Decimal, str]]
) -> None:
    books, cash = Books(convention=convention), Decimal(0)
    with localcontext(EXACT):
        for number, (_, side, price, qty, _, _) in enumerate(fills):
            books = books.fill("ETHUSDT", side, ETH, Fill(number, price, qty, price * qty, Decimal(0), "BNB", 1)).books
            cash += price * qty if side == "SELL" else -price * qty
        held = books.position("ETHUSDT").qty
        last = Fill(-1, Decimal(7), max(held, Decimal(1)), 7 * max(held, Decimal(1)), Decimal(0), "BNB", 1)
        position = books.fill("ETHUSDT", "SELL", ETH, last).position
        assert (position.cost, position.realized) == (0, cash + last.quote_qty)
