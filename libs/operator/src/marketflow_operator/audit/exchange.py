"""Reads the exchange's own account of things: its trades, klines, orders, fills and balances.

Edge of the audit. Klines come from the exchange's own path, never from a service; numbers stay exact.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from itertools import product
from typing import Any, Final

import httpx
from marketflow_common.events import Kline
from marketflow_common.intervals import INTERVALS, window_start
from marketflow_common.numbers import number

from .model import Exchange, ExchangeFill, ExchangeOrder, ExchangeTrade, SymbolFeed
from .topics import CannotRead

__all__ = ["ExchangeReader", "kline_of"]

PAGE: Final = 50_000
"""Trades in one answer of the exchange."""
BACK: Final = 2_000
"""Trades to step back at once when looking for the start of a minute."""


class ExchangeReader:
    """The exchange simulator's ledger over HTTP; what has been read is kept, and only news is asked for."""

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        self._http = httpx.Client(timeout=30, trust_env=False)
        self._trades: dict[str, list[ExchangeTrade]] = {}
        self._klines: dict[tuple[str, str], dict[int, Kline]] = {}
        self._start: dict[str, int] = {}
        self._oldest: dict[str, int] = {}
        self._assets: dict[str, tuple[str, str]] = {}

    def close(self) -> None:
        """Close the connection."""
        self._http.close()

    def market(self) -> dict[str, Any]:
        """The market's state, as ``GET /sim/market`` tells it. Raises CannotRead."""
        found = self._ask("/sim/market")
        assert isinstance(found, dict)
        return found

    def read(self, lowest: dict[str, int], longer: Collection[str] = ()) -> Exchange:
        """The ledger as of now. ``lowest`` is the first published id by symbol: its minute is read from its start.
        ``longer``: intervals besides 1m whose klines are wanted.

        Orders and fills are read before the trades, and both should be read before the topics.
        """
        if not self._assets:
            info = self._ask("/api/v3/exchangeInfo")
            self._assets = {s["symbol"]: (s["baseAsset"], s["quoteAsset"]) for s in info["symbols"]}
        ledger = self._ask("/sim/ledger")
        market = self.market()
        symbols = {symbol: state for symbol, state in market["symbols"].items() if state["first_trade_id"] is not None}
        for symbol, state in symbols.items():
            self._begin(symbol, state, lowest.get(symbol))
        self._read_news(symbols, ("1m", *longer))
        return Exchange(
            feeds={symbol: self._feed(symbol, state, longer) for symbol, state in symbols.items()},
            ended=bool(market["ended"]),
            market_time=int(market["market_time_us"]),
            orders=[_order(entry) for entry in ledger["orders"]],
            fills=[_fill(entry) for entry in ledger["fills"]],
            balances={a: number(b["free"]) + number(b["locked"]) for a, b in ledger["balances"].items()},
            assets=self._assets,
        )

    def _begin(self, symbol: str, state: dict[str, Any], lowest: int | None) -> None:
        """Read a symbol's trades from the minute on in which they are wanted, unless that was done."""
        streamed_from = int(state["first_trade_id"])
        start = streamed_from if lowest is None else min(lowest, streamed_from)
        trades = self._trades.get(symbol)
        if trades is None or (trades and trades[0].trade_id > start):
            oldest = self._page(symbol, 0, 1)
            self._oldest[symbol] = oldest[0].trade_id if oldest else start
            self._trades[symbol] = self._from_minute(symbol, start)
            self._start[symbol] = start
            for key in [key for key in self._klines if key[0] == symbol]:
                del self._klines[key]  # earlier ones are wanted as well

    def _read_news(self, symbols: dict[str, dict[str, Any]], intervals: Sequence[str]) -> None:
        """All trades and closed klines that are not known yet; of a thousand symbols in a few answers."""
        while wanted := {
            symbol: following
            for symbol, state in symbols.items()
            if (following := self._following(symbol)) <= (state["last_trade_id"] or following)
        }:
            news = self._ask("/sim/news", {"trades": wanted})["trades"]
            for symbol, rows in news.items():
                self._trades[symbol] += map(_trade, rows)
            if not any(news.values()):
                break
        since: dict[str, dict[str, int]] = {symbol: {} for symbol in symbols if self._trades[symbol]}
        for symbol, interval in product(since, intervals):
            known = self._klines.setdefault((symbol, interval), {})
            since[symbol][interval] = (
                next(reversed(known)) + INTERVALS[interval]
                if known
                else window_start(self._trades[symbol][0].traded_at, interval)
            )
        for symbol, found in self._ask("/sim/news", {"klines": since})["klines"].items():
            for interval, rows in found.items():
                self._klines[symbol, interval].update((one.open_time, one) for one in map(kline_of, rows))

    def _following(self, symbol: str) -> int:
        trades = self._trades[symbol]
        return trades[-1].trade_id + 1 if trades else self._start[symbol]

    def _feed(self, symbol: str, state: dict[str, Any], longer: Collection[str]) -> SymbolFeed:
        return SymbolFeed(
            symbol,
            self._trades[symbol],
            self._klines.get((symbol, "1m"), {}),
            int(state["first_trade_id"]),
            self._oldest[symbol],
            {interval: self._klines.get((symbol, interval), {}) for interval in longer},
        )

    def _from_minute(self, symbol: str, start: int) -> list[ExchangeTrade]:
        """Trades from the start of the minute that holds the trade ``start``, as far as one page goes."""
        begin = start
        trades = self._page(symbol, begin, PAGE)
        if not trades:
            return []
        minute = window_start(trades[0].traded_at)
        while trades[0].trade_id > self._oldest[symbol] and window_start(trades[0].traded_at) >= minute:
            begin = max(self._oldest[symbol], begin - BACK)
            earlier = [t for t in self._page(symbol, begin, BACK) if t.trade_id < trades[0].trade_id]
            if not earlier:
                break
            trades = earlier + trades
        return trades

    def _page(self, symbol: str, from_id: int, limit: int) -> list[ExchangeTrade]:
        return list(map(_trade, self._ask(f"/sim/trades?symbol={symbol}&from_id={from_id}&limit={limit}")))

    def _ask(self, path: str, body: Any = None) -> Any:
        try:
            answer = self._http.get(self.url + path) if body is None else self._http.post(self.url + path, json=body)
            answer.raise_for_status()
            return answer.json()
        except httpx.HTTPStatusError as error:
            raise CannotRead(f"the exchange at {self.url} answers {error.response.status_code} to {path}") from None
        except (httpx.HTTPError, ValueError) as error:
            raise CannotRead(
                f"no exchange answers at {self.url} ({error or type(error).__name__}); "
                "start the stack, or name its address with --exchange"
            ) from None


