"""Stops, pairs, parts and later fills: when they happen, at what price, and that the books stay exact."""

from itertools import count
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from marketflow_simulator.amounts import SCALE, scaled, text8
from marketflow_simulator.books import Books
from marketflow_simulator.errors import ApiError
from marketflow_simulator.market import SymbolMarket
from marketflow_simulator.records import Change, Commission, FillRule, Order, OrderList, OrderRequest
from marketflow_simulator.symbols import spec_of
from marketflow_simulator.synthetic import SyntheticTape
from marketflow_simulator.trades import Trade

SPEC, BNB = spec_of("ETHUSDT"), spec_of("BNBUSDT")
START = 1_704_067_200_000_000
TAPE = SyntheticTape(SPEC, 7, START)


class PastMarket(SymbolMarket):
    """A market whose trades are those that the test made."""

    def __init__(self) -> None:
        super().__init__(SPEC, TAPE, START)
        self.past: list[Trade] = []

    def happened(self, from_id: int, limit: int) -> list[Trade]:
        return [trade for trade in self.past if trade.id >= from_id][:limit]


class Table:
    def __init__(
        self, held: str = "USDT:10000,ETH:5", rule: FillRule = "last_trade", fee: int | Commission = 100_000
    ) -> None:
        self.market = PastMarket()
        self.changes: list[Change] = []
        self.steps = 0
        self.initial = {asset: scaled(n) for asset, _, n in (part.partition(":") for part in held.split(","))}
        self.fee, self.rule = fee, rule
        self.books = Books([SPEC, BNB], self.initial, fee, lambda: 17, lambda: 23, self._record, rule)
        self.parts = (1, False)
        self.books.split = lambda symbol: self.parts
        self.ids, self.names = count(1), count(1)
        self.price("2000")

    def _record(self, changes: Any) -> None:
        self.changes.extend(changes)
        self.steps += 1

    def price(self, text: str) -> int:
        number = next(self.ids)
        trade = Trade(number, scaled(text), SCALE, START + number, START + number, True, number)
        self.market.last = trade
        self.market.past.append(trade)
        self.books.on_trade(self.market, trade)
        return number

    def request(self, kind: str, side: str, qty: str, price: str = "0", stop: str = "0", **known: Any) -> OrderRequest:
        usual: dict[str, Any] = {
            "symbol": "ETHUSDT",
            "side": side,
            "type": kind,
            "time_in_force": "GTC",
            "price": scaled(price),
            "qty": scaled(qty),
            "quote_qty": 0,
            "client_order_id": f"n{next(self.names)}",
            "stop_price": scaled(stop),
        }
        return OrderRequest(**{**usual, **known})

    def order(self, *args: str, **known: Any) -> Order:
        return self.books.place(self.request(*args, **known), self.market)

    def pair(self, above: OrderRequest, below: OrderRequest, name: str = "pair") -> tuple[OrderList, list[Order]]:
        return self.books.place_list(above, below, name, self.market)

    def held(self, asset: str) -> tuple[str, str]:
        return text8(self.books.free[asset]).rstrip("0"), text8(self.books.locked[asset]).rstrip("0")

    def told(self) -> list[tuple[int, str, str]]:
        return [(c.order.order_id, c.execution or "", c.order.status) for c in self.changes if c.order is not None]

    def exact(self) -> None:
        """Balances are the fold of fills and transfers, locks those of the open orders, and a restart changes none."""
        books = self.books
        owned = {asset: self.initial.get(asset, 0) for asset in books.free}
        for fill in books.fills:
            sign = 1 if fill.side == "BUY" else -1
            owned["ETH"] += sign * fill.qty
            owned["USDT"] -= sign * fill.quote_qty
            owned[fill.commission_asset] -= fill.commission
        for transfer in books.transfers:
            owned[transfer.asset] += transfer.delta
        for asset, amount in owned.items():
            assert books.free[asset] + books.locked[asset] == amount
            assert books.free[asset] >= 0
        locked = {"ETH": 0, "USDT": 0}
        for order in books.open_orders():
            locked["USDT" if order.side == "BUY" else "ETH"] += order.locked
        assert locked == {asset: books.locked[asset] for asset in locked}
        for order in books.orders.values():
            assert order.executed == sum(fill.qty for fill in books.fills_of(order))
            assert order.quote_executed == sum(fill.quote_qty for fill in books.fills_of(order))
            assert order.is_open or order.locked == 0
        again = Books([SPEC, BNB], self.initial, self.fee, lambda: 17, lambda: 23, rule=self.rule)
        again.restore(self.changes)
        assert again.ledger() == books.ledger()
        assert again.open_orders() == books.open_orders()


