"""What the ingestor can be told: MARKETFLOW_INGESTOR_<NAME> in the environment. Must never hold a default that
sends anything but read requests to an exchange."""

from __future__ import annotations

import re
from typing import Any

from marketflow_common.settings import CommaList, ServiceSettings, prefix, split_commas
from pydantic import Field, SecretStr, field_validator

__all__ = ["Settings"]

_SYMBOL = re.compile(r"[A-Z0-9]{2,30}", re.ASCII)


class Settings(ServiceSettings):
    """All settings of the ingestor."""

    model_config = prefix("INGESTOR")

    http_port: int = Field(9101, ge=0, le=65535, description="port of /metrics, /healthz and /readyz; 0: any free one")
    symbols: CommaList = Field(("BTCUSDT", "ETHUSDT", "SOLUSDT"), description="symbols to publish, comma-separated")
    ws_url: str = Field(
        "wss://stream.binance.com:9443", pattern=r"^wss?://[^/]+$", description="the exchange's streams, without a path"
    )
    rest_url: str = Field(
        "https://api.binance.com", pattern=r"^https?://[^/]+$", description="the exchange's REST, without a path"
    )
    api_key: SecretStr = Field(SecretStr(""), description="sent as X-MBX-APIKEY if set; no request needs a secret")
    fill_deadline_s: float = Field(
        30.0, gt=0, description="seconds without any progress by REST, after which missing trades become a gap"
    )
    late_pause_s: float = Field(
        30.0, gt=0, description="longest pause in seconds between two questions for the trades of a declared gap"
    )
    late_give_up_s: float = Field(
        86_400.0, gt=0, description="seconds without progress after which a declared gap becomes final"
    )
    settle_s: float = Field(
        1.0, ge=0, description="seconds that the stream gets to bring what is expected, before REST is asked"
    )
    batch_wait_ms: float = Field(5.0, ge=0, description="milliseconds that a batch waits for more records")
    batch_records: int = Field(2_000, ge=1, description="records in one transaction at most")
    buffer_records: int = Field(
        20_000, ge=1, description="records per partition (and trades per hole) that may wait; then the socket waits"
    )

    _split = field_validator("symbols", mode="before")(split_commas)

    @field_validator("symbols")
    @classmethod
    def _well_formed(cls, value: tuple[str, ...]) -> Any:
        if not value:
            raise ValueError("name at least one symbol, such as ETHUSDT")
        for symbol in value:
            if not _SYMBOL.fullmatch(symbol):
                raise ValueError(f"{symbol!r} is not a symbol: capital letters and digits, such as ETHUSDT")
        return tuple(dict.fromkeys(value))
