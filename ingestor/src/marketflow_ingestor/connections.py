"""The streams of some symbols over one connection, or over two while one takes over from the other.

Must never close a connection that works before its successor is confirmed, take silence alone for a failure, nor
read on from a socket when what was read cannot be kept.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Collection, Iterable
from contextlib import suppress
from random import uniform
from typing import Any, Final, Protocol

import msgspec
from marketflow_common import logs
from marketflow_common.clock import now_us
from marketflow_common.events import Trade
from marketflow_common.metrics import MESSAGES_IN, UNREADABLE
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import WebSocketException

from . import metrics
from .binance import Closed, Doubtful, Opened, Other, Unreadable, read, streams_of
from .budget import Connects
from .questions import growing
from .rhythm import Rhythm
from .settings import Settings

__all__ = ["Connections", "Listener"]

_log = logs.get("ingestor")
_ERRORS: Final = (OSError, TimeoutError, WebSocketException)
_CONFIRM_SECONDS: Final = 10.0
_PONG_SECONDS: Final = 2.0
_OVERLAP_SECONDS: Final = 1.0
"""Both are read for so long at least: a confirmed stream may still be slow to begin."""
_DRAIN_SECONDS: Final = 10.0
_TICK_SECONDS: Final = 0.25
_MESSAGES_PER_TURN: Final = 256
_LIVED_SECONDS: Final = 30.0
"""A connection that lived this long is no sign of one that is refused again and again."""
_FRAMES: Final = 1_024
"""Messages that the websocket library holds before it stops reading from the socket."""


class Listener(Protocol):
    """Who hears what the streams say."""

    ahead: int
    """A trade whose time is more than this (in microseconds) after our clock is not believed."""

    def began(self, symbols: Collection[str]) -> None:
        """The streams of these begin (again): trades may be missing before it."""

    def covered(self, symbols: Collection[str]) -> None:
        """No: the connection before has brought everything up to then."""

    def heard(self, event: Trade | Closed | Opened | Doubtful) -> bool:
        """The next event; True: wait for ``drained`` before the next one."""

    async def drained(self) -> None:
        """Returns once there is room."""

    async def behind(self, symbol: str) -> bool | None:
        """Whether REST has trades that the stream did not bring; None: it cannot be told."""

    def overdue(self, symbols: Collection[str]) -> str | None:
        """A symbol whose closed minutes do not come while those of others do."""

    def streaming(self, symbols: Iterable[str], connected: bool) -> None:
        """The streams of these are confirmed, or lost."""


class _Answer(msgspec.Struct):
    id: int | None = None
    result: list[str] | None = None


_answer: Final = msgspec.json.Decoder(_Answer)


class _Link:
    """One connection with confirmed streams."""

    def __init__(self, socket: ClientConnection, symbols: frozenset[str], rhythm: Rhythm, until: float) -> None:
        self.socket, self.symbols, self.rhythm, self.until = socket, symbols, rhythm, until
        self.since = time.monotonic()
        self.count = self.told = 0
        self.last_symbol = min(symbols)
        self.listening, self.shutdown = True, False
        self.reader: asyncio.Task[None] | None = None

    async def answers(self) -> bool:
        """Whether a ping comes back in time, and so everything that was sent before it."""
        try:
            async with asyncio.timeout(_PONG_SECONDS):
                await (await self.socket.ping())
        except _ERRORS:
            return False
        return True


class Connections:
    """Keeps the streams of ``symbols`` (which may be replaced at any time) connected while it runs."""

    def __init__(self, settings: Settings, symbols: Iterable[str], listener: Listener, connects: Connects) -> None:
        self.symbols = frozenset(symbols)
        self._settings, self._listener, self._connects = settings, listener, connects
        self._links: set[_Link] = set()
        self._pauses = growing(0.5, 15.0)
        self._second_after = self._suspect_after = self._overdue_after = 0.0
        self._begin_anew()

    def _begin_anew(self) -> None:
        self._seconds = growing(1.0, 60.0)
        self._suspicions = growing(2.0 * self._settings.stall_floor_s, 300.0)
        self._overdues = growing(20.0, 600.0)

    async def run(self) -> None:
        """Returns when there are no symbols any more."""
        link = None
        try:
            while self.symbols:
                if link is None:
                    link = await self._connect()
                if link is None:
                    break
                why = await self._watch(link)
                if why is None:
                    link = None
                elif self.symbols:
                    link = await self._replace(link, why)
        finally:
            self._listener.streaming(self.symbols, False)
            for one in self._links:
                if one.reader is not None:
                    one.reader.cancel()
            await asyncio.gather(*(one.socket.close() for one in self._links), return_exceptions=True)
            self._links.clear()

    # --- opening -------------------------------------------------------------------------------------

    async def _connect(self) -> _Link | None:
        while self.symbols:
            try:
                return await self._open(None)
            except _ERRORS as error:
                await self._lost(error)
        return None

    async def _open(self, before: _Link | None) -> _Link:
        """A connection that the exchange confirms to carry all streams, and is being read."""
        wait = self._connects.wait(time.monotonic())
        while wait > 0:
            await asyncio.sleep(min(wait, uniform(0.5, 2.0)))
            wait = self._connects.wait(time.monotonic())
        symbols, settings = self.symbols, self._settings
        names = streams_of(sorted(symbols))
        # No compression: the exchange offers none for market data, and it would cost more than it saves. No pings on
        # a timer: under back-pressure their answers would wait behind unread messages; see _stalled.
        socket = await connect(
            f"{settings.ws_url}/stream?streams={'/'.join(names)}",
            compression=None,
            max_queue=_FRAMES,
            close_timeout=1,
            ping_interval=None,
        )
        try:
            early = await self._confirmed(socket, names)
        except BaseException:
            socket.transport.abort()
            raise
        rhythm = Rhythm(settings.stall_floor_s, settings.stall_ceiling_s, before.rhythm if before else None)
        until = time.monotonic() + settings.connection_age_s * uniform(0.9, 1.0)
        link = _Link(socket, symbols, rhythm, until)
        self._links.add(link)
        self._listener.began(symbols)
        link.reader = asyncio.create_task(self._read(link, early))
        self._listener.streaming(symbols, True)
        _log.info("subscribed", symbols=len(symbols), second=before is not None)
        return link

    async def _confirmed(self, socket: ClientConnection, names: list[str]) -> list[bytes]:
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
                    raise ConnectionError(f"{self._settings.ws_url} sent {message[:200]!r}: {error}") from error
                if answer.id == 1:
                    break
        missing = set(names) - set(answer.result or ())
        if missing:
            raise ConnectionError(f"{self._settings.ws_url} does not carry {', '.join(sorted(missing))}")
        return early

    async def _replace(self, link: _Link, why: str) -> _Link | None:
        """Have a second connection take over; the first stays where that does not succeed."""
        try:
            new = await self._open(link)
        except _ERRORS as error:
            pause = next(self._seconds)
            self._second_after = time.monotonic() + pause
            _log.warning("no_second_connection", why=why, detail=_text(error), again_in_s=pause)
            return link
        self._seconds = growing(1.0, 60.0)
        metrics.HANDOVERS.labels(why).inc()
        if why == "stall":
            metrics.RECONNECTS.inc()
        else:
            await asyncio.wait([_reader(link)], timeout=_OVERLAP_SECONDS)
        whole = why != "stall" and await link.answers() and await self._drain(link)
        await self._drop(link)
        self._listener.streaming(link.symbols - new.symbols, False)
        if whole:
            self._listener.covered(link.symbols & new.symbols)
        _log.info("taken_over", why=why, symbols=len(new.symbols), whole=whole)
        return new

    async def _drain(self, link: _Link) -> bool:
        """Close in good order and read to the end."""
        with suppress(*_ERRORS):
            await link.socket.close()
        done, _ = await asyncio.wait([_reader(link)], timeout=_DRAIN_SECONDS)
        return bool(done)

    async def _drop(self, link: _Link) -> None:
        _reader(link).cancel()
        await asyncio.wait([_reader(link)])
        link.socket.transport.abort()
        self._links.discard(link)

    # --- watching ------------------------------------------------------------------------------------

    async def _watch(self, link: _Link) -> str | None:
        """Until a second connection is wanted: why. None: the connection is lost."""
        reader, taken, last = _reader(link), MESSAGES_IN.labels(metrics.STREAM), time.monotonic()
        while True:
            await asyncio.wait([reader], timeout=_TICK_SECONDS)
            now = time.monotonic()
            heard, seconds, last = link.count != link.told or not link.listening, now - last, now
            taken.inc(link.count - link.told)
            link.told = link.count
            if reader.done():
                error = reader.exception()
                if error is not None and not isinstance(error, _ERRORS):
                    raise error
                self._links.discard(link)
                if now - link.since > _LIVED_SECONDS:
                    self._pauses = growing(0.5, 15.0)
                await self._lost(error)
                return None
            why = self._planned(link, now) or await self._suspected(link, seconds, heard, now)
            if why and now >= self._second_after:
                return why

    def _planned(self, link: _Link, now: float) -> str:
        if link.shutdown:
            return "shutdown"
        if link.symbols != self.symbols:
            return "symbols"
        return "age" if now >= link.until else ""

    async def _suspected(self, link: _Link, seconds: float, heard: bool, now: float) -> str:
        if link.rhythm.tick(seconds, heard):
            if now >= self._suspect_after:
                self._suspect_after = now + next(self._suspicions)
                if await self._stalled(link):
                    return "stall"
                link.rhythm.legitimate()
            return ""
        if heard and now > self._suspect_after + 300.0:
            self._begin_anew()
        if now >= self._overdue_after and (symbol := self._listener.overdue(link.symbols)) is not None:
            self._overdue_after = now + next(self._overdues)
            if await self._listener.behind(symbol):
                _log.warning("stream_incomplete", symbol=symbol, effect="a second connection is opened")
                return "stall"
        return ""

    async def _stalled(self, link: _Link) -> bool:
        """Whether the silence is not the market's: no pong, or REST has more, or nobody can tell."""
        count, silence = link.count, link.rhythm.silence
        metrics.SUSPICIONS.inc()
        pong = await link.answers()
        behind = await self._listener.behind(link.last_symbol) if pong and link.count == count else None
        if link.count != count or (pong and behind is False):
            return False
        _log.warning("stall", silent_s=round(silence, 1), usual_s=round(link.rhythm.limit, 1), pong=pong, behind=behind)
        return True

    async def _lost(self, error: BaseException | None) -> None:
        pause = next(self._pauses)
        metrics.RECONNECTS.inc()
        self._listener.streaming(self.symbols, False)
        detail = _text(error) if error is not None else "closed by the exchange"
        _log.warning("stream_lost", url=self._settings.ws_url, detail=detail, again_in_s=round(pause, 2))
        await asyncio.sleep(pause)

    # --- reading -------------------------------------------------------------------------------------

    async def _read(self, link: _Link, early: list[bytes]) -> None:
        listener, receive, turn = self._listener, link.socket.recv, 0
        for message in early:
            self._message(link, message)
        while True:
            message = await receive(decode=False)
            link.count += 1
            if self._message(link, message):
                link.listening = False
                await listener.drained()
                link.listening = True
            turn += 1
            if turn == _MESSAGES_PER_TURN:  # recv() does not give way while it has messages
                turn = 0
                await asyncio.sleep(0)

    def _message(self, link: _Link, message: bytes) -> bool:
        now = now_us()
        try:
            event: Any = read(message, now, self._settings.future_tolerance_us, now + self._listener.ahead)
        except Unreadable as error:
            UNREADABLE.labels(metrics.STREAM).inc()
            _log.error(
                "message_unreadable",
                detail=str(error)[:300],
                message=message[:300].decode(errors="replace"),
                effect="dropped; its trade is asked for by REST once the hole shows",
            )
            return False
        if type(event) is Trade:
            link.last_symbol = event.symbol
        elif type(event) is Other:
            if event.event == "serverShutdown":
                link.shutdown = True
                _log.warning("server_shutdown", effect="a second connection takes over before the exchange closes this")
            return False
        return self._listener.heard(event)


def _reader(link: _Link) -> asyncio.Task[None]:
    assert link.reader is not None
    return link.reader


def _text(error: BaseException) -> str:
    return str(error) or type(error).__name__
