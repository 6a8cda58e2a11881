"""Records to messages and positions, with a channel that does what the test says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from decimal import Decimal

import pytest
from confluent_kafka import Message
from marketflow_common import codec, events
from marketflow_common.kafka.client import Committed
from marketflow_common.kafka.sink import Retry, Slot
from marketflow_common.metrics import UNREADABLE
from marketflow_notifier.channels import Away, Broken, Refused
from marketflow_notifier.delivery import SLOWLY, Delivery
from marketflow_notifier.messages import units

ORDERS, SIGNALS = Slot("order_events", 0), Slot("trading_signals", 0)


class Channel:
    """Takes what it is given, unless an answer is prepared."""

    name = "test"

    def __init__(self, limit: int = 2_000) -> None:
        self.limit = limit
        self.taken: list[str] = []
        self.asked: list[str] = []
        self.answers: list[Exception | None] = []

    def send(self, text: str) -> None:
        self.asked.append(text)
        answer = self.answers.pop(0) if self.answers else None
        if answer:
            raise answer
        self.taken.append(text)

    def close(self) -> None:
        pass

    @property
    def references(self) -> list[str]:
        return [line.rpartition(" ")[2] for text in self.taken for line in text.split("\n")]


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def rejected(symbol: str = "ETHUSDT", reason: str = "balance") -> events.Event:
    return events.OrderRejected("main", "mf-1", "s1", symbol, -2010, reason)


def signal(kind: str) -> events.Event:
    n = Decimal(1)
    return events.Signal("s", "band", "p", "ETHUSDT", "1m", 0, n, n, n, kind, 1, {}, ())  # type: ignore[arg-type]


ACCEPTED = events.OrderAccepted("main", "mf-1", "s1", "ETHUSDT", 5, 1)


def records(slot: Slot, *rows: tuple[int, int, events.Event]) -> dict[Slot, list[Message]]:
    return {
        slot: [
            Message(topic=slot.topic, partition=slot.partition, offset=o, timestamp=(2, at), value=codec.encode(e))
            for o, at, e in rows
        ]
    }


def opened(channel: Channel, *slots: Slot, clock: Clock | None = None, troubles: list[str | None] | None = None):  # type: ignore[no-untyped-def]
    told = [] if troubles is None else troubles
    delivery = Delivery(channel, trouble=told.append, monotonic=clock or Clock())
    for slot in slots:
        assert delivery.opened(slot, Committed(-1, {})) is None
    return delivery


def drain(delivery: Delivery, batches: Mapping[Slot, Sequence[Message]]) -> list[dict[Slot, int]]:
    """What a sink does: offer the rest again until all is written. Returns the positions of each commit."""
    positions = []
    left = {slot: list(messages) for slot, messages in batches.items()}
    while True:
        try:
            delivery.write(left)
        except Retry as retry:
            positions.append(dict(retry.written))
            for slot, offset in retry.written.items():
                left[slot] = [m for m in left[slot] if m.offset() >= offset]
            left = {slot: messages for slot, messages in left.items() if messages}
        else:
            positions.append({slot: messages[-1].offset() + 1 for slot, messages in left.items()})
            return positions


def test_a_burst_of_both_topics_is_one_message_in_order_of_append() -> None:
    channel = Channel()
    delivery = opened(channel, ORDERS, SIGNALS)
    batch = records(ORDERS, (4, 1_002, rejected()), (5, 1_004, rejected()))
    batch |= records(SIGNALS, (9, 1_001, signal("BUY")), (10, 1_002, signal("SELL")), (11, 1_003, signal("HOLD")))
    marks = delivery.write(batch)
    assert len(channel.taken) == 1
    assert channel.references == [
        "trading_signals/0@9",
        "trading_signals/0@10",  # of two in the same millisecond, the signal before the order
        "order_events/0@4",
        "order_events/0@5",
    ]
    assert marks == {ORDERS: {"sent": 5}, SIGNALS: {"sent": 10}}


def test_records_that_are_not_due_cost_no_message() -> None:
    channel = Channel()
    delivery = opened(channel, ORDERS)
    assert delivery.write(records(ORDERS, (0, 1, ACCEPTED))) == {}
    assert channel.asked == []


def test_every_commit_follows_one_message() -> None:
    channel = Channel(limit=200)
    delivery = opened(channel, ORDERS)
    batch = records(ORDERS, *((n, n, rejected(reason="x" * 60) if n % 2 else ACCEPTED) for n in range(8)))
    assert drain(delivery, batch) == [{ORDERS: 3}, {ORDERS: 5}, {ORDERS: 7}, {ORDERS: 8}]
    assert len(channel.taken) == 4
    assert all(units(text) <= 200 for text in channel.taken)
    assert channel.references == [f"order_events/0@{n}" for n in (1, 3, 5, 7)]


def test_a_channel_that_asks_to_slow_down_is_left_alone_as_long_as_it_says() -> None:
    channel, clock = Channel(), Clock()
    delivery = opened(channel, ORDERS, clock=clock)
    channel.answers = [Away("slow down", 7.5)]
    batch = records(ORDERS, (0, 1, ACCEPTED), (1, 1, rejected()))
    with pytest.raises(Retry) as first:
        delivery.write(batch)
    assert (first.value.seconds, first.value.written) == (7.5, {ORDERS: 1})
    clock.now += 5
    with pytest.raises(Retry) as early:  # the last flush before a stop comes regardless
        delivery.write(batch)
    assert early.value.seconds == 2.5
    assert len(channel.asked) == 1
    clock.now += 2.5
    assert delivery.write(batch) == {ORDERS: {"sent": 1}}
    assert channel.references == ["order_events/0@1"]


def test_a_channel_that_is_away_is_tried_less_and_less_often() -> None:
    channel, clock = Channel(), Clock()
    delivery = opened(channel, ORDERS, clock=clock)
    channel.answers = [Away("no route")] * 8
    waits = []
    for _ in range(8):
        with pytest.raises(Retry) as retry:
            delivery.write(records(ORDERS, (0, 1, rejected())))
        waits.append(retry.value.seconds)
        clock.now += retry.value.seconds
    assert waits == [1, 2, 4, 8, 16, 30, 30, 30]
    delivery.write(records(ORDERS, (0, 1, rejected())))
    channel.answers = [Away("no route")]
    with pytest.raises(Retry) as fresh:
        delivery.write(records(ORDERS, (1, 1, rejected())))
    assert fresh.value.seconds == 1


def test_a_wrong_token_is_told_and_tried_slowly_and_nothing_is_dropped() -> None:
    channel, clock, troubles = Channel(), Clock(), list[str | None]()
    delivery = opened(channel, ORDERS, clock=clock, troubles=troubles)
    channel.answers = [Broken("the token is not accepted: set it")]
    with pytest.raises(Retry) as retry:
        delivery.write(records(ORDERS, (0, 1, rejected())))
    assert (retry.value.seconds, retry.value.written) == (SLOWLY, {})
    assert troubles == ["the token is not accepted: set it"]
    clock.now += SLOWLY
    delivery.write(records(ORDERS, (0, 1, rejected()), (1, 1, rejected())))
    assert troubles[-1] is None
    assert channel.references == ["order_events/0@0", "order_events/0@1"]


def test_a_text_that_is_refused_is_sent_in_short_form() -> None:
    channel = Channel()
    delivery = opened(channel, ORDERS)
    channel.answers = [Refused("can't parse")]
    delivery.write(records(ORDERS, (0, 1, rejected()), (1, 1, rejected("BTCUSDT"))))
    assert channel.taken == ["order_rejected ETHUSDT order_events/0@0\norder_rejected BTCUSDT order_events/0@1"]


def test_a_chat_that_refuses_the_short_form_too_is_broken_not_skipped() -> None:
    channel, troubles = Channel(), list[str | None]()
    delivery = opened(channel, ORDERS, troubles=troubles)
    channel.answers = [Refused("chat not found"), Refused("chat not found")]
    with pytest.raises(Retry) as retry:
        delivery.write(records(ORDERS, (0, 1, rejected())))
    assert (retry.value.seconds, retry.value.written) == (SLOWLY, {})
    assert troubles == ["test refuses every text (chat not found): is the chat right?"]


def test_what_was_sent_before_a_lost_commit_is_not_sent_again_by_the_same_process() -> None:
    channel = Channel()
    delivery = opened(channel, ORDERS)
    delivery.write(records(ORDERS, (0, 1, rejected()), (1, 1, rejected())))
    delivery.closed(ORDERS)
    delivery.opened(ORDERS, Committed(0, {}))
    assert delivery.write(records(ORDERS, (0, 1, rejected()), (1, 1, rejected()), (2, 1, rejected()))) == {
        ORDERS: {"sent": 2}
    }
    assert channel.references == [f"order_events/0@{n}" for n in range(3)]


def test_what_the_commit_names_as_sent_is_not_sent_again_by_the_next_process() -> None:
    channel = Channel()
    delivery = opened(channel)
    delivery.opened(ORDERS, Committed(3, {"sent": 4}))
    delivery.write(records(ORDERS, (3, 1, rejected()), (4, 1, rejected()), (5, 1, rejected())))
    assert channel.references == ["order_events/0@5"]


def test_a_record_that_cannot_be_read_stops_nobody_and_is_counted_once() -> None:
    channel, clock = Channel(), Clock()
    delivery = opened(channel, ORDERS, clock=clock)
    batch = records(ORDERS, (1, 1, rejected()))
    batch[ORDERS].insert(0, Message(topic="order_events", partition=0, offset=0, timestamp=(2, 1), value=b"{"))
    before = UNREADABLE.labels("order_events")._value.get()
    channel.answers = [Away("no route")]
    with pytest.raises(Retry):
        delivery.write(batch)
    clock.now += 1
    delivery.write(batch)
    assert channel.references == ["order_events/0@1"]
    assert UNREADABLE.labels("order_events")._value.get() - before == 1
