"""The outside: Telegram and Discord over HTTP, each as "take this text, or say why not".

Must never let a token or a webhook's address into an error's text, nor decide what is sent.
"""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any, Protocol

import httpx
import telegram
from telegram import error as telegram_error
from telegram.request import HTTPXRequest

__all__ = ["Away", "Broken", "Channel", "Discord", "Refused", "Telegram"]


class Away(Exception):
    """The channel cannot take a message now; ``seconds``: it said for how long."""

    def __init__(self, reason: str, seconds: float | None = None) -> None:
        super().__init__(reason)
        self.seconds = seconds


class Refused(Exception):
    """The channel answered 400: it will not take this text, or does not know the chat."""


class Broken(Exception):
    """A person has to do something: the token, chat or webhook is wrong. The text says what."""


class Channel(Protocol):
    """One place that messages go to. Used by one thread."""

    name: str
    limit: int
    """Most UTF-16 units in one message."""

    def send(self, text: str) -> None:
        """Returns once the channel has the message. Raises Away, Refused or Broken."""

    def close(self) -> None:
        """Give up the connection."""


class Telegram:
    """A bot that writes to one chat (core.telegram.org/bots/api#sendmessage)."""

    name = "telegram"
    limit = 4096

    def __init__(self, url: str, token: str, chat_id: str, timeout: float) -> None:
        self._token, self._chat_id = token, chat_id
        self._request = HTTPXRequest(
            connection_pool_size=1,
            connect_timeout=timeout,
            read_timeout=timeout,
            write_timeout=timeout,
            pool_timeout=timeout,
        )
        self._bot = telegram.Bot(token, base_url=url, request=self._request)
        # The library is asynchronous and its connections belong to one loop: this channel's own.
        self._loop = asyncio.Runner()

    def send(self, text: str) -> None:
        try:
            self._loop.run(self._bot.send_message(self._chat_id, text, disable_web_page_preview=True))
        except telegram_error.RetryAfter as error:
            wait = error.retry_after
            seconds = wait.total_seconds() if isinstance(wait, timedelta) else float(wait)
            raise Away("Telegram asks to slow down", seconds) from None
        except telegram_error.ChatMigrated as error:
            raise Broken(
                f"the group has become a supergroup: set MARKETFLOW_NOTIFIER_TELEGRAM_CHAT_ID to {error.new_chat_id}"
            ) from None
        except telegram_error.BadRequest as error:
            raise Refused(self._safe(error)) from None
        except telegram_error.InvalidToken as error:
            raise Broken(
                f"Telegram does not accept the bot's token ({self._safe(error)}): "
                "set MARKETFLOW_NOTIFIER_TELEGRAM_TOKEN"
            ) from None
        except telegram_error.Forbidden as error:
            raise Broken(
                f"the bot may not write to chat {self._chat_id} ({self._safe(error)}): "
                "add it there, or set MARKETFLOW_NOTIFIER_TELEGRAM_CHAT_ID"
            ) from None
        except telegram_error.TelegramError as error:
            raise Away(self._safe(error)) from None

    def close(self) -> None:
        self._loop.run(self._request.shutdown())
        self._loop.close()

    def _safe(self, error: Exception) -> str:
        return str(error).replace(self._token, "***")[:300]


class Discord:
    """A webhook (discord.com/developers/docs/resources/webhook#execute-webhook)."""

    name = "discord"
    limit = 2000

    def __init__(self, url: str, timeout: float) -> None:
        self._url = url
        self._client = httpx.Client(timeout=timeout)

    def send(self, text: str) -> None:
        # allowed_mentions: a reason that contains "@everyone" must not ring at everyone's.
        content = {"content": text, "allowed_mentions": {"parse": []}}
        try:
            # wait: answer when the message is kept; without it a message that is not kept is no error.
            answer = self._client.post(self._url, params={"wait": "true"}, json=content)
        except httpx.HTTPError as error:
            raise Away(f"{type(error).__name__}: {self._safe(str(error))}") from None
        except httpx.InvalidURL:
            raise Broken("the webhook's address is no URL: set MARKETFLOW_NOTIFIER_DISCORD_WEBHOOK_URL") from None
        status = answer.status_code
        if answer.is_success:
            return
        said = self._safe(answer.text)
        if status == 429:
            raise Away("Discord asks to slow down", _retry_after(answer))
        if status == 400:
            raise Refused(said)
        if status in (401, 403, 404):
            raise Broken(
                f"Discord does not know the webhook (HTTP {status}, {said}): "
                "set MARKETFLOW_NOTIFIER_DISCORD_WEBHOOK_URL"
            )
        raise Away(f"HTTP {status}, {said}")

    def close(self) -> None:
        self._client.close()

    def _safe(self, text: str) -> str:
        return text.replace(self._url, "***").replace(self._url.rpartition("/")[2], "***")[:300]


def _retry_after(answer: httpx.Response) -> float | None:
    """Seconds to wait: the body's ``retry_after`` (finer), else the header."""
    try:
        body: Any = answer.json()
        return float(body["retry_after"])
    except (ValueError, KeyError, TypeError):
        pass
    try:
        return float(answer.headers["Retry-After"])
    except (ValueError, KeyError):
        return None
