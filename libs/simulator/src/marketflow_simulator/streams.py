"""The public streams: who listens to what, the payloads, and the bytes on the sockets.

Trades of one symbol leave in the order of the tape, a closed kline after the last trade of its minute.
A reader that does not keep up is cut off; it never slows down or thins out what others get.
"""

import asyncio
import time
from collections.abc import Callable
from typing import Any, Final

import msgspec
from aiohttp import WSMsgType, web

from marketflow_simulator.amounts import text8
from marketflow_simulator.faults import Faults
from marketflow_simulator.klines import INTERVALS, MINUTE_US, stream_payload
from marketflow_simulator.logs import log
from marketflow_simulator.market import Market, SymbolMarket
from marketflow_simulator.trades import Trade

PING_SECONDS: Final = 20.0
PONG_SECONDS: Final = 60.0
MAX_STREAMS: Final = 1024
MESSAGES_PER_SECOND: Final = 5
MAX_BUFFER: Final = 8 << 20
"""Bytes that wait for a reader at finite speed before it is cut off."""
MAX_SPEED_BUFFER: Final = 512 << 10
"""Bytes that wait for a reader at speed `max` before the market waits for it."""
STUCK_SECONDS: Final = 5.0
_METHODS: Final = ("SUBSCRIBE", "UNSUBSCRIBE", "LIST_SUBSCRIPTIONS", "SET_PROPERTY", "GET_PROPERTY")


def frame(payload: bytes, opcode: int = 0x1) -> bytes:
    """One unmasked, unfragmented WebSocket frame (RFC 6455, section 5.2); text by default."""
    size = len(payload)
    if size < 126:
        return bytes((0x80 | opcode, size)) + payload
    if size < 65536:
        return bytes((0x80 | opcode, 126)) + size.to_bytes(2, "big") + payload
    return bytes((0x80 | opcode, 127)) + size.to_bytes(8, "big") + payload


def trade_payload(symbol: str, trade: Trade) -> str:
    """The documented JSON of `<symbol>@trade`."""
    maker = "true" if trade.buyer_is_maker else "false"
    return (
        f'{{"e":"trade","E":{trade.at_us // 1000},"s":"{symbol}","t":{trade.id},"p":"{text8(trade.price)}",'
        f'"q":"{text8(trade.qty)}","T":{trade.time_us // 1000},"m":{maker},"M":true}}'
    )


def agg_payload(symbol: str, trades: list[Trade]) -> str:
    """The documented JSON of `<symbol>@aggTrade` for the trades of one aggregate."""
    first, last = trades[0], trades[-1]
    maker = "true" if first.buyer_is_maker else "false"
    return (
        f'{{"e":"aggTrade","E":{last.at_us // 1000},"s":"{symbol}","a":{first.agg_id},'
        f'"p":"{text8(first.price)}","q":"{text8(sum(t.qty for t in trades))}","f":{first.id},'
        f'"l":{last.id},"T":{first.time_us // 1000},"m":{maker},"M":true}}'
    )


class Connection:
    """One socket: what it listens to and what still has to be written to it."""

    def __init__(self, transport: asyncio.Transport, combined: bool) -> None:
        self.transport = transport
        self.combined = combined
        self.streams: dict[str, None] = {}
        self.pending: list[bytes] = []
        self.opened = self.last_pong = self.last_ping = self.last_taken = time.monotonic()
        self.waiting_bytes = 0
        self.recent: list[float] = []
        self.stalled_until = 0.0
        self.half_open = False
        """It is stalled as if the peer was gone: nothing is read, so nothing is answered, and nothing is sent."""

    def stall(self, until: float, pings: bool) -> None:
        """Send no market data until then; without `pings` nothing else either, as a half-open socket would."""
        self.stalled_until = max(self.stalled_until, until)
        if not pings and not self.transport.is_closing():
            self.half_open = True
            self.transport.pause_reading()

    def stalled(self, now: float) -> bool:
        """Whether it is stalled; the end of a stall is found out here."""
        if not self.stalled_until:
            return False
        if now < self.stalled_until:
            return True
        self.stalled_until = 0.0
        if self.half_open:
            self.half_open, self.last_pong = False, now
            if not self.transport.is_closing():
                self.transport.resume_reading()
        return False

    def chatty(self, now: float) -> bool:
        """Note one incoming message; True if there were more than Binance allows in a second."""
        self.recent = [at for at in self.recent if at > now - 1.0]
        self.recent.append(now)
        return len(self.recent) > MESSAGES_PER_SECOND


