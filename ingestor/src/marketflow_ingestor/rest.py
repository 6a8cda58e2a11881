"""The exchange's public REST: trades, klines, symbols and clock, each request within one budget of weight.

Must never ask while the exchange wants no request, let a number through unchecked, or decide what is published.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from contextlib import suppress
from random import uniform
from typing import Any, Final

import aiohttp
import msgspec
from binance import AsyncClient
from binance.exceptions import BinanceAPIException, BinanceRequestException
from marketflow_common import logs
from marketflow_common.clock import now_us
from marketflow_common.events import Kline, Trade
from marketflow_common.intervals import MINUTE
from marketflow_common.numbers import NotANumber

from . import metrics
from .binance import SOURCE, Unreadable, amount, kline_of, micros
from .budget import FILL, HOUSEKEEPING, Weight

__all__ = ["PAGE", "Rest", "RestError", "Waiting"]

_log = logs.get("ingestor")
PAGE: Final = 1_000
"""Most trades or klines in one REST answer (historicalTrades, klines: limit)."""
_WEIGHTS: Final = {"historicalTrades": 25, "aggTrades": 4, "klines": 2, "exchangeInfo": 20, "time": 1}
"""As documented, "Market Data endpoints" and "General endpoints"."""
_REQUEST_SECONDS: Final = 10.0
_TURN_SECONDS: Final = 2.0
"""A request waits this long for its turn; whoever asked then looks again whether it is still needed."""
_AT_ONCE: Final = 4
"""Requests under way: what a 429 meets is answered by at most three more, which the exchange forgives."""
_AGGREGATE_PAGES: Final = 5
"""Answers in search of a hole from the beginning of its minute on."""
_ROUNDS: Final = 5
_CLOCK_TOLERANCE_S: Final = 1.0


class RestError(RuntimeError):
    """REST gave no answer that can be used; the text says why."""


class Waiting(RestError):
    """The request was not sent because this minute's weight is used up; the exchange itself is well."""


class _RestTrade(msgspec.Struct, gc=False):
    id: int
    price: str
    qty: str
    time: int
    isBuyerMaker: bool


class _Aggregate(msgspec.Struct, gc=False):
    a: int
    p: str
    q: str
    f: int
    l: int  # noqa: E741 - the exchange's name
    T: int
    m: bool


class _Client(AsyncClient):  # type: ignore[misc]  # python-binance has no types
    def __init__(self, rest_url: str, api_key: str) -> None:
        self.API_URL = f"{rest_url}/api"
        self.used: int | None = None
        timeout = aiohttp.ClientTimeout(total=_REQUEST_SECONDS)
        super().__init__(api_key or None, requests_params={"timeout": timeout}, session_params={"trust_env": True})

    async def _handle_response(self, response: aiohttp.ClientResponse) -> Any:
        used = response.headers.get("X-MBX-USED-WEIGHT-1M", "")
        self.used = int(used) if used.isdecimal() else None
        return await super()._handle_response(response)


