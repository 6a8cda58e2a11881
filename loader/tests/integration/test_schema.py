"""infra/snowflake-schema.sql brought to a warehouse, by Snowflake's own command line and by the loader's.

Snowflake's lives in an environment of its own (tests/snow/requirements.txt), made once in the user's cache. Where
that cannot be made, because the package index is out of reach, the test says NOT RUN.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
from marketflow_loader import schema
from marketflow_stack.environments import environment_of
from marketflow_stack.errors import StackError

SNOW = Path(__file__).parents[1] / "snow"
COLUMNS = """
    SELECT TABLE_SCHEMA, TABLE_NAME, COLUMN_NAME, DATA_TYPE, NUMERIC_PRECISION, NUMERIC_SCALE, IS_NULLABLE
    FROM INFORMATION_SCHEMA.COLUMNS WHERE TABLE_SCHEMA IN ('RAW', 'STAGING', 'ANALYTICS', 'MONITORING')
    ORDER BY TABLE_SCHEMA, TABLE_NAME, ORDINAL_POSITION
"""


@pytest.fixture(scope="session")
def snow() -> Path:
    """The program."""
    try:
        return environment_of(SNOW / "requirements.txt", "snow") / "bin" / "snow"
    except StackError as error:
        pytest.skip(f"NOT RUN: {error}")


def test_the_command_line_of_snowflake_applies_the_schema_any_number_of_times(
    snow: Path, tables: Any, tmp_path: Path
) -> None:
    # The table's database was made by the loader's own command: what `snow` makes beside it has to be the same.
    database = f"{tables.settings.database}_BY_SNOW"
    (tmp_path / "schema.sql").write_text(schema.for_database(schema.schema_text(), database))
    config = tmp_path / "config.toml"
    config.write_text(
        f"""
        [connections.local]
        account = "local"
        user = "admin"
        password = "x"
        host = "127.0.0.1"
        port = {tables.settings.port}
        protocol = "http"
        """
    )
    config.chmod(0o600)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("SNOWFLAKE_")}
    command = [str(snow), "--config-file", str(config), "sql", "-c", "local", "-f", str(tmp_path / "schema.sql")]
    for _ in range(2):
        done = subprocess.run(
            command,
            capture_output=True, text=True, timeout=120, check=False, env=environment | {"HOME": str(tmp_path)},
        )  # fmt: skip
        assert done.returncode == 0, done.stdout[-3_000:] + done.stderr[-3_000:]
        made = tables.ask(COLUMNS.replace("INFORMATION_SCHEMA", f"{database}.INFORMATION_SCHEMA"))
        assert len(made) > 150
        assert made == tables.ask(COLUMNS)


def test_where_everything_is_there_nothing_is_created_so_a_role_that_may_create_nothing_will_do(
    tables: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert schema.ensure(tables.settings, schema.schema_text(), 30) == 0
    for name in ("account", "user", "host", "port", "protocol", "database"):
        monkeypatch.setenv(f"MARKETFLOW_SNOWFLAKE_{name.upper()}", str(getattr(tables.settings, name)))
    monkeypatch.setenv("MARKETFLOW_SNOWFLAKE_PASSWORD", "x")
    assert schema.main([]) == 0
    assert "has everything already" in capsys.readouterr().out
    tables.ask("DROP TABLE RAW.REJECTS")
    assert schema.ensure(tables.settings, schema.schema_text(), 30) > 0
    assert tables.ask("SELECT COUNT(*) FROM RAW.REJECTS") == [(0,)]
    # A table with a column too few is not made anew by CREATE TABLE IF NOT EXISTS: that has to be said.
    tables.ask("ALTER TABLE RAW.REJECTS DROP COLUMN REASON")
    with pytest.raises(schema.SchemaError, match=r"RAW\.REJECTS\.REASON.*ALTER TABLE"):
        schema.ensure(tables.settings, schema.schema_text(), 30)
