"""`marketflow reconcile`: every difference between the exchange and the log is found, and said in words."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import httpx
import pytest
from marketflow_common.events import AccountOpened, OrderEvent, OrderExpired, OrderFilled, OrderIntended
from marketflow_operator.access import Access
from marketflow_operator.audit.topics import CannotRead
from marketflow_operator.reconcile import Held, Private, compare, settle

D = Decimal
OPENED = AccountOpened("main", "testnet", {"USDT": D(1_000)}, 1_000_000)


def intent(number: int) -> OrderIntended:
    return OrderIntended(
        "main", f"mf-{number}", f"s-{number}", 1, "ETHUSDT", "BUY", "MARKET", D(1), None, None, 1, 5_000, "testnet",
        D(100), 1,
    )  # fmt: skip


def fill(number: int) -> OrderFilled:
    return OrderFilled(
        "main", f"mf-{number}", f"s-{number}", "ETHUSDT", "BUY", 50 + number, 70 + number, D(100), D(1), D(100),
        D("0.001"), "ETH", D(0), None, D("0.999"), D(100), 1, True,
    )  # fmt: skip


EVENTS: list[OrderEvent] = [OPENED, intent(1), fill(1), intent(2), OrderExpired("main", "mf-2", "s-2", "ETHUSDT", "")]
EXCHANGE: dict[str, Any] = {
    "balances": {"USDT": D(900), "ETH": D("0.999")},
    "open_orders": {},
    "fills": {("ETHUSDT", 71): ("BUY", D("1.000"), D("100.0"))},
    "assets": {"ETHUSDT": ("ETH", "USDT")},
}


def differences(events: list[OrderEvent] = EVENTS, **changes: Any) -> tuple[str, ...]:
    return compare("main", events, Held(**(EXCHANGE | changes))).differences


def test_what_agrees_does_not_differ() -> None:
    assert differences() == ()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"balances": {"USDT": D(900), "ETH": D("1.5")}},
            "ETH: the exchange has 1.5, the books have 0.999, 0.501 more than there should be",
        ),
        ({"balances": {"USDT": D(900)}}, "ETH: the exchange has 0, the books have 0.999, 0.999 less"),
        (
            {"open_orders": {"web_1": "BUY ETHUSDT"}},
            "order web_1 (BUY ETHUSDT) is open at the exchange, and the log knows nothing",
        ),
        (
            {"open_orders": {"mf-2": "BUY ETHUSDT"}},
            "order mf-2 (BUY ETHUSDT) is open at the exchange, and the log knows that it",
        ),
        ({"fills": {}}, "ETHUSDT trade 71 of order mf-1 is in the log, and not in the exchange's list"),
        (
            {"fills": {**EXCHANGE["fills"], ("ETHUSDT", 99): ("SELL", D(2), D(7))}},
            "ETHUSDT trade 99 (SELL 2 at 7) is in the exchange's list, and not in the log",
        ),
        ({"fills": {("ETHUSDT", 71): ("BUY", D(2), D(100))}}, "the exchange says BUY 2 at 100, the log BUY 1 at 100"),
    ],
)
def test_each_difference_is_said_in_words(changes: dict[str, Any], said: str) -> None:
    [line] = differences(**changes)
    assert said in line


def test_an_order_that_only_the_log_has_open_is_a_difference() -> None:
    [line] = differences([*EVENTS, intent(3)])
    assert "order mf-3 (BUY ETHUSDT) is open in the log" in line


def test_what_passes_is_no_difference() -> None:
    looks = [compare("main", EVENTS, Held(**(EXCHANGE | {"fills": {}}))), compare("main", EVENTS, Held(**EXCHANGE))]
    assert settle(lambda: looks.pop(0), 30).ok
    assert not settle(lambda: compare("main", [*EVENTS, intent(3)], Held(**EXCHANGE)), 0).ok


def answers(request: httpx.Request) -> httpx.Response:
    path = request.url.path.rpartition("/")[2]
    if path not in ("time", "exchangeInfo"):
        assert request.url.params["signature"] == "signed"
        assert request.headers["X-MBX-APIKEY"] == "key"
    trades = [
        {"id": 7, "isBuyer": True, "qty": "1", "price": "100", "time": 999},
        {"id": 71, "isBuyer": True, "qty": "1.00", "price": "100.00", "time": 1_000},
    ]
    found: dict[str, Any] = {
        "time": {"serverTime": 1},
        "exchangeInfo": {"symbols": [{"symbol": "ETHUSDT", "baseAsset": "ETH", "quoteAsset": "USDT"}]},
        "account": {
            "balances": [
                {"asset": "USDT", "free": "800.0", "locked": "100.0"},
                {"asset": "ETH", "free": "0.999", "locked": "0"},
                {"asset": "BNB", "free": "0", "locked": "0"},
            ]
        },
        "openOrders": [],
        "myTrades": trades,
    }
    return httpx.Response(200, json=found[path])


def test_the_exchange_is_read_by_its_documented_answers_and_from_the_accounts_opening_on() -> None:
    private = Private("http://exchange", "key", lambda _: "signed", httpx.MockTransport(answers))
    assert private.read(EVENTS) == Held(**EXCHANGE)
    private.close()


def test_a_refusal_is_one_line_without_the_signature() -> None:
    refusing = httpx.MockTransport(lambda r: answers(r) if "time" in r.url.path else httpx.Response(401, text="no"))
    private = Private("http://exchange", "key", lambda _: "signed", refusing)
    with pytest.raises(CannotRead, match="http://exchange/api/v3/account answers 401: no") as raised:
        private.read(EVENTS)
    assert "signed" not in str(raised.value)
    private.close()


def test_the_simulators_key_is_known_and_another_exchanges_must_be_given(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Access().signer(local=True)[0] == "simulator"
    with pytest.raises(ValueError, match="MARKETFLOW_EXECUTOR_API_KEY is not set"):
        Access().signer(local=False)
    monkeypatch.setenv("MARKETFLOW_EXECUTOR_API_KEY", "a-key")
    with pytest.raises(ValueError, match="MARKETFLOW_EXECUTOR_API_SECRET is not set") as raised:
        Access().signer(local=False)
    assert "a-key" not in str(raised.value)
