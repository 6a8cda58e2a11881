"""The exchange's signed REST (Binance's spot API): requests out, answers in the order machine's words.

Must never turn a missing or unclear answer into an outcome, send an order twice, or show a secret.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal, localcontext
from typing import Annotated, Any, Final, Protocol, TypeVar

import msgspec
from marketflow_common import logs
from marketflow_common.events import OrderIntended
from marketflow_common.numbers import EXACT, NotANumber, number
from pydantic import BaseModel, BeforeValidator, ValidationError

from .books import Fill
from .filters import Instrument, read_instrument
from .messages import (
    Unreadable,
    in_place,
    oco_request,
    order_request,
    read_cancelled,
    read_list,
    read_order,
    read_replaced,
    read_trade,
    replace_request,
)
from .orders import Answer, NotCancelled, NotThere, Refused, Report, Throttled, TooLate, Unknown, Update
from .plans import is_protection
from .rest import KEY_CODES, OUTSIDE_WINDOW, SAYS_NOTHING, KeyRefused, Reply, Rest, Unavailable, short

__all__ = ["BinanceRest", "Exchange", "KeyRefused", "Unavailable"]

_log = logs.get("exchange")
_ORDER, _TRADES, _PAGE = "/api/v3/order", "/api/v3/myTrades", 1_000
_OPEN_ORDERS: Final = "/api/v3/openOrders"
_LIST: Final = "/api/v3/orderList/oco"
_REPLACE: Final = "/api/v3/order/cancelReplace"
_REPLACE_FAILED: Final = (-2021, -2022)
"""Codes of a cancel-replace of which a part, or nothing, took place: what, is in its data."""
_BEFORE_MS: Final = 1_000
_AFTER_MS: Final = 60_000
"""How far around its window an order is looked for: the exchange's clocks need not agree."""
_NO_SUCH_ORDER, _NOT_TAKEN, _NO_SUCH_SYMBOL = -2013, -2010, -1121
_DUPLICATE: Final = "duplicate"
"""In the message of a -2010: "Duplicate order sent." (Binance, "Error codes", messages for -1010, -2010, -2011)."""
_FRESH_S: Final = 600.0
"""Trading rules are asked for again after this long."""
_MANY: Final = 5
"""With more symbols than that the rules of all are asked for at once."""

R = TypeVar("R")


class Exchange(Protocol):
    """Where orders go."""

    def now_ms(self) -> int:
        """The exchange's time, never ahead of it. Raises Unavailable before it could be measured."""

    def place(self, intent: OrderIntended) -> Answer:
        """Send the order exactly as intended, once. Never raises for what the exchange or the network do."""

    def place_list(self, legs: Sequence[OrderIntended]) -> dict[str, Answer]:
        """Send two orders as one list (OCO), once: what was said of each, by client id."""

    def replace(self, intent: OrderIntended) -> dict[str, Answer]:
        """Send an order that takes the place of another, once, and only while that one has no fill.

        What was said of each, by client id, the old one first; nothing of the old one where nothing was said.
        """

    def ask(self, intent: OrderIntended) -> Answer:
        """What the exchange knows of the order: Report, NotThere, Throttled or Unknown."""

    def cancel(self, intent: OrderIntended) -> Answer:
        """Cancel the order: Update, NotCancelled, Throttled or Unknown; what it has come to is to be asked."""

    def balances(self) -> dict[str, Decimal] | None:
        """Free plus locked, without zeros; None if there is nothing to compare with. Raises Unavailable."""

    def open_orders(self) -> dict[str, str]:
        """All orders of the account that are open, by client id, each in words. Raises Unavailable."""

    def fills_from(self, symbol: str, trade_id: int | None) -> list[Fill]:
        """The account's fills of a symbol from a trade id on; None: the newest ones. Raises Unavailable."""

    def opening_balances(self) -> dict[str, Decimal]:
        """What a new account starts from. Raises Unavailable."""

    def instrument(self, symbol: str) -> Instrument | None:
        """The symbol's trading rules, None if it is not listed. Raises Unavailable."""

    def last_price(self, symbol: str) -> Decimal:
        """The symbol's last price. Raises Unavailable."""

    def best(self, symbol: str) -> tuple[Decimal, Decimal]:
        """The best bid and the best ask. Raises Unavailable."""

    def averages(self, symbol: str) -> dict[int, Decimal]:
        """The average prices that filters compare with, by their minutes. Raises Unavailable."""

    def paused_s(self) -> float:
        """Seconds for which the exchange wants no requests (429, 418); 0 if it does not mind."""

    def refresh(self) -> None:
        """Measure the clock again, fetch old trading rules again. Raises Unavailable."""


