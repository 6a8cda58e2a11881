"""Settings: defaults, precedence, and one clear line for a wrong one."""

from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import get_args

import pytest
from marketflow_simulator.faults import Kind
from marketflow_simulator.settings import PREFIX, Settings, SettingsError, parse


@pytest.fixture(autouse=True)
def _clean(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in Settings.model_fields:
        monkeypatch.delenv(PREFIX + name.upper(), raising=False)


def test_the_defaults_are_as_documented() -> None:
    settings = parse([])
    assert (settings.host, settings.port, settings.seed, settings.speed) == ("127.0.0.1", 9080, 7, 1.0)
    assert settings.symbols == ("BTCUSDT", "ETHUSDT", "SOLUSDT")
    assert settings.balances == {"USDT": Decimal(100000)}
    assert settings.start_us == 1_704_067_200_000_000
    assert settings.replay is None
    assert settings.autostart


def test_the_command_line_goes_before_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(PREFIX + "SPEED", "60")
    monkeypatch.setenv(PREFIX + "SYMBOLS", "ethusdt, btcusdt")
    monkeypatch.setenv(PREFIX + "BALANCES", "USDT:1.5,BTC:0.00000001")
    monkeypatch.setenv(PREFIX + "REPLAY", "")
    settings = parse(["--speed", "max", "--start", "2024-08-08T23:54:00Z", "--autostart", "false"])
    assert settings.speed == "max"
    assert settings.symbols == ("ETHUSDT", "BTCUSDT")
    assert settings.balances == {"USDT": Decimal("1.5"), "BTC": Decimal("0.00000001")}
    assert settings.replay is None
    assert settings.start == datetime(2024, 8, 8, 23, 54, tzinfo=UTC)
    assert not settings.autostart
    assert parse([]).speed == 60


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("port", "99999", "less than or equal to 65535"),
        ("speed", "fast", "SPEED='fast'"),
        ("speed", "0", "above 0"),
        ("speed", "nan", "above 0"),
        ("symbols", "", "name at least one symbol"),
        ("symbols", "BTC-USDT", "not of capital letters"),
        ("symbols", "BTCXXX", "none of the quote assets"),
        ("symbols", "BTCUSDT,BTCUSDT", "named twice"),
        ("balances", "USDT", "is not ASSET:AMOUNT"),
        ("balances", "USDT:-1", "has to be 0 or more"),
        ("balances", "USDT:1.000000001", "at most eight decimals"),
        ("start", "2024-01-01T00:00:01Z", "a minute's edge"),
        ("start", "yesterday", "START='yesterday'"),
        ("fee_rate", "0.0000000001", "at most eight decimals"),
        ("minutes", "-1", "greater than or equal to 0"),
    ],
)
def test_a_wrong_value_is_refused_in_one_line_that_names_it(name: str, value: str, message: str) -> None:
    with pytest.raises(SettingsError, match=message) as error:
        parse([f"--{name.replace('_', '-')}", value])
    assert PREFIX + name.upper() in str(error.value)
    assert "\n" not in str(error.value)


def test_minutes_do_not_go_with_a_replay() -> None:
    with pytest.raises(SettingsError, match="minutes only goes with a synthetic market"):
        parse(["--replay", str(Path("some.jsonl")), "--minutes", "3"])


def test_help_lists_every_setting(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        parse(["--help"])
    assert exit_.value.code == 0
    text = capsys.readouterr().out
    for name in Settings.model_fields:
        assert f"--{name.replace('_', '-')}" in text


def test_the_readme_names_every_setting_and_every_fault() -> None:
    readme = (Path(__file__).parents[2] / "README.md").read_text()
    for name in Settings.model_fields:
        assert f"`{name.upper()}`" in readme
    for kind in (part for group in get_args(Kind) for part in (get_args(group) or (group,))):
        assert f"| `{kind}` |" in readme


def test_an_empty_variable_is_as_good_as_none(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SPEED", "PORT", "SYMBOLS", "STATE", "MINUTES"):
        monkeypatch.setenv(PREFIX + name, "")
    assert parse([]) == Settings()
