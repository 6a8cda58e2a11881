"""Requests to the exchange's REST: its clock, one budget, signatures, and whether an answer says anything.

Must never read a missing or unclear answer as one, ask for more than the exchange allows, or show a secret.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any, Final, NamedTuple, TypeVar
from urllib.parse import urlencode

import httpx
from marketflow_common import logs
from marketflow_common.kafka.client import FatalKafkaError
from marketflow_common.numbers import NotANumber
from marketflow_common.signing import Sign
from pydantic import BaseModel, SecretStr, ValidationError

from . import meters
from .budget import HOUSEKEEPING, OUTCOMES, Budget
from .orders import Throttled, Unknown

__all__ = ["KEY_CODES", "OUTSIDE_WINDOW", "SAYS_NOTHING", "KeyRefused", "Reply", "Rest", "Unavailable", "short"]

_log = logs.get("exchange")
OUTSIDE_WINDOW: Final = -1021
SAYS_NOTHING: Final = {-1000, -1001, -1006, -1007, -1016}
"""Codes that leave the execution open, whatever the HTTP status (Binance, "Error codes", general server errors)."""
KEY_CODES: Final = {-1002, -1022, -2014, -2015}
_DEFAULT_PAUSE_S: Final = 5.0
_LONGEST_S: Final = 60.0
"""A used-up budget is looked at again after this long at the latest."""
_SAY_AGAIN_S: Final = 10.0
_WEIGHTS: Final = {
    "/api/v3/order": 4, "/api/v3/openOrders": 6, "/api/v3/allOrders": 20, "/api/v3/myTrades": 20, "/api/v3/account": 20,
    "/api/v3/exchangeInfo": 20, "/api/v3/ticker/price": 2, "/api/v3/ticker/bookTicker": 2, "/api/v3/avgPrice": 2,
}  # fmt: skip
_OUTCOMES: Final = {
    "/api/v3/order", "/api/v3/openOrders", "/api/v3/allOrders", "/api/v3/myTrades",
    # What a stop needs before it can be placed.
    "/api/v3/ticker/price", "/api/v3/avgPrice",
}  # fmt: skip

T = TypeVar("T", bound=BaseModel)


class Unavailable(Exception):
    """The exchange does not answer this question now; ask again later."""


class KeyRefused(FatalKafkaError):
    """The exchange does not accept the API key or its signature; nothing can be traded."""


class Reply(NamedTuple):
    """An answer that was understood: the body of a 200, or (code != 0) a definite refusal."""

    body: bytes
    code: int = 0
    message: str = ""


class _Problem(BaseModel):
    code: int
    msg: str = ""


class _Time(BaseModel):
    serverTime: int


class Rest:
    """The REST at ``url``. One connection, one thread, one budget."""

    def __init__(
        self,
        url: str,
        key: SecretStr,
        sign: Sign,
        timeout_s: float,
        recv_window_ms: int,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        self.url = url
        self.budget = Budget()
        self._key, self._sign, self._recv_window_ms = key, sign, recv_window_ms
        self._client = httpx.Client(
            base_url=url,
            timeout=httpx.Timeout(timeout_s, connect=min(timeout_s, 1.0)),
            # A warm connection saves an order a handshake.
            limits=httpx.Limits(max_connections=1, keepalive_expiry=30.0),
            transport=transport,
        )
        self._clock: tuple[int, float] | None = None
        self._paused_until = self._said_at = 0.0

    def close(self) -> None:
        """Close the connection."""
        self._client.close()

    def now_ms(self) -> int:
        """The exchange's time by its own clock and our monotonic one: late by the way of one answer, never early."""
        if self._clock is None:
            self.sync()
        assert self._clock is not None
        server_ms, at = self._clock
        return server_ms + int((time.monotonic() - at) * 1_000)

    def sync(self) -> None:
        """Measure the exchange's clock. Raises Unavailable."""
        answer = self.read(_Time, "/api/v3/time", {}, signed=False)
        self._clock = (answer.serverTime, time.monotonic())

    def paused_s(self) -> float:
        """Seconds for which the exchange wants no requests."""
        return max(0.0, self._paused_until - time.monotonic())

    # --- requests ------------------------------------------------------------------------------------

    def read(self, kind: type[T], path: str, query: Mapping[str, Any], *, signed: bool) -> T:
        """The answer to a question, by its model. Raises Unavailable and KeyRefused."""
        reply = self.signed("GET", path, query) if signed else self.send("GET", path, query, signed=False)
        if not isinstance(reply, Reply):
            raise Unavailable(f"{self.url}{path}: {reply.reason if isinstance(reply, Unknown) else reply}")
        if reply.code in KEY_CODES:
            raise KeyRefused(
                f"{self.url} refuses the API key: {reply.message} ({reply.code}); "
                "see MARKETFLOW_EXECUTOR_API_KEY, its _API_SECRET or _PRIVATE_KEY_FILE, and the key's permissions"
            )
        if reply.code:
            raise Unavailable(f"{self.url}{path}: {reply.code} {reply.message}")
        try:
            return kind.model_validate_json(reply.body)
        except (ValidationError, NotANumber) as error:
            raise Unavailable(f"{self.url}{path}: an answer that cannot be read: {short(error)}") from error

    def signed(self, method: str, path: str, query: Mapping[str, Any]) -> Reply | Throttled | Unknown:
        """A question (never an order), signed with the time of now; asked again once if the clock was wrong."""
        reply: Reply | Throttled | Unknown = Unknown("not asked")
        for _ in range(2):
            try:
                stamped = {**query, "recvWindow": self._recv_window_ms, "timestamp": self.now_ms()}
            except Unavailable as error:
                return Unknown(str(error))
            reply = self.send(method, path, stamped, signed=True)
            if not isinstance(reply, Reply) or reply.code != OUTSIDE_WINDOW:
                break
            self.resync()
        return reply

    def send(self, method: str, path: str, query: Mapping[str, Any], *, signed: bool) -> Reply | Throttled | Unknown:
        """One request. The only place that decides whether an answer says anything."""
        if wait := self.paused_s() or self._wait(method, path, query):
            return Throttled(wait)
        text = urlencode(query)
        headers = {}
        if signed:
            headers["X-MBX-APIKEY"] = self._key.get_secret_value()
            text += "&signature=" + self._sign(text)
        try:
            answer = self._client.request(method, f"{path}?{text}" if text else path, headers=headers)
        except httpx.HTTPError as error:
            return Unknown(f"no answer to {method} {path}: {type(error).__name__} {error}".rstrip())
        self.budget.heard(self._seconds(), answer.headers.items())
        meters.show_budget(self.budget.used())
        if answer.status_code == 200:
            return Reply(answer.content)
        if answer.status_code in (418, 429):
            seconds = _retry_after(answer.headers.get("Retry-After"))
            self._paused_until = time.monotonic() + seconds
            _log.warning("throttled", status=answer.status_code, seconds=seconds, path=path)
            return Throttled(seconds)
        try:
            problem = _Problem.model_validate_json(answer.content)
        except ValidationError:
            return Unknown(f"{method} {path} gave HTTP {answer.status_code} without a code")
        if answer.status_code >= 500 or problem.code in SAYS_NOTHING:
            return Unknown(f"{method} {path} gave HTTP {answer.status_code}, {problem.code} {problem.msg}")
        return Reply(answer.content, problem.code, problem.msg)

    def _wait(self, method: str, path: str, query: Mapping[str, Any]) -> float:
        """Seconds until the budget has room for a request; 0: it is counted."""
        if method == "GET" and path != "/api/v3/time":
            weight = _WEIGHTS.get(path, 20)
            share = OUTCOMES if path in _OUTCOMES and "symbol" in query else HOUSEKEEPING
            if path == "/api/v3/openOrders" and "symbol" not in query:
                weight = 80
            wait = self.budget.wait(self._seconds(), weight, share)
        else:
            # Orders, cancellations, and the clock that both need.
            made = 0 if method != "POST" else 2 if path.endswith("/oco") else 1
            wait = self.budget.wait(self._seconds(), 1, orders=made)
        if wait and time.monotonic() >= self._said_at + _SAY_AGAIN_S:
            self._said_at = time.monotonic()
            used = {f"{kind} {seconds}s": f"{n} of {most}" for (kind, seconds), (n, most) in self.budget.used().items()}
            _log.warning("budget_used_up", request=f"{method} {path}", seconds=round(wait, 1), used=used)
        return min(wait, _LONGEST_S)

    def _seconds(self) -> float:
        # Before the exchange's clock is known, ours says which minute it is.
        return time.time() if self._clock is None else self.now_ms() / 1_000

    def resync(self) -> None:
        """Measure the clock anew, and say by how much it was wrong."""
        before = self._clock
        try:
            self.sync()
        except Unavailable as error:
            _log.warning("clock_not_measured", detail=str(error))
            return
        if before and self._clock:
            off = self._clock[0] - before[0] - int((self._clock[1] - before[1]) * 1_000)
            _log.warning("clock_resynced", was_off_by_ms=off)


def _retry_after(header: str | None) -> float:
    return float(header) if header is not None and header.isdigit() else _DEFAULT_PAUSE_S


def short(error: Exception) -> str:
    """An error in one line."""
    return str(error).replace("\n", " ")[:200]
