"""infra/snowflake-schema.tf declares what infra/snowflake-schema.sql declares.

MARKETFLOW_UPDATE_GOLDEN=1 writes the Terraform file's list of tables anew from the SQL.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import hcl2
import pytest
import sqlglot
from sqlglot import exp

Columns = list[tuple[str, str, bool]]
"""name, type, whether it may be NULL; in order"""


@pytest.fixture
def infra(pytestconfig: pytest.Config) -> Path:
    return pytestconfig.rootpath / "infra"


def in_sql(text: str) -> dict[str, Any]:
    """Names of the schemas and stages, and the tables' columns, as Snowflake's grammar reads them."""
    found: dict[str, Any] = {"schemas": [], "stages": [], "tables": {}}
    for statement in sqlglot.parse(text, read="snowflake"):
        if not isinstance(statement, exp.Create):
            continue
        name = statement.find(exp.Table).sql("snowflake")
        if statement.kind == "SCHEMA":
            found["schemas"].append(name)
        elif statement.kind == "STAGE":
            found["stages"].append(name)
        elif statement.kind == "TABLE":
            found["tables"][name] = [column_of(column) for column in statement.this.find_all(exp.ColumnDef)]
    return found


def column_of(column: exp.ColumnDef) -> tuple[str, str, bool]:
    required = any(isinstance(c.kind, exp.NotNullColumnConstraint) for c in column.constraints)
    return column.name, str(column.kind), not required


def in_terraform(text: str) -> dict[str, Any]:
    [found] = plain(hcl2.loads(text)["locals"])
    columns = {
        table: [(c["name"], str(exp.DataType.build(c["type"], dialect="snowflake")), c["nullable"]) for c in described]
        for table, described in found["tables"].items()
    }
    return {"schemas": found["schemas"], "stages": found["stages"], "tables": columns}


def plain(value: Any) -> Any:
    """Without the parser's quotes around strings, and without its notes about lines."""
    if isinstance(value, dict):
        return {plain(name): plain(inner) for name, inner in value.items() if not name.startswith("__")}
    if isinstance(value, list):
        return [plain(inner) for inner in value]
    return value.strip('"') if isinstance(value, str) else value


def written(text: str) -> str:
    """The block of locals that says what the SQL says."""
    tables = re.findall(r"^CREATE TABLE IF NOT EXISTS ([A-Z_.]+) \(\n(.*?)\n\);", text, re.S | re.M)
    lines = ["locals {"]
    for name in ("schema", "stage"):
        names = re.findall(rf"^CREATE {name.upper()} IF NOT EXISTS ([A-Z_.]+);", text, re.M)
        quoted = ", ".join(f'"{one}"' for one in names)
        lines.append(f"  {name + 's':7} = [{quoted}]")
    lines.append("  tables = {")
    for table, body in tables:
        lines.append(f'    "{table}" = [')
        for column, kind, required in re.findall(
            r"^    ([A-Z_0-9]+) ([A-Z_]+(?:\([0-9,]+\))?)( NOT NULL)?,?$", body, re.M
        ):
            lines.append(
                f'      {{ name = "{column}", type = "{kind}", nullable = {"false" if required else "true"} }},'
            )
        lines.append("    ]")
    return "\n".join([*lines, "  }", "}", ""])


def test_terraform_declares_the_same_schemas_stages_tables_and_columns(infra: Path) -> None:
    file, text = infra / "snowflake-schema.tf", (infra / "snowflake-schema.sql").read_text()
    if os.environ.get("MARKETFLOW_UPDATE_GOLDEN"):
        head, _, _ = file.read_text().partition("\nlocals {\n")
        file.write_text(f"{head}\n{written(text)}")
    declared = in_sql(text)
    assert len(declared["tables"]) >= 9
    assert all(declared["tables"].values())
    assert in_terraform(file.read_text()) == declared


def test_terraform_makes_every_listed_object_and_each_file_is_a_module_of_its_own(infra: Path) -> None:
    document = plain(hcl2.loads((infra / "snowflake-schema.tf").read_text()))
    made = {kind: body for resource in document["resource"] for kind, body in resource.items()}
    every = {kind: next(iter(body.values())).get("for_each") for kind, body in made.items()}
    assert every == {
        "snowflake_database": None,
        "snowflake_schema": "${toset(local.schemas)}",
        "snowflake_stage_internal": "${toset(local.stages)}",
        "snowflake_table": "${local.tables}",
    }
    [provider] = [block["snowflake"] for block in document["provider"] if "snowflake" in block]
    assert {"snowflake_stage_internal_resource", "snowflake_table_resource"} <= set(
        provider["preview_features_enabled"]
    )
    # A module may name its providers once, so each file is applied from a folder in which it is alone.
    for name, file in (("kafka", "kafka-topics.tf"), ("snowflake", "snowflake-schema.tf")):
        [only] = [path for path in (infra / "terraform" / name).iterdir() if path.suffix == ".tf"]
        assert only.resolve() == (infra / file).resolve()
