"""Records of all four topics while loaders die or stand still at any step and the warehouse is taken away, by a seed.

MARKETFLOW_CHAOS_SEEDS names the seeds (``make chaos`` takes twenty, and more misfortune each); the seed is in the
test's name.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from contextlib import suppress
from decimal import Decimal
from pathlib import Path
from random import Random
from typing import Any

import pytest
import snowflake.connector
from confluent_kafka import Producer
from marketflow_common import topics as names
from marketflow_common.events import AccountOpened, Command, Event, Gap, Signal
from marketflow_common.kafka import client
from marketflow_loader.tables import REJECTS, TABLES
from marketflow_stack.testing import eventually
from snowflake.connector.errors import Error

pytestmark = [pytest.mark.broker]
SEEDS = [int(seed) for seed in os.environ.get("MARKETFLOW_CHAOS_SEEDS", "1,2,3").split(",")]
SHORT = "MARKETFLOW_CHAOS_SEEDS" not in os.environ
FAULTS = 3 if SHORT else 8
"""of each of the two loaders"""
KILLS, CUTS = (1, 2) if SHORT else (3, 8)
"""of the warehouse, and of the cable to it"""
STEPS = ("parquet_written", "put", "begun", "compared", "copied", "committed", "landed")


def plan(random: Random) -> str:
    """How one loader's lives end; the first steps are reached early, so that the others get their turn."""
    entries = [
        f"{random.choice(STEPS)}:{random.randint(1, 3)}:{random.choice(('kill', 'kill', 'freeze'))}"
        for _ in range(FAULTS)
    ]
    return ",".join(entries)


class Market:
    """Publishes records of every kind, and knows how many a reader sees."""

    def __init__(self, random: Random, kafka: Any, publish: Callable[..., None], make: dict[str, Any]) -> None:
        self._random, self._kafka, self._publish, self._make = random, kafka, publish, make
        self._plain = Producer({"bootstrap.servers": kafka.bootstrap_servers})
        self._aborting = client.producer(kafka, "aborting")
        self._aborting.init_transactions(30)
        self.count = self._number = 0

    def publish(self) -> None:
        """A handful of transactions, one of them aborted at times, and bytes that nobody can read at times."""
        for _ in range(self._random.randint(1, 4)):
            topic, partition = self._random.choice(names.ALL), self._random.randrange(3)
            events = [self._event(topic, partition) for _ in range(self._random.randint(1, 60))]
            self._publish(topic, partition, events)
            self.count += len(events)
        if self._random.random() < 0.3:
            self._aborting.begin_transaction()
            self._aborting.produce(self._anywhere(), b"{}", partition=self._random.randrange(3))
            self._aborting.flush(10)
            self._aborting.abort_transaction(30)
        if self._random.random() < 0.3:
            self._plain.produce(self._anywhere(), b"\xff" * self._random.randrange(9), partition=0)
            assert self._plain.flush(10) == 0
            self.count += 1

    def _anywhere(self) -> str:
        return str(self._kafka.topic(self._random.choice(names.ALL)))

    def _event(self, topic: str, partition: int) -> Event:
        self._number += 1
        symbol, number, one = f"S{partition}", self._number, Decimal("0.000000000000000001")
        kinds: dict[str, list[Callable[[], Event]]] = {
            names.OHLCV_RAW: [
                *[lambda: self._make["trade"](partition, number)] * 9,
                lambda: Gap("test", symbol, number, number + 1, "lost", True),
            ],
            names.OHLCV_AGG: [lambda: self._make["candle"](partition, number)],
            names.TRADING_SIGNALS: [
                lambda: Signal(
                    f"i{number}", "levels", "{}", symbol, "1m", number, one, one, -one, "SELL", number, {"low": one}, ()
                ),
                lambda: Command(f"c{number}", "main", "halt", "chat", number, None, "sig"),
            ],
            names.ORDER_EVENTS: [lambda: AccountOpened("main", "paper", {"USDT": one}, number)],
        }
        return self._random.choice(kinds[topic])()


class Loaders:
    """Two loaders and what has become of them, as their supervisor tells."""

    def __init__(self, process: Any, tell: Path) -> None:
        self.process, self._tell, self._thawed = process, tell, 0

    def told(self) -> list[str]:
        assert self.process.process.poll() is None, self.process.log.read_text()[-4_000:]
        return self._tell.read_text().splitlines() if self._tell.exists() else []

    def faults(self) -> int:
        """How many of the planned faults have happened."""
        return sum(not line.startswith("left") for line in self.told())

    def frozen(self) -> list[int]:
        """Those that stand still, in the order in which they stopped."""
        return [int(line.split()[1]) for line in self.told() if line.startswith("frozen")][self._thawed :]

    def thaw(self) -> None:
        """Let the one that stands still longest go on."""
        pid = self.frozen()[0]
        self._thawed += 1
        os.kill(pid, signal.SIGCONT)

    def complaints(self) -> int:
        """How often one has said that the warehouse is away."""
        said = self.process.log.read_text()
        return int(said.count("outside_away") + said.count("warehouse_away"))


