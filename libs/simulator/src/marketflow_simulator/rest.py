"""Public market data over REST, as Binance documents it: only what has happened in market time."""

import asyncio
import time
from itertools import groupby
from typing import Any, Final

from aiohttp import web

from marketflow_simulator.amounts import quote8, text8
from marketflow_simulator.errors import ApiError, missing
from marketflow_simulator.faults import Faults
from marketflow_simulator.gate import Call, Gate
from marketflow_simulator.klines import INTERVALS, MINUTE_US, Kline, rest_row
from marketflow_simulator.limits import OrderCount
from marketflow_simulator.market import Market, SymbolMarket
from marketflow_simulator.params import Params
from marketflow_simulator.symbols import AVG_PRICE_MINS, symbol_info
from marketflow_simulator.trades import Trade

_TURN_SECONDS: Final = 0.002
"""How long one answer may compute before the streams get their turn."""


def find_symbol(market: Market, name: str | None) -> SymbolMarket:
    """The symbol of that name; ApiError as Binance words it."""
    if not name:
        raise missing("symbol")
    symbol = market.symbols.get(name)
    if symbol is None:
        raise ApiError(-1121, "Invalid symbol.")
    return symbol


async def klines_between(
    market: Market, symbol: SymbolMarket, interval: str, first_us: int, until_us: int
) -> list[Kline]:
    """Klines that open at or after `first_us` and before `until_us`, closed or not."""
    length, found = INTERVALS[interval], []
    turn = time.monotonic()
    for at in range(first_us, until_us, length):
        if length > MINUTE_US:  # fill the minutes one by one, in turns with the streams
            for minute in range(max(at, symbol.first_at_us // length * length), at + length, MINUTE_US):
                market.minute(symbol, minute)
                if time.monotonic() - turn > _TURN_SECONDS:
                    await asyncio.sleep(0)
                    turn = time.monotonic()
        kline = market.kline(symbol, interval, at)
        if kline is not None:
            found.append(kline)
        if time.monotonic() - turn > _TURN_SECONDS:
            await asyncio.sleep(0)
            turn = time.monotonic()
    return found


class PublicApi:
    """Handlers of the endpoints that need no key."""

    def __init__(self, market: Market, faults: Faults, gate: Gate, counts: OrderCount) -> None:
        self._market = market
        self._faults = faults
        self._gate = gate
        self._counts = counts

    def routes(self) -> list[web.RouteDef]:
        wrap = self._gate.wrap
        return [
            web.get("/api/v3/ping", wrap(self.ping, 1)),
            web.get("/api/v3/time", wrap(self.time, 1)),
            web.get("/api/v3/exchangeInfo", wrap(self.exchange_info, 20)),
            web.get("/api/v3/trades", wrap(self.trades, 25)),
            web.get("/api/v3/historicalTrades", wrap(self.historical_trades, 25)),
            web.get("/api/v3/aggTrades", wrap(self.agg_trades, 4)),
            web.get("/api/v3/klines", wrap(self.klines, 2)),
            web.get("/api/v3/avgPrice", wrap(self.avg_price, 2)),
            web.get("/api/v3/ticker/price", wrap(self.ticker_price, _ticker_weight)),
            web.get("/api/v3/ticker/bookTicker", wrap(self.book_ticker, _ticker_weight)),
        ]

    def now_ms(self) -> int:
        """The exchange's wall clock."""
        return time.time_ns() // 1_000_000 + self._faults.skew_ms

    async def ping(self, call: Call) -> Any:
        return {}

    async def time(self, call: Call) -> Any:
        return {"serverTime": self.now_ms()}

    async def exchange_info(self, call: Call) -> Any:
        wanted = call.params.text("symbol")
        many = call.params.text("symbols")
        names = list(self._market.symbols)
        if wanted is not None and many is not None:
            raise ApiError(-1128, "Combination of optional parameters invalid.")
        if wanted is not None:
            names = [find_symbol(self._market, wanted).symbol]
        elif many is not None:
            names = [find_symbol(self._market, n.strip('" ')).symbol for n in many.strip("[]").split(",")]
        return {
            "timezone": "UTC",
            "serverTime": self.now_ms(),
            "rateLimits": [
                self._gate.weight_limit(),
                *self._counts.limits(),
                {"rateLimitType": "RAW_REQUESTS", "interval": "MINUTE", "intervalNum": 5, "limit": 61000},
            ],
            "exchangeFilters": [],
            "symbols": [self._info(name) for name in names],
        }

    def _info(self, name: str) -> dict[str, Any]:
        symbol = self._market.symbols[name]
        return symbol_info(symbol.spec, symbol.trades_at(self._market.time_us), symbol.filters)

    async def trades(self, call: Call) -> Any:
        symbol = find_symbol(self._market, call.params.required("symbol"))
        limit = call.params.limit()
        if symbol.last is None:
            return []
        return [_trade_json(t) for t in symbol.tape.latest(symbol.last.id, limit)]

    async def historical_trades(self, call: Call) -> Any:
        symbol = find_symbol(self._market, call.params.required("symbol"))
        limit, from_id = call.params.limit(), call.params.integer("fromId")
        if symbol.last is None:
            return []
        if from_id is None:
            return [_trade_json(t) for t in symbol.tape.latest(symbol.last.id, limit)]
        return [_trade_json(t) for t in symbol.happened(from_id, limit)]

    async def agg_trades(self, call: Call) -> Any:
        symbol = find_symbol(self._market, call.params.required("symbol"))
        params = call.params
        limit, from_agg = params.limit(), params.integer("fromId")
        start_us, end_us = params.time_us("startTime"), params.time_us("endTime")
        if from_agg is not None and (start_us is not None or end_us is not None):
            raise ApiError(-1128, "Combination of optional parameters invalid.")
        if symbol.last is None or (start_us is not None and start_us > self._market.time_us):
            return []
        tape, last = symbol.tape, symbol.last
        if from_agg is not None:
            from_agg = max(from_agg, 0)
            from_id = tape.agg_start(from_agg) if from_agg <= last.agg_id else None
        elif start_us is not None:
            from_id = next((t.id for t in tape.live(start_us)), None)
        else:
            until = last if end_us is None else tape.before(min(end_us + 1000, self._market.time_us + 1))
            from_id = None
            if until is not None:
                from_id = tape.agg_start(max(min(until.agg_id, last.agg_id) - limit + 1, 0))
        if from_id is None:
            return []
        rows: list[dict[str, Any]] = []
        for trades in self._aggregates(symbol, from_id):
            if len(rows) == limit or (end_us is not None and trades[0].at_us >= end_us + 1000):
                break
            rows.append(_agg_json(trades))
        return rows

    def _aggregates(self, symbol: SymbolMarket, from_id: int) -> Any:
        def each() -> Any:
            at = from_id
            while page := symbol.happened(at, 1000):
                yield from page
                at = page[-1].id + 1

        return (list(group) for _, group in groupby(each(), key=lambda trade: trade.agg_id))

    async def klines(self, call: Call) -> Any:
        symbol = find_symbol(self._market, call.params.required("symbol"))
        interval = call.params.required("interval")
        if interval not in INTERVALS:
            raise ApiError(-1120, "Invalid interval.")
        length, limit = INTERVALS[interval], call.params.limit()
        start_us, end_us = call.params.time_us("startTime"), call.params.time_us("endTime")
        last_us = self._market.time_us if end_us is None else min(end_us, self._market.time_us)
        until_us = last_us // length * length + length
        earliest_us = symbol.first_at_us // length * length
        if start_us is None:
            first_us = max(until_us - limit * length, earliest_us)
        else:
            first_us = max(-(-start_us // length) * length, earliest_us)
            until_us = min(until_us, first_us + limit * length)
        return [rest_row(k) for k in await klines_between(self._market, symbol, interval, first_us, until_us)]

    async def avg_price(self, call: Call) -> Any:
        symbol = find_symbol(self._market, call.params.required("symbol"))
        price = self._market.average_price(symbol) or 0
        close_ms = symbol.last.time_us // 1000 if symbol.last else 0
        return {"mins": AVG_PRICE_MINS, "price": text8(price), "closeTime": close_ms}

    async def ticker_price(self, call: Call) -> Any:
        name, many = call.params.text("symbol"), call.params.text("symbols")
        if name is not None:
            return _price_json(find_symbol(self._market, name))
        if many is not None:
            wanted = [part.strip('" ') for part in many.strip("[]").split(",")]
            return [_price_json(find_symbol(self._market, part)) for part in wanted]
        return [_price_json(symbol) for symbol in self._market.symbols.values()]

    async def book_ticker(self, call: Call) -> Any:
        name, many = call.params.text("symbol"), call.params.text("symbols")
        if name is not None:
            return _best_json(find_symbol(self._market, name))
        wanted = [part.strip('" ') for part in many.strip("[]").split(",")] if many is not None else None
        found = self._market.symbols if wanted is None else wanted
        return [_best_json(find_symbol(self._market, part)) for part in found]


def _ticker_weight(params: Params) -> int:
    return 2 if "symbol" in params else 4


def _price_json(symbol: SymbolMarket) -> dict[str, Any]:
    return {"symbol": symbol.symbol, "price": text8(symbol.last.price if symbol.last else 0)}


def _best_json(symbol: SymbolMarket) -> dict[str, Any]:
    """There is no book: a bid and an ask one tick beside the last price, each of one step."""
    last, tick, qty = symbol.last, symbol.spec.tick, text8(symbol.spec.step)
    bid, ask = (max(last.price - tick, tick), last.price + tick) if last else (0, 0)
    return {"symbol": symbol.symbol, "bidPrice": text8(bid), "bidQty": qty, "askPrice": text8(ask), "askQty": qty}


def _trade_json(trade: Trade) -> dict[str, Any]:
    return {
        "id": trade.id,
        "price": text8(trade.price),
        "qty": text8(trade.qty),
        "quoteQty": quote8(trade.price * trade.qty),
        "time": trade.time_us // 1000,
        "isBuyerMaker": trade.buyer_is_maker,
        "isBestMatch": True,
    }


def _agg_json(trades: list[Trade]) -> dict[str, Any]:
    first = trades[0]
    return {
        "a": first.agg_id,
        "p": text8(first.price),
        "q": text8(sum(trade.qty for trade in trades)),
        "f": first.id,
        "l": trades[-1].id,
        "T": first.time_us // 1000,
        "m": first.buyer_is_maker,
        "M": True,
    }
