"""The ingestor's settings: every wrong one is named, with what was got and what is wanted."""

from __future__ import annotations

import pytest
from marketflow_common.settings import InvalidSettings, describe, load
from marketflow_ingestor.settings import Settings


def test_the_defaults_are_binances_public_endpoints() -> None:
    settings = load(Settings)
    assert settings.ws_url == "wss://stream.binance.com:9443"
    assert settings.rest_url == "https://api.binance.com"
    assert settings.http_port == 9101


def test_symbols_come_separated_by_commas_and_count_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MARKETFLOW_INGESTOR_SYMBOLS", "ETHUSDT, BTCUSDT,ETHUSDT")
    assert load(Settings).symbols == ("ETHUSDT", "BTCUSDT")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("SYMBOLS", ""),
        ("SYMBOLS", "ethusdt"),
        ("SYMBOLS", "ETH/USDT"),
        ("SYMBOLS", "*usdt"),
        ("SYMBOLS", "ETH?USDT"),
        ("WS_URL", "https://stream.binance.com"),
        ("WS_URL", "wss://stream.binance.com:9443/ws"),
        ("REST_URL", "api.binance.com"),
        ("FILL_DEADLINE_S", "0"),
        ("BATCH_RECORDS", "many"),
    ],
)
def test_a_wrong_value_is_refused_by_name(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(f"MARKETFLOW_INGESTOR_{name}", value)
    with pytest.raises(InvalidSettings, match=f"MARKETFLOW_INGESTOR_{name}"):
        load(Settings)


def test_every_setting_says_what_it_means() -> None:
    assert all(text for _, _, text in describe(Settings))


def test_the_readme_lists_every_setting_with_its_default(pytestconfig: pytest.Config) -> None:
    readme = (pytestconfig.rootpath / "ingestor" / "README.md").read_text()
    for name, default, _ in describe(Settings):
        if name.startswith("MARKETFLOW_INGESTOR_"):
            assert f"`{name.removeprefix('MARKETFLOW_INGESTOR_')}`" in readme
            assert not default or f"`{default.removesuffix('.0')}`" in readme, name
