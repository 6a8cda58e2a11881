"""Settings from the environment, one prefix (``MARKETFLOW_``), every field with a default or a clear error.

Must never read a file or hold a secret in plain text where it could be printed.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeVar

from pydantic import Field, SecretStr, ValidationError
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

__all__ = [
    "CommaList",
    "InvalidSettings",
    "KafkaSettings",
    "ServiceSettings",
    "SnowflakeSettings",
    "describe",
    "load",
    "prefix",
]

PREFIX = "MARKETFLOW_"
CommaList = Annotated[tuple[str, ...], NoDecode]
"""A list in one variable, separated by commas; the model needs a validator that splits (see split_commas)."""
S = TypeVar("S", bound=BaseSettings)


class InvalidSettings(ValueError):
    """One or more settings are wrong; the text has a line for each, with the variable's name and the remedy."""


def prefix(part: str) -> SettingsConfigDict:
    """pydantic configuration of the settings of one part: ``MARKETFLOW_<PART>_<FIELD>``."""
    return SettingsConfigDict(env_prefix=f"{PREFIX}{part}_", extra="ignore", frozen=True, validate_default=True)


class KafkaSettings(BaseSettings):
    """How to reach Kafka."""

    model_config = prefix("KAFKA")

    bootstrap_servers: str = Field("127.0.0.1:9092", description="host:port of one or more brokers")
    topic_prefix: str = Field(
        "",
        pattern=r"^[a-zA-Z0-9._-]*$",
        description="put before topic, group and transaction names; for shared clusters",
    )
    security_protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = Field(
        "PLAINTEXT", description="PLAINTEXT, SSL, SASL_PLAINTEXT or SASL_SSL"
    )
    sasl_mechanism: str = Field("", description="PLAIN, SCRAM-SHA-256 or SCRAM-SHA-512; needed with SASL_*")
    sasl_username: str = Field("", description="user name for SASL")
    sasl_password: SecretStr = Field(SecretStr(""), description="password for SASL")
    ssl_ca_location: str = Field("", description="file of the certificate authority; empty: the system's")
    session_timeout_ms: int = Field(
        6_000, ge=1_000, description="after this long without a heartbeat a member's partitions go to another"
    )
    transaction_timeout_ms: int = Field(
        10_000, ge=1_000, description="after this long the broker aborts a transaction that nobody ended"
    )

    def topic(self, name: str) -> str:
        """Name of a topic, group or transactional id in this cluster."""
        return self.topic_prefix + name


