"""The commands that ask the warehouse: their words, their errors, and what is handed on to the loader."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from marketflow_common.settings import KafkaSettings, SnowflakeSettings
from marketflow_operator import cli
from marketflow_operator.backfill import Outcome, neighbours
from marketflow_operator.rebuild import environment
from marketflow_operator.targets import Targets
from marketflow_operator.warehouse_commands import code_of
from marketflow_stack.processes import free_port
from pydantic import SecretStr


def test_the_loader_is_told_where_the_operator_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    kafka = KafkaSettings(bootstrap_servers="there:1", topic_prefix="p-", sasl_password=SecretStr("word"))
    snowflake = SnowflakeSettings(
        account="a", user="u", password=SecretStr("secret"), host="h", port=7, protocol="http", database="D"
    )
    for name in list(os.environ):
        if name.startswith("MARKETFLOW_"):
            monkeypatch.delenv(name)
    for name, value in environment(Targets(kafka, snowflake)).items():
        monkeypatch.setenv(name, value)
    assert KafkaSettings() == kafka
    assert SnowflakeSettings() == snowflake


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--symbol", "btc/usdt", "--from", "2024-08-08"), "--symbol is 'BTC/USDT'"),
        (("--symbol", "BTCUSDT", "--from", "soon"), "--from is 'soon': it is a day such as 2024-08-08"),
        (("--symbol", "BTCUSDT", "--from", "2024-08-09", "--to", "2024-08-08"), "is before --from"),
        (("--symbol", "BTCUSDT", "--from", "2024-08-08", "--url", "ftp://x"), "--url is 'ftp://x': it is the URL"),
        (("--symbol", "BTCUSDT", "--from", "2024-08-08", "--dir", "/nowhere"), "--dir is /nowhere, which is no folder"),
        (
            ("--symbol", "BTCUSDT", "--from", "2024-08-08", "--dir", "/", "--url", "http://x"),
            "--dir and --url: name one of them",
        ),
    ],
)
def test_a_backfill_that_is_none_is_one_line(run: Any, arguments: tuple[str, ...], said: str) -> None:
    code, text = run("backfill", *arguments)
    assert code == cli.USAGE
    assert said in text
    assert text.count("\n") == 1


def test_without_a_broker_or_a_warehouse_it_is_said_in_one_line(
    run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    port = free_port()
    monkeypatch.setenv("MARKETFLOW_KAFKA_BOOTSTRAP_SERVERS", f"127.0.0.1:{port}")
    monkeypatch.setenv("MARKETFLOW_SNOWFLAKE_HOST", "127.0.0.1")
    monkeypatch.setenv("MARKETFLOW_SNOWFLAKE_PORT", str(port))
    monkeypatch.setenv("MARKETFLOW_SNOWFLAKE_ACCOUNT", "a")
    monkeypatch.setenv("MARKETFLOW_SNOWFLAKE_USER", "u")
    for arguments, said in (
        (("trace", "mf-1"), f"no warehouse answers at 127.0.0.1:{port}"),
        (("rebuild", "RAW.TRADES", "--yes"), f"no Kafka broker answers at 127.0.0.1:{port}"),
        (
            ("backfill", "--symbol", "BTCUSDT", "--from", "2024-08-08", "--dir", str(tmp_path)),
            f"no warehouse answers at 127.0.0.1:{port}",
        ),
    ):
        code, text = run(*arguments)
        assert (code, text.count("\n")) == (cli.CANNOT, 1), text
        assert said in text


@pytest.mark.parametrize("order", ["", " "])
def test_an_order_without_a_name_is_wrong_usage(run: Any, order: str) -> None:
    code, text = run("trace", order)
    assert code == cli.USAGE
    assert text == (
        "marketflow: ORDER is empty: it is a client order id (mf-…), or the exchange's number of the order\n"
    )


def test_files_whose_ids_do_not_go_on_are_told() -> None:
    files = [
        Outcome("a", "landed", 10, 1, 10),
        Outcome("b", "there", 10, 11, 20),
        Outcome("c", "wrong"),
        Outcome("d", "landed", 5, 31, 35),
        Outcome("e", "landed", 5, 35, 39),
    ]
    assert neighbours(files) == [
        "d begins with id 31, and b ends with 20: 10 ids are missing between them",
        "e begins with id 35, and d ends with 35: they overlap",
    ]


def test_a_file_that_is_wrong_outweighs_one_that_is_absent() -> None:
    landed, absent, wrong = Outcome("a", "landed"), Outcome("b", "absent"), Outcome("c", "wrong")
    assert [code_of(files) for files in ([landed], [landed, absent], [absent, wrong])] == [0, 3, 1]