@pytest.mark.parametrize(
    ("kind", "side", "stop", "not_yet", "reached"),
    [
        ("STOP_LOSS", "SELL", "1900", "1900.01", "1899"),
        ("STOP_LOSS", "BUY", "2100", "2099.99", "2101"),
        ("TAKE_PROFIT", "SELL", "2100", "2099.99", "2101"),
        ("TAKE_PROFIT", "BUY", "1900", "1900.01", "1899"),
    ],
)
def test_a_stop_order_takes_at_the_price_of_the_trade_that_reaches_it(
    kind: str, side: str, stop: str, not_yet: str, reached: str
) -> None:
    table = Table()
    order = table.order(kind, side, "1", "0", stop)
    assert (order.status, order.working, order.locked > 0) == ("NEW", False, True)
    table.price(not_yet)
    assert order.status == "NEW"
    table.price(reached)
    assert (order.status, text8(table.books.fills[0].price)) == ("FILLED", f"{reached.partition('.')[0]}.00000000")
    assert table.told() == [(1, "NEW", "NEW"), (1, "NEW", "NEW"), (1, "TRADE", "FILLED")]
    table.exact()


def test_a_stop_limit_order_takes_or_rests_or_expires_once_it_is_triggered() -> None:
    table = Table()
    takes = table.order("STOP_LOSS_LIMIT", "SELL", "1", "1880", "1900")
    rests = table.order("STOP_LOSS_LIMIT", "SELL", "1", "1895", "1900")
    expires = table.order("STOP_LOSS_LIMIT", "SELL", "1", "1895", "1900", time_in_force="FOK")
    table.price("1890")
    assert (takes.status, rests.status, rests.working) == ("FILLED", "NEW", True)
    assert (expires.status, expires.expiry_reason) == ("EXPIRED", "UNFILLED_FOK_ORDER_EXPIRED")
    table.price("1896")
    assert (rests.status, table.books.fills[-1].is_maker) == ("FILLED", True)
    assert table.books.fills[-1].price == scaled("1895")
    table.exact()


def test_a_stop_that_is_reached_already_is_refused() -> None:
    table = Table()
    for kind, side, stop in (("STOP_LOSS", "SELL", "2000"), ("TAKE_PROFIT", "BUY", "2000"), ("STOP_LOSS", "BUY", "1")):
        with pytest.raises(ApiError, match="Order would trigger immediately"):
            table.order(kind, side, "1", "0", stop)
    assert table.changes == []


def test_a_triggered_stop_that_cannot_be_paid_in_full_buys_what_it_can_and_expires() -> None:
    table = Table("USDT:2100")
    order = table.order("STOP_LOSS", "BUY", "1", "0", "2100")
    table.price("2500")
    assert (order.status, order.expiry_reason, text8(order.executed)) == ("EXPIRED", "REJECTED", "0.84000000")
    table.exact()


def sell_pair(table: Table, qty: str = "2", name: str = "pair") -> tuple[OrderList, list[Order]]:
    above = table.request("LIMIT_MAKER", "SELL", qty, "2100")
    return table.pair(above, table.request("STOP_LOSS_LIMIT", "SELL", qty, "1890", "1900"), name)


def test_a_pair_locks_once_and_when_one_is_reached_the_other_expires() -> None:
    for reached, winner in (("2100", 0), ("1895", 1)):
        table = Table()
        found, legs = sell_pair(table)
        assert table.held("ETH") == ("3.", "2.")
        with pytest.raises(ApiError, match="Duplicate order sent"):
            sell_pair(table)
        table.price(reached)
        assert [leg.status for leg in legs] == (["FILLED", "EXPIRED"] if winner == 0 else ["EXPIRED", "FILLED"])
        assert legs[1 - winner].expiry_reason == "OCO_TRIGGER"
        assert found.done
        assert table.held("ETH") == ("3.", "0.")
        assert table.steps == 2
        table.exact()


def test_a_part_of_one_leg_ends_the_other_and_goes_on_holding_what_it_needs() -> None:
    table = Table()
    table.parts = (2, False)
    _, (limit, stop) = sell_pair(table)
    table.price("2100")
    assert (limit.status, stop.status, table.held("ETH")) == ("PARTIALLY_FILLED", "EXPIRED", ("3.", "1."))
    table.exact()
    table.price("2099")
    table.price("2101")
    assert limit.status == "FILLED"
    table.exact()