def landed(tables: Any, topic: str, full: str) -> list[tuple[str, int, int]]:
    """(topic, partition, offset) of each row of the topic, whatever its table."""
    found = []
    for table in [table.name for table in TABLES if table.topic == topic] + [REJECTS]:
        found += [row for row in tables.offsets(table) if row[0] == full]
    return sorted(found)


class Count:
    """How many rows there are in all tables; asked often, so by one session, as long as the warehouse keeps it."""

    def __init__(self, settings: Any) -> None:
        self._settings = settings
        self._session: Any = None
        names_ = [*(table.name for table in TABLES), REJECTS]
        self._statement = f"SELECT {' + '.join(f'(SELECT COUNT(*) FROM {name})' for name in names_)}"

    def __call__(self) -> int:
        session: Any = self._session or snowflake.connector.connect(**self._settings.connect_arguments("test"))
        self._session = None
        found = int(session.cursor().execute(self._statement).fetchone()[0])
        self._session = session
        return found

    def forget(self) -> None:
        """The warehouse has died, and its sessions with it."""
        session, self._session = self._session, None
        if session is not None:
            with suppress(Error, OSError):
                session.close()


@pytest.mark.timeout(900)
@pytest.mark.parametrize("seed", SEEDS)
def test_whatever_happens_every_record_lands_once(
    seed: int,
    own_warehouse: Any,
    own_tables: Any,
    lay_cable: Callable[..., Any],
    start_loader: Callable[..., Any],
    kafka: Any,
    publish: Callable[..., None],
    published: Callable[..., list[tuple[str, int, int]]],
    trade: Any,
    candle: Any,
    tmp_path: Path,
) -> None:
    random, tables, cable = Random(seed), own_tables, lay_cable(own_warehouse)
    count = Count(tables.settings)
    market = Market(random, kafka, publish, {"trade": trade, "candle": candle})
    plans = [argument for _ in range(2) for argument in ("--replica", plan(random))]
    started = start_loader(
        tables, *plans, "--tell", str(tmp_path / "told"),
        SNOWFLAKE_PORT=cable.port, SNOWFLAKE_NETWORK_TIMEOUT=3, LOADER_FLUSH_ROWS=40,
    )  # fmt: skip
    loaders = Loaders(started, tmp_path / "told")

    def moved_on(before: int) -> Callable[[], bool]:
        return lambda: loaders.faults() > before or count() >= market.count

    misfortunes = ["kill"] * KILLS + ["cut"] * CUTS
    random.shuffle(misfortunes)
    while misfortunes or loaders.frozen() or loaders.faults() < 2 * FAULTS:
        if misfortunes and random.random() < 0.5:
            take_away(misfortunes.pop(), own_warehouse, cable, loaders, market)
            count.forget()
        before = loaders.faults()
        market.publish()
        # One that stands still wakes up before anybody has noticed, or long after the other has taken over.
        standing = len(loaders.frozen())
        if standing == 2 or (standing and random.random() < 0.4):
            loaders.thaw()
        eventually(moved_on(before), timeout=180, interval=0.2)
    eventually(lambda: count() >= market.count, timeout=180, interval=0.2)
    assert started.stop() == 0
    for topic in names.ALL:
        assert landed(tables, topic, kafka.topic(topic)) == published(topic), topic
    assert count() == market.count
    count.forget()
    # Whoever has left did so for want of an answer, and was right to come back.
    said = started.log.read_text()
    assert said.count("cannot_go_on") == said.count("leaving the group, start again")


def take_away(how: str, warehouse: Any, cable: Any, loaders: Loaders, market: Market) -> None:
    """The warehouse dies, or an answer of it is lost, while there is something to do; then it is there again."""
    while loaders.frozen():
        loaders.thaw()
    complaints = loaders.complaints()

    def felt() -> bool:
        return cable.broken if how == "cut" else loaders.complaints() > complaints

    if how == "cut":
        cable.break_at_the_next_answer()
    else:
        warehouse.kill()
    market.publish()
    eventually(lambda: felt() or len(loaders.frozen()) == 2, timeout=120)
    if how == "cut":
        cable.mend()
    else:
        warehouse.launch().wait_for("/health")
