"""Wiring of the notifier: a sink, a consumer group and a thread for each channel.

Must never decide anything: settings in, threads out.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping
from functools import partial

from marketflow_common.health import Health
from marketflow_common.kafka.sink import Limits, Sink
from marketflow_common.topics import ORDER_EVENTS, TRADING_SIGNALS

from .channels import Channel, Discord, Telegram
from .delivery import Delivery
from .settings import NotifierSettings

__all__ = ["main", "open_channels"]

MOST_ROWS = 2_000
"""Records that may wait in memory for each channel; more stay at the broker."""


class _Shared:
    """One process's health, told by several channels: ready when all are, alive while all are."""

    def __init__(self, health: Health, channels: list[str]) -> None:
        self._health, self._lock = health, threading.Lock()
        self._open = dict.fromkeys(channels, False)
        self._trouble: dict[str, str | None] = dict.fromkeys(channels)
        self._silent = set(channels)

    def beat(self, channel: str) -> None:
        with self._lock:
            self._silent.discard(channel)
            if not self._silent:
                self._health.beat()
                self._silent = set(self._open)

    def ready(self, channel: str, is_open: bool) -> None:
        with self._lock:
            self._open[channel] = is_open
            self._tell()

    def trouble(self, channel: str, what: str | None) -> None:
        with self._lock:
            self._trouble[channel] = what
            self._tell()

    def detail(self, channel: str, details: Mapping[str, object]) -> None:
        with self._lock:
            self._health.detail(**{f"{channel}_{name}": value for name, value in details.items()})

    def _tell(self) -> None:
        reasons = [f"{name}: {what}" for name, what in self._trouble.items() if what]
        reasons += [f"{name}: no partitions yet" for name, is_open in self._open.items() if not is_open]
        self._health.ready(not reasons, "; ".join(reasons))
        self._health.detail(channels={name: self._trouble[name] or "well" for name in self._open})


class _ChannelHealth(Health):
    """What one channel's sink says about itself; it serves nothing of its own."""

    def __init__(self, shared: _Shared, channel: str) -> None:
        self._shared, self._channel = shared, channel

    def beat(self) -> None:
        self._shared.beat(self._channel)

    def ready(self, is_ready: bool, reason: str = "") -> None:
        self._shared.ready(self._channel, is_ready)

    def detail(self, **details: object) -> None:
        self._shared.detail(self._channel, details)


def open_channels(settings: NotifierSettings) -> list[Channel]:
    """The channels that the settings name; a stand-in takes the place of those they do not."""
    # Says that retry_after may be a timedelta; the library warns at every RetryAfter without it.
    os.environ.setdefault("PTB_TIMEDELTA", "true")
    channels: list[Channel] = []
    stand_in = settings.stand_in_url.rstrip("/")
    if settings.telegram_token:
        token = settings.telegram_token.get_secret_value()
        channels.append(
            Telegram(settings.telegram_url, token, settings.telegram_chat_id, settings.timeout_seconds),
        )
    elif stand_in:
        channels.append(Telegram(f"{stand_in}/bot", "0:stand-in", "1", settings.timeout_seconds))
    if settings.discord_webhook_url:
        channels.append(Discord(settings.discord_webhook_url.get_secret_value(), settings.timeout_seconds))
    elif stand_in:
        channels.append(Discord(f"{stand_in}/api/webhooks/1/stand-in", settings.timeout_seconds))
    return channels


def main(settings: NotifierSettings, health: Health, stop: threading.Event) -> None:
    """Notify until ``stop``. The first thread that fails ends all of them, and its error is raised."""
    channels = open_channels(settings)
    shared = _Shared(health, [channel.name for channel in channels])
    failures: list[BaseException] = []

    def work(channel: Channel) -> None:
        delivery = Delivery(channel, settings.events, settings.batch_seconds, partial(shared.trouble, channel.name))
        sink = Sink(
            settings.kafka,
            f"notifier-{channel.name}",
            (TRADING_SIGNALS, ORDER_EVENTS),
            delivery,
            _ChannelHealth(shared, channel.name),
            Limits(rows=MOST_ROWS, seconds=settings.batch_seconds),
        )
        try:
            sink.run(stop)
        except BaseException as error:  # noqa: BLE001 - raised by the main thread
            failures.append(error)
        finally:
            stop.set()
            channel.close()

    threads = [threading.Thread(target=work, args=(channel,), name=channel.name) for channel in channels]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]