def test_canceling_one_leg_cancels_its_list() -> None:
    table = Table()
    found, legs = sell_pair(table)
    table.books.cancel("ETHUSDT", legs[1].order_id, None, "why")
    assert [leg.status for leg in legs] == ["CANCELED", "CANCELED"]
    assert found.done
    assert table.held("ETH") == ("5.", "0.")
    sell_pair(table)
    table.exact()


def test_the_prices_of_a_pair_have_to_lie_around_the_last_one() -> None:
    table = Table()
    good = table.request("STOP_LOSS", "SELL", "1", "0", "1900")
    for above in ("2000", "1950"):
        with pytest.raises(ApiError, match="The relationship of the prices"):
            table.pair(table.request("LIMIT_MAKER", "SELL", "1", above), good)
    with pytest.raises(ApiError, match="insufficient balance"):
        sell_pair(table, "5.0001")
    assert table.changes == []


def test_a_buying_pair_holds_what_its_dearer_leg_costs() -> None:
    table = Table("USDT:2200")
    below = table.request("LIMIT_MAKER", "BUY", "1", "1900")
    _, (stop, limit) = table.pair(table.request("STOP_LOSS_LIMIT", "BUY", "1", "2150", "2100"), below)
    assert table.held("USDT") == ("50.", "2150.")
    table.price("1900")
    assert (limit.status, stop.status, table.held("USDT")) == ("FILLED", "EXPIRED", ("300.", "0."))
    table.exact()


def test_an_order_fills_in_as_many_parts_as_asked_for_and_can_be_canceled_between() -> None:
    table = Table()
    table.parts = (3, False)
    order = table.order("LIMIT", "BUY", "1", "1990")
    table.price("1980")
    table.price("1991")
    assert (order.status, text8(order.executed), order.locked) == ("PARTIALLY_FILLED", "0.33330000", scaled("1326.733"))
    with pytest.raises(ApiError, match="cancel restrictions"):
        table.books.cancel("ETHUSDT", order.order_id, None, "", "ONLY_NEW")
    table.price("1990")
    table.books.cancel("ETHUSDT", order.order_id, None, "", "ONLY_PARTIALLY_FILLED")
    assert (order.status, text8(order.executed), len(order.fills)) == ("CANCELED", "0.66660000", 2)
    table.exact()
    market = table.order("MARKET", "SELL", "1")
    assert market.status == "PARTIALLY_FILLED"
    table.price("2010")
    table.price("2020")
    assert (market.status, [text8(f.price)[:4] for f in table.books.fills_of(market)]) == (
        "FILLED",
        ["1990", "2010", "2020"],
    )
    table.exact()


