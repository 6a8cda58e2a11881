"""infra/snowflake-roles.sql grants what the code needs, and no more. No account is here to run it on."""

from __future__ import annotations

import re
from collections import defaultdict
from pathlib import Path

import pytest
import yaml
from marketflow_loader.tables import REJECTS, TABLES

LANDED = {table.name for table in TABLES} | {REJECTS}
GRANT = re.compile(
    r"^GRANT (?P<what>[A-Z, ]+?) ON (?P<kind>[A-Z ]+?) MARKETFLOW(?:\.(?P<name>[A-Z_.]+))? TO ROLE (?P<role>\w+);$"
)

Grants = dict[tuple[str, str], set[str]]
"""What a role may do, by kind of object and its name: ("TABLE", "RAW.TRADES"), ("ALL TABLES IN SCHEMA", "RAW")."""


@pytest.fixture
def infra(pytestconfig: pytest.Config) -> Path:
    return pytestconfig.rootpath / "infra"


@pytest.fixture
def statements(infra: Path) -> list[str]:
    lines = [line for line in (infra / "snowflake-roles.sql").read_text().splitlines() if not line.startswith("--")]
    return [" ".join(one.split()) + ";" for one in "\n".join(lines).split(";") if one.strip()]


@pytest.fixture
def grants(statements: list[str]) -> dict[str, Grants]:
    found: dict[str, Grants] = defaultdict(dict)
    for statement in statements:
        if statement.startswith("GRANT ") and not statement.startswith("GRANT ROLE "):
            match = GRANT.match(statement)
            assert match, f"not understood: {statement}"
            privileges = set(match["what"].split(", "))
            found[match["role"]].setdefault((match["kind"], match["name"] or ""), set()).update(privileges)
    return dict(found)


def tables_of(grants: Grants) -> dict[str, set[str]]:
    return {name: privileges for (kind, name), privileges in grants.items() if kind == "TABLE"}


def used(grants: Grants, kind: str) -> set[str]:
    return {name for (found, name), privileges in grants.items() if found == kind and "USAGE" in privileges}


def test_the_loader_may_append_where_it_lands_and_move_its_positions_only(grants: dict[str, Grants]) -> None:
    mine = grants["MARKETFLOW_LOADER"]
    tables = tables_of(mine)
    assert tables.pop("RAW.LOAD_OFFSETS") == {"SELECT", "INSERT", "UPDATE"}
    assert tables.pop("RAW.TRADES_BACKFILL") == {"SELECT"}
    assert tables == {table: {"SELECT", "INSERT"} for table in LANDED}
    assert mine["STAGE", "RAW.LANDING"] == {"READ", "WRITE"}
    assert used(mine, "SCHEMA") == {name.split(".")[0] for name in LANDED}
    assert {kind for kind, _ in mine} == {"WAREHOUSE", "DATABASE", "SCHEMA", "STAGE", "TABLE"}


def test_dbt_may_read_every_source_and_make_its_models_and_nothing_else(
    grants: dict[str, Grants], pytestconfig: pytest.Config
) -> None:
    mine, models = grants["MARKETFLOW_DBT"], pytestconfig.rootpath / "dbt" / "models"
    sources = yaml.safe_load((models / "sources.yml").read_text())["sources"]
    for source in sources:
        schema = source["schema"]
        for table in source["tables"]:
            own = mine.get(("TABLE", f"{schema}.{table['name']}"), set())
            assert "SELECT" in own | mine.get(("ALL TABLES IN SCHEMA", schema), set()), table
    needed = defaultdict(set)
    for model in models.glob("*/*.sql"):
        view = "materialized='view'" in model.read_text()
        needed[model.parent.name.upper()].add("CREATE VIEW" if view else "CREATE TABLE")
    assert set(needed) == {"STAGING", "ANALYTICS", "MONITORING"}
    for schema, privileges in needed.items():
        assert privileges <= mine["SCHEMA", schema]
    assert used(mine, "SCHEMA") == {"RAW", *needed}
    # Of the tables that somebody else writes it may change none.
    assert all(privileges == {"SELECT"} for (kind, _), privileges in mine.items() if "TABLE" in kind)
    assert not mine["SCHEMA", "RAW"] - {"USAGE"}


def test_analysts_read_what_is_made_for_them_also_after_it_was_made_anew_and_nothing_raw(
    grants: dict[str, Grants], pytestconfig: pytest.Config
) -> None:
    mine = grants["MARKETFLOW_ANALYST"]
    assert set().union(*mine.values()) == {"USAGE", "SELECT"}
    assert used(mine, "SCHEMA") == {"STAGING", "ANALYTICS", "MONITORING"}
    assert not any(name.startswith("RAW") for _, name in mine)
    for model in (pytestconfig.rootpath / "dbt" / "models").glob("*/*.sql"):
        kind = "VIEWS" if "materialized='view'" in model.read_text() else "TABLES"
        for when in ("ALL", "FUTURE"):
            assert mine[f"{when} {kind} IN SCHEMA", model.parent.name.upper()] == {"SELECT"}


def test_operators_alone_may_delete_what_has_landed_and_load_history(
    grants: dict[str, Grants], statements: list[str]
) -> None:
    tables = tables_of(grants["MARKETFLOW_OPERATOR"])
    assert tables.pop("RAW.TRADES_BACKFILL") == {"INSERT", "DELETE"}
    assert tables == {table: {"DELETE"} for table in LANDED}
    assert "GRANT ROLE MARKETFLOW_LOADER TO ROLE MARKETFLOW_OPERATOR;" in statements
    others = [mine for role, mine in grants.items() if role != "MARKETFLOW_OPERATOR"]
    assert not any(
        {"DELETE", "TRUNCATE", "OWNERSHIP", "ALL"} & privileges for mine in others for privileges in mine.values()
    )


def test_every_granted_object_is_declared_and_every_role_and_user_is_made_before_it_is_used(
    grants: dict[str, Grants], statements: list[str], infra: Path
) -> None:
    declared = set(
        re.findall(
            r"^CREATE (?:TABLE|STAGE|SCHEMA) IF NOT EXISTS ([A-Z_.]+)",
            (infra / "snowflake-schema.sql").read_text(),
            re.M,
        )
    )
    for role, mine in grants.items():
        assert {name for _, name in mine if name} <= declared
        inherits = role == "MARKETFLOW_OPERATOR"
        assert inherits or mine["WAREHOUSE", ""] == mine["DATABASE", ""] == {"USAGE"}
        above = "MARKETFLOW_OPERATOR" if role == "MARKETFLOW_LOADER" else "SYSADMIN"
        assert f"GRANT ROLE {role} TO ROLE {above};" in statements
    made = re.compile(r"^CREATE (?:ROLE|USER|WAREHOUSE) IF NOT EXISTS (\w+)")
    seen: set[str] = {"SYSADMIN"}
    for statement in statements:
        if match := made.match(statement):
            seen.add(match[1])
        elif statement.startswith("GRANT "):
            assert set(re.findall(r"(?:ROLE|USER) (\w+)", statement)) <= seen, statement
    assert seen - {"SYSADMIN"} == {*grants, "MARKETFLOW"}


def test_service_users_have_a_role_and_no_password(statements: list[str]) -> None:
    users = [statement for statement in statements if statement.startswith("CREATE USER")]
    assert len(users) == 2
    for user in users:
        [name] = re.findall(r"CREATE USER IF NOT EXISTS (\w+) TYPE = SERVICE ", user)
        assert f"DEFAULT_ROLE = {name} " in user
        assert "DEFAULT_SECONDARY_ROLES = () " in user
        assert "PASSWORD" not in user
