"""What docker-compose.yaml and the Dockerfiles promise, as far as it shows without an engine."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from marketflow_aggregator.settings import AggregatorSettings
from marketflow_common.settings import describe
from marketflow_executor.settings import ExecutorSettings
from marketflow_ingestor.settings import Settings as IngestorSettings
from marketflow_loader.settings import LoaderSettings
from marketflow_notifier.settings import NotifierSettings
from marketflow_simulator.settings import PREFIX as SIMULATOR
from marketflow_simulator.settings import Settings as SimulatorSettings
from marketflow_strategy.settings import Settings as StrategySettings

ROOT = Path(__file__).parents[1]
KINDS = {
    "ingestor": IngestorSettings,
    "aggregator": AggregatorSettings,
    "strategy": StrategySettings,
    "executor": ExecutorSettings,
    "notifier": NotifierSettings,
    "loader": LoaderSettings,
}
DOCKERFILES = sorted(path for path in ROOT.glob("*/Dockerfile")) + sorted(ROOT.glob("libs/*/Dockerfile"))
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yaml").read_text())
SERVICES: dict[str, Any] = COMPOSE["services"]
# In a container these are settled: by the image, or by the network inside of compose.
SETTLED = ("_HTTP_HOST", "_HTTP_PORT")
KAFKA_OUTSIDE = (
    "TOPIC_PREFIX",
    "SECURITY_PROTOCOL",
    "SASL_MECHANISM",
    "SASL_USERNAME",
    "SASL_PASSWORD",
    "SSL_CA_LOCATION",
)


@pytest.mark.parametrize("name", KINDS)
def test_a_service_gets_all_of_its_settings_and_nobody_elses(name: str) -> None:
    wanted = {row[0] for row in describe(KINDS[name]) if not row[0].endswith(SETTLED)}
    wanted -= {f"MARKETFLOW_KAFKA_{field}" for field in KAFKA_OUTSIDE}
    assert set(SERVICES[name]["environment"]) == wanted


def test_the_simulator_gets_the_settings_that_make_a_market() -> None:
    fixed = {"HOST", "PORT", "STATE", "REPLAY", "AUTOSTART"}
    wanted = {f"{SIMULATOR}{field.upper()}" for field in SimulatorSettings.model_fields if field.upper() not in fixed}
    assert set(SERVICES["simulator"]["environment"]) == wanted


def test_the_simulators_file_sets_only_what_is_handed_through() -> None:
    lines = (ROOT / "infra" / "compose" / "sim.env").read_text().splitlines()
    names = {line.partition("=")[0] for line in lines if line and not line.startswith("#")}
    handed = {name for service in SERVICES.values() for name in service.get("environment") or {}}
    assert names <= handed


@pytest.mark.parametrize("name", SERVICES)
def test_ports_are_published_on_this_machine_only(name: str) -> None:
    for port in SERVICES[name].get("ports", []):
        assert port.startswith("127.0.0.1:")


@pytest.mark.parametrize("name", SERVICES)
def test_logs_are_rotated_and_privileges_dropped(name: str) -> None:
    service = SERVICES[name]
    assert service["logging"]["options"] == {"max-size": "10m", "max-file": "3"}
    assert service["cap_drop"] == ["ALL"]
    assert service["restart"] == ("no" if name in ("topics", "schema", "dbt") else "unless-stopped")


@pytest.mark.parametrize("name", KINDS)
def test_a_service_waits_for_the_topics_and_listens_where_its_image_says(name: str) -> None:
    service = SERVICES[name]
    assert service["depends_on"]["topics"] == {"condition": "service_completed_successfully"}
    port = {row[0]: row[1] for row in describe(KINDS[name])}[f"MARKETFLOW_{name.upper()}_HTTP_PORT"]
    assert service["ports"] == [f"127.0.0.1:${{{name.upper()}_PORT:-{port}}}:{port}"]
    dockerfile = (ROOT / name / "Dockerfile").read_text()
    assert f"MARKETFLOW_{name.upper()}_HTTP_PORT={port}" in dockerfile
    assert "HEALTHCHECK" in dockerfile


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.parent.name)
def test_a_dockerfile_lets_its_base_be_swapped_and_runs_as_nobody_special(path: Path) -> None:
    text = path.read_text()
    assert "# syntax=" not in text
    assert "@sha256:" not in text
    build, final = re.findall(r"^FROM (\S+)", text, re.MULTILINE)
    assert final == "${BASE_IMAGE}"
    assert build == final or (build == "${BUILD_IMAGE}" and "ARG BUILD_IMAGE=${BASE_IMAGE}\n" in text)
    assert "ARG BASE_IMAGE=python:3.11-slim" in text
    assert re.search(r"^USER 10001$", text, re.MULTILINE)


def test_there_is_a_dockerfile_for_each_service_and_each_tool() -> None:
    assert {path.parent.name for path in DOCKERFILES} == {*KINDS, "simulator", "stack", "dbt"}


def test_prometheus_knows_all_services_under_both_their_names() -> None:
    for file, host in (("targets.yml", lambda _: "127.0.0.1"), ("targets-compose.yml", lambda name: name)):
        targets = yaml.safe_load((ROOT / "infra" / "prometheus" / file).read_text())
        found = {entry["labels"]["service"]: entry["targets"] for entry in targets}
        assert found == {name: [f"{host(name)}:{SERVICES[name]['ports'][0].rpartition(':')[2]}"] for name in KINDS}
