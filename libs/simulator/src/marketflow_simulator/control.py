"""The simulator's own endpoints under /sim: its state, the whole truth about its market, and faults."""

import asyncio
import time
from typing import Any

import msgspec
from aiohttp import web

from marketflow_simulator.amounts import scaled, text8
from marketflow_simulator.books import Books
from marketflow_simulator.errors import ApiError
from marketflow_simulator.faults import Fault, FaultError, Faults
from marketflow_simulator.filters import FilterError
from marketflow_simulator.gate import Gate
from marketflow_simulator.klines import INTERVALS, MINUTE_US, rest_row
from marketflow_simulator.market import Market, SymbolMarket
from marketflow_simulator.params import Params
from marketflow_simulator.pump import Pump
from marketflow_simulator.rest import find_symbol, klines_between
from marketflow_simulator.streams import Hub
from marketflow_simulator.views import order_json

_MAX_TRADES = 50_000
_PAGE = 500


class _Funds(msgspec.Struct, forbid_unknown_fields=True):
    asset: str
    delta: str


class _Rules(msgspec.Struct, forbid_unknown_fields=True):
    symbol: str
    filters: list[dict[str, Any]] = []
    remove: list[str] = []


class _Outside(msgspec.Struct, forbid_unknown_fields=True):
    symbol: str
    order_id: int | None = None
    client_order_id: str | None = None
    expire: bool = False
    rename: str | None = None


class _News(msgspec.Struct, forbid_unknown_fields=True):
    trades: dict[str, int] = {}
    """The first id that is wanted, by symbol."""
    klines: dict[str, dict[str, int]] = {}
    """The first open time that is wanted, in microseconds, by symbol and interval."""


