"""The WebSocket API, `/ws-api/v3`: requests in JSON, sessions, and the user-data stream.

Events leave in the order of the books' steps; a fault may keep them from a client, never from the books.
"""

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final

import msgspec
from aiohttp import WSMsgType, web

from marketflow_simulator.books import Books
from marketflow_simulator.errors import ApiError, missing
from marketflow_simulator.events import events_of
from marketflow_simulator.faults import Faults
from marketflow_simulator.gate import Call, Gate
from marketflow_simulator.limits import OrderCount
from marketflow_simulator.logs import log
from marketflow_simulator.params import Params
from marketflow_simulator.private import PrivateApi, open_weight, trades_weight
from marketflow_simulator.records import Change
from marketflow_simulator.rest import PublicApi
from marketflow_simulator.security import Security
from marketflow_simulator.streams import PING_SECONDS, PONG_SECONDS, frame
from marketflow_simulator.trading import Trading, test_weight

Handler = Callable[["Session", Call], Awaitable[Any]]
Weight = int | Callable[[Params], int]
_UNAUTHORIZED: Final = (-2015, "Invalid API-key, IP, or permissions for action.", 401)


class Session:
    """One connection: who logged on, and which subscriptions it has."""

    def __init__(self, transport: asyncio.Transport, now_ms: int) -> None:
        self.transport = transport
        self.connected_ms = now_ms
        self.api_key: str | None = None
        self.authorized_ms: int | None = None
        self.subscriptions: dict[int, bool] = {}
        """By id: whether the session's logon stands behind it, and not a signature of its own."""
        self.next_id = 0
        self.last_ping = self.last_pong = time.monotonic()

    def send(self, message: Any) -> None:
        """Write a message now; one that nobody can receive any more is dropped."""
        if not self.transport.is_closing():
            self.transport.write(frame(msgspec.json.encode(message)))


