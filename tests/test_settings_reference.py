"""Every setting is in .env.example and docs/settings.md, as the code has it.

Both files are made from the settings classes: MARKETFLOW_UPDATE_GOLDEN=1 pytest tests/test_settings_reference.py
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import yaml
from marketflow_aggregator.settings import AggregatorSettings
from marketflow_common.settings import KafkaSettings, ServiceSettings, SnowflakeSettings, describe
from marketflow_executor.settings import ExecutorSettings
from marketflow_ingestor.settings import Settings as IngestorSettings
from marketflow_loader.settings import LoaderSettings
from marketflow_notifier.settings import NotifierSettings
from marketflow_operator.settings import StackSettings
from marketflow_simulator.settings import PREFIX as SIMULATOR
from marketflow_simulator.settings import Settings as SimulatorSettings
from marketflow_simulator.settings import _shown as simulator_default
from marketflow_stack.stack import Ports
from marketflow_strategy.settings import Settings as StrategySettings

ROOT = Path(__file__).parents[1]
SERVICES: dict[str, type[ServiceSettings]] = {
    "ingestor": IngestorSettings,
    "aggregator": AggregatorSettings,
    "strategy": StrategySettings,
    "executor": ExecutorSettings,
    "notifier": NotifierSettings,
    "loader": LoaderSettings,
}
SHARED = ("MARKETFLOW_KAFKA_", "MARKETFLOW_LOG_", "MARKETFLOW_SNOWFLAKE_")


class Setting(NamedTuple):
    name: str
    default: str
    meaning: str


class Section(NamedTuple):
    title: str
    about: str
    settings: list[Setting]


def of_compose() -> list[Setting]:
    """The variables of docker-compose.yaml that are no settings of a program."""
    found = re.findall(r"\$\{([A-Z]+_[A-Z]+):-([a-z0-9]+)\}", (ROOT / "docker-compose.yaml").read_text())
    meanings = {"IMAGE_PREFIX": "registry and folder of the images", "IMAGE_TAG": "tag of the images"}
    return [
        Setting(name, default, meanings.get(name) or f"port on 127.0.0.1 for {name.removesuffix('_PORT').lower()}")
        for name, default in dict.fromkeys(found)
    ]


def sections() -> Iterator[Section]:
    for name, kind in SERVICES.items():
        own = [Setting(*row) for row in describe(kind) if not row[0].startswith(SHARED)]
        yield Section(name, f"Read by the {name}.", own)
    log = [Setting(*row) for row in describe(AggregatorSettings) if row[0].startswith("MARKETFLOW_LOG_")]
    yield Section("logs", "Read by all six services.", log)
    kafka = [Setting(*row) for row in describe(KafkaSettings)]
    yield Section("Kafka", "Read by all six services and by `marketflow audit`.", kafka)
    snowflake = [Setting(*row) for row in describe(SnowflakeSettings)]
    yield Section("Snowflake", "Read by the loader, by dbt's profile and by `marketflow audit`.", snowflake)
    simulator = [
        Setting(f"{SIMULATOR}{name}".upper(), simulator_default(field.default).replace("empty", ""), field.description)
        for name, field in SimulatorSettings.model_fields.items()
    ]
    about = "Read by the exchange simulator, which also takes each as an option (`--seed 7`); the option wins."
    yield Section("simulator", about, simulator)
    stack = [Setting(*row) for row in describe(StackSettings)]
    yield Section("local stack", "Read by `marketflow up` and what belongs to it, without containers.", stack)
    operator = [
        Setting("MARKETFLOW_EXCHANGE_URL", "http://127.0.0.1:9080", "simulator whose ledger the audit compares with"),
        Setting("MARKETFLOW_RECORDER_URL", "http://127.0.0.1:9071", "recorder whose messages the audit compares with"),
    ]
    yield Section("operator", "Read by `marketflow audit` for a stack that it did not start itself.", operator)
    dbt = [Setting("MARKETFLOW_DBT_TARGET", "dev", "dev: a local warehouse; prod: a Snowflake account, by key pair")]
    yield Section("dbt", "Read by dbt's profile, beside Snowflake's.", dbt)
    yield Section("docker compose", "Read by docker-compose.yaml only.", of_compose())


ENV_HEAD = """\
# Every setting of MarketFlow with its default. Copy this file to .env, which docker compose reads, and take the "#" off
# what you change. Programs outside of compose read the environment only: set -a; . ./.env; set +a
# Generated from the code; docs/settings.md has the same as tables.
#
# What people set first:
#   Telegram   MARKETFLOW_NOTIFIER_TELEGRAM_TOKEN and MARKETFLOW_NOTIFIER_TELEGRAM_CHAT_ID
#   Discord    MARKETFLOW_NOTIFIER_DISCORD_WEBHOOK_URL
#   Binance    MARKETFLOW_EXECUTOR_MODE=testnet, MARKETFLOW_EXECUTOR_REST_URL=https://testnet.binance.vision,
#              MARKETFLOW_EXECUTOR_API_KEY, MARKETFLOW_EXECUTOR_API_SECRET
#   Snowflake  MARKETFLOW_SNOWFLAKE_ACCOUNT, _USER, _PRIVATE_KEY_FILE (or _PASSWORD), and for compose, which has a
#              local warehouse otherwise: MARKETFLOW_SNOWFLAKE_HOST= (empty), _PORT=443, _PROTOCOL=https
"""
DOC_HEAD = """\
# Settings

