"""The one place that wires the loader together.

Must never be imported for anything but running it.
"""

from __future__ import annotations

import gc
import threading
from typing import Final

from marketflow_common import logs, topics
from marketflow_common.health import Health
from marketflow_common.kafka.sink import Limits, Sink

from . import streaming
from .broker import Broker
from .effect import Backend, Rows
from .settings import LoaderSettings
from .warehouse import Away, Step, Warehouse, nothing

__all__ = ["GROUP", "work"]

GROUP: Final = "loader"
LEAVE_SECONDS: Final = 5.0
"""A session is to be closed at the end, but one whose warehouse stands still does not keep this process."""
_log = logs.get("loader")


def work(settings: LoaderSettings, health: Health, stop: threading.Event, step: Step = nothing) -> None:
    """Land all four topics until ``stop``. ``step`` is called at the steps of a flush, for tests of crashes."""
    # Many thousands of records wait at a time, none of them in a cycle: the search for cycles took a third of the CPU.
    gc.freeze()
    gc.set_threshold(200_000, 20, 20)
    # The connector cancels a statement that takes too long from a thread of its own; where the network is down,
    # that fails too, and the failure belongs into the log as one line.
    threading.excepthook = _thread_failed
    warehouse = _backend(settings, step)
    try:
        _wait(warehouse, health, stop)
        if stop.is_set():
            return
        if isinstance(warehouse, Warehouse):
            warehouse.warm()
        rows = Rows(settings.kafka, warehouse, Broker(settings.kafka), health, settings.patience_seconds, step)
        limits = Limits(settings.flush_rows, settings.flush_bytes, settings.flush_seconds)
        Sink(settings.kafka, GROUP, topics.ALL, rows, health, limits).run(stop)
    except KeyboardInterrupt:
        # The connector takes SIGINT for itself while a statement runs. Nothing is lost: the position decides.
        _log.info("stopping", signal="SIGINT", detail="in the middle of a statement")
    finally:
        warehouse.close(LEAVE_SECONDS)


def _backend(settings: LoaderSettings, step: Step) -> Backend:
    warehouse = Warehouse(settings.snowflake, step)
    if settings.backend == "copy":
        return warehouse
    return streaming.Streaming(warehouse, streaming.connect(settings.snowflake), step)


def _thread_failed(failed: threading.ExceptHookArgs) -> None:
    _log.warning("thread_failed", thread=failed.thread.name if failed.thread else "", detail=str(failed.exc_value))


def _wait(warehouse: Backend, health: Health, stop: threading.Event) -> None:
    """Until the warehouse shows its positions: outside of the consumer group, nobody waits for this process."""
    last = ""
    while not stop.is_set():
        try:
            warehouse.positions(topics.ALL)
            return
        except Away as error:
            if str(error) != last:
                _log.warning(
                    "warehouse_away", detail=str(error),
                    remedy="check MARKETFLOW_SNOWFLAKE_*; python -m marketflow_loader.schema makes the tables",
                )  # fmt: skip
            last = str(error)
            health.ready(False, last)
            health.beat()
            stop.wait(1.0)