class Rest:
    """Made and used on one event loop. All methods raise RestError; ``share`` is one of budget's."""

    def __init__(self, rest_url: str, api_key: str, weight_share: float) -> None:
        self._url = rest_url
        self._client = _Client(rest_url, api_key)
        self._weight = Weight(weight_share)
        self._turns = asyncio.Semaphore(_AT_ONCE)
        self.offset_us: int | None = None
        """Exchange's clock minus ours; None: not measured yet."""
        metrics.BLOCKED.set_function(lambda: self._weight.blocked(time.monotonic()))

    async def close(self) -> None:
        """Give the connections back."""
        await self._client.close_connection()

    async def symbols(self) -> dict[str, str]:
        """Status (``TRADING`` ...) of every symbol of the exchange; takes up its rate limits."""
        answer = await self._ask("exchangeInfo", HOUSEKEEPING, self._client.get_exchange_info)
        try:
            for row in answer.get("rateLimits", ()):
                if row["rateLimitType"] == "REQUEST_WEIGHT" and (row["interval"], row["intervalNum"]) == ("MINUTE", 1):
                    self._weight.limit = int(row["limit"])
                    metrics.WEIGHT_LIMIT.set(self._weight.limit)
            return {str(row["symbol"]): str(row["status"]) for row in answer["symbols"]}
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise RestError(f"{self._url}: exchangeInfo is not as documented: {error!r}") from error

    async def trades(self, symbol: str, first_id: int, limit: int = PAGE, share: float = FILL) -> list[Trade]:
        """Up to ``limit`` (at most 1,000) trades from ``first_id`` on, by id."""
        rows = await self._ask(
            "historicalTrades", share, self._client.get_historical_trades, symbol=symbol, fromId=first_id, limit=limit
        )
        received = now_us()
        try:
            trades = [
                Trade(SOURCE, symbol, r.id, amount(r.price), amount(r.qty), r.isBuyerMaker, micros(r.time), received)
                for r in msgspec.convert(rows, list[_RestTrade])
            ]
        except (msgspec.ValidationError, NotANumber) as error:
            raise RestError(f"{self._url}: historicalTrades of {symbol} from {first_id}: {error}") from error
        return sorted((t for t in trades if t.trade_id >= first_id), key=lambda trade: trade.trade_id)

    async def single_trades(self, symbol: str, since: int, first_id: int, last_id: int) -> list[Trade]:
        """Trades from ``first_id`` on without a hole, as far as aggregates of one trade show them; for when ``trades``
        cannot be had. ``since`` (microseconds) is not later than the first of them.

        An aggregate of several trades tells neither the time nor the quantity of each, so it ends the list.
        """
        found: list[Trade] = []
        where = {"startTime": since // 1_000}
        for _ in range(_AGGREGATE_PAGES):
            rows = await self._ask(
                "aggTrades", FILL, self._client.get_aggregate_trades, symbol=symbol, limit=PAGE, **where
            )
            received = now_us()
            try:
                for r in msgspec.convert(rows, list[_Aggregate]):
                    if r.l < first_id:
                        continue
                    if r.f != r.l or r.f != first_id + len(found) or r.f > last_id:
                        return found
                    found.append(Trade(SOURCE, symbol, r.f, amount(r.p), amount(r.q), r.m, micros(r.T), received))
                where = {"fromId": int(rows[-1]["a"]) + 1} if rows else where
            except (msgspec.ValidationError, NotANumber) as error:
                raise RestError(f"{self._url}: aggTrades of {symbol}: {error}") from error
            if len(rows) < PAGE:
                break
        return found

    async def newest_id(self, symbol: str) -> int:
        """Id of the symbol's newest trade, -1 if it has none: a sixth of the weight of asking for the trade."""
        rows = await self._ask("aggTrades", FILL, self._client.get_aggregate_trades, symbol=symbol, limit=1)
        try:
            return max((int(row["l"]) for row in rows), default=-1)
        except (KeyError, TypeError, ValueError) as error:
            raise RestError(f"{self._url}: aggTrades of {symbol} is not as documented: {error!r}") from error

    async def klines(self, symbol: str, start: int, end: int) -> list[Kline]:
        """The minutes that open in ``start <= time < end`` (microseconds), the last 1,000 of them, without ids."""
        start = max(start, end - PAGE * MINUTE)
        rows = await self._ask(
            "klines",
            HOUSEKEEPING,
            self._client.get_klines,
            symbol=symbol,
            interval="1m",
            startTime=start // 1_000,
            endTime=end // 1_000 - 1,
            limit=PAGE,
        )
        try:
            return sorted(
                (kline_of(r[0], r[6], (*r[1:6], r[7]), r[8], r[9:11], (-1, -1)) for r in rows),
                key=lambda kline: kline.open_time,
            )
        except (NotANumber, Unreadable, TypeError, ValueError, IndexError) as error:
            raise RestError(f"{self._url}: klines of {symbol}: {error}") from error

    async def measure_clock(self) -> int:
        """Microseconds that the exchange's clock is ahead: the median of a few round trips, halved."""
        offsets = []
        for _ in range(_ROUNDS):
            sent = now_us()
            answer = await self._ask("time", HOUSEKEEPING, self._client.get_server_time)
            try:
                offsets.append(micros(int(answer["serverTime"])) - (sent + now_us()) // 2)
            except (KeyError, TypeError, ValueError) as error:
                raise RestError(f"{self._url}: time is not as documented: {error!r}") from error
        self.offset_us = int(statistics.median(offsets))
        metrics.CLOCK_OFFSET.set(self.offset_us / 1e6)
        if abs(self.offset_us) > _CLOCK_TOLERANCE_S * 1e6:
            _log.warning(
                "clock_off",
                exchange_ahead_s=self.offset_us / 1e6,
                remedy="set this machine's clock (ntp); times in the topics are the exchange's and not touched by it",
            )
        return self.offset_us

    def _now(self) -> float:
        return (now_us() + (self.offset_us or 0)) / 1e6

    async def _ask(self, path: str, share: float, method: Any, **parameters: Any) -> Any:
        weight = _WEIGHTS[path]
        await self._turn(weight, share)
        try:
            async with self._turns:
                self._check()
                self._client.used = None
                return await self._answer(path, method, **parameters)
        finally:
            self._weight.done(weight, self._now(), self._client.used)
            metrics.USED_WEIGHT.set(self._weight.used)

    async def _turn(self, weight: int, share: float) -> None:
        patience = time.monotonic() + _TURN_SECONDS
        self._check()
        while (wait := self._weight.wait(weight, share, self._now())) > 0:
            if time.monotonic() >= patience:
                raise Waiting(
                    f"{self._weight.used} of {self._weight.limit} weight used, {wait:.0f} s to the next minute"
                )
            await asyncio.sleep(min(wait, uniform(0.5, 1.0) * _TURN_SECONDS))
            self._check()

    def _check(self) -> None:
        wait = self._weight.blocked(time.monotonic())
        if wait > 0:
            raise RestError(f"the exchange asked to wait, {wait:.1f} s more")

    async def _answer(self, path: str, method: Any, **parameters: Any) -> Any:
        try:
            answer = await method(**parameters)
        except BinanceAPIException as error:
            metrics.REQUESTS.labels(path, str(error.status_code)).inc()
            if error.status_code in (418, 429):
                # Asking on in spite of these is answered by a ban (Binance, "Limits": IP limits).
                wait = _seconds(error.response.headers.get("Retry-After"))
                self._weight.refused(wait, time.monotonic())
                _log.error("banned" if error.status_code == 418 else "too_many_requests", path=path, for_s=wait)
            raise RestError(f"{self._url} {path}: HTTP {error.status_code}, {error}") from error
        except (BinanceRequestException, aiohttp.ClientError, TimeoutError, OSError) as error:
            metrics.REQUESTS.labels(path, "no_answer").inc()
            raise RestError(f"{self._url} {path}: {error or type(error).__name__}") from error
        metrics.REQUESTS.labels(path, "ok").inc()
        return answer


def _seconds(header: str | None) -> float:
    with suppress(ValueError):
        return max(0.0, float(header or 1))
    return 1.0
