"""The books are exact: what is paid, received, locked and taken as commission adds up to the last digit."""

from decimal import Decimal
from itertools import count

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from marketflow_simulator.amounts import SCALE, scaled, text8
from marketflow_simulator.books import Books
from marketflow_simulator.errors import ApiError
from marketflow_simulator.market import SymbolMarket
from marketflow_simulator.records import Change, Order, OrderRequest, Side
from marketflow_simulator.symbols import spec_of
from marketflow_simulator.synthetic import SyntheticTape
from marketflow_simulator.trades import Trade

SPEC = spec_of("ETHUSDT")
START = 1_704_067_200_000_000


class Table:
    """Books and a market whose price the test moves."""

    def __init__(self, balances: dict[str, str] | None = None) -> None:
        self.market = SymbolMarket(SPEC, SyntheticTape(SPEC, 7, START), START)
        self.changes: list[Change] = []
        held = {"USDT": "10000"} if balances is None else balances
        self.initial = {asset: scaled(amount) for asset, amount in held.items()}
        self.books = Books([SPEC], self.initial, scaled("0.001"), lambda: 17, lambda: 23, self.changes.extend)
        self._ids = count(1)
        self.price("2000")

    def price(self, text: str) -> None:
        """A public trade at this price."""
        number = next(self._ids)
        trade = Trade(number, scaled(text), SCALE, START + number, START + number, True, number)
        self.market.last = trade
        self.books.on_trade(self.market, trade)

    def order(
        self, side: Side, qty: str, price: str | None = None, tif: str = "GTC", kind: str = "LIMIT", name: str = ""
    ) -> Order:
        request = OrderRequest(
            symbol="ETHUSDT",
            side=side,
            type="MARKET" if price is None else kind,  # type: ignore[arg-type]
            time_in_force=tif,  # type: ignore[arg-type]
            price=scaled(price) if price else 0,
            qty=scaled(qty),
            quote_qty=0,
            client_order_id=name or f"n{next(self._ids)}",
        )
        return self.books.place(request, self.market)

    def held(self) -> dict[str, tuple[str, str]]:
        return {asset: (text8(free), text8(self.books.locked[asset])) for asset, free in self.books.free.items()}


def test_a_market_order_fills_in_full_at_the_last_price_and_pays_in_what_it_receives() -> None:
    table = Table()
    order = table.order("BUY", "1.5")
    assert (order.status, text8(order.quote_executed)) == ("FILLED", "3000.00000000")
    assert table.held() == {"ETH": ("1.49850000", "0.00000000"), "USDT": ("7000.00000000", "0.00000000")}
    table.price("2100.01")
    table.order("SELL", "1")
    assert table.held()["USDT"] == ("9097.90999000", "0.00000000")
    (bought, sold) = table.books.fills
    assert (bought.commission_asset, text8(bought.commission)) == ("ETH", "0.00150000")
    assert (sold.commission_asset, text8(sold.commission)) == ("USDT", "2.10001000")
    assert (sold.id, sold.market_trade_id) == (2, table.market.last.id if table.market.last else None)


def test_a_resting_order_locks_fills_at_its_own_price_when_a_trade_reaches_it_and_unlocks() -> None:
    table = Table()
    order = table.order("BUY", "2", "1990.50")
    assert order.status == "NEW"
    assert table.held()["USDT"] == ("6019.00000000", "3981.00000000")
    table.price("1990.51")
    assert order.status == "NEW"
    table.price("1980")
    assert (order.status, order.quote_executed) == ("FILLED", scaled("3981"))
    assert table.held() == {"ETH": ("1.99800000", "0.00000000"), "USDT": ("6019.00000000", "0.00000000")}
    assert table.books.fills[0].is_maker
    sell = table.order("SELL", "1", "2000")
    assert table.held()["ETH"] == ("0.99800000", "1.00000000")
    table.price("2000")
    assert sell.status == "FILLED"
    assert table.books.open_orders() == []


def test_a_limit_order_that_the_price_satisfies_fills_at_once_at_the_better_price() -> None:
    table = Table()
    order = table.order("BUY", "1", "2010")
    assert (order.status, text8(order.quote_executed)) == ("FILLED", "2000.00000000")
    assert not table.books.fills[0].is_maker


@pytest.mark.parametrize("tif", ["IOC", "FOK"])
def test_an_order_that_must_not_rest_expires_and_locks_nothing(tif: str) -> None:
    table = Table()
    before = table.held()
    assert table.order("BUY", "1", "1999", tif).status == "EXPIRED"
    assert table.held() == before
    assert table.order("BUY", "1", "2000", tif).status == "FILLED"


