"""The sink and source loops on a real broker."""

from __future__ import annotations

import signal
import threading
from collections import Counter
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from marketflow_common.events import Trade
from marketflow_common.health import Health
from marketflow_common.kafka.client import Fenced
from marketflow_common.kafka.source import Ownership, Publisher, PublishFailed, read_back
from marketflow_common.settings import KafkaSettings
from marketflow_stack.testing import CreatedTopics, eventually, read_all

pytestmark = pytest.mark.broker
Start = Callable[..., Any]
Feed = Callable[..., None]


def _lines(file: Path) -> Counter[str]:
    return Counter(file.read_text().splitlines() if file.exists() else [])


def _expected(topics: CreatedTopics) -> set[str]:
    return {f"ohlcv_raw {m.partition()} {m.offset()}" for m in read_all(topics.bootstrap, topics["ohlcv_raw"])}


@pytest.mark.parametrize("die_at", ["before", "after"])
def test_with_its_position_outside_of_kafka_a_killed_sink_writes_each_record_once(
    die_at: str, start: Start, feed: Feed, topics: CreatedTopics, tmp_path: Path
) -> None:
    file = tmp_path / "out"
    feed(1, 100)
    dying = start("sink", "--file", str(file), "--from-file", "--die-at", die_at, "--times", "2")
    assert dying.wait() == -signal.SIGKILL
    start("sink", "--file", str(file), "--from-file").wait_ready()
    feed(101, 150)
    expected = _expected(topics)
    eventually(lambda: len(_lines(file)) >= len(expected))
    assert _lines(file) == Counter(expected)


def test_with_its_position_in_kafka_it_repeats_at_most_what_was_in_flight_and_loses_nothing(
    start: Start, feed: Feed, topics: CreatedTopics, tmp_path: Path
) -> None:
    file = tmp_path / "out"
    feed(1, 100)
    dying = start("sink", "--file", str(file), "--die-at", "after", "--times", "2")
    assert dying.wait() == -signal.SIGKILL
    start("sink", "--file", str(file)).wait_ready()
    expected = _expected(topics)
    eventually(lambda: set(_lines(file)) >= expected)
    assert set(_lines(file)) == expected
    assert sum(_lines(file).values()) - len(expected) <= 100, "one flush holds at most 100 records"


@pytest.mark.parametrize("kind", [(), ("--staged",)], ids=["plain", "staged"])
def test_while_the_outside_is_away_records_wait_and_the_group_membership_stays(
    kind: tuple[str, ...], start: Start, feed: Feed, topics: CreatedTopics, tmp_path: Path
) -> None:
    file = tmp_path / "out"
    running = start("sink", "--file", str(file), "--refuse", "8", *kind).wait_ready()
    feed(1, 400)
    expected = _expected(topics)
    eventually(lambda: len(_lines(file)) >= len(expected))
    assert _lines(file) == Counter(expected)
    assert running.stop(10) == 0
    assert "outside_away" in running.log.read_text()
    assert running.log.read_text().count("assigned") == 1


@pytest.mark.parametrize("kind", [(), ("--staged",)], ids=["plain", "staged"])
def test_a_sink_that_was_full_when_it_lost_its_partitions_reads_on_when_it_has_them_back(
    kind: tuple[str, ...], start: Start, feed: Feed, topics: CreatedTopics, tmp_path: Path
) -> None:
    file, away = tmp_path / "out", tmp_path / "away"
    away.touch()
    feed(1, 200)  # three partitions: more than the 100 records that a sink may hold
    first = start("sink", "--file", str(file), "--away-while", str(away), *kind).wait_ready()
    eventually(lambda: "outside_away" in first.log.read_text())
    second = start("sink", "--file", str(file), "--away-while", str(away), *kind).wait_ready()
    eventually(lambda: first.log.read_text().count(" assigned") == 2)
    assert second.stop(20) == 0
    eventually(lambda: first.log.read_text().count(" assigned") == 3)
    away.unlink()
    expected = _expected(topics)
    eventually(lambda: set(_lines(file)) >= expected)
    assert _lines(file) == Counter(expected)


