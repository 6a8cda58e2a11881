"""The audit on a real stack: it holds, while the market runs and after; and it names each thing that is damaged.

Everything is damaged where it lies: rows in the warehouse, lines of the recording, the exchange's own journal,
records in the topics. What can be undone is undone; what cannot (records) is told apart by what the check names.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from decimal import Decimal
from typing import Any

import msgspec
import pytest
import snowflake.connector
from confluent_kafka import Producer, TopicPartition
from confluent_kafka.admin import AdminClient
from marketflow_common import codec, events
from marketflow_common.topics import OHLCV_AGG, OHLCV_RAW, ORDER_EVENTS, TRADING_SIGNALS, partition_of
from marketflow_operator.audit.topics import TopicReader
from marketflow_operator.cli import app
from marketflow_operator.targets import local_warehouse, of_stack
from marketflow_stack.processes import free_port
from marketflow_stack.stack import SERVICES
from marketflow_stack.testing import eventually
from typer.testing import CliRunner

pytestmark = [pytest.mark.broker, pytest.mark.xdist_group("operator-stack")]

Stack = Any
AT_LEAST = 20
"""Checks that an audit has."""


@pytest.fixture
def still(ended: Stack) -> Stack:
    """Everything has come through, and the services have stopped: nothing mends or follows what is damaged."""
    if any(entry.name in SERVICES and entry.process is not None for entry in ended.supervisor.status()):
        code, checks = ended.audit(quiet=40)
        assert (code, [c for c in checks.values() if not c["ok"]]) == (0, [])
        for name in SERVICES:
            ended.supervisor.stop_one(name)
    return ended


def wrong(stack: Stack, name: str) -> str:
    """Audit, expect that the check does not hold and the command says so; what it says of the offenders."""
    code, checks = stack.audit()
    assert code == 1
    assert checks[name]["ok"] is False, f"{name} holds: {checks[name]}"
    return str(checks[name]["detail"])


def right(stack: Stack, name: str) -> None:
    """Audit, expect that this check holds."""
    assert stack.audit()[1][name]["ok"] is True


@contextmanager
def warehouse(stack: Stack) -> Iterator[Callable[..., list[Any]]]:
    settings = local_warehouse(stack.config.ports.warehouse)
    connection = snowflake.connector.connect(**settings.connect_arguments("test"))

    def run(statement: str, *values: Any) -> list[Any]:
        with connection.cursor() as cursor:
            return list(cursor.execute(statement, values or None).fetchall())

    try:
        yield run
    finally:
        connection.close()


def say(stack: Stack, topic: str, event: events.Event, partition: int | None = None) -> str:
    """Publish one more record, as a stray producer would; its coordinates."""
    places: list[str] = []
    producer = Producer({"bootstrap.servers": stack.config.bootstrap})
    key = codec.key_of(event)
    producer.produce(
        topic,
        value=codec.encode(event),
        key=key,
        partition=partition_of(key, 3) if partition is None else partition,
        on_delivery=lambda _, message: places.append(f"{topic}/{message.partition()}@{message.offset()}"),
    )
    assert producer.flush(30) == 0
    return places[0]


def claim_landed(stack: Stack, where: str) -> None:
    """Move the loader's position past a record that it has not landed."""
    topic, _, place = where.partition("/")
    partition, _, offset = place.partition("@")
    with warehouse(stack) as run:
        run(
            "UPDATE RAW.LOAD_OFFSETS SET NEXT_OFFSET = %s WHERE KAFKA_TOPIC = %s AND KAFKA_PARTITION = %s",
            int(offset) + 1,
            topic,
            int(partition),
        )


def records(stack: Stack, kind: type[events.Event], topic: str, **fields: Any) -> list[Any]:
    """Records of a kind with these values, each as (where, event)."""
    reader = TopicReader(of_stack(stack.config).kafka)
    try:
        reader.advance()
        return [
            seen
            for seen in reader.records[topic]
            if type(seen.event) is kind and all(getattr(seen.event, name) == value for name, value in fields.items())
        ]
    finally:
        reader.close()


# --- it holds ----------------------------------------------------------------------------------------