class Control:
    """Handlers of /sim. They cost no weight, need no key and are hit by no fault."""

    def __init__(
        self,
        market: Market,
        books: Books,
        hub: Hub,
        pump: Pump,
        gate: Gate,
        faults: Faults,
        seed: int | None,
    ) -> None:
        self._market = market
        self._books = books
        self._gate = gate
        self._hub = hub
        self._pump = pump
        self._faults = faults
        self._seed = seed
        self._since = time.monotonic()

    def routes(self) -> list[web.RouteDef]:
        return [
            web.get("/sim/health", self.health),
            web.get("/sim/market", self.market),
            web.post("/sim/market/start", self.start),
            web.post("/sim/market/end", self.end),
            web.get("/sim/ledger", self.ledger),
            web.get("/sim/trades", self.trades),
            web.get("/sim/klines", self.klines),
            web.post("/sim/news", self.news),
            web.post("/sim/symbols", self.set_filters),
            web.post("/sim/balance", self.transfer),
            web.post("/sim/orders/cancel", self.cancel),
            web.get("/sim/faults", self.faults),
            web.post("/sim/faults", self.add_fault),
            web.delete("/sim/faults", self.clear_faults),
        ]

    async def health(self, request: web.Request) -> web.Response:
        return answer({"ok": True, "uptime_seconds": round(time.monotonic() - self._since, 3)})

    async def market(self, request: web.Request) -> web.Response:
        symbols = {}
        for name, symbol in self._market.symbols.items():
            first, last = symbol.first, symbol.last
            happened = symbol.published > 0
            symbols[name] = {
                "first_trade_id": first.id if first else None,
                "last_trade_id": last.id if last and happened else None,
                "first_time_us": first.time_us if first else None,
                "last_time_us": last.time_us if last and happened else None,
                "published": symbol.published,
            }
        return answer(
            {
                "running": self._pump.running,
                "ended": self._market.ended,
                "market_time_us": self._market.time_us,
                "start_time_us": self._market.start_us,
                "speed": self._pump.speed,
                "synthetic": self._seed is not None,
                "seed": self._seed,
                "symbols": symbols,
                "connections": len(self._hub.connections),
            }
        )

    async def start(self, request: web.Request) -> web.Response:
        already = self._pump.started.is_set()
        self._pump.started.set()
        return answer({"running": self._pump.running, "already_started": already})

    async def end(self, request: web.Request) -> web.Response:
        return answer({"end_time_us": self._market.end()})

    async def ledger(self, request: web.Request) -> web.Response:
        requests = {endpoint: dict(counts) for endpoint, counts in self._gate.requests.items()}
        return answer({**self._books.ledger(), "requests": requests})

    async def trades(self, request: web.Request) -> web.Response:
        try:
            params = Params(request.rel_url.raw_query_string, "")
            symbol = find_symbol(self._market, params.required("symbol"))
            limit = min(params.integer("limit") or _MAX_TRADES, _MAX_TRADES)
            first = symbol.first.id if symbol.first else 0
            from_id = params.integer("from_id")
        except ApiError as error:
            return refuse(error.message)
        return answer(await self._trades(symbol, first if from_id is None else from_id, limit))

    async def _trades(self, symbol: SymbolMarket, at: int, limit: int) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = []
        while len(rows) < limit and (page := symbol.happened(at, min(_PAGE, limit - len(rows)))):
            at = page[-1].id + 1
            for trade in page:
                rows.append(
                    {
                        "id": trade.id,
                        "price": text8(trade.price),
                        "qty": text8(trade.qty),
                        "time_us": trade.time_us,
                        "is_buyer_maker": trade.buyer_is_maker,
                    }
                )
            await asyncio.sleep(0)  # the streams get their turn
        return rows

    async def klines(self, request: web.Request) -> web.Response:
        try:
            params = Params(request.rel_url.raw_query_string, "")
            symbol = find_symbol(self._market, params.required("symbol"))
            interval = params.text("interval") or "1m"
            from_us, to_us = params.integer("from_us"), params.integer("to_us")
        except ApiError as error:
            return refuse(error.message)
        if interval not in INTERVALS:
            return refuse(f"interval {interval!r} is none of {', '.join(INTERVALS)}")
        return answer(await self._klines(symbol, interval, from_us, to_us))

    async def _klines(
        self, symbol: SymbolMarket, interval: str, from_us: int | None, to_us: int | None = None
    ) -> list[Any]:
        length = INTERVALS[interval]
        first_us = self._market.start_us if from_us is None else from_us
        first_us = max(first_us, symbol.first_at_us // MINUTE_US * MINUTE_US) // length * length
        closed_us = self._market.closed_us // length * length
        until_us = closed_us if to_us is None else min(-(-to_us // length) * length, closed_us)
        klines = await klines_between(self._market, symbol, interval, first_us, until_us)
        return [[*rest_row(kline), kline.first_id, kline.last_id] for kline in klines]

    async def news(self, request: web.Request) -> web.Response:
        """Trades and klines of many symbols in one answer, up to _MAX_TRADES trades in all."""
        try:
            wanted = msgspec.json.decode(await request.read(), type=_News)
            symbols = {name: find_symbol(self._market, name) for name in {*wanted.trades, *wanted.klines}}
            unknown = {interval for asked in wanted.klines.values() for interval in asked} - INTERVALS.keys()
            if unknown:
                return refuse(f"interval {min(unknown)!r} is none of {', '.join(INTERVALS)}")
        except ApiError as error:
            return refuse(error.message)
        except msgspec.DecodeError as error:
            return refuse(f"no such question: {error}")
        trades, room = dict[str, Any](), _MAX_TRADES
        for name, at in wanted.trades.items():
            trades[name] = await self._trades(symbols[name], at, room)
            room -= len(trades[name])
        klines = {
            name: {interval: await self._klines(symbols[name], interval, since) for interval, since in asked.items()}
            for name, asked in wanted.klines.items()
        }
        return answer({"trades": trades, "klines": klines})

    async def set_filters(self, request: web.Request) -> web.Response:
        """Change a symbol's filters from now on."""
        try:
            wanted = msgspec.json.decode(await request.read(), type=_Rules)
            symbol = find_symbol(self._market, wanted.symbol)
            symbol.filters = symbol.filters.changed(wanted.filters, wanted.remove)
        except ApiError as error:
            return refuse(error.message)
        except (msgspec.DecodeError, FilterError) as error:
            return refuse(f"no such filters: {error}")
        self._books.keep_filters(symbol.symbol, symbol.filters.shown(), symbol.filters.step)
        return answer({"symbol": symbol.symbol, "filters": symbol.filters.shown()})

    async def transfer(self, request: web.Request) -> web.Response:
        """A deposit or withdrawal that no order explains."""
        try:
            wanted = msgspec.json.decode(await request.read(), type=_Funds)
            minus = wanted.delta.startswith("-")
            units = scaled(wanted.delta.removeprefix("-"))
            self._books.transfer(wanted.asset, -units if minus else units)
        except (msgspec.DecodeError, ValueError) as error:
            return refuse(f"no such transfer: {error}")
        free, locked = self._books.free[wanted.asset], self._books.locked[wanted.asset]
        return answer({"asset": wanted.asset, "free": text8(free), "locked": text8(locked)})

    async def cancel(self, request: web.Request) -> web.Response:
        """An open order ends without its owner's program having asked for it."""
        books = self._books
        try:
            wanted = msgspec.json.decode(await request.read(), type=_Outside)
            order = books.find(wanted.symbol, wanted.order_id, wanted.client_order_id)
            if order is not None and order.is_open and wanted.expire:
                books.expire(order)
            else:
                order = books.cancel(wanted.symbol, wanted.order_id, wanted.client_order_id, wanted.rename or "outside")
        except ApiError as error:
            return refuse(error.message)
        except msgspec.DecodeError as error:
            return refuse(f"no such order: {error}")
        if wanted.rename is not None:
            books.rename(order, wanted.rename)
        return answer(order_json(order))

    async def faults(self, request: web.Request) -> web.Response:
        return answer(self._faults.listing())

    async def add_fault(self, request: web.Request) -> web.Response:
        try:
            fault = msgspec.json.decode(await request.read(), type=Fault)
            return answer(self._faults.add(fault, list(self._market.symbols)))
        except (msgspec.DecodeError, FaultError) as error:
            return refuse(f"no such fault: {error}")

    async def clear_faults(self, request: web.Request) -> web.Response:
        self._faults.clear()
        return answer(self._faults.listing())


def answer(payload: Any) -> web.Response:
    """A JSON answer."""
    return web.Response(body=msgspec.json.encode(payload), content_type="application/json")


def refuse(message: str) -> web.Response:
    """A JSON answer that says what was wrong with the request."""
    return web.Response(body=msgspec.json.encode({"error": message}), status=400, content_type="application/json")
