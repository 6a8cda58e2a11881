"""What every REST request passes: request weight, faults on demand, errors as Binance words them, counting."""

import asyncio
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


class Call:
    """One request: its parameters, its raw parts for the signature, and what it costs."""

    def __init__(self, request: web.Request, body: str) -> None:
        self.request = request
        self.query = request.rel_url.raw_query_string
        self.body = body
        self.params = Params(self.query, body)
        self.weight = 1
        self.headers: dict[str, str] = {}


class Answer(msgspec.Struct):
    """An answer other than 200 with JSON: with this status, or (status 0) none at all."""

    payload: Any
    status: int = 200


class Gate:
    """Wraps handlers. Weight counts per minute of the wall clock, as Binance's does."""

    def __init__(self, faults: Faults, weight_limit: int) -> None:
        self._faults = faults
        self._limit = weight_limit
        self._minute = 0
        self.used_weight = 0
        self.requests: dict[str, Counter[str]] = {}

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
            endpoint = f"{request.method} {request.path}"
            call = Call(request, (await request.read()).decode("utf-8", "replace"))
            status, payload = 200, None
            try:
                self._spend(weight if isinstance(weight, int) else weight(call.params))
                late = self._faults.take("late_answer", path=request.path)
                await self._error_on_demand(request)
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

    async def _error_on_demand(self, request: web.Request) -> None:
        fault = self._faults.take("rest_error", path=request.path)
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
