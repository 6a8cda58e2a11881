"""The account as a fold over its events."""

from __future__ import annotations

from decimal import Decimal

from executor_builders import ASSETS, OPENED, fill, intended
from hypothesis import given
from hypothesis import strategies as st
from marketflow_common.events import (
    OrderEvent,
    OrderIntended,
    SignalSkipped,
    TradingStateChanged,
)
from marketflow_executor.account import Account
from marketflow_executor.filters import default_instrument
from marketflow_executor.orders import Order, Report, Unknown, learn


def intent(symbol: str = "ETHUSDT", number: int = 1, account: str = "main") -> OrderIntended:
    return intended(f"{symbol}{number}", account=account, symbol=symbol)


def bought(account: Account, what: OrderIntended) -> list[OrderEvent]:
    """The events of a filled order, given the books so far."""
    report = Report(1, "FILLED", Decimal(1), (fill(1, "100", "1", "0.001", "ETH"),), 1)
    return [what, *learn(Order(what), report, account.books, ASSETS[what.symbol], 0).events]


def folded(*events: OrderEvent) -> Account:
    account = Account("main", dict(ASSETS))
    for event in events:
        account.apply(event)
    return account


def test_a_filled_order_is_open_no_more_and_in_the_books() -> None:
    account = folded(OPENED)
    account = folded(OPENED, *bought(account, intent()))
    assert account.open == {}
    assert account.books.balances == {"USDT": Decimal(900), "ETH": Decimal("0.999")}
    assert account.differs({"USDT": Decimal(900), "ETH": Decimal("0.999")}) == ""
    assert account.differs({"USDT": Decimal(901)}) == (
        "ETH: the exchange has 0, the books have 0.99900000; USDT: the exchange has 901, the books have 900.00000000"
    )


def test_an_open_order_blocks_its_symbol_and_its_money() -> None:
    account = folded(OPENED, intent())
    instrument = default_instrument("BTCUSDT")
    assert account.view("ETHUSDT", instrument).order_open
    assert not account.view("ETHUSDT", instrument, but="mf-ETHUSDT1-1").order_open
    other = account.view("BTCUSDT", instrument)
    assert (other.order_open, other.exposure, other.free) == (False, Decimal(100), Decimal(900))


def test_an_unresolved_order_stays_open_and_remembers_that_it_was_said() -> None:
    what = intent()
    said = learn(Order(what), Unknown("timeout"), folded(OPENED).books, ASSETS["ETHUSDT"], 0).events
    account = folded(OPENED, what, *said)
    assert account.open[what.order_id].unresolved


def test_signals_are_known_to_be_answered_and_other_accounts_are_passed_over() -> None:
    account = folded(
        OPENED,
        intent(),
        SignalSkipped("main", "b", "ETHUSDT", "SELL", "no_position", "none"),
        intent(number=2, account="other"),
        TradingStateChanged("other", "HALTED", "why", "who", 1),
    )
    assert [account.answered(name) for name in ("ETHUSDT1", "b", "ETHUSDT2")] == [True, True, False]
    assert account.state == "ACTIVE"
    account.apply(TradingStateChanged("main", "HALTED", "why", "who", 1))
    assert (account.state, account.state_by) == ("HALTED", "who")


@given(st.data())
def test_the_order_of_partitions_does_not_matter(data: st.DataObject) -> None:
    """Events of different symbols, and of the account itself, lie in different partitions."""
    lanes: list[list[OrderEvent]] = [[OPENED]]
    for symbol in ASSETS:
        account, lane = Account("main", dict(ASSETS)), list[OrderEvent]()
        for number in range(3):
            new = bought(account, intent(symbol, number))
            for event in new:
                account.apply(event)
            lane += new
        lanes.append(lane)
    expected = folded(*(event for lane in lanes for event in lane))
    mixed: list[OrderEvent] = []
    while any(lanes):
        mixed.append(data.draw(st.sampled_from([lane for lane in lanes if lane])).pop(0))
    account = folded(*mixed)
    assert account.books == expected.books
    assert account.differences == []


def test_an_order_or_a_trade_that_is_none_of_ours_is_a_difference_in_words() -> None:
    account = Account("main", dict(ASSETS))
    account.apply(OPENED)
    for event in bought(account, intent()):
        account.apply(event)
    balances = dict(account.books.balances)
    known = fill(1, "100", "1", "0.001", "ETH", at=2)
    strange = fill(2, "90", "3", asset="ETH", at=3)
    before = fill(2, "90", "3", asset="BTC", at=1)
    assert account.differs(balances, {}, {"ETHUSDT": [known]}) == ""
    assert account.differs(balances, {}, {"BTCUSDT": [before]}) == "", "from before the account was opened"
    said = account.differs(balances, {"web-1": "SELL 1 ETHUSDT"}, {"ETHUSDT": [strange]})
    assert "order web-1 (SELL 1 ETHUSDT) is open at the exchange" in said
    assert "trade 2 of ETHUSDT (3 at 90) is at the exchange, and in no order of ours" in said
    account.apply(intent(number=2))
    assert account.differs(balances, {intent(number=2).order_id: "BUY 1 ETHUSDT"}) == ""
