"""A table is emptied and landed again from Kafka: all or nothing, each record once, whoever else works on it."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import closing
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
import snowflake.connector
from confluent_kafka import Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic  # type: ignore[attr-defined]
from marketflow_common import topics as names
from marketflow_common.events import AccountOpened, Command, Gap, Signal
from marketflow_loader import rebuild as rebuilding
from marketflow_loader.broker import Broker
from marketflow_stack.testing import eventually

pytestmark = [pytest.mark.broker]
Published = Callable[..., list[tuple[str, int, int]]]
Rebuild = Callable[..., tuple[int, str]]
RUNNER = Path(__file__).with_name("rebuild_runner.py")
TABLES = [*(table.name for table in rebuilding.TABLES), rebuilding.REJECTS]


@pytest.fixture
def rebuild(tables: Any, kafka: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Rebuild:
    """``rebuild("RAW.TRADES", "--yes")``: the program in this process; its exit code, and what it says."""
    settings = tables.settings
    for name, value in {
        "KAFKA_BOOTSTRAP_SERVERS": kafka.bootstrap_servers,
        "KAFKA_TOPIC_PREFIX": kafka.topic_prefix,
        "SNOWFLAKE_ACCOUNT": settings.account,
        "SNOWFLAKE_USER": settings.user,
        "SNOWFLAKE_PASSWORD": settings.password.get_secret_value(),
        "SNOWFLAKE_HOST": settings.host,
        "SNOWFLAKE_PORT": str(settings.port),
        "SNOWFLAKE_PROTOCOL": settings.protocol,
        "SNOWFLAKE_DATABASE": settings.database,
    }.items():
        monkeypatch.setenv(f"MARKETFLOW_{name}", value)

    def run(*arguments: str) -> tuple[int, str]:
        capsys.readouterr()
        code = rebuilding.main(arguments)
        said = capsys.readouterr()
        return code, said.out + said.err

    return run


def contents(tables: Any, table: str) -> list[tuple[Any, ...]]:
    """All rows of a table by coordinates, but for when they landed."""
    return list(
        tables.ask(f"SELECT * EXCLUDE (LANDED_AT) FROM {table} ORDER BY KAFKA_TOPIC, KAFKA_PARTITION, KAFKA_OFFSET")
    )


@pytest.fixture
def landed(
    tables: Any, start_loader: Callable[..., Any], feed: Callable[..., None], publish: Callable[..., None], topics: Any
) -> dict[str, list[tuple[Any, ...]]]:
    """Every kind of record has landed, some of them nobody can read, and the loader has stopped: the rows by table."""
    one = Decimal("0.000000000000000001")
    feed(1, 60)
    publish(names.OHLCV_RAW, 0, [Gap("test", "S0", 61, 63, "lost", True)])
    publish(
        names.TRADING_SIGNALS,
        1,
        [
            Signal("id", "levels", "{}", "S0", "1m", 0, one, one, -one, "SELL", 1, {"low": one}, ("a",)),
            Command("c", "main", "halt", "chat", 5, None, "sig"),
        ],
    )
    publish(names.ORDER_EVENTS, 2, [AccountOpened("main", "paper", {"USDT": one}, 5)])
    poison = Producer({"bootstrap.servers": topics.bootstrap})
    for name in (names.OHLCV_RAW, names.OHLCV_AGG):
        poison.produce(topics[name], value=b"\xff nothing", key=b"S1", partition=1)
    poison.flush(10)
    loader = start_loader(tables).wait_ready()
    counts = {"RAW.TRADES": 180, "STAGING.OHLCV_STREAM": 3, "ANALYTICS.ORDER_EVENTS": 1, "RAW.REJECTS": 2}
    for table, count in counts.items():
        eventually(lambda table=table, count=count: len(tables.offsets(table)) >= count)  # type: ignore[misc]
    eventually(lambda: len(tables.offsets("ANALYTICS.COMMANDS")) == 1)
    assert loader.stop() == 0
    return {table: contents(tables, table) for table in TABLES}


@pytest.fixture
def filled(
    tables: Any, rebuild: Rebuild, feed: Callable[..., None], kafka: Any, published: Published
) -> dict[str, list[tuple[Any, ...]]]:
    """Trades and candles that a rebuild has landed, up to positions where a loader would have left them."""
    feed(1, 60)
    for name, topic_id in Broker(kafka).topic_ids(names.ALL).items():
        for partition in range(3):
            end = max((o for _, p, o in published(name) if p == partition), default=-1) + 1
            tables.ask(
                "INSERT INTO RAW.LOAD_OFFSETS VALUES (%s, %s, %s, %s, CURRENT_TIMESTAMP())",
                kafka.topic(name), topic_id, partition, end,
            )  # fmt: skip
    found = {}
    for table, count in (("RAW.TRADES", 180), ("STAGING.OHLCV_STREAM", 3)):
        assert rebuild(table, "--yes")[0] == 0
        found[table] = contents(tables, table)
        assert len(found[table]) == count
    return found


def positions(tables: Any) -> list[tuple[Any, ...]]:
    return list(tables.ask("SELECT KAFKA_TOPIC, KAFKA_PARTITION, NEXT_OFFSET FROM RAW.LOAD_OFFSETS ORDER BY 1, 2"))


def test_every_table_is_landed_again_as_it_was_whatever_it_held(
    tables: Any, rebuild: Rebuild, landed: dict[str, list[tuple[Any, ...]]], start_loader: Any, publish: Any,
    published: Published, trade: Any,
) -> None:  # fmt: skip
    before = positions(tables)
    tables.ask("DELETE FROM RAW.TRADES WHERE KAFKA_PARTITION = 1 AND TRADE_ID > 10")
    tables.ask("UPDATE RAW.TRADES SET PRICE = PRICE + 1 WHERE KAFKA_PARTITION = 2")
    for table in TABLES:
        tables.ask(f"INSERT INTO {table} SELECT * FROM {table} WHERE KAFKA_PARTITION <> 2")
    for table in TABLES:
        code, said = rebuild(table, "--yes")
        assert (code, contents(tables, table) == landed[table]) == (0, True), said
        assert f" rows taken out, {len(landed[table]):,} landed, in " in said
    assert positions(tables) == before
    # What comes after is the loader's, from where it was.
    publish(names.OHLCV_RAW, 1, [trade(1, 61)])
    start_loader(tables).wait_ready()
    eventually(lambda: len(tables.offsets("RAW.TRADES")) == 181)
    assert sorted([*tables.offsets("RAW.TRADES"), *tables.offsets("RAW.FEED_EVENTS")]) == [
        place for place in published(names.OHLCV_RAW) if place not in tables.offsets("RAW.REJECTS")
    ]


def test_beside_a_running_loader_every_record_lands_once_and_readers_never_miss_one(
    tables: Any, rebuild: Rebuild, start_loader: Any, feed: Any, published: Published
) -> None:
    feed(1, 100)
    loader = start_loader(tables).wait_ready()
    eventually(lambda: len(tables.offsets("RAW.TRADES")) == 300)
    least, stop = [300], threading.Event()

    def count() -> None:
        with closing(snowflake.connector.connect(**tables.settings.connect_arguments("reader"))) as connection:
            while not stop.is_set():
                [(count,)] = connection.cursor().execute("SELECT COUNT(DISTINCT TRADE_ID || SYMBOL) FROM RAW.TRADES")
                least.append(int(count))

    reader, writer = threading.Thread(target=count), threading.Thread(target=feed, args=(101, 300, 20))
    reader.start()
    writer.start()
    codes = [rebuild("RAW.TRADES", "--yes")[0] for _ in range(3)]
    writer.join()
    eventually(lambda: len(set(tables.offsets("RAW.TRADES"))) == 900)
    codes.append(rebuild("RAW.TRADES", "--yes")[0])
    stop.set()
    reader.join()
    assert codes == [0, 0, 0, 0]
    assert min(least) == 300
    assert loader.process.poll() is None  # it never had to leave
    assert loader.stop() == 0
    assert tables.offsets("RAW.TRADES") == published(names.OHLCV_RAW)


def test_killed_at_any_step_the_table_is_whole_and_a_later_one_succeeds(
    tables: Any, rebuild: Rebuild, filled: dict[str, list[tuple[Any, ...]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = tables.ask("SELECT MIN(LANDED_AT) FROM RAW.TRADES")
    # The runner forks: a thread of Arrow's allocator would be missing in the child, which may then hang.
    monkeypatch.setenv("JE_ARROW_MALLOC_CONF", "background_thread:false")
    for steps, again in (("planned,staged,alone,deleted,copied", False), ("committed", True)):
        done = subprocess.run(
            [sys.executable, str(RUNNER), steps, "RAW.TRADES"],
            capture_output=True, text=True, check=False, timeout=120,
            env=os.environ.copy(),
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        assert contents(tables, "RAW.TRADES") == filled["RAW.TRADES"]
        assert (tables.ask("SELECT MIN(LANDED_AT) FROM RAW.TRADES") != first) is again
    code, said = rebuild("RAW.TRADES", "--yes")
    assert (code, contents(tables, "RAW.TRADES") == filled["RAW.TRADES"]) == (0, True), said


def test_of_two_at_the_same_time_each_leaves_the_table_whole(
    tables: Any, rebuild: Rebuild, filled: dict[str, list[tuple[Any, ...]]]
) -> None:
    words = [sys.executable, "-m", "marketflow_loader.rebuild", "RAW.TRADES", "--yes"]
    both = [
        subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=os.environ.copy())
        for _ in range(2)
    ]
    said = [one.communicate(timeout=120)[0] for one in both]
    assert [one.returncode for one in both] == [0, 0], said
    assert contents(tables, "RAW.TRADES") == filled["RAW.TRADES"]


def truncate(kafka: Any, name: str, offset: int) -> None:
    admin = AdminClient({"bootstrap.servers": kafka.bootstrap_servers})
    [gone] = admin.delete_records([TopicPartition(kafka.topic(name), 0, offset)]).values()
    gone.result()


def test_where_kafka_has_records_no_more_nothing_is_emptied(
    tables: Any, rebuild: Rebuild, filled: dict[str, list[tuple[Any, ...]]], kafka: Any
) -> None:
    truncate(kafka, names.OHLCV_RAW, 30)
    older = [place for place in tables.offsets("RAW.TRADES") if place[1] == 0 and place[2] < 30]
    code, said = rebuild("RAW.TRADES", "--yes")
    assert code == rebuilding.REFUSED
    topic = kafka.topic(names.OHLCV_RAW)
    assert f"Kafka begins at offset 30 of {topic}/0, and {len(older)} rows are of before. They could not be" in said
    assert "Nothing was changed" in said
    assert contents(tables, "RAW.TRADES") == filled["RAW.TRADES"]
    # What Kafka still has is landed again if that is wanted, and the older rows stay.
    tables.ask("UPDATE RAW.TRADES SET PRICE = PRICE + 1 WHERE KAFKA_PARTITION = 0 AND KAFKA_OFFSET >= 30")
    code, said = rebuild("RAW.TRADES", "--yes", "--partly")
    assert (code, contents(tables, "RAW.TRADES") == filled["RAW.TRADES"]) == (0, True), said
    assert f"{len(older)} rows stay as they are" in said


def test_rows_of_a_topic_that_was_made_anew_stay(
    tables: Any, rebuild: Rebuild, filled: dict[str, list[tuple[Any, ...]]], kafka: Any
) -> None:
    admin, topic = AdminClient({"bootstrap.servers": kafka.bootstrap_servers}), kafka.topic(names.OHLCV_AGG)
    admin.delete_topics([topic])[topic].result()
    wanted = NewTopic(topic, num_partitions=3, replication_factor=1)
    eventually(lambda: admin.create_topics([wanted])[topic].exception() is None)
    # Until every part of the broker knows of the new topic, it is said not to answer.
    eventually(lambda: rebuild("STAGING.OHLCV_STREAM", "--yes")[0] == rebuilding.REFUSED)
    code, said = rebuild("STAGING.OHLCV_STREAM", "--yes")
    assert "are of a topic that was deleted (id " in said
    code, said = rebuild("STAGING.OHLCV_STREAM", "--yes", "--partly")
    assert code == 0
    assert "there is nothing to rebuild" in said
    assert contents(tables, "STAGING.OHLCV_STREAM") == filled["STAGING.OHLCV_STREAM"]


def test_a_position_that_was_set_back_meanwhile_is_seen_and_nothing_is_changed(
    tables: Any, rebuild: Rebuild, filled: dict[str, list[tuple[Any, ...]]], kafka: Any
) -> None:
    work = rebuilding.Rebuild(kafka, tables.settings, "RAW.TRADES")
    plan = work.plan(partly=False)
    tables.ask("UPDATE RAW.LOAD_OFFSETS SET NEXT_OFFSET = 5 WHERE KAFKA_PARTITION = 1")
    with pytest.raises(rebuilding.Refused, match="was set back or removed meanwhile"):
        work.run(plan)
    work.close()
    assert contents(tables, "RAW.TRADES") == filled["RAW.TRADES"]


# The connector's own thread that cancels a statement after its timeout fails like the statement does.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_lost_answer_to_commit_is_found_out_and_not_guessed(
    tables: Any, rebuild: Rebuild, filled: dict[str, list[tuple[Any, ...]]], kafka: Any, cable: Any
) -> None:
    def step(name: str) -> None:
        if name == "copied":
            cable.break_at_the_next_answer()

    class Mending(rebuilding.Rebuild):
        """The network is back by the time that it asks."""

        def _took_effect(self, landed_us: int) -> bool:
            cable.mend()
            return super()._took_effect(landed_us)

    settings = tables.settings.model_copy(update={"port": cable.port, "network_timeout": 2})
    work = Mending(kafka, settings, "RAW.TRADES", step)
    rows = len(filled["RAW.TRADES"])
    assert work.run(work.plan(partly=False)) == (rows, rows)
    work.close()
    assert contents(tables, "RAW.TRADES") == filled["RAW.TRADES"]


def test_it_is_asked_before_anything_is_changed(
    tables: Any, rebuild: Rebuild, filled: dict[str, list[tuple[Any, ...]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    code, said = rebuild("RAW.TRADES")
    assert code == rebuilding.REFUSED
    assert "180 rows are taken out" in said
    assert "nobody can be asked here; say --yes" in said
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True)
    monkeypatch.setattr("builtins.input", lambda _: "n")
    assert rebuild("RAW.TRADES")[0] == rebuilding.REFUSED
    first = tables.ask("SELECT MIN(LANDED_AT) FROM RAW.TRADES")
    monkeypatch.setattr("builtins.input", lambda _: "y")
    assert rebuild("trades")[0] == 0
    assert tables.ask("SELECT MIN(LANDED_AT) FROM RAW.TRADES") != first
