"""The schema command: which text it applies, and what it says when it cannot."""

from __future__ import annotations

from pathlib import Path

import pytest
from marketflow_common import service
from marketflow_loader import schema
from marketflow_stack.testing import free_port


def test_another_database_replaces_the_name_in_its_two_statements_only() -> None:
    text = schema.for_database(schema.schema_text(), "ELSEWHERE")
    assert "CREATE DATABASE IF NOT EXISTS ELSEWHERE;" in text
    assert "USE DATABASE ELSEWHERE;" in text
    assert text.count("ELSEWHERE") == 2


def test_the_schema_is_idempotent_statement_by_statement() -> None:
    statements = [line for line in schema.schema_text().splitlines() if line.startswith("CREATE")]
    assert statements
    assert all(" IF NOT EXISTS " in statement for statement in statements)


def test_a_warehouse_that_does_not_answer_is_named_with_the_remedy(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    port = free_port()
    for name, value in {
        "ACCOUNT": "local", "USER": "x", "PASSWORD": "hidden", "HOST": "127.0.0.1", "PORT": str(port),
        "PROTOCOL": "http", "NETWORK_TIMEOUT": "1",
    }.items():  # fmt: skip
        monkeypatch.setenv(f"MARKETFLOW_SNOWFLAKE_{name}", value)
    assert schema.main(["--timeout", "0"]) == service.EXIT_UNAVAILABLE
    said = capsys.readouterr().err
    assert f"no warehouse answered at http://127.0.0.1:{port}" in said
    assert "MARKETFLOW_SNOWFLAKE_*" in said
    assert "hidden" not in said
    assert len(said.splitlines()) == 1


def test_a_missing_setting_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.delenv("MARKETFLOW_SNOWFLAKE_ACCOUNT", raising=False)
    assert schema.main([]) == service.EXIT_CONFIG
    assert "MARKETFLOW_SNOWFLAKE_ACCOUNT: is not set" in capsys.readouterr().err


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(schema.SchemaError, match=r"nowhere\.sql"):
        schema.schema_text(tmp_path / "nowhere.sql")