class SnowflakeSettings(BaseSettings):
    """How to reach Snowflake, or a local warehouse that speaks its protocol."""

    model_config = prefix("SNOWFLAKE")

    account: str = Field(
        min_length=1, description="account identifier, as orgname-account; any word for a local warehouse"
    )
    user: str = Field(min_length=1, description="user name")
    password: SecretStr = Field(SecretStr(""), description="password; services should have a key pair instead")
    private_key_file: str = Field("", description="PEM file of the user's private key; taken before the password")
    private_key_password: SecretStr = Field(
        SecretStr(""), description="password of the private key file, if it has one"
    )
    host: str = Field("", description="host of the warehouse; empty: derived from the account")
    port: int = Field(443, ge=1, le=65535, description="port of the warehouse")
    protocol: Literal["https", "http"] = Field("https", description="https; http for a local warehouse only")
    warehouse: str = Field("", description="virtual warehouse that runs the statements; empty: the user's default")
    role: str = Field("", description="role to work under; empty: the user's default")
    database: str = Field(
        "MARKETFLOW",
        pattern=r"^[A-Z_][A-Z0-9_]*$",
        description="database that holds RAW, STAGING, ANALYTICS, MONITORING",
    )
    network_timeout: int = Field(
        30, ge=1, description="seconds for which a failing request is tried again, and that one statement may take"
    )

    def connect_arguments(self, part: str, database: bool = True) -> dict[str, Any]:
        """Keyword arguments of ``snowflake.connector.connect``; queries are tagged ``marketflow/<part>``.

        ``database=False`` names none, for whoever is to create it.
        """
        arguments: dict[str, Any] = {
            "account": self.account,
            "user": self.user,
            "network_timeout": self.network_timeout,
            "login_timeout": self.network_timeout,
            "application": "MarketFlow",
            # Detection asks a cloud's metadata address, which does not answer elsewhere.
            "platform_detection_timeout_seconds": 0,
            "session_parameters": {
                "TIMEZONE": "UTC",
                "QUERY_TAG": f"marketflow/{part}",
                # Less than a statement may take, so that a lock held by another is told apart from a dead network.
                "LOCK_TIMEOUT": max(1, self.network_timeout // 2),
                "CLIENT_TELEMETRY_ENABLED": False,
            },
        }
        if self.private_key_file:
            arguments["private_key_file"] = self.private_key_file
            arguments["private_key_file_pwd"] = self.private_key_password.get_secret_value() or None
        else:
            arguments["password"] = self.password.get_secret_value()
        if self.host:
            arguments |= {"host": self.host, "port": self.port, "protocol": self.protocol}
        optional = {"warehouse": self.warehouse, "role": self.role, "database": self.database if database else ""}
        return arguments | {name: value for name, value in optional.items() if value}


class _LogSettings(BaseSettings):
    model_config = prefix("LOG")

    level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field("INFO", description="least severity that is logged")
    format: Literal["json", "text"] = Field("json", description="json: one object a line; text: for reading")


class ServiceSettings(BaseSettings):
    """What every service has. A service's own class adds its fields and its prefix."""

    http_host: str = Field("127.0.0.1", description="address of /metrics, /healthz and /readyz")
    http_port: int = Field(0, ge=0, le=65535, description="port of /metrics, /healthz and /readyz; 0: any free one")
    kafka: KafkaSettings = Field(default_factory=lambda: KafkaSettings())
    log: _LogSettings = Field(default_factory=lambda: _LogSettings())


def split_commas(value: Any) -> Any:
    """Validator (mode="before") for CommaList: ``"a, b"`` to ``("a", "b")``."""
    if isinstance(value, str):
        return tuple(part.strip() for part in value.split(",") if part.strip())
    return value


def load(kind: type[S]) -> S:
    """Read settings of a kind from the environment. Raises InvalidSettings, naming every wrong variable."""
    problems = _unknown(kind, os.environ)
    parts: dict[str, Any] = {}
    for name, part in _nested(kind).items():
        try:
            parts[name] = part()
        except ValidationError as error:
            problems += _problems(part, error)
            parts[name] = part.model_construct()
    try:
        settings = kind(**parts)
    except ValidationError as error:
        problems += _problems(kind, error)
        raise InvalidSettings("\n".join(problems)) from None
    if problems:
        raise InvalidSettings("\n".join(problems))
    return settings


def describe(kind: type[BaseSettings]) -> list[tuple[str, str, str]]:
    """Name, default and meaning of every variable of a kind, nested kinds last."""
    rows = []
    nested = _nested(kind)
    for name, field in kind.model_fields.items():
        if name in nested:
            continue
        default = field.get_default(call_default_factory=True)
        if isinstance(default, SecretStr):
            default = default.get_secret_value()
        if isinstance(default, dict):
            default = tuple(f"{key}:{value}" for key, value in default.items())
        if isinstance(default, tuple):
            default = ",".join(map(str, default))
        required = field.is_required()
        rows.append(
            (
                f"{kind.model_config.get('env_prefix', '')}{name}".upper(),
                "(required)" if required else "" if default is None else str(default),
                field.description or "",
            )
        )
    return rows + [row for part in nested.values() for row in describe(part)]


def _nested(kind: type[BaseSettings]) -> dict[str, type[BaseSettings]]:
    """Fields that are settings of their own, with their own prefix."""
    return {
        name: field.annotation
        for name, field in kind.model_fields.items()
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseSettings)
    }


def _prefixes(kind: type[BaseSettings]) -> dict[str, str]:
    """Name of a kind and of those nested in it to the prefix of its variables."""
    found = {kind.__name__: str(kind.model_config.get("env_prefix", ""))}
    for field in kind.model_fields.values():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseSettings):
            found |= _prefixes(field.annotation)
    return found


def _unknown(kind: type[BaseSettings], environ: Mapping[str, str]) -> list[str]:
    """A misspelt variable must not be silently without effect."""
    known = [name for name, _, _ in describe(kind)]
    prefixes = {str(kind.model_config.get("env_prefix", ""))} | {"_".join(n.split("_")[:2]) + "_" for n in known}
    problems = []
    for name in environ:
        if name in known or not any(name.startswith(p) for p in prefixes):
            continue
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"; did you mean {near[0]}?" if near else "; --help lists the settings"
        problems.append(f"{name}: there is no such setting{hint}")
    return problems


def _problems(kind: type[BaseSettings], error: ValidationError) -> list[str]:
    lines = []
    for detail in error.errors():
        if not detail["loc"]:
            # A rule over several fields: it names them itself, and its input is all of them, secrets included.
            lines.append(str(detail["msg"]).removeprefix("Value error, "))
            continue
        name = f"{kind.model_config.get('env_prefix', '')}{'_'.join(map(str, detail['loc']))}".upper()
        secret = any(word in name for word in ("SECRET", "TOKEN", "PASSWORD", "KEY", "WEBHOOK"))
        if detail["type"] == "missing":
            text = "is not set and has no default"
        else:
            text = detail["msg"] + ("" if secret else f" (got {detail.get('input')!r})")
        lines.append(f"{name}: {text}; --help lists the settings")
    return lines
