"""Settings of the operator's commands: where the local stack keeps its state, and on which ports its parts listen.

Must never hold a secret.
"""

from __future__ import annotations

from pathlib import Path

from marketflow_common.settings import prefix
from marketflow_stack.stack import Ports, checkout
from pydantic import Field
from pydantic_settings import BaseSettings

__all__ = ["StackSettings"]

_DEFAULT = Ports()


def _port(part: str) -> int:
    default: int = getattr(_DEFAULT, part)
    port: int = Field(default, ge=1, le=65535, description=f"port of {part} in `marketflow up`")
    return port


class StackSettings(BaseSettings):
    """``MARKETFLOW_STACK_<FIELD>``; `marketflow demo` takes free ports instead of these."""

    model_config = prefix("STACK")

    state: str = Field(".marketflow", description="folder of the local stack's data and logs, below the checkout")
    kafka_port: int = _port("kafka")
    controller_port: int = _port("controller")
    warehouse_port: int = _port("warehouse")
    recorder_port: int = _port("recorder")
    simulator_port: int = _port("simulator")
    ingestor_port: int = _port("ingestor")
    aggregator_port: int = _port("aggregator")
    strategy_port: int = _port("strategy")
    executor_port: int = _port("executor")
    notifier_port: int = _port("notifier")
    loader_port: int = _port("loader")

    @property
    def folder(self) -> Path:
        """The state folder."""
        named = Path(self.state).expanduser()
        return named if named.is_absolute() else checkout() / named

    @property
    def ports(self) -> Ports:
        """The configured ports."""
        return Ports(**{name: getattr(self, f"{name}_port") for name in Ports.__dataclass_fields__})
