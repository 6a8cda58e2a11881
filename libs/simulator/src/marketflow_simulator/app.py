"""Wires the simulator together: settings in, a running server out. The only place where parts meet."""

import asyncio
import contextlib
import errno
import signal

from aiohttp import web

from marketflow_simulator.amounts import SCALE
from marketflow_simulator.books import Books
from marketflow_simulator.capture import CaptureError, load
from marketflow_simulator.control import Control
from marketflow_simulator.faults import Faults
from marketflow_simulator.gate import Gate
from marketflow_simulator.journal import Identity, Journal, StateError
from marketflow_simulator.klines import MINUTE_US
from marketflow_simulator.limits import OrderCount
from marketflow_simulator.logs import log
from marketflow_simulator.market import Market
from marketflow_simulator.private import PrivateApi
from marketflow_simulator.pump import Pump
from marketflow_simulator.records import Commission
from marketflow_simulator.rest import PublicApi
from marketflow_simulator.resume import Resume
from marketflow_simulator.security import PublicKeyError, Security, read_public_key
from marketflow_simulator.settings import Settings
from marketflow_simulator.streams import Hub
from marketflow_simulator.symbols import spec_of
from marketflow_simulator.synthetic import SyntheticTape
from marketflow_simulator.trading import Trading
from marketflow_simulator.upheavals import Upheavals
from marketflow_simulator.wsapi import WebSocketApi


class StartError(Exception):
    """The simulator cannot start; the message is one line for the operator."""


def build_market(settings: Settings) -> Market:
    """The market that the settings ask for; StartError if there is none."""
    if settings.replay is None:
        specs = [spec_of(symbol) for symbol in settings.symbols]
        tapes = [(s, SyntheticTape(s, settings.seed, settings.start_us, settings.minutes)) for s in specs]
        end_us = settings.start_us + settings.minutes * MINUTE_US if settings.minutes else None
        return Market(tapes, settings.start_us, end_us)
    only = settings.symbols if "symbols" in settings.model_fields_set else ()
    try:
        recording = load(settings.replay, only)
    except CaptureError as error:
        raise StartError(str(error)) from error
    log(
        "recording_read",
        path=settings.replay,
        trades={tape.symbol: tape.size for tape in recording.tapes},
        ignored=dict(recording.ignored),
        repeated=recording.repeated,
    )
    start_us = min(tape.first_at_us for tape in recording.tapes)
    return Market(list(zip(recording.specs, recording.tapes, strict=True)), start_us)