def test_the_audit_holds_while_the_market_runs(stack: Stack) -> None:
    stack.start_market()
    eventually(lambda: records(stack, events.Watermark, OHLCV_RAW))  # a minute has been closed: there is what to judge
    assert not stack.market()["ended"]
    code, checks = stack.audit(quiet=40)
    failing = [check for check in checks.values() if not check["ok"]]
    assert not failing, json.dumps(failing, indent=1)
    assert code == 0
    assert len(checks) >= AT_LEAST
    assert int(checks["trades_once"]["actual"]) > 0
    assert int(checks["candles_equal_klines"]["actual"]) > 0


def test_the_audit_holds_after_the_market_has_ended_and_orders_were_filled(still: Stack) -> None:
    code, checks = still.audit()
    assert code == 0
    assert len(checks) >= AT_LEAST
    assert int(checks["candles_equal_klines"]["actual"]) == 8  # two symbols, four minutes
    assert int(checks["fills_equal_exchange"]["actual"]) > 0
    assert int(checks["notifications_delivered"]["actual"]) > 0


def test_the_candles_equal_what_the_exchange_says_by_rest_without_its_ledger(still: Stack) -> None:
    done = CliRunner().invoke(app, ["audit", "--klines", "--json", "--state", str(still.config.state)])
    found = json.loads(done.stdout)
    assert (done.exit_code, found["ok"]) == (0, True), done.output
    assert {(row["symbol"], row["interval"], row["compared"], row["equal"]) for row in found["series"]} == {
        ("BTCUSDT", "1m", 4, 4),
        ("ETHUSDT", "1m", 4, 4),
    }
    last = CliRunner().invoke(app, ["audit", "--klines", "--since", "1", "--state", str(still.config.state)])
    assert "All 2 candles equal the klines" in last.stdout


# --- the warehouse -----------------------------------------------------------------------------------

TABLES = {
    "RAW.TRADES": ("warehouse_rows_trades", "PRICE"),
    "RAW.FEED_EVENTS": ("warehouse_rows_feed_events", "KLINE_QUOTE_VOLUME"),
    "STAGING.OHLCV_STREAM": ("warehouse_rows_ohlcv_stream", "TAKER_BUY_QUOTE_VOLUME"),
    "ANALYTICS.SIGNALS_STREAM": ("warehouse_rows_signals_stream", "MOMENTUM"),
    "ANALYTICS.ORDER_EVENTS": ("warehouse_rows_order_events", "QUOTE_QTY"),
}


@pytest.fixture
def rows(still: Stack) -> Iterator[tuple[Callable[..., list[Any]], dict[str, tuple[str, str]]]]:
    """One row of each table: (statement runner, table -> (condition, coordinates)); put back as it was afterwards."""
    with warehouse(still) as run:
        chosen = {}
        for table, (_, column) in TABLES.items():
            where = run(
                f"SELECT KAFKA_TOPIC, KAFKA_PARTITION, KAFKA_OFFSET FROM {table} WHERE {column} IS NOT NULL "
                "ORDER BY 2, 3 LIMIT 1"
            )[0]
            this = "KAFKA_TOPIC = '{}' AND KAFKA_PARTITION = {} AND KAFKA_OFFSET = {}".format(*where)
            chosen[table] = (this, "{}/{}@{}".format(*where))
            run(f"CREATE TABLE {spare(table)} AS SELECT * FROM {table} WHERE {this}")
        try:
            yield run, chosen
        finally:
            for table, (this, _) in chosen.items():
                run(f"DELETE FROM {table} WHERE {this}")
                run(f"INSERT INTO {table} SELECT * FROM {spare(table)}")
                run(f"DROP TABLE {spare(table)}")


def spare(table: str) -> str:
    return f"RAW.SPARE_{table.partition('.')[2]}"


def test_rows_deleted_from_the_warehouse_are_named(still: Stack, rows: Any) -> None:
    run, chosen = rows
    for table, (this, _) in chosen.items():
        run(f"DELETE FROM {table} WHERE {this}")
    code, checks = still.audit()
    assert code == 1
    for table, (_, where) in chosen.items():
        assert checks[TABLES[table][0]]["ok"] is False
        assert checks[TABLES[table][0]]["detail"] == f"{where} missing in {table}"


