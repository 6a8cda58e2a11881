"""Who leads an account: the member of group ``executor-leader-<account>`` that owns partition 0 of order_events.

Must never say that this instance leads after the group has said otherwise. It reads no record; what a leader that
does not know yet could still do is stopped by its transactional id and by the order's recvWindow.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from confluent_kafka import Consumer, KafkaException, TopicPartition
from marketflow_common import clock, logs, topics
from marketflow_common.health import Health
from marketflow_common.kafka import client
from marketflow_common.kafka.client import FatalKafkaError, Fenced
from marketflow_common.settings import KafkaSettings

from . import meters
from .engine import Broken, Engine, TermOver

__all__ = ["Election", "lead"]

_log = logs.get("leader")
HANDOVER_S = 5.0
"""How long a planned change of leaders waits for the order in flight: longer than one request may take."""
RETRY_S = 0.5


class Election:
    """Membership in the leader group, on a thread of its own so that a busy engine stays a member."""

    def __init__(self, kafka: KafkaSettings, account: str) -> None:
        self._kafka, self._group = kafka, f"executor-leader-{account}"
        self._term = 0
        self._leads = False
        self._stop = threading.Event()
        self._idle = threading.Event()
        self._idle.set()
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="election", daemon=True)

    def __enter__(self) -> Election:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Leave the group, so that a standby need not wait for the session to time out."""
        self._stop.set()
        self._thread.join()

    def term(self) -> int | None:
        """Number of this instance's current term, None while it does not lead. Raises what ended the membership."""
        if self._failure is not None:
            raise self._failure
        return self._term if self._leads else None

    def working(self, busy: bool) -> None:
        """The engine says whether it is at work; a planned change of leaders waits for it to finish."""
        if busy:
            self._idle.clear()
        else:
            self._idle.set()

    def _run(self) -> None:
        try:
            while not self._stop.is_set():
                self._member()
        except KafkaException as error:
            self._failure = FatalKafkaError(error.args[0].str())
        except BaseException as error:  # noqa: BLE001 - raised by term(), on the engine's thread
            self._failure = error
        finally:
            self._leads = False

    def _member(self) -> None:
        """Be a member of the group until it goes on without us, or until we stop."""
        lost = threading.Event()

        def assigned(consumer: Consumer, partitions: list[TopicPartition]) -> None:
            consumer.assign([TopicPartition(p.topic, p.partition, 0) for p in partitions])
            if partitions:
                consumer.pause(partitions)
            if any(p.partition == 0 for p in partitions):
                self._term += 1
                self._leads = True
            _log.info("assigned", leads=self._leads, term=self._term)

        def revoked(_: Consumer, partitions: list[TopicPartition]) -> None:
            self._leads = False
            self._idle.wait(HANDOVER_S)
            _log.info("revoked", term=self._term)

        def gone(_: Consumer, partitions: list[TopicPartition]) -> None:
            self._leads = False
            lost.set()
            _log.warning("lost", term=self._term, detail="the group has gone on without this instance")

        # Range gives partition 0 to the member whose id sorts first, and ids begin with client.id: so the member of
        # longest standing leads, and one that joins (again) takes the lead from nobody.
        consumer = client.consumer(self._kafka, self._group, **{"client.id": f"{clock.now_us():020d}"})
        try:
            topic = self._kafka.topic(topics.ORDER_EVENTS)
            consumer.subscribe([topic], on_assign=assigned, on_revoke=revoked, on_lost=gone)
            while not self._stop.is_set() and not lost.is_set():
                message = consumer.poll(0.05)
                error = message.error() if message is not None else None
                if error is not None and error.fatal():
                    raise FatalKafkaError(error.str())
        finally:
            self._leads = False
            consumer.close()


def lead(
    kafka: KafkaSettings,
    account: str,
    health: Health,
    stop: threading.Event,
    make_engine: Callable[[Callable[[], bool], int], Engine],
) -> None:
    """Stand by, and lead whenever it is this instance's turn, until ``stop``.

    Raises Fenced if another instance trades the account although this one owns partition 0, and FatalKafkaError.
    """
    partitions = client.partition_count(kafka, topics.TRADING_SIGNALS, topics.ORDER_EVENTS, topics.OHLCV_RAW)
    with Election(kafka, account) as election:
        while not stop.is_set():
            term = election.term()
            health.beat()
            if term is None:
                health.detail(role="standby")
                health.ready(True)
                stop.wait(0.02)
                continue
            _term(election, term, kafka, health, stop, lambda leads: make_engine(leads, partitions))


def _term(
    election: Election,
    term: int,
    kafka: KafkaSettings,
    health: Health,
    stop: threading.Event,
    make_engine: Callable[[Callable[[], bool]], Engine],
) -> None:
    health.ready(False, "taking over")
    health.detail(role="leader")
    meters.LEADER.set(1)
    election.working(True)
    try:
        make_engine(lambda: election.term() == term).run(stop)
    except TermOver as over:
        _log.info("term_over", term=term, detail=str(over))
    except Broken as broken:
        _log.warning("term_broken", term=term, detail=str(broken), effect="put back to what is in the log")
        stop.wait(RETRY_S)
    except Fenced:
        # A leader that was frozen learns it from its producer first. It stands by, if the group agrees.
        election.working(False)
        for _ in range(2 * kafka.session_timeout_ms // 100):
            if election.term() != term or stop.wait(0.1):
                _log.warning("fenced", term=term, effect="standing by")
                return
        raise
    finally:
        election.working(False)
        meters.LEADER.set(0)