def test_a_stopped_sink_writes_what_it_holds_and_a_new_one_goes_on_after_it(
    start: Start, feed: Feed, topics: CreatedTopics, tmp_path: Path
) -> None:
    file = tmp_path / "out"
    first = start("sink", "--file", str(file)).wait_ready()
    feed(1, 50)
    eventually(lambda: len(_lines(file)) > 0)
    assert first.stop(10) == 0
    feed(51, 80)
    start("sink", "--file", str(file)).wait_ready()
    expected = _expected(topics)
    eventually(lambda: len(_lines(file)) >= len(expected))
    assert _lines(file) == Counter(expected)


def _trades(first: int, last: int) -> list[Trade]:
    return [Trade("t", "S", i, Decimal(1), Decimal(1), True, i, i) for i in range(first, last + 1)]


def test_a_publisher_that_opens_fences_the_one_before_it(kafka: KafkaSettings, topics: CreatedTopics) -> None:
    old, new = Publisher(kafka, "p", "ohlcv_raw", 0), Publisher(kafka, "p", "ohlcv_raw", 0)
    old.open()
    old.publish(_trades(1, 5))
    new.open()
    new.publish(_trades(6, 8))
    with pytest.raises(Fenced):
        old.publish(_trades(6, 9))
    with pytest.raises(PublishFailed):
        old.publish(_trades(6, 9))
    assert len(read_all(topics.bootstrap, topics["ohlcv_raw"])) == 8


def test_a_mark_is_committed_with_its_records_or_not_at_all(kafka: KafkaSettings, topics: CreatedTopics) -> None:
    old, new = Publisher(kafka, "p", "ohlcv_raw", 0), Publisher(kafka, "p", "ohlcv_raw", 0)
    try:
        assert old.open() is None
        old.publish(_trades(1, 5))
        offset = old.end - 1
        old.publish(_trades(6, 6), (offset, True))
        assert new.open() == offset
        with pytest.raises(Fenced):
            old.publish(_trades(7, 7), (old.end, False))
        assert new.open() == offset
        new.publish(_trades(7, 7), (new.end, False))
        assert new.open() is None
    finally:
        old.close()
        new.close()
    assert len(read_all(topics.bootstrap, topics["ohlcv_raw"])) == 7


def test_a_mark_is_committed_while_members_of_the_group_only_own(kafka: KafkaSettings) -> None:
    publisher, owned, stop = Publisher(kafka, "p", "ohlcv_raw", 0), set[int](), threading.Event()
    with Health("one") as health:
        owner = Ownership(kafka, "p", "ohlcv_raw", health, owned.update, owned.difference_update)
        thread = threading.Thread(target=owner.run, args=(stop,))
        thread.start()
        try:
            eventually(lambda: owned == {0, 1, 2})
            publisher.open()
            publisher.publish(_trades(1, 1), (0, True))
            assert publisher.open() == 0
        finally:
            stop.set()
            thread.join(30)
            publisher.close()


def test_the_tail_is_read_backwards_in_growing_chunks(kafka: KafkaSettings) -> None:
    publisher = Publisher(kafka, "p", "ohlcv_raw", 2)
    publisher.open()
    for at in range(1, 101, 10):
        publisher.publish(_trades(at, at + 9))
    chunks = [[r.event.trade_id for r in chunk] for chunk in read_back(kafka, "ohlcv_raw", 2, chunk=15)]
    assert chunks[0][-1] == 100
    assert [i for chunk in reversed(chunks) for i in chunk] == list(range(1, 101))
    assert len(chunks) > 2


def test_nothing_is_read_back_from_an_empty_partition(kafka: KafkaSettings) -> None:
    assert list(read_back(kafka, "ohlcv_raw", 0)) == []


def test_two_owners_share_the_partitions_and_the_one_left_has_all(kafka: KafkaSettings) -> None:
    owned: list[set[int]] = [set(), set()]
    stops = [threading.Event(), threading.Event()]
    with Health("one") as a, Health("two") as b:
        threads = [
            threading.Thread(
                target=Ownership(kafka, "owner", "ohlcv_raw", health, owned[i].update, owned[i].difference_update).run,
                args=(stops[i],),
            )
            for i, health in enumerate((a, b))
        ]
        for thread in threads:
            thread.start()
        try:
            eventually(lambda: owned[0] and owned[1] and owned[0] | owned[1] == {0, 1, 2} and not owned[0] & owned[1])
            stops[0].set()
            eventually(lambda: owned[1] == {0, 1, 2})
            assert not owned[0]
        finally:
            for stop in stops:
                stop.set()
            for thread in threads:
                thread.join()