class WebSocketApi:
    """Answers requests and tells all subscribed sessions what happens to the account."""

    def __init__(
        self,
        books: Books,
        public: PublicApi,
        private: PrivateApi,
        trading: Trading,
        gate: Gate,
        counts: OrderCount,
        security: Security,
        faults: Faults,
    ) -> None:
        self._books = books
        self._public = public
        self._gate = gate
        self._counts = counts
        self._security = security
        self._silent_until = 0.0
        self.sessions: set[Session] = set()
        signed: dict[str, tuple[Callable[[Call], Awaitable[Any]], Weight]] = {
            "order.place": (trading.new_order, 1),
            "order.test": (trading.test_order, test_weight),
            "order.status": (private.query_order, 4),
            "order.cancel": (trading.cancel_order, 1),
            "order.cancelReplace": (trading.cancel_replace, 1),
            "orderList.place": (trading.old_pair, 1),
            "orderList.place.oco": (trading.new_pair, 1),
            "orderList.status": (private.query_list, 4),
            "orderList.cancel": (trading.cancel_list, 1),
            "openOrders.status": (private.open_orders, open_weight),
            "openOrders.cancelAll": (trading.cancel_open_orders, 1),
            "openOrderLists.status": (private.open_lists, 6),
            "allOrders": (private.all_orders, 20),
            "allOrderLists": (private.all_lists, 20),
            "myTrades": (private.my_trades, trades_weight),
            "account.status": (private.account, 20),
            "account.commission": (private.commission, 20),
            "account.rateLimits.orders": (private.order_count, 40),
        }
        self._methods: dict[str, tuple[Handler, Weight]] = {
            **{name: (self._signed(handler), weight) for name, (handler, weight) in signed.items()},
            "ping": (self._open(public.ping), 1),
            "time": (self._open(public.time), 1),
            "exchangeInfo": (self._open(public.exchange_info), 20),
            "session.logon": (self._logon, 2),
            "session.status": (self._status, 2),
            "session.logout": (self._logout, 2),
            "session.subscriptions": (self._subscriptions, 2),
            "userDataStream.subscribe": (self._subscribe, 2),
            "userDataStream.subscribe.signature": (self._subscribe_signed, 2),
            "userDataStream.unsubscribe": (self._unsubscribe, 2),
        }
        books.listeners.append(self.on_step)
        faults.cut_user_streams = self.cut
        faults.silence_user_streams = self.silence

    # --- what happens to the account

    def on_step(self, changes: Sequence[Change]) -> None:
        """A step of the books was recorded: tell who has subscribed."""
        listening = [session for session in self.sessions if session.subscriptions]
        if not listening or time.monotonic() < self._silent_until:
            return
        for event in events_of(changes, self._books.orders, self._public.now_ms()):
            for session in listening:
                for number in session.subscriptions:
                    session.send({"subscriptionId": number, "event": event})

    def silence(self, seconds: float) -> None:
        """Send no event for that long; those of that time never come."""
        self._silent_until = time.monotonic() + seconds

    def cut(self) -> None:
        """Break all connections without a goodbye."""
        for session in list(self.sessions):
            session.transport.abort()
        self.sessions.clear()

    def shut_down(self, seconds: float) -> None:
        """Announce on the connections of this moment that they will be closed, and close them after that long."""
        leaving = list(self.sessions)
        for session in leaving:
            session.send({"event": {"e": "serverShutdown", "E": self._public.now_ms()}})
        asyncio.get_running_loop().call_later(seconds, self._close_all, leaving)

    def _close_all(self, leaving: list[Session]) -> None:
        for session in leaving:
            if session in self.sessions and not session.transport.is_closing():
                session.transport.write(frame((1001).to_bytes(2, "big"), 0x8))  # going away (RFC 6455, 7.4.1)
                session.transport.close()

    def ping(self, now: float) -> None:
        """Ping those whose turn it is; cut off those that have not answered for a minute."""
        for session in list(self.sessions):
            if now - session.last_ping < PING_SECONDS or session.transport.is_closing():
                continue
            if now - session.last_pong > PONG_SECONDS + PING_SECONDS:
                session.transport.abort()
                continue
            session.last_ping = now
            session.transport.write(frame(str(int(time.time() * 1000)).encode(), 0x9))

    # --- one connection

    async def serve(self, request: web.Request) -> web.StreamResponse:
        """Handle one connection from its handshake to its end."""
        socket = web.WebSocketResponse(autoping=False, compress=False, max_msg_size=1 << 18)
        if not socket.can_prepare(request).ok:
            return web.Response(status=400, text="this is a websocket\n")
        await socket.prepare(request)
        if request.transport is None:
            return socket
        session = Session(request.transport, self._public.now_ms())
        self.sessions.add(session)
        log("api_socket_open", connections=len(self.sessions))
        try:
            with contextlib.suppress(ConnectionResetError):
                async for message in socket:
                    if message.type is WSMsgType.PONG:
                        session.last_pong = time.monotonic()
                    elif message.type is WSMsgType.PING:
                        await socket.pong(message.data)
                    elif message.type is WSMsgType.TEXT:
                        await self._answer(session, message.data)
        finally:
            self.sessions.discard(session)
            log("api_socket_closed", connections=len(self.sessions))
        return socket

    async def _answer(self, session: Session, text: str) -> None:
        try:
            request = msgspec.json.decode(text)
        except msgspec.DecodeError:
            request = None
        if not isinstance(request, dict):
            session.send({"id": None, "status": 400, "error": {"code": -1135, "msg": "Invalid JSON Request"}})
            return
        number, method, given = request.get("id"), request.get("method"), request.get("params") or {}
        known = self._methods.get(str(method).removeprefix("v3/"))
        if known is None or not isinstance(given, dict):
            name = "method" if known is None else "params"
            error = {"code": -1130, "msg": f"Data sent for parameter '{name}' is not valid."}
            session.send({"id": number, "status": 400, "error": error})
            return
        handler, weight = known
        call = Call(Params.of({name: _text(value) for name, value in given.items() if value is not None}))
        status, payload = await self._gate.answer(
            f"WS {method}", str(method), call, lambda call: handler(session, call), weight
        )
        if status == 0:
            session.transport.abort()
            return
        content = {"result": payload} if status == 200 else {"error": payload}
        session.send({"id": number, "status": status, **content, "rateLimits": self._limits(str(method))})
        if status == 200 and method in ("session.logout", "userDataStream.unsubscribe"):
            self._end_subscriptions(session, call, by_logon=method == "session.logout")

    def _limits(self, method: str) -> list[dict[str, Any]]:
        orders = self._counts.listing() if ".place" in method or method == "order.cancelReplace" else []
        return [*orders, {**self._gate.weight_limit(), "count": self._gate.used_weight}]

    # --- who asks

    def _open(self, handler: Callable[[Call], Awaitable[Any]]) -> Handler:
        async def handle(session: Session, call: Call) -> Any:
            return await handler(call)

        return handle

    def _signed(self, handler: Callable[[Call], Awaitable[Any]]) -> Handler:
        async def handle(session: Session, call: Call) -> Any:
            if "apiKey" in call.params or session.api_key is None:
                self._security.check_message(call.params)
            else:
                self._security.check_time(call.params)
            return await handler(call)

        return handle

    async def _logon(self, session: Session, call: Call) -> Any:
        key = self._security.check_message(call.params)
        if not self._security.is_ed25519(key):
            raise ApiError(-4056, "HMAC_SHA256 API key is not supported.")
        session.api_key, session.authorized_ms = key, self._public.now_ms()
        return self._state(session)

    async def _status(self, session: Session, call: Call) -> Any:
        return self._state(session)

    async def _logout(self, session: Session, call: Call) -> Any:
        session.api_key = session.authorized_ms = None
        return {**self._state(session), "userDataStream": not all(session.subscriptions.values())}

    def _state(self, session: Session) -> dict[str, Any]:
        return {
            "apiKey": session.api_key,
            "authorizedSince": session.authorized_ms,
            "connectedSince": session.connected_ms,
            "returnRateLimits": True,
            "serverTime": self._public.now_ms(),
            "userDataStream": bool(session.subscriptions),
        }

    # --- subscriptions

    async def _subscriptions(self, session: Session, call: Call) -> Any:
        return [{"subscriptionId": number} for number in session.subscriptions]

    async def _subscribe(self, session: Session, call: Call) -> Any:
        if session.api_key is None:
            raise ApiError(*_UNAUTHORIZED)
        return self._begin(session, by_logon=True)

    async def _subscribe_signed(self, session: Session, call: Call) -> Any:
        if "apiKey" not in call.params:
            raise missing("apiKey")
        self._security.check_message(call.params)
        return self._begin(session, by_logon=False)

    def _begin(self, session: Session, *, by_logon: bool) -> dict[str, Any]:
        if session.subscriptions:  # there is only one account
            raise ApiError(-2035, "User Data Stream subscription already active.")
        number, session.next_id = session.next_id, session.next_id + 1
        session.subscriptions[number] = by_logon
        return {"subscriptionId": number}

    async def _unsubscribe(self, session: Session, call: Call) -> Any:
        number = call.params.integer("subscriptionId")
        if not session.subscriptions or (number is not None and number not in session.subscriptions):
            raise ApiError(-2036, "User Data Stream subscription not active.")
        return {}

    def _end_subscriptions(self, session: Session, call: Call, *, by_logon: bool) -> None:
        try:
            wanted = call.params.integer("subscriptionId")
        except ApiError:
            return
        for number, logged_on in list(session.subscriptions.items()):
            if (by_logon and not logged_on) or wanted not in (None, number):
                continue
            del session.subscriptions[number]
            event = {"e": "eventStreamTerminated", "E": self._public.now_ms()}
            session.send({"subscriptionId": number, "event": event})


def _text(value: Any) -> str:
    return ("true" if value else "false") if isinstance(value, bool) else str(value)