# --- its answers, as documented ----------------------------------------------------------------------

_Amount = Annotated[Decimal, BeforeValidator(number)]


class _Balance(BaseModel):
    asset: str
    free: _Amount
    locked: _Amount


class _Account(BaseModel):
    balances: tuple[_Balance, ...]


class _Price(BaseModel):
    price: _Amount


class _Average(BaseModel):
    mins: int
    price: _Amount


class _Best(BaseModel):
    bidPrice: _Amount
    askPrice: _Amount


class _ExchangeInfo(BaseModel):
    rateLimits: tuple[dict[str, Any], ...] = ()
    symbols: tuple[dict[str, Any], ...]


class BinanceRest:
    """Binance's spot REST. One thread."""

    def __init__(self, rest: Rest, *, strategy_id: bool = False) -> None:
        """``strategy_id``: send the last trade that a signal has seen along, as the order's strategyId."""
        self._rest, self._strategy_id = rest, strategy_id
        self._instruments: dict[str, tuple[float, Instrument | None]] = {}
        self._told: tuple[float, dict[str, dict[str, Any]]] = (-math.inf, {})  # the last answer for all, and when

    def close(self) -> None:
        """Close the connection."""
        self._rest.close()

    # --- time and throttling -------------------------------------------------------------------------

    def now_ms(self) -> int:
        """See Exchange."""
        return self._rest.now_ms()

    def paused_s(self) -> float:
        """See Exchange."""
        return self._rest.paused_s()

    def refresh(self) -> None:
        """See Exchange."""
        self._rest.sync()
        for symbol in list(self._instruments):
            self.instrument(symbol)

    # --- orders --------------------------------------------------------------------------------------

    def place(self, intent: OrderIntended) -> Answer:
        """See Exchange."""
        reply = self._new(_ORDER, order_request(intent), intent)
        if not isinstance(reply, Reply):
            return reply
        return self._refusal(intent, reply) if reply.code else self._unthrottled(self._report(intent, reply.body))

    def place_list(self, legs: Sequence[OrderIntended]) -> dict[str, Answer]:
        """See Exchange."""
        reply = self._new(_LIST, oco_request(*in_place(legs)), None)
        if not isinstance(reply, Reply):
            return {leg.order_id: reply for leg in legs}
        if reply.code:
            return {leg.order_id: self._refusal(leg, reply) for leg in legs}
        told = _understood(reply.body, read_list)
        if isinstance(told, Unknown):
            return {leg.order_id: told for leg in legs}
        said = {named.order_id: named.message for named in told.reports}
        return {leg.order_id: said.get(leg.order_id, Unknown("the list's answer does not tell")) for leg in legs}

    def replace(self, intent: OrderIntended) -> dict[str, Answer]:
        """See Exchange."""
        # Of one that has a fill by now more would be bought than is left: then it is not cancelled, and stays.
        request = {**replace_request(intent), "cancelRestrictions": "ONLY_NEW"}
        reply = self._new(_REPLACE, request, intent)
        if not isinstance(reply, Reply):
            return {intent.order_id: reply}
        if reply.code and reply.code not in _REPLACE_FAILED:
            return {intent.order_id: self._refusal(intent, reply)}
        told = _understood(reply.body, read_replaced)
        if isinstance(told, Unknown):
            return {intent.order_id: told}
        cancelled, placed = told
        new: Answer = placed
        if isinstance(placed, Refused):
            new = self._refusal(intent, Reply(reply.body, placed.code, placed.reason))
        elif isinstance(placed, Update) and placed.executed_qty:
            new = self._unthrottled(self.ask(intent))
        return {intent.replaces: cancelled, intent.order_id: new}

    def _new(
        self, path: str, request: dict[str, str | int], intent: OrderIntended | None
    ) -> Reply | TooLate | Throttled | Unknown:
        """Send what makes an order. A reply is an answer, or a refusal that says something."""
        # What follows from an order is to fill by what is traded from now on.
        follows = intent is None or intent.replaces or is_protection(intent.signal_id)
        if self._strategy_id and intent is not None and not follows:
            request["strategyId"] = intent.signal_last_trade_id
        reply = self._rest.send("POST", path, request, signed=True)
        if isinstance(reply, Reply) and reply.code == OUTSIDE_WINDOW:
            self._rest.resync()
            return TooLate(f"refused as outside of its recvWindow: {reply.message}")
        return reply

    def _refusal(self, intent: OrderIntended, reply: Reply) -> Answer:
        """What a code in place of the order means."""
        if reply.code in SAYS_NOTHING:
            return Unknown(f"{reply.code} {reply.message}")
        if reply.code != _NOT_TAKEN:
            return Refused(reply.code, reply.message)
        # -2010 has many reasons; "Duplicate order sent." is one, and means that the order is there, even where the
        # question does not find it yet: then it stays open, and is asked for again.
        found = self.ask(intent)
        if isinstance(found, NotThere) and _DUPLICATE not in reply.message.lower():
            return Refused(reply.code, reply.message)
        return self._unthrottled(found)

    def _unthrottled(self, found: Answer) -> Answer:
        # "Not now" to a question after the order must not read as "not now" to the order.
        return (
            Unknown("the exchange has answered the order, but wants no more questions")
            if isinstance(found, Throttled)
            else found
        )

    def ask(self, intent: OrderIntended) -> Answer:
        """See Exchange."""
        try:
            if self.now_ms() > intent.timestamp_ms + intent.recv_window_ms:
                # "Not there" will prove something now, so the time must be the exchange's own word.
                self._rest.sync()
            asked_ms = self.now_ms()
        except Unavailable as error:
            return Unknown(str(error))
        reply = self._rest.signed("GET", _ORDER, {"symbol": intent.symbol, "origClientOrderId": intent.order_id})
        if not isinstance(reply, Reply):
            return reply
        if reply.code == _NO_SUCH_ORDER:
            # Inside of its window the order may still arrive, so nothing is gained by looking further.
            late = asked_ms > intent.timestamp_ms + intent.recv_window_ms
            return (self._elsewhere(intent) if late else None) or NotThere(asked_ms)
        if reply.code in KEY_CODES:
            raise KeyRefused(f"{self._rest.url} refuses the API key: {reply.message} ({reply.code})")
        if reply.code:
            return Unknown(f"asking for the order gave {reply.code} {reply.message}")
        return self._report(intent, reply.body)

    def _elsewhere(self, intent: OrderIntended) -> Answer | None:
        """An order that its own question does not find: in the lists of orders, then by its trades; None: nowhere.

        Whatever is not answered leaves it unknown: only three empty lists say that it is not there.
        """
        here = {"symbol": intent.symbol}
        start, end = intent.timestamp_ms - _BEFORE_MS, intent.timestamp_ms + intent.recv_window_ms + _AFTER_MS
        since = {**here, "startTime": start, "endTime": end, "limit": _PAGE}
        for path, query in ((_OPEN_ORDERS, here), ("/api/v3/allOrders", since), (_TRADES, since)):
            rows = self._rows(path, query)
            if not isinstance(rows, list):
                return rows
            if path == _TRADES:
                found = self._by_trades(intent, rows)
                if found is not None:
                    return found
            for row in rows:
                if row.get("clientOrderId") == intent.order_id:
                    return self._report(intent, msgspec.json.encode(row))
        return None

    def _by_trades(self, intent: OrderIntended, trades: list[dict[str, Any]]) -> Answer | None:
        """The order that a trade belongs to, if its client id is the intent's."""
        for number_ in sorted({str(trade.get("orderId")) for trade in trades}):
            reply = self._rest.signed("GET", _ORDER, {"symbol": intent.symbol, "orderId": number_})
            if not isinstance(reply, Reply):
                return reply
            if reply.code:
                return Unknown(f"asking for order {number_} of a trade gave {reply.code} {reply.message}")
            named = _understood(reply.body, read_order)
            if isinstance(named, Unknown):
                return named
            if named.order_id == intent.order_id:
                return self._report(intent, reply.body)
        return None

    def _rows(self, path: str, query: Mapping[str, Any]) -> list[dict[str, Any]] | Throttled | Unknown:
        reply = self._rest.signed("GET", path, query)
        if not isinstance(reply, Reply):
            return reply
        if reply.code:
            return Unknown(f"GET {path} gave {reply.code} {reply.message}")
        try:
            return msgspec.json.decode(reply.body, type=list[dict[str, Any]])
        except msgspec.DecodeError as error:
            return Unknown(f"an answer that cannot be read: {short(error)}")

    def cancel(self, intent: OrderIntended) -> Answer:
        """See Exchange."""
        reply = self._rest.signed("DELETE", _ORDER, {"symbol": intent.symbol, "origClientOrderId": intent.order_id})
        if not isinstance(reply, Reply):
            return reply
        if reply.code:
            return NotCancelled(reply.code, reply.message)

        def told(body: dict[str, Any]) -> Answer:
            if "orderReports" not in body:
                return read_cancelled(body).message
            # Its whole list was cancelled with it.
            said = {named.order_id: named.message for named in read_list(body).reports}
            return said.get(intent.order_id, Unknown("the list's answer does not tell"))

        return _understood(reply.body, told, dict[str, Any])

    def _report(self, intent: OrderIntended, body: bytes) -> Answer:
        """An order's state with its fills; those that the answer does not list are asked for."""
        named = _understood(body, read_order)
        if isinstance(named, Unknown):
            return named
        found = named.message
        if isinstance(found, Report) or not found.executed_qty:
            return found
        listed = self._fills(intent.symbol, found.exchange_order_id)
        if not isinstance(listed, list):
            return listed
        at = found.at or intent.timestamp_ms * 1_000
        return Report(found.exchange_order_id, found.status, found.executed_qty, tuple(listed), at, found.reason)

    def _fills(self, symbol: str, exchange_order_id: int) -> list[Fill] | Throttled | Unknown:
        fills: list[Fill] = []
        query: dict[str, Any] = {"symbol": symbol, "orderId": exchange_order_id, "limit": _PAGE}
        while True:
            reply = self._rest.signed("GET", _TRADES, query)
            if not isinstance(reply, Reply):
                return reply
            if reply.code:
                return Unknown(f"asking for the order's trades gave {reply.code} {reply.message}")
            page = _understood(reply.body, lambda trades: [read_trade(trade)[1] for trade in trades], list)
            if isinstance(page, Unknown):
                return page
            fills += page
            if len(page) < _PAGE:
                return fills
            query["fromId"] = page[-1].fill_id + 1

    # --- account and rules ---------------------------------------------------------------------------

    def balances(self) -> dict[str, Decimal]:
        """See Exchange."""
        account = self._rest.read(_Account, "/api/v3/account", {"omitZeroBalances": "true"}, signed=True)
        with localcontext(EXACT):
            return {b.asset: b.free + b.locked for b in account.balances if b.free or b.locked}

    def opening_balances(self) -> dict[str, Decimal]:
        """See Exchange."""
        return self.balances()

    def open_orders(self) -> dict[str, str]:
        """See Exchange."""
        rows = self._rows(_OPEN_ORDERS, {})
        if not isinstance(rows, list):
            raise Unavailable(f"{self._rest.url}{_OPEN_ORDERS}: {rows}")
        try:
            return {r["clientOrderId"]: f"{r['side']} {r['origQty']} {r['symbol']}" for r in rows}
        except KeyError as error:
            raise Unavailable(f"{self._rest.url}{_OPEN_ORDERS}: {error.args[0]} is missing") from error

    def fills_from(self, symbol: str, trade_id: int | None) -> list[Fill]:
        """See Exchange."""
        fills: list[Fill] = []
        while True:
            # Without an id of ours to begin at, one page: years of an account's trades are not read again each minute.
            start = {} if trade_id is None else {"fromId": trade_id}
            rows = self._rows(_TRADES, {"symbol": symbol, **start, "limit": _PAGE})
            if not isinstance(rows, list):
                raise Unavailable(f"{self._rest.url}{_TRADES}: {rows}")
            try:
                fills += [read_trade(row)[1] for row in rows]
            except Unreadable as error:
                raise Unavailable(f"{self._rest.url}{_TRADES}: {error}") from error
            if len(rows) < _PAGE or trade_id is None:
                return fills
            trade_id = fills[-1].fill_id + 1

    def instrument(self, symbol: str) -> Instrument | None:
        """See Exchange."""
        known = self._instruments.get(symbol)
        if known is not None and time.monotonic() - known[0] < _FRESH_S:
            return known[1]
        at, told = self._told
        if time.monotonic() - at >= _FRESH_S or symbol not in told:
            # The rules of all symbols weigh as much as those of one.
            everything = len(self._instruments) >= _MANY and time.monotonic() - at >= _FRESH_S
            of = {} if everything else {"symbol": symbol}
            reply = self._rest.send("GET", "/api/v3/exchangeInfo", of, signed=False)
            if not isinstance(reply, Reply) and known is not None:
                return known[1]  # Rules rarely change, and the exchange checks them itself.
            at, told = time.monotonic(), self._rules(reply, symbol)
            if everything:
                self._told = at, told
        try:
            found = read_instrument(told[symbol]) if symbol in told else None
        except (NotANumber, KeyError, TypeError, ValueError) as error:
            raise Unavailable(f"the trading rules of {symbol} cannot be read: {short(error)}") from error
        self._instruments[symbol] = (at, found)
        return found

    def _rules(self, reply: Reply | Unknown | Throttled, symbol: str) -> dict[str, dict[str, Any]]:
        """The entries of an answer by symbol; none for a symbol that the exchange does not know."""
        if not isinstance(reply, Reply):
            raise Unavailable(f"no trading rules of {symbol}: {reply}")
        if reply.code == _NO_SUCH_SYMBOL:
            return {}
        if reply.code:
            raise Unavailable(f"no trading rules of {symbol}: {reply.code} {reply.message}")
        try:
            told = _ExchangeInfo.model_validate_json(reply.body)
            self._rest.budget.allow(told.rateLimits)
            return {info["symbol"]: info for info in told.symbols}
        except (ValidationError, KeyError, TypeError, ValueError) as error:
            raise Unavailable(f"the trading rules of {symbol} cannot be read: {short(error)}") from error

    def last_price(self, symbol: str) -> Decimal:
        """See Exchange."""
        return self._rest.read(_Price, "/api/v3/ticker/price", {"symbol": symbol}, signed=False).price

    def best(self, symbol: str) -> tuple[Decimal, Decimal]:
        """See Exchange."""
        found = self._rest.read(_Best, "/api/v3/ticker/bookTicker", {"symbol": symbol}, signed=False)
        return found.bidPrice, found.askPrice

    def averages(self, symbol: str) -> dict[int, Decimal]:
        """See Exchange."""
        found = self._rest.read(_Average, "/api/v3/avgPrice", {"symbol": symbol}, signed=False)
        return {found.mins: found.price}


def _understood(body: bytes, read: Callable[[Any], R], kind: Any = Any) -> R | Unknown:
    """What an answer's JSON (of this kind) says; Unknown if that cannot be made out."""
    try:
        return read(msgspec.json.decode(body, type=kind))
    except (Unreadable, msgspec.DecodeError) as error:
        return Unknown(f"an answer that cannot be read: {short(error)}")