def test_a_maker_only_order_never_takes() -> None:
    table = Table()
    with pytest.raises(ApiError, match="Order would immediately match and take"):
        table.order("BUY", "1", "2000", kind="LIMIT_MAKER")
    assert table.books.orders == {}
    assert table.order("BUY", "1", "1999.99", kind="LIMIT_MAKER").status == "NEW"


def test_an_order_beyond_the_free_balance_is_refused_and_leaves_no_trace() -> None:
    table = Table({"USDT": "2000"})
    for side, qty, price in (("BUY", "1.0001", None), ("SELL", "0.0001", None), ("BUY", "1", "2000.01")):
        with pytest.raises(ApiError) as error:
            table.order(side, qty, price)  # type: ignore[arg-type]
        assert (error.value.code, error.value.status) == (-2010, 400)
    table.order("BUY", "0.9", "1000")
    with pytest.raises(ApiError, match="insufficient balance"):
        table.order("BUY", "0.6")
    assert len(table.books.orders) == len(table.changes) == 1


def test_a_client_id_is_unique_among_open_orders_only() -> None:
    table = Table()
    first = table.order("BUY", "0.1", "1900", name="mine")
    with pytest.raises(ApiError, match="Duplicate order sent"):
        table.order("BUY", "0.1", name="mine")
    table.price("1900")
    second = table.order("BUY", "0.2", name="mine")
    assert table.books.find("ETHUSDT", None, "mine") is second
    assert table.books.find("ETHUSDT", first.order_id, "mine") is first
    assert table.books.find("ETHUSDT", first.order_id, "other") is None
    assert table.books.find("BTCUSDT", first.order_id, None) is None


def test_canceling_gives_back_what_was_locked_and_only_works_once() -> None:
    table = Table()
    before = table.held()
    order = table.order("BUY", "1", "1500", name="x")
    assert table.books.cancel("ETHUSDT", None, "x") is order
    assert table.held() == before
    for order_id, name in ((order.order_id, None), (None, "x"), (99, None)):
        with pytest.raises(ApiError) as error:
            table.books.cancel("ETHUSDT", order_id, name)
        assert (error.value.code, error.value.message) == (-2011, "Unknown order sent.")


def test_without_any_trade_yet_the_market_is_closed() -> None:
    table = Table()
    table.market.last = None
    with pytest.raises(ApiError, match="Market is closed"):
        table.order("BUY", "1")


steps = st.lists(
    st.tuples(
        st.sampled_from(["BUY", "SELL", "price", "cancel"]),
        st.integers(1, 40_000),
        st.integers(150_000, 250_000),
        st.sampled_from([None, "GTC", "IOC"]),
    ),
    max_size=40,
)


@settings(max_examples=150, deadline=None)
@given(steps)
def test_balances_are_the_fold_of_the_fills_and_a_restored_book_is_the_same(
    some: list[tuple[str, int, int, str | None]],
) -> None:
    table = Table({"USDT": "5000", "ETH": "2"})
    for what, qty, cents, tif in some:
        try:
            if what == "price":
                table.price(f"{cents / 100:.2f}")
            elif what == "cancel":
                table.books.cancel("ETHUSDT", qty % 20, None)
            else:
                amount = f"{qty / 10_000:.4f}"
                table.order(what, amount, f"{cents / 100:.2f}" if tif else None, tif or "GTC")  # type: ignore[arg-type]
        except ApiError as error:
            assert error.code in (-2010, -2011)  # noqa: PT017 - most random orders are refused, and may be
    books = table.books
    owned = {asset: Decimal(text8(units)) for asset, units in table.initial.items()}
    for fill in books.fills:
        sign = 1 if fill.side == "BUY" else -1
        owned["ETH"] += sign * Decimal(text8(fill.qty))
        owned["USDT"] -= sign * Decimal(text8(fill.price)) * Decimal(text8(fill.qty))
        owned[fill.commission_asset] -= Decimal(text8(fill.commission))
    locked = {"ETH": Decimal(0), "USDT": Decimal(0)}
    for order in books.open_orders():
        if order.side == "SELL":
            locked["ETH"] += Decimal(text8(order.qty))
        else:
            locked["USDT"] += Decimal(text8(order.qty)) * Decimal(text8(order.price))
    for asset in ("ETH", "USDT"):
        assert Decimal(text8(books.free[asset] + books.locked[asset])) == owned[asset]
        assert Decimal(text8(books.locked[asset])) == locked[asset]
        assert books.free[asset] >= 0
    again = Books([SPEC], table.initial, books.fee, lambda: 17, lambda: 23)
    again.restore(table.changes)
    assert again.ledger() == books.ledger()
    assert again.open_orders() == books.open_orders()
