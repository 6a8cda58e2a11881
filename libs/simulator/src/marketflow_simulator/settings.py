"""The simulator's settings: MARKETFLOW_SIMULATOR_<NAME> in the environment, or --<name> on the command line.

Nothing else reads the environment. A wrong value is refused with one line that names it.
"""

import argparse
from collections.abc import Sequence
from datetime import UTC, datetime
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import Field, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from marketflow_simulator.klines import MINUTE_US
from marketflow_simulator.records import FillRule
from marketflow_simulator.symbols import spec_of

PREFIX: Final = "MARKETFLOW_SIMULATOR_"


class SettingsError(Exception):
    """A setting is wrong; the message is one line that names it."""


class Settings(BaseSettings):
    """Every setting with its default."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, env_ignore_empty=True, extra="ignore", frozen=True)

    host: str = Field("127.0.0.1", description="address to listen on")
    port: int = Field(9080, ge=0, le=65535, description="port for REST, streams and control; 0 takes a free one")
    symbols: Annotated[tuple[str, ...], NoDecode] = Field(
        ("BTCUSDT", "ETHUSDT", "SOLUSDT"),
        description="comma-separated; of a recording, all symbols unless some are named here",
    )
    seed: int = Field(7, ge=0, description="the synthetic market's seed")
    speed: float | Literal["max"] = Field(
        1.0, description="market seconds per wall second, or max: as fast as the readers take it"
    )
    replay: Path | None = Field(None, description="capture or trade dump to replay; empty: synthetic market")
    minutes: int = Field(0, ge=0, description="market minutes until the synthetic market ends; 0: for ever")
    start: datetime = Field(
        datetime(2024, 1, 1, tzinfo=UTC), description="market time at which the synthetic market starts"
    )
    autostart: bool = Field(True, description="false: the market waits for POST /sim/market/start")
    api_key: str = Field("simulator", min_length=1, description="the account's API key, a public constant")
    api_secret: str = Field("simulator-secret", min_length=1, description="the account's secret, a public constant")
    balances: Annotated[dict[str, Decimal], NoDecode] = Field(
        {"USDT": Decimal(100000)}, description="what the account holds at first: USDT:100000,BTC:0.5"
    )
    fee_rate: Decimal = Field(Decimal("0.001"), ge=0, lt=1, description="commission, a share of what a fill receives")
    bnb_discount: Decimal = Field(
        Decimal(0), ge=0, lt=1, description="above 0: commission is paid in BNB, if there is enough, less this share"
    )
    fill: FillRule = Field(
        "last_trade",
        description="what a market order fills at: last_trade, next_trade (the first one after it), or after_id (the "
        "first one whose id is above its strategyId)",
    )
    ed25519_api_key: str = Field("simulator-ed25519", min_length=1, description="API key of the Ed25519 key pair")
    ed25519_public_key: str = Field(
        "", description="public key that goes with it, in PEM or a file with it; empty: that API key is unknown"
    )
    state: Path | None = Field(None, description="folder that keeps books and market time; empty: in memory")
    weight_limit: int = Field(6000, ge=0, description="request weight per minute before 429; 0: no limit")
    order_limit: int = Field(100, ge=0, description="unfilled orders per ten seconds before 429; 0: no limit")

    @field_validator("replay", "state", mode="before")
    @classmethod
    def _empty_is_none(cls, value: Any) -> Any:
        return None if value == "" else value

    @field_validator("symbols", mode="before")
    @classmethod
    def _split_symbols(cls, value: Any) -> Any:
        if isinstance(value, str):
            value = tuple(part.strip().upper() for part in value.split(",") if part.strip())
        return value

    @field_validator("symbols")
    @classmethod
    def _known_symbols(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if not value:
            raise ValueError("name at least one symbol")
        if len(set(value)) != len(value):
            raise ValueError("a symbol is named twice")
        for symbol in value:
            spec_of(symbol)
        return value

    @field_validator("speed")
    @classmethod
    def _positive(cls, value: float | str) -> float | str:
        if isinstance(value, float) and not 0 < value <= 100_000:
            raise ValueError("has to be above 0 and at most 100000, or max")
        return value

    @field_validator("start")
    @classmethod
    def _on_a_minute(cls, value: datetime) -> datetime:
        value = value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)
        if value.second or value.microsecond:
            raise ValueError("has to be a minute's edge, such as 2024-01-01T00:00:00Z")
        return value

    @field_validator("balances", mode="before")
    @classmethod
    def _split_balances(cls, value: Any) -> Any:
        if not isinstance(value, str):
            return value
        balances: dict[str, Decimal] = {}
        for part in filter(None, (part.strip() for part in value.split(","))):
            asset, _, amount = part.partition(":")
            try:
                balances[asset] = Decimal(amount)
            except InvalidOperation as error:
                raise ValueError(f"{part!r} is not ASSET:AMOUNT, such as USDT:100000") from error
        return balances

    @field_validator("balances")
    @classmethod
    def _whole_balances(cls, value: dict[str, Decimal]) -> dict[str, Decimal]:
        for asset, amount in value.items():
            if not (asset.isascii() and asset.isalnum() and asset == asset.upper()):
                raise ValueError(f"{asset!r} is not an asset, such as USDT")
            if not amount.is_finite() or not 0 <= amount < 10**11 or amount != round(amount, 8):
                raise ValueError(f"{asset}:{amount} has to be 0 or more, with at most eight decimals")
        return value

    @field_validator("fee_rate", "bnb_discount")
    @classmethod
    def _whole_fee(cls, value: Decimal) -> Decimal:
        if value != round(value, 8):
            raise ValueError("has to have at most eight decimals")
        return value

    @model_validator(mode="after")
    def _one_market(self) -> "Settings":
        if self.replay is not None and self.minutes:
            raise ValueError("minutes only goes with a synthetic market, a replay ends with its recording")
        return self

    @property
    def start_us(self) -> int:
        """Start of the synthetic market in microseconds since the epoch."""
        return int(self.start.timestamp()) // 60 * MINUTE_US


def parse(arguments: Sequence[str]) -> Settings:
    """Settings from the command line, then the environment, then the defaults; SettingsError if wrong."""
    parser = argparse.ArgumentParser(
        prog="marketflow-simulator",
        description="A Binance spot exchange that runs on a laptop: streams, signed orders, a ledger, faults.",
        epilog=f"Each setting can be given in the environment as {PREFIX}<NAME>; the command line goes first.",
    )
    for name, field in Settings.model_fields.items():
        option = f"--{name.replace('_', '-')}"
        text = f"{field.description} (default {_shown(field.default)})".replace("%", "%%")
        parser.add_argument(option, dest=name, default=None, metavar=name.upper(), help=text)
    given = {name: value for name, value in vars(parser.parse_args(arguments)).items() if value is not None}
    try:
        return Settings(**given)
    except ValidationError as error:
        first = error.errors()[0]
        where = str(first["loc"][0]) if first["loc"] else ""
        message = first["msg"].removeprefix("Value error, ")
        if where:
            expected = Settings.model_fields[where].description
            message = f"{PREFIX}{where.upper()}={first['input']!r}: {message} (expected: {expected})"
        raise SettingsError(f"wrong setting: {message}") from error


def _shown(default: Any) -> str:
    if isinstance(default, tuple):
        return ",".join(default)
    if isinstance(default, dict):
        return ",".join(f"{asset}:{amount}" for asset, amount in default.items())
    if isinstance(default, datetime):
        return default.strftime("%Y-%m-%dT%H:%M:%SZ")
    if isinstance(default, bool):
        return str(default).lower()
    return "empty" if default is None else str(default)
