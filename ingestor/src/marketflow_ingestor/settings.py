"""What the ingestor can be told: MARKETFLOW_INGESTOR_<NAME> in the environment. Must never hold a default that
sends anything but read requests to an exchange."""

from __future__ import annotations

from typing import Any

from marketflow_common.settings import CommaList, ServiceSettings, prefix, split_commas
from pydantic import Field, PrivateAttr, SecretStr, field_validator

from .symbols import NAME, PATTERN

__all__ = ["Settings"]


class Settings(ServiceSettings):
    """All settings of the ingestor."""

    model_config = prefix("INGESTOR")

    http_port: int = Field(9101, ge=0, le=65535, description="port of /metrics, /healthz and /readyz; 0: any free one")
    symbols: CommaList = Field(
        ("BTCUSDT", "ETHUSDT", "SOLUSDT"),
        description="symbols to publish, comma-separated; * stands for any letters, as in *USDT",
    )
    symbols_every_s: float = Field(
        300.0, gt=0, description="seconds between two looks at which symbols the exchange lists and trades"
    )
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
    stall_floor_s: float = Field(3.0, gt=0, description="seconds of silence on a connection that are never remarkable")
    stall_ceiling_s: float = Field(
        75.0, gt=0, description="seconds of silence that always are: a closed kline is due every minute"
    )
    connection_age_s: float = Field(
        82_800.0, gt=0, description="seconds after which a second connection takes over; the exchange closes at 24 h"
    )
    symbols_per_connection: int = Field(
        100, ge=1, le=200, description="symbols whose two streams share a connection (the exchange takes 1,024 streams)"
    )
    rest_weight_share: float = Field(
        0.8, gt=0, le=1, description="share of the address's request weight in a minute that may be used"
    )
    future_tolerance_s: float = Field(
        1.0, ge=0, description="seconds by which a trade's time may be ahead of its own event's before it is doubted"
    )
    clock_every_s: float = Field(60.0, gt=0, description="seconds between two measurements of the exchange's clock")
    batch_wait_ms: float = Field(5.0, ge=0, description="milliseconds that a batch waits for more records")
    batch_records: int = Field(2_000, ge=1, description="records in one transaction at most")
    buffer_records: int = Field(
        20_000, ge=1, description="records per partition (and trades per hole) that may wait; then the socket waits"
    )

    @property
    def future_tolerance_us(self) -> int:
        """In microseconds."""
        return self._future_tolerance_us

    def model_post_init(self, context: Any, /) -> None:
        """Values that the hot path reads."""
        self._future_tolerance_us = round(self.future_tolerance_s * 1_000_000)

    _future_tolerance_us: int = PrivateAttr(0)
    _split = field_validator("symbols", mode="before")(split_commas)

    @field_validator("symbols")
    @classmethod
    def _well_formed(cls, value: tuple[str, ...]) -> Any:
        if not value:
            raise ValueError("name at least one symbol, such as ETHUSDT")
        for symbol in value:
            if not (PATTERN if "*" in symbol else NAME).fullmatch(symbol):
                raise ValueError(f"{symbol!r} is not a symbol: capital letters and digits, such as ETHUSDT or *USDT")
        return tuple(dict.fromkeys(value))
