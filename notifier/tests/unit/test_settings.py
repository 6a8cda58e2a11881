"""Wrong settings are refused with one line that names the remedy and shows no secret."""

from __future__ import annotations

import pytest
from marketflow_common.settings import InvalidSettings, describe, load
from marketflow_notifier.app import open_channels
from marketflow_notifier.settings import NotifierSettings

SECRET = "1234:very-secret"


def problem(monkeypatch: pytest.MonkeyPatch, **values: str) -> str:
    for name, value in values.items():
        monkeypatch.setenv(f"MARKETFLOW_NOTIFIER_{name}", value)
    with pytest.raises(InvalidSettings) as error:
        load(NotifierSettings)
    return str(error.value)


def test_without_any_channel_it_says_which_settings_make_one(monkeypatch: pytest.MonkeyPatch) -> None:
    assert problem(monkeypatch) == (
        "no channel to notify: set MARKETFLOW_NOTIFIER_TELEGRAM_TOKEN and MARKETFLOW_NOTIFIER_TELEGRAM_CHAT_ID "
        "for Telegram, or MARKETFLOW_NOTIFIER_DISCORD_WEBHOOK_URL for Discord, or both"
    )


def test_a_token_without_a_chat_is_refused_without_showing_the_token(monkeypatch: pytest.MonkeyPatch) -> None:
    text = problem(monkeypatch, TELEGRAM_TOKEN=SECRET)
    assert "set MARKETFLOW_NOTIFIER_TELEGRAM_CHAT_ID" in text
    assert SECRET not in text


def test_a_webhook_that_is_no_address_is_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    text = problem(monkeypatch, DISCORD_WEBHOOK_URL=SECRET)
    assert "MARKETFLOW_NOTIFIER_DISCORD_WEBHOOK_URL" in text
    assert SECRET not in text


def test_an_unknown_event_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    text = problem(monkeypatch, DISCORD_WEBHOOK_URL="https://x/y", EVENTS="signal, fills")
    assert "MARKETFLOW_NOTIFIER_EVENTS" in text
    assert "fills is not among signal, order_filled" in text


@pytest.mark.parametrize(
    ("values", "names"),
    [
        ({"TELEGRAM_TOKEN": SECRET, "TELEGRAM_CHAT_ID": "-100"}, ["telegram"]),
        ({"DISCORD_WEBHOOK_URL": "https://discord.com/api/webhooks/1/x"}, ["discord"]),
        ({"STAND_IN_URL": "http://127.0.0.1:9071"}, ["telegram", "discord"]),
    ],
)
def test_each_channel_is_open_where_it_is_set(
    monkeypatch: pytest.MonkeyPatch, values: dict[str, str], names: list[str]
) -> None:
    for name, value in values.items():
        monkeypatch.setenv(f"MARKETFLOW_NOTIFIER_{name}", value)
    settings = load(NotifierSettings)
    channels = open_channels(settings)
    assert [channel.name for channel in channels] == names
    for channel in channels:
        channel.close()
    assert SECRET not in repr(settings)


def test_every_setting_has_a_meaning() -> None:
    assert all(meaning for _, _, meaning in describe(NotifierSettings))