def kline_of(row: list[Any]) -> Kline:
    """A row of Binance's documented klines, times in milliseconds; ``/sim/klines`` adds first and last trade id.

    Ids that a row does not tell are -1. Raises NotANumber, ValueError, TypeError or IndexError.
    """
    ids = row[12:14] or (-1, -1)
    return Kline(
        open_time=int(row[0]) * 1000,
        close_time=int(row[6]) * 1000 + 999,
        open=number(row[1]),
        high=number(row[2]),
        low=number(row[3]),
        close=number(row[4]),
        volume=number(row[5]),
        quote_volume=number(row[7]),
        trade_count=int(row[8]),
        taker_buy_volume=number(row[9]),
        taker_buy_quote_volume=number(row[10]),
        first_trade_id=int(ids[0]),
        last_trade_id=int(ids[1]),
    )


def _trade(row: dict[str, Any]) -> ExchangeTrade:
    return ExchangeTrade(
        int(row["id"]), number(row["price"]), number(row["qty"]), int(row["time_us"]), bool(row["is_buyer_maker"])
    )


def _order(entry: dict[str, Any]) -> ExchangeOrder:
    return ExchangeOrder(
        entry["symbol"],
        entry["clientOrderId"],
        int(entry["orderId"]),
        entry["side"],
        entry["type"],
        entry["status"],
        number(entry["executedQty"]),
        number(entry["cummulativeQuoteQty"]),
    )


def _fill(entry: dict[str, Any]) -> ExchangeFill:
    return ExchangeFill(
        entry["symbol"],
        int(entry["id"]),
        int(entry["orderId"]),
        entry["side"],
        number(entry["price"]),
        number(entry["qty"]),
        number(entry["quoteQty"]),
        number(entry["commission"]),
        entry["commissionAsset"],
    )
