"""What every REST request passes: request weight, faults on demand, errors as Binance words them, counting."""

import asyncio
import math
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any, Final

import msgspec
from aiohttp import web

from marketflow_simulator.errors import ApiError, for_status
from marketflow_simulator.faults import Faults
from marketflow_simulator.logs import log
from marketflow_simulator.params import Params

Handler = Callable[["Call"], Awaitable[Any]]
_BANNED_FOR_SECONDS: Final = {429: 1, 418: 2}
_PATIENCE: Final = 3
"""Requests that are answered 429 before asking on is answered by a ban."""
_LONGEST_BAN: Final = 3 * 86_400.0
"""Seconds (Binance, "IP limits": from 2 minutes to 3 days)."""


class Call:
    """One request: its parameters, its raw parts for the signature, its API key, and headers for its answer."""

    def __init__(self, params: Params, query: str = "", body: str = "", key: str | None = None) -> None:
        self.params = params
        self.query = query
        self.body = body
        self.key = key
        self.headers: dict[str, str] = {}


class Answer(msgspec.Struct):
    """An answer other than 200 with JSON: with this status, or (status 0) none at all."""

    payload: Any
    status: int = 200


class _Refusal(msgspec.Struct):
    """Whoever asks is refused, with 429 or 418, until this moment of the wall clock (seconds, monotonic)."""

    status: int
    seconds: float
    until: float
    asked: int = 0


class Gate:
    """Wraps handlers. Weight counts per minute of the wall clock, as Binance's does."""

    def __init__(self, faults: Faults, weight_limit: int) -> None:
        self._faults = faults
        self._limit = weight_limit
        self._minute = 0
        self.used_weight = 0
        self.requests: dict[str, Counter[str]] = {}
        self._refusal: _Refusal | None = None
        faults.throttle = self.throttle

    def weight_limit(self) -> dict[str, Any]:
        """The limit as exchangeInfo shows it."""
        limit = self._limit or 6000
        return {"rateLimitType": "REQUEST_WEIGHT", "interval": "MINUTE", "intervalNum": 1, "limit": limit}

    def throttle(self, status: int, seconds: float) -> None:
        """Refuse all requests for that long with 429 or 418, and whoever asks on in spite of it for longer."""
        self._refusal = _Refusal(status, seconds, time.monotonic() + seconds)

    def _refuse(self) -> None:
        refusal, now = self._refusal, time.monotonic()
        if refusal is None or now >= refusal.until:
            self._refusal = None
            return
        refusal.asked += 1
        if refusal.status == 429 and refusal.asked > _PATIENCE:
            refusal.status, refusal.asked, refusal.until = 418, 1, now + refusal.seconds
        elif refusal.status == 418 and refusal.asked > 1:
            refusal.seconds = min(2 * refusal.seconds, _LONGEST_BAN)
            refusal.until = now + refusal.seconds
        left = refusal.until - now
        code, message = for_status(refusal.status)
        if refusal.status == 418:
            message = message.replace("IP banned", f"IP banned until {int((time.time() + left) * 1000)}")
        raise ApiError(code, message, refusal.status, math.ceil(left))

    def _spend(self, weight: int) -> None:
        now = time.time()
        minute = int(now) // 60
        if minute != self._minute:
            self._minute, self.used_weight = minute, 0
        self.used_weight += weight
        if self._limit and self.used_weight > self._limit:
            raise ApiError(
                -1003,
                f"Too much request weight used; current limit is {self._limit} request weight per 1 MINUTE. "
                "Please use WebSocket Streams for live updates to avoid polling the API.",
                429,
                60 - int(now) % 60,
            )

    def wrap(
        self, handler: Handler, weight: int | Callable[[Params], int]
    ) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
        """A handler for aiohttp that answers as Binance would."""

        async def handle(request: web.Request) -> web.StreamResponse:
            query, body = request.rel_url.raw_query_string, (await request.read()).decode("utf-8", "replace")
            call = Call(Params(query, body), query, body, request.headers.get("X-MBX-APIKEY"))
            status, payload = await self.answer(f"{request.method} {request.path}", request.path, call, handler, weight)
            if status == 0:
                return _close(request)
            call.headers["X-MBX-USED-WEIGHT"] = call.headers["X-MBX-USED-WEIGHT-1M"] = str(self.used_weight)
            return web.Response(
                body=msgspec.json.encode(payload),
                status=status,
                content_type="application/json",
                headers=call.headers,
            )

        return handle

    async def answer(
        self, endpoint: str, path: str, call: Call, handler: Handler, weight: int | Callable[[Params], int]
    ) -> tuple[int, Any]:
        """Status and payload of the answer to one request; status 0 means that there is none, and the connection ends.

        `endpoint` is its name in the ledger's counts, `path` what faults go by.
        """
        status, payload = 200, None
        try:
            self._be_away(path)
            self._refuse()
            self._spend(weight if isinstance(weight, int) else weight(call.params))
            late = self._faults.take("late_answer", path=path)
            self._error_on_demand(path)
            payload = await handler(call)
            if isinstance(payload, Answer):
                status, payload = payload.status, payload.payload
            if late is not None:
                await asyncio.sleep(late.seconds)
        except ApiError as error:
            status, payload = error.status, {"code": error.code, "msg": error.message}
            if error.retry_after is not None:
                call.headers["Retry-After"] = str(error.retry_after)
            if status >= 429 or status == 418:
                log("refused", level="warning", endpoint=endpoint, status=status, code=error.code)
        self.requests.setdefault(endpoint, Counter())[str(status or "closed")] += 1
        return status, payload

    def _be_away(self, path: str) -> None:
        fault = self._faults.away(path)
        if fault is not None:
            raise ApiError(*for_status(fault.status, fault.code), fault.status)

    def _error_on_demand(self, path: str) -> None:
        fault = self._faults.take("rest_error", path=path)
        if fault is None:
            return
        code, message = for_status(fault.status, fault.code)
        retry_after = fault.retry_after
        if retry_after is None:
            retry_after = _BANNED_FOR_SECONDS.get(fault.status)
        raise ApiError(code, message, fault.status, retry_after)


def _close(request: web.Request) -> web.StreamResponse:
    """No answer at all: the connection breaks."""
    if request.transport is not None:
        request.transport.abort()
    return web.Response(status=503)
