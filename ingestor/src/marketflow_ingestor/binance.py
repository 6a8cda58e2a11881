"""Binance's edges: stream messages and REST answers to events, and the connections they come by.

Must never let a number through unchecked, nor decide what is published: that is sequence.py.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import lru_cache
from typing import Any, Final

import aiohttp
import msgspec
from binance import AsyncClient
from binance.exceptions import BinanceAPIException, BinanceRequestException
from marketflow_common.clock import now_us
from marketflow_common.events import Kline, Trade
from marketflow_common.intervals import MINUTE
from marketflow_common.numbers import NotANumber, number
from websockets.asyncio.client import ClientConnection, connect

from . import metrics

__all__ = ["SOURCE", "Closed", "Other", "Rest", "RestError", "Unreadable", "read", "streams_of", "subscribed"]

SOURCE: Final = "binance"
PAGE: Final = 1_000
"""Most trades or klines in one REST answer (historicalTrades, klines: limit)."""
_CONFIRM_SECONDS: Final = 10.0
_REQUEST_SECONDS: Final = 10.0
_FRAMES: Final = 1_024
"""Messages that the websocket library holds before it stops reading from the socket."""
_MICROSECONDS_FROM: Final = 100_000_000_000_000
"""Times from here on are microseconds (timeUnit=MICROSECOND): as milliseconds they were after the year 5000."""


class Unreadable(ValueError):
    """A message is not what the exchange documents; the text says why."""


class RestError(RuntimeError):
    """REST gave no answer that can be used; the text says why."""


class Closed(msgspec.Struct, frozen=True, gc=False):
    """A minute of a symbol that the exchange has closed."""

    symbol: str
    kline: Kline


class Other(msgspec.Struct, frozen=True, gc=False):
    """A message that is no trade or closed minute: an open kline, an answer, an event of the connection."""

    event: str = ""


class _Trade(msgspec.Struct, tag_field="e", tag="trade", gc=False):
    s: str
    t: int
    p: str
    q: str
    T: int
    m: bool


class _K(msgspec.Struct, gc=False):
    t: int
    T: int
    o: str
    h: str
    l: str  # noqa: E741 - the exchange's name
    c: str
    v: str
    q: str
    n: int
    V: str
    Q: str
    f: int
    L: int
    x: bool


class _KlineEvent(msgspec.Struct, tag_field="e", tag="kline", gc=False):
    s: str
    k: _K


class _Message(msgspec.Struct, gc=False):
    data: _Trade | _KlineEvent


class _RestTrade(msgspec.Struct, gc=False):
    id: int
    price: str
    qty: str
    time: int
    isBuyerMaker: bool


class _Envelope(msgspec.Struct):
    data: msgspec.Raw = msgspec.Raw(b"{}")


class _Answer(msgspec.Struct):
    id: int | None = None
    result: list[str] | None = None


class _Event(msgspec.Struct):
    e: str = ""


# Prices and quantities come again and again: looking them up costs a fifth of checking them.
_number: Final = lru_cache(maxsize=1 << 14)(number)
_OTHER: Final = Other()
_message: Final = msgspec.json.Decoder(_Message)
_envelope: Final = msgspec.json.Decoder(_Envelope)
_answer: Final = msgspec.json.Decoder(_Answer)
_event: Final = msgspec.json.Decoder(_Event)


def _micros(at: int) -> int:
    return at if at >= _MICROSECONDS_FROM else at * 1_000


def read(message: bytes, received_at: int) -> Trade | Closed | Other:
    """One message of a combined stream; ``received_at`` in microseconds. Raises Unreadable."""
    try:
        data = _message.decode(message).data
        if type(data) is _Trade:
            return Trade(SOURCE, data.s, data.t, _number(data.p), _number(data.q), data.m, _micros(data.T), received_at)
        assert type(data) is _KlineEvent
        k = data.k
        if not k.x:
            return _OTHER
        texts = (k.o, k.h, k.l, k.c, k.v, k.q)
        return Closed(data.s, _kline(k.t, k.T, texts, k.n, (k.V, k.Q), (k.f, k.L)))
    except (msgspec.MsgspecError, NotANumber, UnicodeDecodeError) as error:
        return _other(message, error)


def _other(message: bytes, error: Exception) -> Other:
    """An answer to a request or an event without interest; whatever claims to be a trade or kline is an error."""
    try:
        event = _event.decode(_envelope.decode(message).data).e
    except (msgspec.MsgspecError, UnicodeDecodeError):
        raise Unreadable(str(error)) from error
    if event in ("trade", "kline"):
        raise Unreadable(str(error)) from error
    return Other(event)


def _kline(
    opened: int, closed: int, texts: Sequence[str], count: int, taker: Sequence[str], ids: tuple[int, int]
) -> Kline:
    """Of times as sent; texts: open, high, low, close, volume, quote volume; taker: volume, quote volume."""
    open_time, last = _micros(opened), closed if closed >= _MICROSECONDS_FROM else closed * 1_000 + 999
    if open_time % MINUTE or last != open_time + MINUTE - 1:
        raise Unreadable(f"a kline from {opened} to {closed} is not a whole minute")
    o, h, l, c, v, q = map(number, texts)  # noqa: E741 - the exchange's names
    return Kline(open_time, last, o, h, l, c, v, q, count, number(taker[0]), number(taker[1]), *ids)


# --- streams -----------------------------------------------------------------------------------------


def streams_of(symbols: Sequence[str]) -> list[str]:
    """Names of the streams of symbols."""
    return [f"{symbol.lower()}@{kind}" for symbol in symbols for kind in ("trade", "kline_1m")]


@asynccontextmanager
async def subscribed(ws_url: str, symbols: Sequence[str]) -> AsyncIterator[tuple[ClientConnection, list[bytes]]]:
    """A connection that the exchange confirms to carry all streams of ``symbols``, and what came before that.

    Raises OSError (ConnectionError where a stream is not confirmed), TimeoutError or websockets' exceptions.
    """
    names = streams_of(symbols)
    url = f"{ws_url}/stream?streams={'/'.join(names)}"
    # No compression: the exchange offers none for market data, and it would cost more than it saves.
    async with connect(url, compression=None, max_queue=_FRAMES, close_timeout=1) as socket:
        early: list[bytes] = []
        async with asyncio.timeout(_CONFIRM_SECONDS):
            await socket.send('{"method":"LIST_SUBSCRIPTIONS","id":1}')
            while True:
                message = await socket.recv(decode=False)
                if message.startswith(b'{"stream"'):
                    early.append(message)
                    continue
                try:
                    answer = _answer.decode(message)
                except msgspec.MsgspecError as error:
                    raise ConnectionError(f"{ws_url} sent {message[:200]!r}: {error}") from error
                if answer.id == 1:
                    break
        missing = set(names) - set(answer.result or ())
        if missing:
            raise ConnectionError(f"{ws_url} does not carry {', '.join(sorted(missing))}")
        yield socket, early


# --- REST --------------------------------------------------------------------------------------------


class _Client(AsyncClient):  # type: ignore[misc]  # python-binance has no types
    def __init__(self, rest_url: str, api_key: str) -> None:
        self.API_URL = f"{rest_url}/api"
        timeout = aiohttp.ClientTimeout(total=_REQUEST_SECONDS)
        super().__init__(api_key or None, requests_params={"timeout": timeout}, session_params={"trust_env": True})


class Rest:
    """The exchange's public REST. Made and used on one event loop. All methods raise RestError."""

    def __init__(self, rest_url: str, api_key: str) -> None:
        self._url = rest_url
        self._client = _Client(rest_url, api_key)
        self._not_before = 0.0

    async def close(self) -> None:
        """Give the connections back."""
        await self._client.close_connection()

    async def symbols(self) -> dict[str, str]:
        """Status (``TRADING`` ...) of every symbol of the exchange."""
        answer = await self._ask("exchangeInfo", self._client.get_exchange_info)
        try:
            return {str(row["symbol"]): str(row["status"]) for row in answer["symbols"]}
        except (KeyError, TypeError) as error:
            raise RestError(f"{self._url}: exchangeInfo is not as documented: {error!r}") from error

    async def trades(self, symbol: str, first_id: int, limit: int = PAGE) -> list[Trade]:
        """Up to ``limit`` (at most 1,000) trades from ``first_id`` on, by id."""
        rows = await self._ask(
            "historicalTrades", self._client.get_historical_trades, symbol=symbol, fromId=first_id, limit=limit
        )
        received = now_us()
        try:
            trades = [
                Trade(SOURCE, symbol, r.id, _number(r.price), _number(r.qty), r.isBuyerMaker, _micros(r.time), received)
                for r in msgspec.convert(rows, list[_RestTrade])
            ]
        except (msgspec.ValidationError, NotANumber) as error:
            raise RestError(f"{self._url}: historicalTrades of {symbol} from {first_id}: {error}") from error
        return sorted((t for t in trades if t.trade_id >= first_id), key=lambda trade: trade.trade_id)

    async def klines(self, symbol: str, start: int, end: int) -> list[Kline]:
        """The minutes that open in ``start <= time < end`` (microseconds), the last 1,000 of them, without ids."""
        start = max(start, end - PAGE * MINUTE)
        rows = await self._ask(
            "klines",
            self._client.get_klines,
            symbol=symbol,
            interval="1m",
            startTime=start // 1_000,
            endTime=end // 1_000 - 1,
            limit=PAGE,
        )
        try:
            return sorted((_kline(r[0], r[6], (*r[1:6], r[7]), r[8], r[9:11], (-1, -1)) for r in rows), key=_open_time)
        except (NotANumber, Unreadable, TypeError, ValueError, IndexError) as error:
            raise RestError(f"{self._url}: klines of {symbol}: {error}") from error

    async def _ask(self, path: str, method: Any, **parameters: Any) -> Any:
        wait = self._not_before - time.monotonic()
        if wait > 0:
            raise RestError(f"the exchange asked to wait, {wait:.0f} s more")
        try:
            answer = await method(**parameters)
        except BinanceAPIException as error:
            metrics.REQUESTS.labels(path, str(error.status_code)).inc()
            if error.status_code in (418, 429):
                # Asking on in spite of these is answered by a ban (Binance, "Limits": IP limits).
                self._not_before = time.monotonic() + _seconds(error.response.headers.get("Retry-After"))
            raise RestError(f"{self._url} {path}: HTTP {error.status_code}, {error}") from error
        except (BinanceRequestException, aiohttp.ClientError, TimeoutError, OSError) as error:
            metrics.REQUESTS.labels(path, "no_answer").inc()
            raise RestError(f"{self._url} {path}: {error or type(error).__name__}") from error
        metrics.REQUESTS.labels(path, "ok").inc()
        return answer


def _open_time(kline: Kline) -> int:
    return kline.open_time


def _seconds(header: str | None) -> float:
    try:
        return max(0.0, float(header or 1))
    except ValueError:
        return 1.0
