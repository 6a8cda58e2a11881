"""Settings: what runs with which parameters, and one clear message when that cannot be."""

from __future__ import annotations

import json

import pytest
from marketflow_common import settings as common
from marketflow_common.service import EXIT_CONFIG
from marketflow_strategy.__main__ import main
from marketflow_strategy.settings import Settings, make_strategies
from marketflow_strategy.signals import canonical


def test_by_default_both_built_in_strategies_run() -> None:
    assert [s.name for s in make_strategies(common.load(Settings))] == ["weak_levels", "band"]


def test_parameters_are_given_as_json_by_strategy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MARKETFLOW_STRATEGY_STRATEGIES", "band")
    monkeypatch.setenv("MARKETFLOW_STRATEGY_PARAMETERS", json.dumps({"band": {"buy_factor": "1.00025"}}))
    (band,) = make_strategies(common.load(Settings))
    assert canonical(band.parameters) == '{"buy_factor":"1.00025","momentum_window":1,"sell_factor":"0.992"}'


@pytest.mark.parametrize(
    ("strategies", "parameters", "said"),
    [
        ("weak_level", "{}", "there is no strategy 'weak_level'; installed are band, weak_levels"),
        ("band", '{"band": {"buy_factr": 1}}', "band: buy_factr: Extra inputs are not permitted; it takes buy_factor"),
        ("band", '{"band": {"buy_factor": "-1"}}', "band: buy_factor: Input should be greater than 0"),
        ("band", '{"weak_levels": {}}', "there are parameters for weak_levels, which MARKETFLOW_STRATEGY_STRATEGIES"),
        ("band", "{", "MARKETFLOW_STRATEGY_PARAMETERS is not JSON"),
        ("weak_levels", '{"weak_levels": {"lookback": 5}}', "lookback is 5, but the windows need 11 candles"),
    ],
)
def test_what_cannot_be_is_one_clear_error_at_start(
    strategies: str,
    parameters: str,
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("MARKETFLOW_STRATEGY_STRATEGIES", strategies)
    monkeypatch.setenv("MARKETFLOW_STRATEGY_PARAMETERS", parameters)
    monkeypatch.setattr("sys.argv", ["marketflow-strategy"])
    assert main() == EXIT_CONFIG
    assert said in capsys.readouterr().err
