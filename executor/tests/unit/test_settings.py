"""Settings: paper by default, real money only where it was asked for twice, no secret in an error."""

from __future__ import annotations

import base64
from decimal import Decimal
from pathlib import Path
from urllib.parse import unquote_plus

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from marketflow_common.settings import InvalidSettings, load
from marketflow_common.signing import hmac_sha256
from marketflow_executor.settings import ExecutorSettings
from pydantic import SecretStr

LIVE = {
    "MODE": "live",
    "ACCOUNT": "savings",
    "REST_URL": "https://api.binance.com",
    "API_KEY": "a-key",
    "API_SECRET": "a-secret",
    "LIVE_CONFIRMATION": "savings",
}


def given(monkeypatch: pytest.MonkeyPatch, **values: str) -> None:
    for name, value in values.items():
        monkeypatch.setenv(f"MARKETFLOW_EXECUTOR_{name}", value)


def test_paper_is_the_default_and_needs_nothing() -> None:
    settings = load(ExecutorSettings)
    assert (settings.mode, settings.account, settings.http_port) == ("paper", "main", 9104)
    assert settings.limits().order_quote == Decimal(200)


def test_live_starts_only_when_it_is_asked_for_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    given(monkeypatch, **LIVE)
    assert load(ExecutorSettings).mode == "live"
    monkeypatch.setenv("MARKETFLOW_EXECUTOR_LIVE_CONFIRMATION", "yes")
    with pytest.raises(InvalidSettings, match=r"LIVE_CONFIRMATION: .*real money.*'savings'"):
        load(ExecutorSettings)


@pytest.mark.parametrize("missing", ["REST_URL", "API_KEY", "API_SECRET"])
def test_orders_need_an_address_and_a_key(monkeypatch: pytest.MonkeyPatch, missing: str) -> None:
    given(monkeypatch, **(LIVE | {"MODE": "testnet", missing: ""}))
    with pytest.raises(InvalidSettings, match=f"MARKETFLOW_EXECUTOR_{missing}") as raised:
        load(ExecutorSettings)
    assert "a-secret" not in str(raised.value)
    assert "a-key" not in str(raised.value)


def test_a_request_must_not_outlast_its_window(monkeypatch: pytest.MonkeyPatch) -> None:
    given(monkeypatch, RECV_WINDOW_MS="2000", REST_TIMEOUT_S="2")
    with pytest.raises(InvalidSettings, match=r"REST_TIMEOUT_S: .*below RECV_WINDOW_MS"):
        load(ExecutorSettings)


def test_paper_balances_are_read_and_a_wrong_one_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    given(monkeypatch, PAPER_BALANCES="USDT:500, BTC:0.5")
    assert load(ExecutorSettings).paper_balances == {"USDT": Decimal(500), "BTC": Decimal("0.5")}
    given(monkeypatch, PAPER_BALANCES="USDT:NaN")
    with pytest.raises(InvalidSettings, match="USDT:NaN"):
        load(ExecutorSettings)


def test_sizes_and_limits_of_risk_reach_the_decision(monkeypatch: pytest.MonkeyPatch) -> None:
    given(
        monkeypatch,
        SIZING="risk",
        RISK_PCT="1.5",
        STOP_LEVEL="previous_low",
        MAX_DAILY_LOSS_QUOTE="250",
        MAX_DRAWDOWN_PCT="12.5",
        ON_DRAWDOWN="REDUCE_ONLY",
        COOL_DOWN_S="90",
        MAX_ORDERS_PER_MINUTE="6",
        LOTS="fifo",
    )
    limits = load(ExecutorSettings).limits()
    assert (limits.sizing.mode, limits.sizing.risk_pct, limits.sizing.stop_level) == (
        "risk",
        Decimal("1.5"),
        "previous_low",
    )
    assert (limits.risk.max_daily_loss, limits.risk.max_drawdown_pct) == (Decimal(250), Decimal("12.5"))
    assert (limits.risk.on_daily_loss, limits.risk.on_drawdown) == ("REDUCE_ONLY", "REDUCE_ONLY")
    assert (limits.risk.cool_down_ms, limits.risk.max_orders_per_minute) == (90_000, 6)
    assert limits.convention == "fifo"


def test_keys_come_from_files_as_well(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("key", "secret"):
        (tmp_path / name).write_text(f"a-{name}\n")
    files = {"API_KEY_FILE": str(tmp_path / "key"), "API_SECRET_FILE": str(tmp_path / "secret")}
    given(monkeypatch, **(LIVE | {"API_KEY": "", "API_SECRET": ""} | files))
    key, sign = load(ExecutorSettings).key()
    assert key.get_secret_value() == "a-key"
    assert sign("x") == hmac_sha256(SecretStr("a-secret"))("x")


def test_an_ed25519_key_takes_the_place_of_the_secret(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    private = Ed25519PrivateKey.generate()
    file = tmp_path / "key.pem"
    file.write_bytes(private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    given(monkeypatch, **(LIVE | {"API_SECRET": "", "PRIVATE_KEY_FILE": str(file)}))
    _, sign = load(ExecutorSettings).key()
    private.public_key().verify(base64.b64decode(unquote_plus(sign("x"))), b"x")


@pytest.mark.parametrize("name", ["API_KEY_FILE", "API_SECRET_FILE", "PRIVATE_KEY_FILE", "COMMAND_SECRET_FILE"])
def test_a_file_without_a_key_is_named_and_shows_nothing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str
) -> None:
    file = tmp_path / "key"
    file.write_bytes(b"hidden\xff")
    given(monkeypatch, **(LIVE | {name: str(file)}))
    with pytest.raises(InvalidSettings, match=f"MARKETFLOW_EXECUTOR_{name}: .*is no text") as raised:
        load(ExecutorSettings)
    file.write_text("hidden")
    if name == "PRIVATE_KEY_FILE":
        with pytest.raises(InvalidSettings, match="no unencrypted Ed25519 private key") as raised:
            load(ExecutorSettings)
    assert "hidden" not in str(raised.value)