class Hub:
    """Hears the market and writes to the connections. A `Listener` of the market."""

    def __init__(self, market: Market, faults: Faults) -> None:
        self._market = market
        self._faults = faults
        self.connections: dict[Connection, None] = {}
        self._readers: dict[str, dict[Connection, None]] = {}
        self._touched: dict[Connection, None] = {}
        self._aggregates: dict[SymbolMarket, list[Trade]] = {}
        self._changed: set[str] = set()
        self.subscribed = asyncio.Event()
        self.muted = False
        faults.disconnect = self.cut_all
        faults.stall = self.stall_for
        faults.shutdown = self.shut_down

    # --- who listens

    def subscribe(self, connection: Connection, stream: str) -> None:
        connection.streams[stream] = None
        self._readers.setdefault(stream, {})[connection] = None
        self.subscribed.set()

    def unsubscribe(self, connection: Connection, stream: str) -> None:
        connection.streams.pop(stream, None)
        readers = self._readers.get(stream)
        if readers is not None:
            readers.pop(connection, None)
            if not readers:
                del self._readers[stream]
        if not self._readers:
            self.subscribed.clear()

    def remove(self, connection: Connection) -> None:
        for stream in list(connection.streams):
            self.unsubscribe(connection, stream)
        self.connections.pop(connection, None)
        self._touched.pop(connection, None)

    def cut(self, connection: Connection, why: str) -> None:
        """Break a connection without a goodbye; from now on it does not count as a reader."""
        if not connection.transport.is_closing():
            log("socket_cut", level="warning", why=why, streams=len(connection.streams))
            connection.transport.abort()
        self.remove(connection)

    def cut_all(self) -> None:
        for connection in list(self.connections):
            self.cut(connection, "fault disconnect")

    def stall_for(self, seconds: float, pings: bool) -> None:
        """Stall the connections of this moment; those that are opened later are healthy."""
        until = time.monotonic() + seconds
        for connection in self.connections:
            connection.stall(until, pings)

    def shut_down(self, seconds: float) -> None:
        """Announce on the connections of this moment that they will be closed, and close them after that long."""
        leaving = list(self.connections)
        event = f'{{"e":"serverShutdown","E":{self._market.time_us // 1000}}}'
        for connection in leaving:
            text = f'{{"stream":"!serverShutdown","data":{event}}}' if connection.combined else event
            connection.pending.append(frame(text.encode()))
            self._touched[connection] = None
        asyncio.get_running_loop().call_later(seconds, self._close_all, leaving)

    def _close_all(self, leaving: list[Connection]) -> None:
        for connection in leaving:
            if connection in self.connections and not connection.transport.is_closing():
                self.flush()
                connection.transport.write(frame((1001).to_bytes(2, "big"), 0x8))  # going away (RFC 6455, 7.4.1)
                connection.transport.close()
                self.remove(connection)

    # --- what happens in the market

    def on_trade(self, market: SymbolMarket, trade: Trade) -> None:
        if self.muted or not self._readers:
            return
        name = market.stream
        readers = self._readers.get(f"{name}@trade")
        if readers:
            shown = self._faults.shape(market.symbol, trade) if self._faults.waiting else (trade,)
            for one in shown:
                self._send(f"{name}@trade", readers, trade_payload(market.symbol, one))
        if f"{name}@aggTrade" in self._readers:
            held = self._aggregates.setdefault(market, [])
            if held and held[-1].agg_id != trade.agg_id:
                self._send_aggregate(market, held)
                held = self._aggregates[market] = []
            held.append(trade)
        self._changed.add(name)

    def on_mark(self, time_us: int) -> None:
        if self.muted or not self._readers:
            self._changed.clear()
            return
        self._send_aggregates()
        minute = time_us % MINUTE_US == 0
        for stream, readers in self._readers.items():
            name, _, kind = stream.partition("@")
            length = INTERVALS.get(kind.removeprefix("kline_")) if kind.startswith("kline_") else None
            if length is None or not (minute or name in self._changed):
                continue
            symbol = self._market.symbols.get(name.upper())
            if symbol is None or not symbol.trades_at(time_us - 1):
                continue
            closed = time_us % length == 0
            if not closed and name not in self._changed:
                continue
            interval = kind.removeprefix("kline_")
            at = (time_us - 1) // length * length
            kline = self._market.kline(symbol, interval, at)
            if kline is not None:
                self._send(stream, readers, stream_payload(kline, symbol.symbol, interval, time_us, closed))
        self._changed.clear()

    def _send_aggregates(self) -> None:
        for market, held in self._aggregates.items():
            if held:
                self._send_aggregate(market, held)
        self._aggregates.clear()

    def _send_aggregate(self, market: SymbolMarket, held: list[Trade]) -> None:
        stream = f"{market.stream}@aggTrade"
        self._send(stream, self._readers.get(stream, {}), agg_payload(market.symbol, held))

    def _send(self, stream: str, readers: dict[Connection, None], payload: str) -> None:
        raw = combined = b""
        for connection in readers:
            if connection.combined:
                combined = combined or frame(f'{{"stream":"{stream}","data":{payload}}}'.encode())
                connection.pending.append(combined)
            else:
                raw = raw or frame(payload.encode())
                connection.pending.append(raw)
            self._touched[connection] = None

    # --- the sockets

    def flush(self, limit: int = MAX_BUFFER) -> None:
        """Hand what has gathered to the sockets; cut off readers with more than `limit` bytes waiting."""
        self._send_aggregates()
        if not self._touched:
            return
        now = time.monotonic()
        for connection in list(self._touched):
            if connection.stalled(now):
                if sum(map(len, connection.pending)) > MAX_BUFFER:
                    self.cut(connection, "too slow during a stall")
                continue
            if connection.pending and not connection.transport.is_closing():
                connection.transport.write(b"".join(connection.pending))
                if connection.transport.get_write_buffer_size() > limit:
                    self.cut(connection, "too slow")
            connection.pending.clear()
            self._touched.pop(connection, None)

    async def taken(self) -> None:
        """Wait until every reader has room again; cut off those that take nothing for five seconds."""
        while True:
            now, full, stalled = time.monotonic(), False, False
            for connection in list(self.connections):
                stalled = connection.stalled(now) or stalled
                waiting = connection.transport.get_write_buffer_size()
                if waiting < connection.waiting_bytes or waiting <= MAX_SPEED_BUFFER:
                    connection.last_taken = now
                connection.waiting_bytes = waiting
                if waiting > MAX_SPEED_BUFFER and not connection.transport.is_closing():
                    full = True
                    if now - connection.last_taken > STUCK_SECONDS:
                        self.cut(connection, f"took nothing for {STUCK_SECONDS:g} s")
            if not full and not stalled:
                return
            await asyncio.sleep(0.001 if full else 0.01)

    def ping(self, now: float) -> None:
        """Ping those whose turn it is; cut off those that have not answered for a minute."""
        for connection in list(self.connections):
            connection.stalled(now)
            if connection.half_open or now - connection.last_ping < PING_SECONDS:
                continue
            if now - max(connection.last_pong, connection.opened) > PONG_SECONDS + PING_SECONDS:
                self.cut(connection, "no pong for a minute")
            elif not connection.transport.is_closing():
                connection.last_ping = now
                connection.transport.write(frame(str(int(time.time() * 1000)).encode(), 0x9))

    # --- one connection

    async def serve(self, request: web.Request) -> web.StreamResponse:
        """Handle one websocket from its handshake to its end."""
        combined = request.path.startswith("/stream")
        names = request.query.get("streams", "") if combined else request.match_info.get("streams", "")
        wanted = [name for name in names.split("/") if name]
        socket = web.WebSocketResponse(autoping=False, compress=False, max_msg_size=1 << 18)
        if not socket.can_prepare(request).ok:
            return web.Response(status=400, text="this is a websocket\n")
        if len(wanted) > MAX_STREAMS:
            return web.Response(status=400, text=f"more than {MAX_STREAMS} streams\n")
        await socket.prepare(request)
        if request.transport is None:
            return socket
        connection = Connection(request.transport, combined)
        self.connections[connection] = None
        for name in wanted:
            self.subscribe(connection, name)
        log("socket_open", streams=len(wanted), connections=len(self.connections))
        try:
            await self._listen(socket, connection)
        except ConnectionResetError:
            pass
        finally:
            self.remove(connection)
            log("socket_closed", connections=len(self.connections))
        return socket

    async def _listen(self, socket: web.WebSocketResponse, connection: Connection) -> None:
        async for message in socket:
            now = time.monotonic()
            if connection.chatty(now):
                self.cut(connection, f"more than {MESSAGES_PER_SECOND} messages a second")
                return
            if message.type is WSMsgType.PONG:
                connection.last_pong = now
            elif message.type is WSMsgType.PING:
                await socket.pong(message.data)
            elif message.type is WSMsgType.TEXT:
                answer = self.command(connection, message.data)
                await socket.send_str(msgspec.json.encode(answer).decode())

    def command(self, connection: Connection, text: str) -> dict[str, Any]:
        """Carry out one JSON request of a connection and give its answer."""
        try:
            request = msgspec.json.decode(text)
        except msgspec.DecodeError:
            return {"code": 3, "msg": "Invalid JSON: expected value at line 1 column 1"}
        if not isinstance(request, dict) or "method" not in request:
            return {"code": 2, "msg": f"Invalid request: missing field `method` at line 1 column {len(text)}"}
        method, params, number = request["method"], request.get("params", []), request.get("id")
        if method not in _METHODS:
            expected = ", ".join(f"`{name}`" for name in _METHODS)
            return {
                "code": 2,
                "msg": f"Invalid request: unknown variant `{method}`, expected one of {expected} "
                f"at line 1 column {text.find(str(method)) + len(str(method)) + 1}",
            }
        if isinstance(number, bool) or not isinstance(number, int | str | None):
            return {"code": 2, "msg": "Invalid request: request ID must be an unsigned integer"}
        handle: Callable[[Connection, Any], Any] = getattr(self, f"_{method.lower()}")
        result = handle(connection, params)
        if isinstance(result, dict):
            return result if result["code"] != 0 else {**result, "id": number}
        return {"result": result, "id": number}

    def _subscribe(self, connection: Connection, params: Any) -> Any:
        if not isinstance(params, list) or not all(isinstance(name, str) for name in params):
            return {"code": 2, "msg": "Invalid request: params must be a list of stream names"}
        if len(connection.streams.keys() | set(params)) > MAX_STREAMS:
            return {"code": 2, "msg": f"Invalid request: more than {MAX_STREAMS} streams"}
        for name in params:
            self.subscribe(connection, name)
        return None

    def _unsubscribe(self, connection: Connection, params: Any) -> Any:
        if not isinstance(params, list) or not all(isinstance(name, str) for name in params):
            return {"code": 2, "msg": "Invalid request: params must be a list of stream names"}
        for name in params:
            self.unsubscribe(connection, name)
        return None

    def _list_subscriptions(self, connection: Connection, params: Any) -> Any:
        return list(connection.streams)

    def _set_property(self, connection: Connection, params: Any) -> Any:
        if not isinstance(params, list) or len(params) != 2 or not isinstance(params[0], str):
            return {"code": 2, "msg": "Invalid request: property name must be a string"}
        if params[0] != "combined":
            return {"code": 0, "msg": "Unknown property"}
        if not isinstance(params[1], bool):
            return {"code": 1, "msg": "Invalid value type: expected Boolean"}
        connection.combined = params[1]
        return None

    def _get_property(self, connection: Connection, params: Any) -> Any:
        if not isinstance(params, list) or len(params) != 1 or not isinstance(params[0], str):
            return {"code": 2, "msg": "Invalid request: property name must be a string"}
        return connection.combined if params[0] == "combined" else {"code": 0, "msg": "Unknown property"}