def test_what_must_not_rest_expires_after_its_first_part_or_fills_in_parts_at_once() -> None:
    table = Table()
    table.parts = (2, False)
    ioc = table.order("LIMIT", "BUY", "1", "2000", time_in_force="IOC")
    assert (ioc.status, ioc.expiry_reason) == ("EXPIRED", "UNFILLED_IOC_QUANTITY_EXPIRED")
    fok = table.order("LIMIT", "BUY", "1", "2000", time_in_force="FOK")
    assert (fok.status, len(fok.fills)) == ("FILLED", 2)
    table.parts = (4, True)
    market = table.order("MARKET", "BUY", "1")
    assert (market.status, market.expiry_reason, market.executed) == ("EXPIRED", "INSUFFICIENT_LIQUIDITY", SCALE // 4)
    table.exact()


def test_by_the_rule_of_the_next_trade_nothing_fills_at_a_price_that_was_seen() -> None:
    table = Table(rule="next_trade")
    bought = table.order("MARKET", "BUY", "1")
    spent = table.order("MARKET", "BUY", "0.05", quote_qty=scaled("100"))
    crosses = table.order("LIMIT", "BUY", "1", "2005")
    ioc = table.order("LIMIT", "BUY", "1", "2005", time_in_force="IOC")
    assert {o.status for o in (bought, spent, crosses, ioc)} == {"NEW"}
    seen = table.price("2010")
    assert (bought.status, text8(table.books.fills_of(bought)[0].price)) == ("FILLED", "2010.00000000")
    assert table.books.fills_of(bought)[0].market_trade_id == seen
    assert (spent.status, text8(spent.qty)) == ("FILLED", "0.04970000")
    assert (crosses.status, ioc.status) == ("NEW", "EXPIRED")
    table.exact()


def test_by_the_rule_of_an_id_an_order_fills_at_the_first_trade_after_it_however_late_it_comes() -> None:
    table = Table(rule="after_id")
    signal = table.price("2001")
    after = table.price("2002")
    table.price("2003")
    late = table.order("MARKET", "BUY", "1", strategy_id=signal)
    assert (late.status, table.books.fills[0].market_trade_id) == ("FILLED", after)
    limit = table.order("LIMIT", "BUY", "1", "2001", strategy_id=0)
    assert (limit.status, table.books.fills[1].price, table.books.fills[1].is_maker) == (
        "FILLED",
        scaled("2000"),
        False,
    )
    early = table.order("MARKET", "BUY", "1", strategy_id=signal + 3)
    assert early.status == "NEW"
    table.price("2004")
    assert early.status == "NEW"
    table.price("2005")
    assert table.books.fills[2].price == scaled("2005")
    table.exact()


def test_commission_is_taken_in_bnb_while_there_is_enough_of_it() -> None:
    table = Table("USDT:10000,ETH:5,BNB:0.01", fee=Commission(scaled("0.001"), scaled("0.25")))
    table.books.price_of = {"BNBUSDT": scaled("300")}.get
    table.order("MARKET", "BUY", "1")
    assert (table.books.fills[0].commission_asset, text8(table.books.fills[0].commission)) == ("BNB", "0.00500000")
    table.order("MARKET", "SELL", "0.3333")
    assert text8(table.books.fills[1].commission) == "0.00166650"
    table.order("MARKET", "SELL", "1")
    assert (table.books.fills[2].commission_asset, text8(table.books.fills[2].commission)) == ("USDT", "2.00000000")
    table.exact()


def test_a_transfer_and_a_renamed_order_survive_a_restart() -> None:
    table = Table()
    order = table.order("LIMIT", "BUY", "1", "1990", client_order_id="mine")
    table.books.transfer("USDT", -scaled("1000"))
    table.books.transfer("XYZ", 5)
    with pytest.raises(ValueError, match=r"USDT: -7011\.\d+ is more than the 7010"):
        table.books.transfer("USDT", -scaled("7011"))
    table.books.cancel("ETHUSDT", order.order_id, None, "web_1")
    table.books.rename(order, "web_1")
    assert table.books.find("ETHUSDT", None, "mine") is None
    assert table.books.find("ETHUSDT", None, "web_1") is order
    table.exact()


actions = st.lists(
    st.tuples(
        st.sampled_from(["price", "price", "place", "place", "pair", "cancel", "transfer"]),
        st.integers(1, 30_000),
        st.integers(150_000, 250_000),
        st.integers(150_000, 250_000),
        st.sampled_from(["LIMIT", "MARKET", "LIMIT_MAKER", "STOP_LOSS", "STOP_LOSS_LIMIT", "TAKE_PROFIT"]),
        st.sampled_from(["BUY", "SELL"]),
        st.sampled_from(["GTC", "IOC", "FOK"]),
        st.integers(1, 4),
    ),
    max_size=40,
)


@settings(max_examples=150, deadline=None)
@given(actions, st.sampled_from(["last_trade", "next_trade", "after_id"]))
def test_whatever_happens_the_books_are_exact(some: Any, rule: FillRule) -> None:
    table = Table("USDT:5000,ETH:3,BNB:0.004", rule, Commission(scaled("0.001"), scaled("0.25")))
    table.books.price_of = {"BNBUSDT": scaled("300")}.get
    for what, qty, cents, other, kind, side, tif, parts in some:
        table.parts = (parts, parts == 3)
        amount, price, stop = f"{qty / 10_000:.4f}", f"{cents / 100:.2f}", f"{other / 100:.2f}"
        try:
            if what == "price":
                table.price(price)
            elif what == "cancel":
                table.books.cancel("ETHUSDT", qty % 20, None)
            elif what == "transfer":
                table.books.transfer("USDT", qty - 20_000)
            elif what == "pair":
                limit = table.request("LIMIT_MAKER", side, amount, price)
                lossy = table.request("STOP_LOSS", side, amount, "0", stop)
                table.pair(*((limit, lossy) if side == "SELL" else (lossy, limit)), name=f"p{next(table.names)}")
            else:
                has_price = kind in ("LIMIT", "LIMIT_MAKER", "STOP_LOSS_LIMIT")
                has_stop = kind.startswith(("STOP", "TAKE"))
                timed = tif if kind in ("LIMIT", "STOP_LOSS_LIMIT") else "GTC"
                known = {"time_in_force": timed, "strategy_id": qty % 9 if qty % 2 else None}
                table.order(kind, side, amount, price if has_price else "0", stop if has_stop else "0", **known)
        except ApiError as error:
            assert error.code in (-2010, -2011)  # noqa: PT017 - most random orders are refused, and may be
    table.exact()
