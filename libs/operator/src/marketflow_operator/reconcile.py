"""An account at the exchange beside the fold of its order events: balances, open orders, fills.

Must never change anything at the exchange, share the executor's arithmetic, or show a secret.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Final
from urllib.parse import urlencode

import httpx
from marketflow_common import topics
from marketflow_common.events import (
    AccountOpened,
    OrderCanceled,
    OrderEvent,
    OrderExpired,
    OrderFilled,
    OrderIntended,
    OrderRejected,
)
from marketflow_common.kafka import client
from marketflow_common.numbers import EXACT, NotANumber, number
from marketflow_common.settings import KafkaSettings
from marketflow_common.signing import Sign

from .audit.books import fold_balances
from .audit.topics import CannotRead, answers

__all__ = ["Comparison", "Held", "Private", "compare", "read_events"]

PAGE: Final = 1_000
TIMEOUT: Final = 10.0


@dataclass(frozen=True)
class Held:
    """What the exchange has of an account. ``fills`` by symbol and trade id: side, quantity and price."""

    balances: Mapping[str, Decimal]
    open_orders: Mapping[str, str]
    fills: Mapping[tuple[str, int], tuple[str, Decimal, Decimal]]
    assets: Mapping[str, tuple[str, str]]


@dataclass(frozen=True)
class Comparison:
    """The two sides, and where they differ, in words."""

    account: str
    balances: tuple[tuple[str, Decimal, Decimal], ...]
    open_orders: int
    fills: int
    differences: tuple[str, ...]

    @property
    def ok(self) -> bool:
        """Whether there is no difference."""
        return not self.differences

    def plain(self) -> dict[str, Any]:
        """As JSON holds it, amounts as text."""
        return {
            "ok": self.ok,
            "account": self.account,
            "balances": [{"asset": a, "exchange": f"{t:f}", "books": f"{o:f}"} for a, t, o in self.balances],
            "open_orders": self.open_orders,
            "fills": self.fills,
            "differences": list(self.differences),
        }


# --- the comparison: pure ----------------------------------------------------------------------------


def symbols_of(events: Iterable[OrderEvent]) -> set[str]:
    """Symbols that the account has traded or was about to."""
    return {event.symbol for event in events if isinstance(event, OrderIntended)}


def compare(account: str, events: Sequence[OrderEvent], there: Held) -> Comparison:
    """The exchange beside the fold of the account's events."""
    opened = next(event for event in events if isinstance(event, AccountOpened))
    fills = {(e.symbol, e.fill_id): e for e in events if isinstance(e, OrderFilled)}
    ended = {e.order_id for e in events if isinstance(e, OrderRejected | OrderCanceled | OrderExpired)}
    ended |= {e.order_id for e in fills.values() if e.complete}
    still_open = {e.order_id: e for e in events if isinstance(e, OrderIntended) and e.order_id not in ended}
    found: list[str] = []
    here = fold_balances(opened.balances, fills.values(), there.assets)
    nothing = Decimal(0)
    rows = tuple(
        (asset, there.balances.get(asset, nothing), here.get(asset, nothing))
        for asset in sorted({*there.balances, *here})
    )
    found += [
        f"{asset}: the exchange has {theirs:f}, the books have {ours:f}, {_apart(theirs, ours)}"
        for asset, theirs, ours in rows
        if theirs != ours
    ]
    found += [
        f"order {name} ({what}) is open at the exchange, and the log knows "
        + ("that it has ended" if name in ended else "nothing of it")
        for name, what in sorted(there.open_orders.items())
        if name not in still_open
    ]
    found += [
        f"order {name} ({order.side} {order.symbol}) is open in the log, and the exchange does not list it as open"
        for name, order in sorted(still_open.items())
        if name not in there.open_orders
    ]
    for key in sorted({*there.fills, *fills}):
        theirs, ours = there.fills.get(key), fills.get(key)
        name = f"{key[0]} trade {key[1]}"
        if ours is None and theirs is not None:
            side, qty, price = theirs
            found.append(f"{name} ({side} {qty:f} at {price:f}) is in the exchange's list, and not in the log")
        elif theirs is None and ours is not None:
            found.append(f"{name} of order {ours.order_id} is in the log, and not in the exchange's list")
        elif ours is not None and theirs is not None and theirs != (ours.side, ours.qty, ours.price):
            said = f"{ours.side} {ours.qty:f} at {ours.price:f}"
            found.append(f"{name}: the exchange says {theirs[0]} {theirs[1]:f} at {theirs[2]:f}, the log {said}")
    return Comparison(account, rows, len(there.open_orders), len(there.fills), tuple(found))