def test_rows_repeated_in_the_warehouse_are_named(still: Stack, rows: Any) -> None:
    run, chosen = rows
    for table in chosen:
        run(f"INSERT INTO {table} SELECT * FROM {spare(table)}")
    code, checks = still.audit()
    assert code == 1
    for table, (_, where) in chosen.items():
        assert checks[TABLES[table][0]]["detail"] == f"{where} stands 2 times in {table}"


def test_digits_changed_in_the_warehouse_are_named(still: Stack, rows: Any) -> None:
    run, chosen = rows
    for table, (this, _) in chosen.items():
        column = TABLES[table][1]
        run(f"UPDATE {table} SET {column} = {column} + 0.00000001 WHERE {this}")
    detail = wrong(still, "warehouse_values")
    for table, (_, where) in chosen.items():
        assert f"{table} {where}: {TABLES[table][1]} " in detail


def test_the_warehouse_is_whole_again_after_that(still: Stack) -> None:
    code, checks = still.audit()
    assert (code, [check for check in checks.values() if not check["ok"]]) == (0, [])


def test_a_position_moved_back_in_the_warehouse_is_named(still: Stack) -> None:
    partition = partition_of("ETHUSDT", 3)
    this = f"KAFKA_TOPIC = 'ohlcv_raw' AND KAFKA_PARTITION = {partition}"
    with warehouse(still) as run:
        held = run(f"SELECT NEXT_OFFSET FROM RAW.LOAD_OFFSETS WHERE {this}")[0][0]
        run(f"UPDATE RAW.LOAD_OFFSETS SET NEXT_OFFSET = 3 WHERE {this}")
        assert f"ohlcv_raw/{partition}: position 3 is behind" in wrong(still, "load_offsets")
        run(f"UPDATE RAW.LOAD_OFFSETS SET NEXT_OFFSET = {held} WHERE {this}")
    right(still, "load_offsets")


# --- the recording and the exchange's ledger ---------------------------------------------------------


@contextmanager
def stopped(stack: Stack, name: str) -> Iterator[None]:
    """A process is stopped while its file is edited, and started again."""
    stack.supervisor.stop_one(name)
    try:
        yield
    finally:
        stack.supervisor.start_one(name)
        stack.supervisor.wait_ready(name)


def test_a_message_dropped_from_and_one_repeated_in_the_recording_are_named(still: Stack) -> None:
    path = still.config.recording
    whole = path.read_bytes()
    lines = whole.splitlines(keepends=True)
    first = json.loads(lines[0])
    reference = first["text"].splitlines()[0].rsplit(" ", 1)[1]
    with stopped(still, "recorder"):
        path.write_bytes(b"".join(lines[1:]))
    assert f"{first['channel']} was not told of {reference}" in wrong(still, "notifications_delivered")
    with stopped(still, "recorder"):
        path.write_bytes(whole + lines[0])
    detail = wrong(still, "notifications_repeated")
    assert f"{first['channel']} was told again of" in detail
    assert reference in detail
    with stopped(still, "recorder"):
        path.write_bytes(whole)
    right(still, "notifications_delivered")


def test_a_fill_dropped_from_and_a_digit_changed_in_the_exchanges_ledger_are_named(still: Stack) -> None:
    path = still.config.state / "simulator" / "books.jsonl"
    whole = path.read_bytes()
    steps = [json.loads(line) for line in whole.splitlines()]
    # A line is a step of the books, with all that changed in it.
    last = max(number for number, step in enumerate(steps) if any(change["fill"] for change in step))
    change = next(change for change in steps[last] if change["fill"])
    fill = change["fill"]
    name = f"{fill['symbol']} fill {fill['id']}"

    def written(changed: list[Any]) -> bytes:
        return b"".join(json.dumps(step).encode() + b"\n" for step in changed)

    with stopped(still, "simulator"):
        path.write_bytes(written(steps[:last] + steps[last + 1 :]))
    code, checks = still.audit()
    assert code == 1
    assert f"{name} at order_events/" in checks["fills_equal_exchange"]["detail"]
    assert "is none of the exchange's" in checks["fills_equal_exchange"]["detail"]
    assert fill["client_order_id"] in checks["orders_equal_exchange"]["detail"]
    assert "USDT: " in checks["balances_equal_fold"]["detail"]
    change["free"]["USDT"] += 1
    fill["commission"] += 1
    with stopped(still, "simulator"):
        path.write_bytes(written(steps))
    code, checks = still.audit()
    assert code == 1
    assert checks["balances_equal_fold"]["detail"].startswith("USDT: ")
    assert f"{name} at order_events/" in checks["fills_equal_exchange"]["detail"]
    assert "commission " in checks["fills_equal_exchange"]["detail"]
    with stopped(still, "simulator"):
        path.write_bytes(whole)
    code, checks = still.audit()
    assert (code, [check for check in checks.values() if not check["ok"]]) == (0, [])


