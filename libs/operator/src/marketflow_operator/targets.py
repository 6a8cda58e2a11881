"""Where the parts of a running system are: from the local stack's own record, the environment, or the defaults.

Must never start anything. Defaults are the ports that docker compose publishes.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

from marketflow_common.settings import KafkaSettings, SnowflakeSettings, load
from marketflow_stack import stack
from marketflow_stack.stack import StackConfig
from marketflow_stack.state import ProcessState, StackState
from pydantic import SecretStr

__all__ = ["Targets", "local_warehouse", "of_environment", "of_stack", "restarts_of"]

CHANNELS: Final = ("telegram", "discord")


@dataclass(frozen=True)
class Targets:
    """Addresses of everything that the audit and the view look at; ``services`` are base URLs of /metrics."""

    kafka: KafkaSettings
    snowflake: SnowflakeSettings
    exchange: str = "http://127.0.0.1:9080"
    recorder: str = "http://127.0.0.1:9071"
    services: Mapping[str, str] = field(default_factory=dict)
    channels: tuple[str, ...] = CHANNELS
    notifier_restarts: int | None = None
    from_start: bool = False
    simulated: bool = True
    """Whether the exchange is the simulator, which shows its ledger; False: Binance itself, which does not."""


def of_environment() -> Targets:
    """What MARKETFLOW_KAFKA_*, MARKETFLOW_SNOWFLAKE_*, MARKETFLOW_EXCHANGE_URL and MARKETFLOW_RECORDER_URL name.

    Raises InvalidSettings, with a line for each variable that is wrong.
    """
    named = any(name.startswith("MARKETFLOW_SNOWFLAKE_") for name in os.environ)
    return Targets(
        kafka=load(KafkaSettings),
        snowflake=load(SnowflakeSettings) if named else local_warehouse(9070),
        exchange=os.environ.get("MARKETFLOW_EXCHANGE_URL", Targets.exchange),
        recorder=os.environ.get("MARKETFLOW_RECORDER_URL", Targets.recorder),
    )


def restarts_of(processes: Iterable[ProcessState]) -> int:
    """How often they were started again in this state folder: after a crash, by a later `up`, by another supervisor."""
    return sum(max(0, entry.starts - 1) for entry in processes)


def local_warehouse(port: int) -> SnowflakeSettings:
    """The local warehouse, which takes any user."""
    return SnowflakeSettings(
        account=stack.ACCOUNT,
        user=stack.USER,
        password=SecretStr(stack.PASSWORD),
        host="127.0.0.1",
        port=port,
        protocol="http",
        database=stack.DATABASE,
    )


def of_stack(config: StackConfig, state: StackState | None = None) -> Targets:
    """The parts of a local stack, by the ports it is configured for."""
    processes = list(state.processes) if state is not None else []
    notifiers = [entry for entry in processes if entry.name.startswith("notifier")]
    return Targets(
        kafka=KafkaSettings(bootstrap_servers=config.bootstrap),
        snowflake=local_warehouse(config.ports.warehouse),
        exchange=config.exchange,
        recorder=config.url("recorder"),
        services={name: config.url(name) for name in config.services},
        notifier_restarts=restarts_of(notifiers) if notifiers else None,
        # A market that waited for all services has no first trade that may be missed.
        from_start=not config.autostart,
        simulated=config.market == "simulator",
    )
