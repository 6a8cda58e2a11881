"""The transform loop on a real broker: whatever dies, freezes or joins, each output is there once and right."""

from __future__ import annotations

import gc
import signal
import threading
from collections.abc import Callable
from typing import Any

import pytest
from confluent_kafka import Producer
from marketflow_common.kafka import client
from marketflow_common.kafka.client import Committed, FatalKafkaError
from marketflow_common.kafka.transform import Transform
from marketflow_common.service import EXIT_FENCED, EXIT_UNAVAILABLE
from marketflow_common.settings import KafkaSettings
from marketflow_stack.testing import eventually

pytestmark = pytest.mark.broker
Start = Callable[..., Any]
Feed = Callable[..., None]
Expect = Callable[[int], None]


@pytest.mark.parametrize("step", ["consumed", "processed", "produced", "offsets_sent", "committed"])
def test_killed_at_any_step_it_goes_on_without_loss_or_repeat(
    step: str, start: Start, feed: Feed, expect_totals: Expect
) -> None:
    feed(1, 200)
    first = start("transform", "--die-at", step, "--times", "3")
    assert first.wait() == -signal.SIGKILL
    feed(201, 300)
    start("transform").wait_ready()
    expect_totals(300)


def test_replicas_share_partitions_and_one_that_stops_leaves_at_once(
    start: Start, feed: Feed, expect_totals: Expect, elapsed: Callable[[], float]
) -> None:
    first = start("transform").wait_ready()
    feed(1, 100)
    second = start("transform").wait_ready()
    eventually(lambda: 1 <= first.metric("owned_partitions") <= 2 and 1 <= second.metric("owned_partitions") <= 2)
    feed(101, 300)
    assert first.stop(10) == 0
    before = elapsed()
    eventually(lambda: second.metric("owned_partitions") == 3)
    assert elapsed() - before < 5.5, "a stopped member must leave the group, not wait for its session to end"
    feed(301, 400)
    expect_totals(400)


def test_one_that_was_frozen_and_wakes_up_changes_nothing(start: Start, feed: Feed, expect_totals: Expect) -> None:
    frozen = start("transform", "--batch", "5").wait_ready()
    feed(1, 200)
    eventually(lambda: frozen.metric("messages_out_total") > 20)
    frozen.signal(signal.SIGSTOP)
    other = start("transform").wait_ready()
    eventually(lambda: other.metric("owned_partitions") == 3)
    feed(201, 300)
    frozen.signal(signal.SIGCONT)
    expect_totals(300)
    # It either noticed the rebalance and joined again, or met its successor's fence and left.
    eventually(lambda: frozen.process.poll() == EXIT_FENCED or frozen.health().get("ready"))
    feed(301, 350)
    expect_totals(350)


def test_a_partition_that_was_paused_when_the_group_moved_on_is_read_again_once_it_comes_back(
    start: Start, feed: Feed, expect_totals: Expect
) -> None:
    # Paused by its own error, lost to another member, and got back: librdkafka keeps the pause over all of that.
    first = start("transform", "--moved-on-at", "produced").wait_ready()
    feed(1, 20)
    eventually(lambda: "lane_broken" in first.log.read_text())
    second = start("transform").wait_ready()
    eventually(lambda: first.metric("owned_partitions") + second.metric("owned_partitions") == 3)
    assert second.stop(20) == 0
    eventually(lambda: first.metric("owned_partitions") == 3)
    feed(21, 60)
    expect_totals(60)


def test_a_call_that_does_not_return_is_given_up_and_its_work_done_anew(
    start: Start, feed: Feed, expect_totals: Expect
) -> None:
    running = start("transform", "--hang").wait_ready()
    feed(1, 100)
    expect_totals(100)
    assert "no answer to the transaction's offsets in 2 s" in running.log.read_text()
    feed(101, 200)
    expect_totals(200)
    assert running.stop(10) == 0


def test_a_producer_that_nobody_holds_takes_its_thread_along(kafka: KafkaSettings) -> None:
    def threads() -> int:
        return sum(thread.name == "offsets" for thread in threading.enumerate())

    before = threads()
    made = [client.producer(kafka, f"thrown-away-{number}") for number in range(3)]
    assert threads() == before + 3
    made[0].init_transactions(30)
    made.clear()
    gc.collect()
    eventually(lambda: threads() <= before)


def test_a_record_that_cannot_be_read_is_skipped_and_counted(
    start: Start, feed: Feed, expect_totals: Expect, kafka: KafkaSettings
) -> None:
    running = start("transform").wait_ready()
    feed(1, 10)
    plain = Producer({"bootstrap.servers": kafka.bootstrap_servers})
    bad = [b"{", b"\xff\xfe", None, b'{"type":"nonsense"}', b'{"type":"trade","symbol":"S1"}']
    nan = (
        b'{"type":"trade","source":"x","symbol":"S1","trade_id":11,"price":"NaN","qty":"1",'
        b'"buyer_is_maker":true,"traded_at":1,"received_at":1}'
    )
    for value in [*bad, nan]:
        plain.produce(kafka.topic("ohlcv_raw"), value, partition=1)
    assert plain.flush(10) == 0
    feed(11, 20)
    expect_totals(20)
    assert running.metric("records_unreadable_total") == 6


def test_topics_with_unequal_partitions_or_none_are_refused(kafka: KafkaSettings) -> None:
    with pytest.raises(FatalKafkaError, match="does not exist"):
        client.partition_count(kafka, "ohlcv_raw", "nowhere")


def test_a_committed_offset_outside_of_the_partition_is_an_error_and_not_a_reset(
    start: Start, feed: Feed, kafka: KafkaSettings
) -> None:
    feed(1, 10)
    consumer = client.consumer(kafka, "total")
    consumer.commit(offsets=[client.position(kafka.topic("ohlcv_raw"), 1, 10_000, {})], asynchronous=False)
    consumer.close()
    running = start("transform")
    assert running.wait() == EXIT_UNAVAILABLE
    assert "committed offset 10000" in running.log.read_text()


def test_without_a_broker_it_says_so_and_what_to_do() -> None:
    with pytest.raises(FatalKafkaError, match="MARKETFLOW_KAFKA_BOOTSTRAP_SERVERS"):
        client.partition_count(KafkaSettings(bootstrap_servers="127.0.0.1:1"), "ohlcv_raw")


def test_marks_of_a_position_survive_the_commit(kafka: KafkaSettings, feed: Feed) -> None:
    feed(1, 10)
    consumer = client.consumer(kafka, "marks")
    consumer.commit(offsets=[client.position(kafka.topic("ohlcv_raw"), 0, 5, {"in_from": 2})], asynchronous=False)
    assert client.committed(consumer, kafka.topic("ohlcv_raw"), 0) == Committed(5, {"in_from": 2})
    assert client.committed(consumer, kafka.topic("ohlcv_raw"), 1) == Committed(-1, {})
    consumer.close()


def test_the_loop_is_one_class_with_named_steps() -> None:
    assert Transform.__init__.__doc__ is not None
    for step in ("consumed", "processed", "produced", "offsets_sent", "committed"):
        assert step in Transform.__init__.__doc__
