"""Records to one channel: each due record once, in order of append, several to a message.

Must never let a record count as written before the channel has taken it, nor give one up.
"""

from __future__ import annotations

import heapq
import time
from collections import deque
from collections.abc import Callable, Collection, Mapping
from typing import Final, NamedTuple

from marketflow_common import clock, logs
from marketflow_common.kafka import client
from marketflow_common.kafka.client import Committed
from marketflow_common.kafka.sink import Batches, Retry, Slot
from marketflow_common.topics import TRADING_SIGNALS
from prometheus_client import Counter, Gauge, Histogram

from .channels import Away, Broken, Channel, Refused
from .messages import KINDS, Message, Notice, first_message, is_due, notice

__all__ = ["SLOWLY", "Delivery"]

SENT: Final = Counter("notifications_sent_total", "Due records that the channel has taken", ["channel"])
MESSAGES: Final = Counter("notification_messages_total", "Messages that the channel has taken", ["channel"])
FAILED: Final = Counter("notifications_failed_total", "Messages that the channel did not take", ["channel"])
SHORTENED: Final = Counter(
    "notifications_shortened_total", "Messages sent in short form because the text was refused", ["channel"]
)
WAITING: Final = Gauge("notifications_waiting", "Due records read and not yet delivered", ["channel"])
DELAY: Final = Histogram(
    "notification_delay_seconds",
    "Append of the record at the broker to its delivery",
    ["channel"],
    buckets=(0.05, 0.1, 0.25, 0.5, 1, 2, 5, 10, 30, 60, 300, 1_800, 7_200),
)

SLOWLY: Final = 60.0
"""Seconds between tries while a person has to act: soon enough after the remedy, no hammering before it."""
LONGEST: Final = 30.0
"""Seconds between tries at most while a channel is away."""

Trouble = Callable[[str | None], None]
"""Told what a person has to do before messages can be delivered; None: nothing."""

_log = logs.get("notifier")


class _Due(NamedTuple):
    slot: Slot
    offset: int
    appended_ms: int
    notice: Notice


class Delivery:
    """The effect of a Sink for one channel. One message a write, so that every commit follows one delivery."""

    def __init__(
        self,
        channel: Channel,
        kinds: Collection[str] = KINDS,
        pause: float = 1.0,
        trouble: Trouble = lambda _: None,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._channel, self._kinds, self._pause = channel, kinds, pause
        self._trouble, self._monotonic = trouble, monotonic
        self._due: dict[Slot, deque[_Due]] = {}
        self._read_to: dict[Slot, int] = {}
        self._sent: dict[Slot, int] = {}
        self._failures = 0
        self._not_before, self._why = 0.0, ""

    def opened(self, slot: Slot, committed: Committed) -> int | None:
        self._due[slot], self._read_to[slot] = deque(), -1
        # What this process has sent stays sent, also where the commit after it was lost.
        self._sent[slot] = max(self._sent.get(slot, -1), committed.marks.get("sent", -1))
        return None

    def closed(self, slot: Slot) -> None:
        self._due.pop(slot, None)

    def write(self, batches: Batches) -> Mapping[Slot, Mapping[str, int]]:
        self._read(batches)
        waiting = self._waiting()
        WAITING.labels(self._channel.name).set(len(waiting))
        if not waiting:
            return self._marks(batches)
        now = self._monotonic()
        if now < self._not_before:
            self._keep(batches, self._why, self._not_before - now)
        message = first_message([due.notice for due in waiting], self._channel.limit)
        try:
            self._send(message)
        except Away as error:
            self._failures += 1
            backoff = min(LONGEST, 2.0 ** (self._failures - 1))
            self._wait(batches, str(error), backoff if error.seconds is None else error.seconds)
        except Broken as error:
            self._failures += 1
            self._trouble(str(error))
            _log.error("channel_broken", channel=self._channel.name, detail=str(error), waiting=len(waiting))
            self._wait(batches, str(error), SLOWLY)
        self._delivered(waiting[: message.taken])
        WAITING.labels(self._channel.name).set(len(waiting) - message.taken)
        if message.taken < len(waiting):
            self._keep(batches, "more lines than one message holds", self._pause)
        return self._marks(batches)

    # --- reading -------------------------------------------------------------------------------------

    def _read(self, batches: Batches) -> None:
        """Take in the records not seen yet; a batch is offered again, with more behind, until it is written."""
        for slot, records in batches.items():
            fresh = [m for m in records if (m.offset() or 0) > self._read_to[slot]]
            for record in client.records_of(fresh, slot.topic):
                if is_due(record.event, self._kinds) and record.offset > self._sent[slot]:
                    reference = f"{slot.topic}/{slot.partition}@{record.offset}"
                    due = _Due(slot, record.offset, record.appended_ms, notice(record.event, reference))
                    self._due[slot].append(due)
            self._read_to[slot] = records[-1].offset() or 0

    def _waiting(self) -> list[_Due]:
        """All due records by append time; within a partition by offset, and a signal before its order."""
        slots = sorted(self._due, key=lambda slot: (slot.topic != TRADING_SIGNALS, slot))
        return list(heapq.merge(*(self._due[slot] for slot in slots), key=lambda due: due.appended_ms))

    # --- sending -------------------------------------------------------------------------------------

    def _send(self, message: Message) -> None:
        try:
            self._try(message.text)
        except Refused as error:
            _log.warning("text_refused", channel=self._channel.name, detail=str(error), text=message.text[:200])
            try:
                self._try(message.short)
            except Refused as again:
                # Nothing in the short form can offend, so it is not the text: the chat is not there.
                raise Broken(f"{self._channel.name} refuses every text ({again}): is the chat right?") from None
            SHORTENED.labels(self._channel.name).inc()

    def _try(self, text: str) -> None:
        try:
            self._channel.send(text)
        except (Away, Refused, Broken):
            FAILED.labels(self._channel.name).inc()
            raise

    def _delivered(self, taken: list[_Due]) -> None:
        now_ms = clock.now_ms()
        for due in taken:
            self._due[due.slot].popleft()
            self._sent[due.slot] = due.offset
            DELAY.labels(self._channel.name).observe(max(0, now_ms - due.appended_ms) / 1_000)
        SENT.labels(self._channel.name).inc(len(taken))
        MESSAGES.labels(self._channel.name).inc()
        if self._failures:
            _log.info("channel_back", channel=self._channel.name, failures=self._failures)
        self._failures = 0
        self._trouble(None)

    # --- positions -----------------------------------------------------------------------------------

    def _wait(self, batches: Batches, why: str, seconds: float) -> None:
        self._not_before, self._why = self._monotonic() + seconds, why
        _log.warning("not_delivered", channel=self._channel.name, detail=why, retry_in_s=round(seconds, 3))
        self._keep(batches, why, seconds)

    def _keep(self, batches: Batches, why: str, seconds: float) -> None:
        """Leave the undelivered to the sink; what lies before them in their partitions is done with."""
        written = {}
        for slot, records in batches.items():
            due = self._due[slot]
            upto = due[0].offset if due else (records[-1].offset() or 0) + 1
            if upto > (records[0].offset() or 0):
                written[slot] = upto
        raise Retry(f"{self._channel.name}: {why}", seconds, written, self._marks(written))

    def _marks(self, slots: Collection[Slot]) -> dict[Slot, dict[str, int]]:
        return {slot: {"sent": self._sent[slot]} for slot in slots if self._sent[slot] >= 0}
