"""Wiring: the event loop's thread, which partitions this replica owns, and whether all of them are at work.

Must never decide what is published.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine, Sequence
from types import TracebackType
from typing import Any

from marketflow_common import logs, topics
from marketflow_common.health import Health
from marketflow_common.kafka.client import Fenced, partition_count
from marketflow_common.kafka.source import Ownership
from marketflow_common.metrics import OWNED_PARTITIONS

from . import metrics
from .budget import Connects
from .lane import BROKER_AWAY, Lane, set_within
from .rest import Rest, RestError
from .settings import Settings
from .symbols import Chosen, choose

__all__ = ["UnknownSymbols", "run"]

_log = logs.get("ingestor")
_REST_PAUSE_SECONDS = 2.0
_NAMED = 20
"""Symbols in a text or log at most."""


class UnknownSymbols(ValueError):
    """Symbols that the exchange does not have; the text names them and what may have been meant."""


def run(settings: Settings, health: Health, stop: threading.Event) -> None:
    """Publish until ``stop``. Raises UnknownSymbols, Fenced or FatalKafkaError."""
    partitions = partition_count(settings.kafka, topics.OHLCV_RAW)
    with Feed(settings, health, stop, partitions) as feed:
        feed.check_symbols()
        Ownership(settings.kafka, "ingestor", topics.OHLCV_RAW, health, feed.assigned, feed.revoked).run(stop)
    if feed.failure is not None:
        raise feed.failure


class Feed:
    """The lanes of this replica, on an event loop in a thread of its own; its methods are called from others."""

    def __init__(self, settings: Settings, health: Health, stop: threading.Event, partitions: int) -> None:
        self.failure: BaseException | None = None
        self._settings, self._health, self._stop = settings, health, stop
        self._partitions = partitions
        self._symbols: dict[int, list[str]] = {}  # trading, by partition
        self._halted: dict[int, list[str]] = {}
        self._owned: list[int] | None = None
        self._connects = Connects()
        self._lanes: dict[int, Lane] = {}
        self._tasks: dict[int, tuple[asyncio.Task[None], asyncio.Event]] = {}
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="feed", daemon=True)

    def __enter__(self) -> Feed:
        self._thread.start()
        self._rest = self._call(self._make_rest())
        self._keepers = [
            asyncio.run_coroutine_threadsafe(keep(), self._loop) for keep in (self._keep_time, self._keep_symbols)
        ]
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._health.ready(False, "stopping")
        self._call(self._close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.run_until_complete(self._loop.shutdown_default_executor())
        self._loop.close()

    def check_symbols(self) -> None:
        """Ask the exchange whether it has all symbols, for as long as it takes. Raises UnknownSymbols."""
        self._call(self._check_symbols())

    def assigned(self, partitions: list[int]) -> None:
        """These partitions are ours from now on."""
        self._call(self._assign(partitions))

    def revoked(self, partitions: list[int]) -> None:
        """These partitions are not ours any more; returns once what was buffered is published."""
        self._call(self._revoke(partitions))

    def _call(self, work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    # --- on the loop ---------------------------------------------------------------------------------

    async def _make_rest(self) -> Rest:
        settings = self._settings
        return Rest(settings.rest_url, settings.api_key.get_secret_value(), settings.rest_weight_share)

    async def _keep_time(self) -> None:
        while True:
            try:
                await self._rest.measure_clock()
            except RestError as error:
                _log.warning("clock_unknown", detail=str(error))
            await asyncio.sleep(self._settings.clock_every_s)

    async def _close(self) -> None:
        for keeper in self._keepers:
            keeper.cancel()
        await self._revoke(list(self._tasks))
        await self._rest.close()

    async def _check_symbols(self) -> None:
        while not self._stop.is_set():
            try:
                listed = await self._rest.symbols()
                break
            except RestError as error:
                self._health.beat()
                self._health.ready(False, f"the exchange's REST does not answer: {error}")
                _log.warning(
                    "rest_away", detail=str(error), remedy="check MARKETFLOW_INGESTOR_REST_URL and the network"
                )
                await asyncio.sleep(_REST_PAUSE_SECONDS)
        else:
            return
        chosen = choose(self._settings.symbols, listed)
        if chosen.wrong:
            raise UnknownSymbols(
                f"MARKETFLOW_INGESTOR_SYMBOLS names what {self._settings.rest_url} does not have: "
                f"{', '.join(chosen.wrong)}"
            )
        for symbol in chosen.halted[:_NAMED]:
            _log.warning("symbol_not_trading", symbol=symbol, status=listed[symbol])
        self._follow(chosen)

    def _follow(self, chosen: Chosen) -> None:
        def shared_out(symbols: Sequence[str]) -> dict[int, list[str]]:
            shares: dict[int, list[str]] = {}
            for symbol in symbols:
                shares.setdefault(topics.partition_of(symbol, self._partitions), []).append(symbol)
            return shares

        self._symbols, self._halted = shared_out(chosen.trading), shared_out(chosen.halted)

    async def _keep_symbols(self) -> None:
        """Add what is newly listed, end what trades no more."""
        while True:
            await asyncio.sleep(self._settings.symbols_every_s)
            try:
                listed = await self._rest.symbols()
            except RestError as error:
                _log.warning("symbols_unknown", detail=str(error))
                continue
            if not listed:
                _log.error("symbols_unknown", detail="exchangeInfo lists no symbol at all", effect="nothing is changed")
                continue
            self._follow(choose(self._settings.symbols, listed))
            for partition, lane in self._lanes.items():
                lane.follow(self._symbols.get(partition, []), self._halted.get(partition, []))
            await self._assign([])
            self._report()

    async def _assign(self, partitions: list[int]) -> None:
        if partitions or self._owned is not None:
            self._owned = sorted({*(self._owned or ()), *partitions})
        for partition in self._owned or ():
            if partition in self._symbols and partition not in self._tasks:
                leave = asyncio.Event()
                self._tasks[partition] = asyncio.create_task(self._keep(partition, leave)), leave
        self._report()

    async def _revoke(self, partitions: list[int]) -> None:
        tasks = []
        for partition in partitions:
            if partition in self._tasks:
                task, leave = self._tasks.pop(partition)
                leave.set()
                tasks.append(task)
        if tasks:
            await asyncio.wait(tasks)
        self._owned = [p for p in self._owned or () if p not in partitions] or None
        self._report()

    async def _keep(self, partition: int, leave: asyncio.Event) -> None:
        """Run the partition's lane, and make it anew when the broker was away."""
        while not leave.is_set():
            lane = Lane(self._settings, partition, self._rest, self._connects, self._report)
            lane.follow(self._symbols.get(partition, []), self._halted.get(partition, []))
            self._lanes[partition] = lane
            try:
                await lane.run(leave)
            except Fenced as error:
                if not leave.is_set():
                    return self._fail(error)
                _log.warning("fenced_while_leaving", detail=str(error))
            except BROKER_AWAY as error:
                wait = self._settings.kafka.session_timeout_ms / 1_000
                _log.warning("lane_broken", partition=partition, detail=str(error), again_in_s=wait)
                await set_within(leave, wait)
            except BaseException as error:  # noqa: BLE001 - raised by run
                return self._fail(error)
            finally:
                del self._lanes[partition]
                self._report()

    def _fail(self, error: BaseException) -> None:
        self.failure = self.failure or error
        self._stop.set()

    def _report(self) -> None:
        OWNED_PARTITIONS.set(len(self._owned or ()))
        mine = [s for p in self._owned or () for s in self._symbols.get(p, ())]
        there = {s for lane in self._lanes.values() for s in lane.subscribed}
        metrics.SUBSCRIBED.set(len(there))
        self._health.detail(partitions=self._owned or [], symbols=mine)
        missing = [s for s in mine if s not in there]
        anew = sorted(s for lane in self._lanes.values() for s in lane.anew)
        if self._owned is None:
            self._health.ready(False, "no partition is assigned yet")
        elif anew:
            self._health.ready(False, f"the exchange numbers its trades anew: {', '.join(anew[:_NAMED])}; see the log")
        else:
            self._health.ready(not missing, f"not subscribed yet: {', '.join(missing[:_NAMED])}" if missing else "")
