"""Settings of the loader: one prefix, every field with a default or a clear error.

Must never read anything but the environment.
"""

from __future__ import annotations

from typing import Literal, Self

from marketflow_common.settings import ServiceSettings, SnowflakeSettings, prefix
from pydantic import Field, model_validator

__all__ = ["LoaderSettings"]


class LoaderSettings(ServiceSettings):
    """What the loader can be told, besides Kafka's and Snowflake's settings."""

    model_config = prefix("LOADER")

    http_port: int = Field(9106, ge=0, le=65535, description="port of /metrics, /healthz and /readyz; 0: any free one")
    backend: Literal["copy", "streaming"] = Field(
        "copy", description="copy: Parquet files, PUT and COPY; streaming: Snowpipe Streaming, on a Snowflake account"
    )
    flush_rows: int = Field(
        10_000, ge=1, description="records that make a flush due; at most three times as many wait in memory"
    )
    flush_bytes: int = Field(
        8_000_000, ge=1, description="bytes of records that make a flush due; about three times as many wait in memory"
    )
    flush_seconds: float = Field(1.0, gt=0, description="age of the oldest waiting record that makes a flush due")
    patience_seconds: float = Field(
        20.0, gt=0, description="at a rebalance, seconds to wait for a warehouse that is away before leaving the group"
    )
    snowflake: SnowflakeSettings = Field(default_factory=lambda: SnowflakeSettings())

    @model_validator(mode="after")
    def _streaming_needs_an_account(self) -> Self:
        if self.backend == "streaming" and not self.snowflake.private_key_file:
            raise ValueError(
                "MARKETFLOW_LOADER_BACKEND=streaming needs MARKETFLOW_SNOWFLAKE_PRIVATE_KEY_FILE: "
                "Snowpipe Streaming knows no passwords; take copy, or give the user a key pair (loader/README.md)"
            )
        return self