# --- lineage and rebuild ------------------------------------------------------------------------------


def failing(chain: dict[str, Any]) -> dict[str, str]:
    return {link["name"]: link["detail"] for link in chain["links"] if link["ok"] is not True}


def filled(stack: Stack) -> list[events.OrderFilled]:
    return [seen.event for seen in records(stack, events.OrderFilled, ORDER_EVENTS)]


def test_every_fill_is_followed_back_to_its_trades(still: Stack) -> None:
    for fill in filled(still):
        code, chain = still.trace(fill.order_id)
        assert (code, failing(chain), chain["unread"]) == (0, {}, [])
        assert [link["name"] for link in chain["links"]][2:] == [
            "order_fits_its_signal", "signal_fits_its_candle", "revisions_follow", "trades_are_there",
            "trades_fold_to_the_candle", "rows_say_the_same",
        ]  # fmt: skip
        kinds = [record["event"]["type"] for record in chain["records"]]
        assert kinds[: kinds.index("signal")][-1] == "order_intended"
        candle = next(record["event"] for record in chain["records"] if record["event"]["type"] == "candle")
        assert kinds.count("trade") == max(candle["trade_count"], 1)  # of a flat minute the trade before it
        assert {(record["in_kafka"], record["row"]) for record in chain["records"]} == {(True, "landed")}
        assert still.trace(fill.exchange_order_id, "--account", "main")[1] == chain
    done = CliRunner().invoke(app, ["trace", fill.order_id, "--state", str(still.config.state)])
    assert "The chain is whole: 8 of 8 links hold." in done.stdout
    done = CliRunner().invoke(app, ["trace", f"{fill.order_id}x", "--state", str(still.config.state)])
    assert done.exit_code == 2
    assert f"there is no order '{fill.order_id}x'; did you mean {fill.order_id}" in done.output


def test_an_order_of_another_account_is_said_to_be_its(still: Stack) -> None:
    fill = filled(still)[0]
    nowhere = ("--kafka", f"127.0.0.1:{free_port()}")
    for order, whose, more, said in (
        (fill.order_id, "other", (), "; it is of account main\n"),
        (fill.order_id, "other", nowhere, "; it is of account main\n"),  # the warehouse knows as well
        (f"{fill.order_id}x", "other", (), "; no order of it is known at all\n"),
        (f"{fill.order_id}x", "main", (), f"; did you mean {fill.order_id}"),
    ):
        state = ("--state", str(still.config.state))
        done = CliRunner().invoke(app, ["trace", order, "--account", whose, *state, *more])
        assert done.exit_code == 2
        assert f"there is no order '{order}' of account '{whose}'{said}" in done.output


@contextmanager
def without_row(stack: Stack, run: Callable[..., Any], record: dict[str, Any]) -> Iterator[str]:
    """The row of a record of a chain is deleted, and put back as it was; its coordinates."""
    table, spared = record["table"], spare(record["table"])
    this = (
        f"KAFKA_TOPIC = '{record['topic']}' AND KAFKA_PARTITION = {record['partition']} "
        f"AND KAFKA_OFFSET = {record['offset']}"
    )
    run(f"CREATE TABLE {spared} AS SELECT * FROM {table} WHERE {this}")
    run(f"DELETE FROM {table} WHERE {this}")
    try:
        yield f"{record['topic']}/{record['partition']}@{record['offset']}"
    finally:
        run(f"DELETE FROM {table} WHERE {this}")
        run(f"INSERT INTO {table} SELECT * FROM {spared}")
        run(f"DROP TABLE {spared}")


