"""Settings of the notifier, from ``MARKETFLOW_NOTIFIER_*``.

Must never show a secret: tokens and the webhook's address (which is one) are SecretStr.
"""

from __future__ import annotations

from typing import Self

from marketflow_common.settings import CommaList, ServiceSettings, prefix, split_commas
from pydantic import Field, SecretStr, field_validator, model_validator

from .messages import KINDS

__all__ = ["NotifierSettings"]

_HTTP = r"^https?://[^\s]+$"


class NotifierSettings(ServiceSettings):
    """At least one channel is needed: Telegram (token and chat) or Discord (webhook)."""

    model_config = prefix("NOTIFIER")

    http_port: int = Field(9105, ge=0, le=65535, description="port of /metrics, /healthz and /readyz; 0: any free one")
    telegram_token: SecretStr = Field(
        SecretStr(""), description="token of the bot, from @BotFather; empty: no Telegram"
    )
    telegram_chat_id: str = Field("", description="chat to write to: a number, or @name of a public channel")
    telegram_url: str = Field(
        "https://api.telegram.org/bot", pattern=_HTTP, description="Telegram's Bot API, up to where the token follows"
    )
    discord_webhook_url: SecretStr = Field(SecretStr(""), description="address of the webhook; empty: no Discord")
    stand_in_url: str = Field(
        "",
        pattern=r"^(https?://[^\s]+)?$",
        description="where messages go for a channel without token or webhook: a recorder; empty: that channel is off",
    )
    events: CommaList = Field(KINDS, description="what to tell of; signal means BUY and SELL, never HOLD")
    batch_seconds: float = Field(
        1.0, gt=0, le=60, description="least seconds between two messages of a channel; a burst becomes one message"
    )
    timeout_seconds: float = Field(10.0, gt=0, le=30, description="wait this long for an answer to a message")

    _split = field_validator("events", mode="before")(split_commas)

    @field_validator("events")
    @classmethod
    def _known(cls, events: tuple[str, ...]) -> tuple[str, ...]:
        unknown = [name for name in events if name not in KINDS]
        if unknown or not events:
            raise ValueError(f"{', '.join(unknown) or 'nothing'} is not among {', '.join(KINDS)}")
        return events

    @field_validator("discord_webhook_url")
    @classmethod
    def _address(cls, value: SecretStr) -> SecretStr:
        if value and not value.get_secret_value().startswith(("http://", "https://")):
            raise ValueError("must start with https://")
        return value

    @model_validator(mode="after")
    def _one_channel(self) -> Self:
        if not (self.telegram_token or self.discord_webhook_url or self.stand_in_url):
            raise ValueError(
                "no channel to notify: set MARKETFLOW_NOTIFIER_TELEGRAM_TOKEN and MARKETFLOW_NOTIFIER_TELEGRAM_CHAT_ID "
                "for Telegram, or MARKETFLOW_NOTIFIER_DISCORD_WEBHOOK_URL for Discord, or both"
            )
        if self.telegram_token and not self.telegram_chat_id:
            raise ValueError(
                "MARKETFLOW_NOTIFIER_TELEGRAM_TOKEN is set, but not the chat to write to: "
                "set MARKETFLOW_NOTIFIER_TELEGRAM_CHAT_ID"
            )
        return self