def _apart(theirs: Decimal, ours: Decimal) -> str:
    apart = EXACT.subtract(theirs, ours)
    return f"{abs(apart):f} {'more' if apart > 0 else 'less'} than there should be"


# --- reading both sides ------------------------------------------------------------------------------


def read_events(kafka: KafkaSettings, account: str) -> list[OrderEvent]:
    """All events of an account so far. Raises CannotRead, also if the account was never opened."""
    answers(kafka)
    try:
        partitions = client.partition_count(kafka, topics.ORDER_EVENTS)
        found = [
            record.event
            for partition in range(partitions)
            for record in client.read_range(kafka, topics.ORDER_EVENTS, partition, 0)
            if record.event.account == account
        ]
    except client.FatalKafkaError as error:
        raise CannotRead(str(error)) from None
    if not any(isinstance(event, AccountOpened) for event in found):
        raise CannotRead(f"order_events has no account {account!r}; name another with --account")
    return found


class Private:
    """The exchange's private REST, questions only. Raises CannotRead where it does not answer."""

    def __init__(self, url: str, key: str, sign: Sign, transport: httpx.BaseTransport | None = None) -> None:
        self._url, self._key, self._sign = url, key, sign
        self._client = httpx.Client(base_url=url, timeout=TIMEOUT, transport=transport)

    def close(self) -> None:
        """Close the connection."""
        self._client.close()

    def read(self, events: Sequence[OrderEvent]) -> Held:
        """What the exchange has of the account whose events these are."""
        opened = next(event for event in events if isinstance(event, AccountOpened))
        try:
            account = self._ask("/api/v3/account", {"omitZeroBalances": "true"})
            balances = {b["asset"]: EXACT.add(number(b["free"]), number(b["locked"])) for b in account["balances"]}
            orders = {o["clientOrderId"]: f"{o['side']} {o['symbol']}" for o in self._ask("/api/v3/openOrders", {})}
            symbols = sorted(symbols_of(events))
            fills = {
                (symbol, int(t["id"])): ("BUY" if t["isBuyer"] else "SELL", number(t["qty"]), number(t["price"]))
                for symbol in symbols
                for t in self._trades(symbol)
                if int(t["time"]) * 1_000 >= opened.opened_at // 1_000 * 1_000
            }
            assets = {symbol: self._assets(symbol) for symbol in symbols}
        except (KeyError, TypeError, NotANumber, ValueError) as error:
            raise CannotRead(f"{self._url} gave an answer that cannot be read: {str(error)[:100]}") from None
        return Held({asset: amount for asset, amount in balances.items() if amount}, orders, fills, assets)

    def _trades(self, symbol: str) -> list[Any]:
        found: list[Any] = []
        while True:
            start = int(found[-1]["id"]) + 1 if found else 0
            page = self._ask("/api/v3/myTrades", {"symbol": symbol, "fromId": start, "limit": PAGE})
            found += page
            if len(page) < PAGE:
                return found

    def _assets(self, symbol: str) -> tuple[str, str]:
        listed = self._get(f"/api/v3/exchangeInfo?{urlencode({'symbol': symbol})}", {})["symbols"]
        info = next(i for i in listed if i["symbol"] == symbol)
        return info["baseAsset"], info["quoteAsset"]

    def _ask(self, path: str, query: Mapping[str, Any]) -> Any:
        now = int(self._get("/api/v3/time", {})["serverTime"])
        text = urlencode({**query, "recvWindow": 10_000, "timestamp": now})
        return self._get(f"{path}?{text}&signature={self._sign(text)}", {"X-MBX-APIKEY": self._key})

    def _get(self, path: str, headers: Mapping[str, str]) -> Any:
        plain = path.partition("?")[0]
        try:
            answer = self._client.get(path, headers=dict(headers))
        except httpx.HTTPError as error:
            raise CannotRead(f"{self._url}{plain} does not answer ({type(error).__name__}); see --exchange") from None
        if answer.status_code != 200:
            raise CannotRead(f"{self._url}{plain} answers {answer.status_code}: {answer.text[:200]}")
        return answer.json()


def settle(look: Callable[[], Comparison], patience_s: float) -> Comparison:
    """Look until nothing differs, or for so long: what is on its way between the two sides is no difference."""
    until = time.monotonic() + patience_s
    while True:
        found = look()
        if found.ok or time.monotonic() >= until:
            return found
        time.sleep(min(1.0, max(0.0, until - time.monotonic())))