def test_a_row_that_lacks_or_differs_breaks_the_chain_and_one_on_its_way_does_not(still: Stack) -> None:
    order = filled(still)[0].order_id
    whole = still.trace(order)[1]
    with warehouse(still) as run:
        for kind in ("order_filled", "signal", "candle", "trade"):
            record = next(record for record in whole["records"] if record["event"]["type"] == kind)
            with without_row(still, run, record) as where:
                code, chain = still.trace(order)
                assert (code, failing(chain)) == (1, {"rows_say_the_same": f"{where} is not in {record['table']}"})
                run(f"INSERT INTO {record['table']} SELECT * FROM {spare(record['table'])}")
                run(f"INSERT INTO {record['table']} SELECT * FROM {spare(record['table'])}")
                assert f"{where}: it stands 2 times in" in failing(still.trace(order)[1])["rows_say_the_same"]
        this = f"KAFKA_TOPIC = '{record['topic']}' AND KAFKA_PARTITION = {record['partition']}"
        run(f"UPDATE RAW.TRADES SET QTY = QTY + 0.00000001 WHERE {this} AND KAFKA_OFFSET = {record['offset']}")
        assert ": QTY " in failing(still.trace(order)[1])["rows_say_the_same"]
        run(f"UPDATE RAW.TRADES SET QTY = QTY - 0.00000001 WHERE {this} AND KAFKA_OFFSET = {record['offset']}")
        held = run(f"SELECT NEXT_OFFSET FROM RAW.LOAD_OFFSETS WHERE {this}")[0][0]
        with without_row(still, run, record):
            run(f"UPDATE RAW.LOAD_OFFSETS SET NEXT_OFFSET = {record['offset']} WHERE {this}")
            code, chain = still.trace(order)
            assert (code, failing(chain)) == (0, {})
            assert "1 not yet" in chain["links"][-1]["detail"]
            run(f"UPDATE RAW.LOAD_OFFSETS SET NEXT_OFFSET = {held} WHERE {this}")
    assert still.trace(order) == (0, whole)


def test_a_side_that_does_not_answer_is_told_and_the_other_still_shows_the_chain(still: Stack) -> None:
    order = filled(still)[0].order_id
    code, chain = still.trace(order, "--kafka", f"127.0.0.1:{free_port()}")
    assert (code, failing(chain)) == (3, {})
    assert {record["in_kafka"] for record in chain["records"]} == {False}
    with stopped(still, "warehouse"):
        code, chain = still.trace(order)
    assert code == 3
    assert list(failing(chain)) == ["rows_say_the_same"]
    assert "no warehouse answers at" in chain["unread"][0]
    assert {record["row"] for record in chain["records"]} == {"not asked"}


def test_a_damaged_table_is_rebuilt_and_the_audit_holds_again(still: Stack, marketflow: Any) -> None:
    partition = partition_of("ETHUSDT", 3)
    with warehouse(still) as run:
        run(f"DELETE FROM RAW.TRADES WHERE KAFKA_PARTITION = {partition} AND KAFKA_OFFSET > 20")
        run("INSERT INTO RAW.TRADES SELECT * FROM RAW.TRADES WHERE KAFKA_OFFSET < 5")
        run("UPDATE RAW.TRADES SET PRICE = PRICE + 1 WHERE KAFKA_OFFSET = 10")
    assert "missing in RAW.TRADES" in wrong(still, "warehouse_rows_trades")
    done = marketflow("rebuild", "RAW.TRADES", "--yes", "--state", str(still.config.state))
    assert done.returncode == 0, done.stderr
    assert "RAW.TRADES: " in done.stdout.splitlines()[-1]
    code, checks = still.audit()
    assert (code, [check for check in checks.values() if not check["ok"]]) == (0, [])


# --- what cannot be reached --------------------------------------------------------------------------


def test_what_cannot_be_reached_is_not_checked_and_never_holds(still: Stack) -> None:
    with stopped(still, "recorder"):
        code, checks = still.audit()
        assert (code, [(name, c["detail"]) for name, c in checks.items() if c["ok"] is False]) == (3, [])
        assert checks["notifications_delivered"]["ok"] is None
        assert f"no recording at {still.config.url('recorder')}" in checks["notifications_delivered"]["detail"]
        assert checks["trades_once"]["ok"] is True


# --- the topics: what is said there cannot be unsaid, so these come last -------------------------------