Generated from the settings classes by `tests/test_settings_reference.py`, which fails when this page is stale.

- All settings come from the environment, all names start with `MARKETFLOW_`, then comes the part, then the setting.
  No program reads a file of settings; `docker compose` reads `.env`, see [`.env.example`](../.env.example). Secrets may
  stand in files of their own, which settings that end in `_FILE` name.
- Precedence: an option on the command line (the simulator and `marketflow` have some), then the environment, then the
  default. For compose: the shell's environment, then `--env-file` or `.env`, then what `docker-compose.yaml` says.
- A wrong value, or a name that nobody knows, ends the program at once with one line that names it (exit code 78).
  `marketflow-<service> --check` tries the settings, `--help` lists them.
- Secrets (tokens, keys, passwords, the webhook's address) are never printed.
- Compose gives each container its own settings only and fixes the addresses inside of its network (`HTTP_HOST`,
  `HTTP_PORT`, `KAFKA_BOOTSTRAP_SERVERS`).
"""


def env_example() -> str:
    text = ENV_HEAD
    for section in sections():
        text += f"\n# --- {section.title}: {section.about.replace('`', '')}\n"
        for name, default, meaning in section.settings:
            text += f"\n# {meaning}\n#{name}={'' if default == '(required)' else default}\n"
    return text


def reference() -> str:
    text = DOC_HEAD
    for section in sections():
        text += f"\n## {section.title}\n\n{section.about}\n\n| variable | default | meaning |\n|---|---|---|\n"
        for name, default, meaning in section.settings:
            shown = default if default == "(required)" else f"`{default}`" if default else ""
            text += f"| `{name}` | {shown} | {meaning.replace('|', ', ')} |\n"
    return text


@pytest.mark.parametrize(("path", "make"), [(".env.example", env_example), ("docs/settings.md", reference)])
def test_the_reference_is_what_the_code_says(path: str, make: object) -> None:
    text = make()  # type: ignore[operator]
    if os.environ.get("MARKETFLOW_UPDATE_GOLDEN"):
        (ROOT / path).parent.mkdir(exist_ok=True)
        (ROOT / path).write_text(text, encoding="utf-8")
    assert (ROOT / path).read_text(encoding="utf-8") == text


def test_every_setting_has_a_meaning_and_one_prefix() -> None:
    for section in sections():
        for name, _, meaning in section.settings:
            assert meaning, name
            assert name.startswith("MARKETFLOW_") or section.title == "docker compose"


def test_no_two_programs_listen_on_the_same_port_by_default() -> None:
    ports = [s.default for section in sections() for s in section.settings if s.name.endswith("_HTTP_PORT")]
    assert len(set(ports)) == len(ports) == len(SERVICES)


def test_dbt_looks_for_the_local_warehouse_where_make_up_has_it() -> None:
    dev = yaml.safe_load((ROOT / "dbt" / "profiles.yml").read_text())["marketflow"]["outputs"]["dev"]
    assert f"'MARKETFLOW_SNOWFLAKE_PORT', '{Ports().warehouse}'" in dev["port"]
