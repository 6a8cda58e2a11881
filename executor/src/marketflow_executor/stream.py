"""The account's own events as they happen: Binance's user-data stream, by the WebSocket API.

A hint and never a proof: it may be silent, late, cut off or repeat itself. What it tells is learned as any other
answer is, and open orders are asked for by REST whether it speaks or not. Must never hold up the engine.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from queue import Empty, SimpleQueue
from typing import Any, Final, Literal
from urllib.parse import unquote_plus

import msgspec
from marketflow_common import logs
from marketflow_common.signing import Sign
from pydantic import SecretStr
from websockets.exceptions import WebSocketException
from websockets.sync.client import ClientConnection, connect

from . import meters
from .messages import Named, Unreadable, read_execution

__all__ = ["Heard", "UserStream"]

_log = logs.get("user_stream")
_PATH: Final = "/ws-api/v3"
_SUBSCRIBE: Final = "userDataStream.subscribe.signature"
_ANSWER_S: Final = 10.0
_FIRST_PAUSE_S: Final = 0.5
_LAST_PAUSE_S: Final = 30.0
Heard = Named | Literal["balances"]
"""An order's news, or that balances have changed by something else than an order (deposit, withdrawal, transfer)."""


class _Refused(Exception):
    """The exchange has answered, and does not let us listen."""


class UserStream:
    """Listens on a thread of its own, from ``start`` to ``close``, and connects again whenever it has to."""

    def __init__(self, url: str, key: SecretStr, sign: Sign, now_ms: Callable[[], int]) -> None:
        """``url``: such as ``wss://ws-api.binance.com``. ``now_ms``: the exchange's time; it may raise anything."""
        self._url, self._key, self._sign, self._now_ms = url.rstrip("/") + _PATH, key, sign, now_ms
        self._heard: SimpleQueue[Heard] = SimpleQueue()
        self._stop = threading.Event()
        self._socket: ClientConnection | None = None
        self._thread = threading.Thread(target=self._run, name="user-stream", daemon=True)

    def start(self) -> None:
        """Begin to listen."""
        self._thread.start()

    def close(self) -> None:
        """Stop listening, and wait for the thread."""
        self._stop.set()
        socket = self._socket
        if socket is not None:
            socket.close()
        if self._thread.is_alive():
            self._thread.join()

    def heard(self) -> list[Heard]:
        """What has come in since the last time, in order."""
        found = list[Heard]()
        while True:
            try:
                found.append(self._heard.get_nowait())
            except Empty:
                return found

    # --- on its thread -------------------------------------------------------------------------------

    def _run(self) -> None:
        pause = _FIRST_PAUSE_S
        while not self._stop.is_set():
            try:
                with connect(self._url, open_timeout=_ANSWER_S, close_timeout=1, proxy=None) as socket:
                    self._socket = socket
                    self._subscribe(socket)
                    meters.USER_STREAM.set(1)
                    _log.info("listening", url=self._url)
                    pause = _FIRST_PAUSE_S
                    while not self._stop.is_set() and self._take(socket.recv()):
                        pass
                why = "the exchange has ended it"
            except (OSError, WebSocketException, _Refused, Unreadable) as error:
                why = f"{type(error).__name__} {error}".rstrip()
            finally:
                self._socket = None
                meters.USER_STREAM.set(0)
            if self._stop.is_set():
                return
            # What happened meanwhile is not told again: balances are compared, and orders are asked for, in any case.
            self._heard.put("balances")
            _log.warning("not_listening", detail=why, retry_in_s=pause, effect="orders are asked for by REST only")
            self._stop.wait(pause)
            pause = min(_LAST_PAUSE_S, 2 * pause)

    def _subscribe(self, socket: ClientConnection) -> None:
        try:
            now_ms = self._now_ms()
        except Exception as error:  # whatever it is, there is no time to sign with
            raise _Refused(f"the exchange's time is not known: {error}") from error
        params: dict[str, Any] = {"apiKey": self._key.get_secret_value(), "timestamp": now_ms}
        text = "&".join(f"{name}={params[name]}" for name in sorted(params))
        params["signature"] = unquote_plus(self._sign(text))
        socket.send(msgspec.json.encode({"id": _SUBSCRIBE, "method": _SUBSCRIBE, "params": params}).decode())
        while True:
            message = _read(socket.recv(timeout=_ANSWER_S))
            if message.get("id") == _SUBSCRIBE:
                break
        if message.get("status") != 200:
            problem = message.get("error") or {}
            raise _Refused(f"{problem.get('code')} {problem.get('msg')}")

    def _take(self, text: str | bytes) -> bool:
        """One message; False if it is the last one."""
        event = _read(text).get("event")
        if not isinstance(event, Mapping):
            return True
        match event.get("e"):
            case "executionReport":
                try:
                    self._heard.put(read_execution(event))
                except Unreadable as error:
                    _log.error("report_unreadable", detail=str(error), effect="the order is asked for by REST")
            case "balanceUpdate" | "externalLockUpdate":
                self._heard.put("balances")
            case "eventStreamTerminated" | "serverShutdown":
                return False
        return True


def _read(text: str | bytes) -> dict[str, Any]:
    try:
        return msgspec.json.decode(text, type=dict[str, Any])
    except msgspec.DecodeError as error:
        raise Unreadable(f"not a JSON object: {error}") from error