def test_z0_protections_and_flattens_are_followed_to_the_fill_and_the_command(still: Stack) -> None:
    fill = next(one for one in filled(still) if one.side == "BUY" and still.trace(one.order_id)[0] == 0)
    [entry] = records(still, events.OrderIntended, ORDER_EVENTS, order_id=fill.order_id)
    name = f"protect:{fill.symbol}:{fill.fill_id}"
    stop = {"order_id": f"mf-{name}-1s", "signal_id": name, "side": "SELL", "order_type": "LIMIT"}
    amount = {"qty": fill.position_qty, "quote_qty": None, "price": fill.price}
    say(still, ORDER_EVENTS, msgspec.structs.replace(entry.event, **stop, **amount))
    code, chain = still.trace(stop["order_id"])
    assert (code, failing(chain), chain["cause"]) == (0, {}, "protection")
    assert (chain["entry"]["order_id"], failing(chain["entry"])) == (fill.order_id, {})
    command = events.Command("c-1", "main", "flatten", "cli:test", 1, None, "")
    say(still, TRADING_SIGNALS, command)
    say(
        still,
        ORDER_EVENTS,
        events.TradingStateChanged("main", "REDUCE_ONLY", "flatten", "operator:test", 1, "c-1", "flatten"),
    )
    sale = {"order_id": "mf-flat-1", "signal_id": f"command:c-1:{fill.symbol}", "side": "SELL"}
    say(still, ORDER_EVENTS, msgspec.structs.replace(entry.event, **sale))
    code, chain = still.trace("mf-flat-1")
    assert (code, failing(chain), chain["cause"]) == (0, {}, "flatten")
    assert [record["event"]["type"] for record in chain["records"]] == [
        "order_intended", "trading_state_changed", "command"
    ]  # fmt: skip
    assert {record["row"] for record in chain["records"]} == {"not landed yet"}


def test_z1_an_aborted_record_is_no_damage(still: Stack) -> None:
    seen = records(still, events.Trade, OHLCV_RAW, symbol="ETHUSDT")[3]
    producer = Producer({"bootstrap.servers": still.config.bootstrap, "transactional.id": "stray"})
    producer.init_transactions(30)
    producer.begin_transaction()
    producer.produce(OHLCV_RAW, value=codec.encode(seen.event), key="ETHUSDT", partition=seen.where.partition)
    producer.flush(30)
    producer.abort_transaction(30)
    right(still, "trades_once")


def test_z2_a_second_copy_of_a_trade_is_named(still: Stack) -> None:
    seen = records(still, events.Trade, OHLCV_RAW, symbol="ETHUSDT")[5]
    where = say(still, OHLCV_RAW, seen.event)
    code, checks = still.audit()
    assert code == 1
    assert checks["trades_once"]["detail"] == f"ETHUSDT trade {seen.event.trade_id} repeated at {where}"
    # No loader runs: that it has not landed is no damage, until the loader's position claims that it has.
    assert "beyond the loader's position" in checks["warehouse_rows_trades"]["detail"]
    assert "the loader stands at" in checks["drained"]["detail"]
    claim_landed(still, where)
    assert f"{where} missing in RAW.TRADES" in wrong(still, "warehouse_rows_trades")


def test_z3_a_trade_that_the_exchange_never_made_is_named(still: Stack) -> None:
    seen = records(still, events.Trade, OHLCV_RAW, symbol="BTCUSDT")[5]
    changed = msgspec.structs.replace(seen.event, price=seen.event.price + Decimal("0.01"))
    where = say(still, OHLCV_RAW, changed)
    assert f"BTCUSDT trade {changed.trade_id} at {where}: price {changed.price}" in wrong(still, "trades_equal")


def test_z4_a_candle_with_a_digit_changed_is_named(still: Stack) -> None:
    seen = records(still, events.Candle, OHLCV_AGG, symbol="ETHUSDT")[1]
    changed = msgspec.structs.replace(seen.event, revision=1, volume=seen.event.volume + Decimal("0.00000001"))
    where = say(still, OHLCV_AGG, changed)
    detail = wrong(still, "candles_equal_klines")
    assert f"at {where}: volume {changed.volume:f} instead of {seen.event.volume:f}" in detail


def test_z5_a_candle_said_twice_is_named(still: Stack) -> None:
    seen = records(still, events.Candle, OHLCV_AGG, symbol="BTCUSDT")[2]
    where = say(still, OHLCV_AGG, seen.event)
    detail = wrong(still, "candles_once")
    assert "revisions [0, 0]" in detail
    assert where in detail


