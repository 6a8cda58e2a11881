"""Reading the topics' declaration."""

from pathlib import Path

import pytest
from marketflow_stack.errors import StackError
from marketflow_stack.topics import BrokerBusy, TopicSpec, ensure_topics_patiently, read_terraform

ONE = 'resource "kafka_topic" "a" {\n  name = "a"\n  partitions = 2\n'


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "topics.tf"
    path.write_text(text)
    return path


def test_the_suite_has_its_four_topics_with_equal_partition_counts(topics_file: Path) -> None:
    specs = read_terraform(topics_file)
    assert [spec.name for spec in specs] == ["ohlcv_raw", "ohlcv_agg", "trading_signals", "order_events"]
    assert {spec.partitions for spec in specs} == {3}
    assert {spec.config["message.timestamp.type"] for spec in specs} == {"LogAppendTime"}
    day = 86_400_000
    assert [int(spec.config["retention.ms"]) for spec in specs] == [7 * day, 30 * day, 30 * day, -1]


def test_other_resources_of_the_file_are_left_alone(tmp_path: Path) -> None:
    other = 'resource "kafka_acl" "b" {\n  acl_principal = "User:b"\n}\n'
    path = written(tmp_path, ONE + '  config = { "retention.ms" = 5 }\n}\n' + other)
    assert read_terraform(path) == [TopicSpec("a", 2, {"retention.ms": "5"})]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("resource {", "is not valid Terraform"),
        ("", "declares no kafka_topic"),
        (ONE + "}\n" + ONE.replace('"kafka_topic" "a"', '"kafka_topic" "b"') + "}\n", "declares a topic twice: a, a"),
        (ONE.replace("= 2", "= var.count") + "}\n", "kafka_topic.a: partitions is"),
        (ONE.replace("= 2", "= 0") + "}\n", "partitions is 0"),
        (ONE.replace('name = "a"', "name = local.name") + "}\n", "kafka_topic.a: name is"),
        (ONE.replace('name = "a"', 'name = "${var.stage}-a"') + "}\n", "kafka_topic.a: name is"),
        (ONE + '  config = { "retention.ms" = var.days }\n}\n', r"config\[retention.ms\] is"),
    ],
)
def test_what_cannot_be_read_without_guessing_is_refused_and_named(tmp_path: Path, text: str, message: str) -> None:
    path = written(tmp_path, text)
    with pytest.raises(StackError, match=message) as caught:
        read_terraform(path)
    assert str(path) in caught.value.what


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(StackError, match=r"cannot read .*absent\.tf: No such file"):
        read_terraform(tmp_path / "absent.tf")


def test_a_broker_that_is_too_busy_to_answer_is_asked_again_until_the_time_is_over(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    answers: list[list[str] | BrokerBusy] = [BrokerBusy("no answer in time", ""), BrokerBusy("again", ""), ["made"]]

    def ask(*_: object) -> list[str]:
        answer = answers.pop(0) if answers else BrokerBusy("still", "")
        if isinstance(answer, BrokerBusy):
            raise answer
        return answer

    monkeypatch.setattr("marketflow_stack.topics.ensure_topics", ask)
    assert ensure_topics_patiently("127.0.0.1:1", [], timeout=30) == ["made"]
    with pytest.raises(BrokerBusy, match="still"):
        ensure_topics_patiently("127.0.0.1:1", [], timeout=0)