class Simulator:
    """One exchange. `start` opens the port, `stop` closes everything."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self.faults = Faults()
        self.market = build_market(settings)
        self.hub = Hub(self.market, self.faults)
        self.faults.clock = lambda: self.market.time_us
        self.faults.change_market = Upheavals(self.market, settings.state is not None).happen
        self.market.listeners += [self.faults, self.hub]
        self.pump = Pump(self.market, self.hub, settings.speed)
        self.gate = Gate(self.faults, settings.weight_limit)
        counts = OrderCount(lambda: self.public.now_ms() / 1000, settings.order_limit, settings.weight_limit > 0)
        self.public = PublicApi(self.market, self.faults, self.gate, counts)
        self.books, self._resume = self._open_books()
        self.market.listeners.insert(0, self.books)
        self.security = self._open_security()
        self.trading = Trading(self.market, self.books, self.gate, self.faults, counts, self.security)
        self.private = PrivateApi(self.market, self.books, self.gate, self.trading, counts, self.security)
        self.api = WebSocketApi(
            self.books, self.public, self.private, self.trading, self.gate, counts, self.security, self.faults
        )
        seed = settings.seed if settings.replay is None else None
        self.control = Control(self.market, self.books, self.hub, self.pump, self.gate, self.faults, seed)
        self.faults.shutdown = self._announce_shutdown
        self._runner: web.AppRunner | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self.port = settings.port

    def _open_books(self) -> tuple[Books, Resume | None]:
        settings, market = self._settings, self.market
        initial = {asset: int(amount * SCALE) for asset, amount in settings.balances.items()}
        fee = Commission(int(settings.fee_rate * SCALE), int(settings.bnb_discount * SCALE))
        specs = [symbol.spec for symbol in market.symbols.values()]
        clocks = (self.public.now_ms, lambda: market.time_us)
        if settings.state is None:
            return self._priced(Books(specs, initial, fee, *clocks, rule=settings.fill)), None
        identity = Identity(
            symbols=list(market.symbols),
            seed=settings.seed if settings.replay is None else None,
            replay=str(settings.replay) if settings.replay is not None else None,
            start_us=market.start_us,
            initial=initial,
            fee=fee.rate,
        )
        journal = Journal(settings.state, identity)
        try:
            clock, changes = journal.open()
        except StateError as error:
            raise StartError(str(error)) from error
        books = self._priced(Books(specs, initial, fee, *clocks, journal.record, settings.fill))
        market.listeners.append(books)
        resume = Resume(journal, market, self.pump)
        resume.restore(clock, changes, books, self.hub)
        market.listeners.remove(books)
        return books, resume

    def _announce_shutdown(self, seconds: float) -> None:
        self.hub.shut_down(seconds)
        self.api.shut_down(seconds)

    def _priced(self, books: Books) -> Books:
        def price_of(name: str) -> int | None:
            symbol = self.market.symbols.get(name)
            return symbol.last.price if symbol is not None and symbol.last is not None else None

        books.price_of = price_of
        return books

    def _open_security(self) -> Security:
        settings = self._settings
        security = Security(self.public.now_ms, settings.api_key, settings.api_secret)
        if settings.ed25519_public_key:
            try:
                security.trust(settings.ed25519_api_key, read_public_key(settings.ed25519_public_key))
            except PublicKeyError as error:
                raise StartError(str(error)) from error
        return security

    async def start(self) -> None:
        """Open the port and, unless told otherwise, start the market; StartError if the port is taken."""
        app = web.Application(client_max_size=1 << 20)
        app.add_routes(self.public.routes())
        app.add_routes(self.trading.routes())
        app.add_routes(self.private.routes())
        app.add_routes(self.control.routes())
        app.add_routes([web.get("/ws-api/v3", self.api.serve)])
        app.add_routes(
            [web.get(path, self.hub.serve) for path in ("/ws", "/ws/", "/ws/{streams:.+}", "/stream", "/stream/")]
        )
        self._runner = web.AppRunner(app, access_log=None, handle_signals=False, shutdown_timeout=1.0)
        await self._runner.setup()
        settings = self._settings
        try:
            await web.TCPSite(self._runner, settings.host, settings.port).start()
        except OSError as error:
            await self._runner.cleanup()
            taken = error.errno == errno.EADDRINUSE
            remedy = "; stop who holds it or choose another with MARKETFLOW_SIMULATOR_PORT" if taken else ""
            reason = "the port is taken" if taken else error.strerror
            raise StartError(f"cannot listen on {settings.host}:{settings.port}: {reason}{remedy}") from error
        self.port = self._runner.addresses[0][1]
        log(
            "listening",
            url=f"http://{settings.host}:{self.port}",
            symbols=list(self.market.symbols),
            synthetic=settings.replay is None,
            autostart=settings.autostart,
        )
        if settings.autostart:
            self.pump.started.set()
        self._tasks = [asyncio.create_task(self.pump.run()), asyncio.create_task(self.pump.ping(self.api.ping))]

    async def stop(self) -> None:
        """Cut the sockets, close the port."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for connection in list(self.hub.connections):
            connection.transport.close()
        for session in list(self.api.sessions):
            session.transport.close()
        if self._runner is not None:
            await self._runner.cleanup()
        if self._resume is not None:
            self._resume.close()
        log("stopped", market_time_us=self.market.time_us)

    async def wait(self) -> None:
        """Run until a task fails; the end of the market is no failure."""
        done, _ = await asyncio.wait(self._tasks, return_when=asyncio.FIRST_EXCEPTION)
        for task in done:
            task.result()


async def run(settings: Settings) -> None:
    """Run the simulator until SIGTERM or SIGINT; StartError if it cannot start."""
    simulator = Simulator(settings)
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    await simulator.start()
    try:
        stopped = asyncio.create_task(stop.wait())
        working = asyncio.create_task(simulator.wait())
        await asyncio.wait({stopped, working}, return_when=asyncio.FIRST_COMPLETED)
        stopped.cancel()
        if working.done():
            working.result()
        working.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await working
    finally:
        await simulator.stop()