def test_z6_a_signal_said_twice_and_one_without_an_answer_are_named(still: Stack) -> None:
    hold = records(still, events.Signal, TRADING_SIGNALS, symbol="ETHUSDT", strategy="weak_levels")[1]
    where = say(still, TRADING_SIGNALS, msgspec.structs.replace(hold.event, signal_type="BUY", id="another"))
    code, checks = still.audit()
    assert code == 1
    assert "2 signals at" in checks["signals_one_per_candle"]["detail"]
    assert where in checks["signals_one_per_candle"]["detail"]
    assert f"({where}): no answer" in checks["signals_answered"]["detail"]


def test_z7_a_fill_said_twice_and_books_that_follow_it_are_named(still: Stack) -> None:
    seen = records(still, events.OrderFilled, ORDER_EVENTS)[0]
    where = say(still, ORDER_EVENTS, seen.event)
    code, checks = still.audit()
    assert code == 1
    assert f"{seen.event.symbol} fill {seen.event.fill_id} stands 2 times" in checks["fills_equal_exchange"]["detail"]
    assert where in checks["fills_equal_exchange"]["detail"]
    assert checks["positions_and_pnl"]["ok"] is False
    assert checks["balances_equal_fold"]["ok"] is False


def test_z8_an_order_without_an_end_is_named(still: Stack) -> None:
    seen = records(still, events.OrderIntended, ORDER_EVENTS)[0]
    where = say(still, ORDER_EVENTS, msgspec.structs.replace(seen.event, order_id="stray", attempt=2))
    assert f"order stray at {where} has no end" in wrong(still, "unresolved_orders")


def test_z9_a_symbol_in_a_wrong_partition_and_bytes_that_are_no_event_are_named(still: Stack) -> None:
    seen = records(still, events.Candle, OHLCV_AGG, symbol="ETHUSDT")[0]
    wrong_one = (seen.where.partition + 1) % 3
    where = say(still, OHLCV_AGG, seen.event, partition=wrong_one)
    assert f"ETHUSDT at {where} belongs in partition {seen.where.partition}" in wrong(still, "partitions_agree")
    producer = Producer({"bootstrap.servers": still.config.bootstrap})
    places: list[str] = []
    producer.produce(
        TRADING_SIGNALS,
        value=b"{",
        key="ETHUSDT",
        partition=seen.where.partition,
        on_delivery=lambda _, message: places.append(f"{TRADING_SIGNALS}/{message.partition()}@{message.offset()}"),
    )
    assert producer.flush(30) == 0
    claim_landed(still, places[0])
    assert "missing in RAW.REJECTS" in wrong(still, "rejects_equal_unreadable")


def test_zz_trades_deleted_from_the_topic_are_named(still: Stack) -> None:
    first = records(still, events.Trade, OHLCV_RAW, symbol="BTCUSDT")[0]
    admin = AdminClient({"bootstrap.servers": still.config.bootstrap})
    upto = TopicPartition(OHLCV_RAW, first.where.partition, first.where.offset + 3)
    for future in admin.delete_records([upto]).values():
        future.result(30)
    detail = wrong(still, "trades_once")
    assert "lost" in detail


def test_zzz_what_kafka_has_no_more_is_told_by_its_rows_alone(still: Stack) -> None:
    def trades(chain: dict[str, Any]) -> list[dict[str, Any]]:
        return [record for record in chain["records"] if record["event"]["type"] == "trade"]

    chains = [still.trace(one.order_id)[1] for one in filled(still)]
    # Neither of those that the tests before have said again, nor of what they have deleted.
    chain = next(c for c in chains if all(t["in_kafka"] and t["row"] == "landed" for t in trades(c)))
    before = trades(chain)
    end = TopicPartition(OHLCV_RAW, before[0]["partition"], max(trade["offset"] for trade in before) + 1)
    admin = AdminClient({"bootstrap.servers": still.config.bootstrap})  # held until the answer is there
    for future in admin.delete_records([end]).values():
        future.result(30)
    _, again = still.trace(chain["order_id"])
    assert trades(again) == [trade | {"in_kafka": False} for trade in before]
    assert failing(again) == failing(chain)
    assert f"{len(before)} are known from their rows alone: Kafka has them no more" in again["links"][-1]["detail"]
