"""The order of start, and the settings of the stack's processes."""

from pathlib import Path

import pytest
from marketflow_stack.errors import StackError
from marketflow_stack.stack import Ports, StackConfig, checkout, client_environment, specs
from marketflow_stack.supervisor import ProcessSpec, in_order, levels


def spec(name: str, *depends_on: str) -> ProcessSpec:
    return ProcessSpec(name=name, argv=["true"], log=Path("log"), depends_on=depends_on)


def test_a_process_comes_after_all_that_it_depends_on() -> None:
    groups = levels([spec("c", "a", "b"), spec("b", "a"), spec("a"), spec("z")])
    assert [[s.name for s in group] for group in groups] == [["a", "z"], ["b"], ["c"]]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([spec("a", "b"), spec("b", "a")], "in a circle: a, b"),
        ([spec("a", "x")], "a depends on x, which is not there"),
        ([spec("a"), spec("a")], "named twice"),
    ],
)
def test_an_order_that_does_not_exist_is_refused(given: list[ProcessSpec], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        in_order(given)


@pytest.fixture
def config(tmp_path: Path) -> StackConfig:
    return StackConfig(
        state=tmp_path,
        replay=Path("trades.jsonl.gz"),
        speed="max",
        symbols=("ETHUSDT",),
        minutes=10,
        autostart=False,
        instances={"aggregator": 2},
        env={"*": {"MARKETFLOW_LOG_LEVEL": "DEBUG"}, "strategy": {"MARKETFLOW_LOG_LEVEL": "ERROR"}},
    )


def test_topics_and_schema_are_made_before_any_service_starts(config: StackConfig) -> None:
    found = {s.name: s for s in specs(config)}
    order = [s.name for s in in_order(list(found.values()))]
    services = ("ingestor", "aggregator", "aggregator-2", "strategy", "executor", "notifier", "loader")
    assert set(order) == {"kafka", "topics", "warehouse", "warehouse-schema", "recorder", "simulator", *services}
    for service in services:
        assert "topics" in found[service].depends_on
    assert "warehouse-schema" in found["loader"].depends_on
    assert "simulator" in found["executor"].depends_on


def test_every_part_is_told_where_the_others_are(config: StackConfig) -> None:
    found = {s.name: s for s in specs(config)}
    assert found["simulator"].env["MARKETFLOW_SIMULATOR_REPLAY"] == str(Path("trades.jsonl.gz").resolve())
    assert found["simulator"].env["MARKETFLOW_SIMULATOR_MINUTES"] == "0"
    assert found["simulator"].env["MARKETFLOW_SIMULATOR_AUTOSTART"] == "false"
    assert found["ingestor"].env["MARKETFLOW_INGESTOR_WS_URL"] == "ws://127.0.0.1:9080"
    assert found["executor"].env["MARKETFLOW_EXECUTOR_MODE"] == "testnet"
    assert found["notifier"].env["MARKETFLOW_NOTIFIER_TELEGRAM_URL"] == "http://127.0.0.1:9071/bot"
    assert found["loader"].env.items() >= client_environment(config).items()
    assert found["loader"].ready == "http://127.0.0.1:9106/readyz"
    assert found["aggregator"].ports == {"aggregator": 9102}
    assert found["aggregator-2"].ports["aggregator-2"] != 9102
    assert found["aggregator"].env["MARKETFLOW_LOG_LEVEL"] == "DEBUG"
    assert found["strategy"].env["MARKETFLOW_LOG_LEVEL"] == "ERROR"


def test_on_binance_there_is_no_simulator_and_no_order_leaves_the_machine(tmp_path: Path) -> None:
    found = {s.name: s for s in specs(StackConfig(state=tmp_path, market="binance"))}
    assert "simulator" not in found
    assert found["executor"].env["MARKETFLOW_EXECUTOR_MODE"] == "paper"
    assert "MARKETFLOW_EXECUTOR_REST_URL" not in found["executor"].env
    assert "MARKETFLOW_INGESTOR_WS_URL" not in found["ingestor"].env


def test_a_service_that_does_not_exist_is_named(tmp_path: Path) -> None:
    with pytest.raises(StackError, match="no service agregator; there are: ingestor"):
        specs(StackConfig(state=tmp_path, instances={"agregator": 2}))


def test_a_configuration_survives_being_written_down(config: StackConfig) -> None:
    assert StackConfig.from_json(config.to_json()) == config


def test_free_ports_are_all_different() -> None:
    ports = vars(Ports.free())
    assert len(set(ports.values())) == len(ports) == 11


def test_a_checkout_is_found_from_anywhere_inside(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(Path(__file__).parent)
    assert (checkout() / "infra" / "kafka-topics.tf").is_file()
