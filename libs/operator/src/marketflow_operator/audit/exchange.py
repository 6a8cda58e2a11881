"""Reads the exchange's own account of things: its trades, klines, orders, fills and balances.

Edge of the audit. Klines come from the exchange's own path, never from a service; numbers stay exact.
"""

from __future__ import annotations

from collections.abc import Collection
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
        self._oldest: dict[str, int] = {}
        self._assets: dict[str, tuple[str, str]] = {}

    def close(self) -> None:
        """Close the connection."""
        self._http.close()

    def market(self) -> dict[str, Any]:
        """The market's state, as ``GET /sim/market`` tells it. Raises CannotRead."""
        found = self._get("/sim/market")
        assert isinstance(found, dict)
        return found

    def read(self, lowest: dict[str, int], longer: Collection[str] = ()) -> Exchange:
        """The ledger as of now. ``lowest`` is the first published id by symbol: its minute is read from its start.
        ``longer``: intervals besides 1m whose klines are wanted.

        Orders and fills are read before the trades, and both should be read before the topics.
        """
        if not self._assets:
            info = self._get("/api/v3/exchangeInfo")
            self._assets = {s["symbol"]: (s["baseAsset"], s["quoteAsset"]) for s in info["symbols"]}
        ledger = self._get("/sim/ledger")
        market = self.market()
        feeds = {
            symbol: self._feed(symbol, state, lowest.get(symbol), longer)
            for symbol, state in market["symbols"].items()
            if state["first_trade_id"] is not None
        }
        return Exchange(
            feeds=feeds,
            ended=bool(market["ended"]),
            market_time=int(market["market_time_us"]),
            orders=[_order(entry) for entry in ledger["orders"]],
            fills=[_fill(entry) for entry in ledger["fills"]],
            balances={a: number(b["free"]) + number(b["locked"]) for a, b in ledger["balances"].items()},
            assets=self._assets,
        )

    def _feed(self, symbol: str, state: dict[str, Any], lowest: int | None, longer: Collection[str]) -> SymbolFeed:
        streamed_from = int(state["first_trade_id"])
        start = streamed_from if lowest is None else min(lowest, streamed_from)
        trades = self._trades.get(symbol)
        if trades is None or (trades and trades[0].trade_id > start):
            oldest = self._page(symbol, 0, 1)
            self._oldest[symbol] = oldest[0].trade_id if oldest else start
            trades = self._trades[symbol] = self._from_minute(symbol, start)
        while page := self._page(symbol, trades[-1].trade_id + 1 if trades else start, PAGE):
            trades += page
        if trades:
            for interval in ("1m", *longer):
                self._read_klines(symbol, interval, window_start(trades[0].traded_at, interval))
        return SymbolFeed(
            symbol,
            trades,
            self._klines.get((symbol, "1m"), {}),
            streamed_from,
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
        rows = self._get("/sim/trades", symbol=symbol, from_id=from_id, limit=limit)
        return [
            ExchangeTrade(
                int(row["id"]),
                number(row["price"]),
                number(row["qty"]),
                int(row["time_us"]),
                bool(row["is_buyer_maker"]),
            )
            for row in rows
        ]

    def _read_klines(self, symbol: str, interval: str, first: int) -> None:
        known = self._klines.setdefault((symbol, interval), {})
        since = max(known) + INTERVALS[interval] if known else first
        for row in self._get("/sim/klines", symbol=symbol, interval=interval, from_us=since):
            kline = kline_of(row)
            known[kline.open_time] = kline

    def _get(self, path: str, **query: str | int) -> Any:
        try:
            answer = self._http.get(self.url + path, params=query)
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
