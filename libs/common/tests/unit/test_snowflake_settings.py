"""How Snowflake is reached: what the connector is given, and which variable is named when one is wrong."""

from __future__ import annotations

from typing import Any

import pytest
from marketflow_common.settings import InvalidSettings, ServiceSettings, SnowflakeSettings, load, prefix
from pydantic import Field

NEEDED: dict[str, Any] = {"account": "acme-prod", "user": "loader"}


class Service(ServiceSettings):
    model_config = prefix("EXAMPLE")

    snowflake: SnowflakeSettings = Field(default_factory=lambda: SnowflakeSettings())


def test_a_key_pair_is_taken_before_a_password() -> None:
    both = SnowflakeSettings(**NEEDED, password="word", private_key_file="key.p8").connect_arguments("loader")
    assert "password" not in both
    assert (both["private_key_file"], both["private_key_file_pwd"]) == ("key.p8", None)
    alone = SnowflakeSettings(**NEEDED, password="word").connect_arguments("loader")
    assert alone["password"] == "word"


def test_a_host_is_named_only_where_one_is_set() -> None:
    assert "host" not in SnowflakeSettings(**NEEDED).connect_arguments("loader")
    local = SnowflakeSettings(**NEEDED, host="127.0.0.1", port=9070, protocol="http").connect_arguments("loader")
    assert (local["host"], local["port"], local["protocol"]) == ("127.0.0.1", 9070, "http")


def test_sessions_are_in_utc_and_their_queries_tagged() -> None:
    arguments = SnowflakeSettings(**NEEDED, warehouse="XS").connect_arguments("audit")
    assert arguments["session_parameters"]["TIMEZONE"] == "UTC"
    assert arguments["session_parameters"]["QUERY_TAG"] == "marketflow/audit"
    assert (arguments["database"], arguments["warehouse"]) == ("MARKETFLOW", "XS")
    assert "role" not in arguments
    assert "database" not in SnowflakeSettings(**NEEDED).connect_arguments("schema", database=False)


def test_a_wrong_setting_of_a_nested_part_is_named_with_that_parts_prefix(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"ACCOUNT": "a", "USER": "u", "PORT": "70000"}.items():
        monkeypatch.setenv(f"MARKETFLOW_SNOWFLAKE_{name}", value)
    with pytest.raises(InvalidSettings, match=r"^MARKETFLOW_SNOWFLAKE_PORT: .*less than or equal to 65535"):
        load(Service)


def test_secrets_are_not_shown() -> None:
    assert "hunter2" not in repr(SnowflakeSettings(**NEEDED, password="hunter2", private_key_password="hunter2"))
