"""The broker as a child process, and the topics on it."""

import os
import signal
import socket
import subprocess
import sys
import uuid
from pathlib import Path

import pytest
from confluent_kafka import Producer
from confluent_kafka.admin import AdminClient, NewPartitions, NewTopic
from marketflow_stack.errors import StackError
from marketflow_stack.kafka import KafkaBroker
from marketflow_stack.processes import ProcessId, who_holds
from marketflow_stack.testing import Broker, CreatedTopics, eventually, free_port, read_all
from marketflow_stack.topics import TopicSpec, ensure_topics, main, read_terraform, topic_differences

pytestmark = pytest.mark.broker


def produce(bootstrap: str, topic: str, values: list[bytes]) -> None:
    producer = Producer({"bootstrap.servers": bootstrap, "linger.ms": 0})
    errors = []
    for value in values:
        producer.produce(topic, value, partition=0, on_delivery=lambda error, _: errors.append(error))
    assert producer.flush(20) == 0
    assert errors == [None] * len(values)


def test_acknowledged_records_survive_a_crash_and_a_restart_on_other_ports(tmp_path: Path) -> None:
    broker = KafkaBroker(tmp_path / "kafka", free_port(), free_port())
    spec = TopicSpec("kept", 1)
    try:
        broker.start()
        assert broker.pid is not None
        first = ProcessId.of(broker.pid)
        assert ensure_topics(broker.bootstrap, [spec]) == ["kept"]
        produce(broker.bootstrap, "kept", [b"before the crash"])
        broker.kill()
        assert first is not None
        assert not first.alive()

        broker.port, broker.controller_port = free_port(), free_port()
        broker.start()
        assert ensure_topics(broker.bootstrap, [spec]) == []
        produce(broker.bootstrap, "kept", [b"after it"])
        assert [m.value() for m in read_all(broker.bootstrap, "kept")] == [b"before the crash", b"after it"]
        assert broker.stop()
        assert who_holds(broker.port) is None
        assert who_holds(broker.controller_port) is None
    finally:
        broker.kill()


@pytest.mark.parametrize("name", ["ü", "日本", "my state", "a\\b"])
def test_the_data_lies_in_the_folder_that_was_named_whatever_its_letters(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv("LC_ALL", "C")  # in which Java would know ASCII only
    broker = KafkaBroker(tmp_path / name, free_port(), free_port())
    broker.prepare()
    assert list(tmp_path.rglob("meta.properties")) == [tmp_path / name / "data" / "meta.properties"]
    assert os.listdir(tmp_path) == [name]


def test_what_the_storage_tool_says_first_is_shown(tmp_path: Path) -> None:
    (tmp_path / "kafka").mkdir()
    (tmp_path / "kafka" / "data").write_text("a file where the folder has to be")
    with pytest.raises(StackError, match=r"could not format .*/kafka/data: \S*(Exception|Error)\b") as caught:
        KafkaBroker(tmp_path / "kafka", free_port(), free_port()).prepare()
    assert "\tat " not in str(caught.value)


def test_a_taken_port_is_named_with_the_process_that_holds_it(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        broker = KafkaBroker(tmp_path, port, free_port())
        with pytest.raises(StackError, match=rf"port {port} is taken by .*\(pid {os.getpid()}\)"):
            broker.start()
    assert not (tmp_path / "data").exists()


def test_a_broker_that_cannot_start_shows_the_end_of_its_log(tmp_path: Path) -> None:
    broker = KafkaBroker(tmp_path, free_port(), free_port())
    broker.prepare()
    (tmp_path / "data" / "meta.properties").write_text("version=1\ncluster.id=x\nnode.id=77\n")
    with pytest.raises(StackError, match=r"(?s)Kafka broker ended with status 1.*Stored node id 77") as caught:
        broker.start()
    assert "kafka.log" in caught.value.remedy


def test_the_broker_dies_with_the_process_that_started_it(tmp_path: Path) -> None:
    port = free_port()
    script = (
        "import sys, time; from pathlib import Path; from marketflow_stack.kafka import KafkaBroker\n"
        f"b = KafkaBroker(Path({str(tmp_path)!r}), {port}, {free_port()}); b.start()\n"
        "print(b.pid, flush=True); time.sleep(600)"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        broker = ProcessId.of(int(parent.stdout.readline()))
        assert broker is not None
        parent.send_signal(signal.SIGKILL)
    assert broker.wait(30)
    assert eventually(lambda: who_holds(port) is None, timeout=30)


def test_the_topics_of_the_terraform_file_are_exactly_what_the_broker_has(
    topics: CreatedTopics, topics_file: Path
) -> None:
    admin = AdminClient({"bootstrap.servers": topics.bootstrap})
    listed = {n: t for n, t in admin.list_topics(timeout=30).topics.items() if n.startswith(topics.prefix)}
    assert {name: len(topic.partitions) for name, topic in listed.items()} == {
        topics["ohlcv_raw"]: 3,
        topics["ohlcv_agg"]: 3,
        topics["trading_signals"]: 3,
        topics["order_events"]: 3,
    }
    assert topic_differences(admin, read_terraform(topics_file), topics.prefix) == []


def test_creating_the_topics_again_changes_nothing_and_says_so(
    broker: Broker, topics: CreatedTopics, topics_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--bootstrap", broker.bootstrap, "--file", str(topics_file), "--prefix", topics.prefix]
    assert main(arguments) == 0
    assert "0 newly created" in capsys.readouterr().out


def test_a_topic_that_differs_is_named_with_both_values(broker: Broker, topic_prefix: str) -> None:
    admin = AdminClient({"bootstrap.servers": broker.bootstrap})
    name = topic_prefix + "ohlcv_raw"
    config = {"retention.ms": "1000"}
    admin.create_topics([NewTopic(name, num_partitions=2, replication_factor=1, config=config)])[name].result()
    try:
        with pytest.raises(StackError) as caught:
            ensure_topics(
                broker.bootstrap,
                [TopicSpec("ohlcv_raw", 3, {"retention.ms": "604800000"})],
                prefix=topic_prefix,
            )
        assert f"{name} has 2 partitions, declared are 3" in str(caught.value)
        assert f"{name} has retention.ms=1000, declared is 604800000" in str(caught.value)

        admin.create_partitions([NewPartitions(name, 3)])[name].result()
        differs = [f"{name} has retention.ms=1000, declared is 604800000"]
        spec = TopicSpec("ohlcv_raw", 3, {"retention.ms": "604800000"})
        assert eventually(lambda: topic_differences(admin, [spec], topic_prefix) == differs)
    finally:
        admin.delete_topics([name])[name].result()


def test_no_broker_at_the_address_is_one_line_and_exit_status_1(
    topics_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    address = f"127.0.0.1:{free_port()}"
    assert main(["--bootstrap", address, "--file", str(topics_file), "--timeout", "0.5"]) == 1
    assert capsys.readouterr().err == (
        f"topics: no Kafka broker answered at {address} within 0.5 s; start it, or check the address\n"
    )


def test_read_all_stops_before_an_open_transaction_and_passes_over_an_aborted_one(
    topics: CreatedTopics,
) -> None:
    topic = topics["ohlcv_raw"]
    settings = {"bootstrap.servers": topics.bootstrap, "transactional.id": uuid.uuid4().hex}
    producer = Producer(settings)
    producer.init_transactions(20)
    for value, finish in ((b"one", producer.commit_transaction), (b"two", producer.abort_transaction)):
        producer.begin_transaction()
        producer.produce(topic, value, partition=1)
        producer.flush(10)
        finish(10)
    producer.begin_transaction()
    producer.produce(topic, b"three", partition=1)
    producer.flush(10)
    assert [m.value() for m in read_all(topics.bootstrap, topic)] == [b"one"]
    assert [m.value() for m in read_all(topics.bootstrap, topic, "read_uncommitted")] == [
        b"one",
        b"two",
        b"three",
    ]
    producer.abort_transaction(10)


def test_two_workers_share_one_broker_and_none_is_left_although_one_worker_is_killed(tmp_path: Path) -> None:
    (tmp_path / "conftest.py").write_text('pytest_plugins = ["marketflow_stack.testing"]\n')
    (tmp_path / "test_shared.py").write_text(
        "import os\nimport pytest\n"
        "@pytest.mark.parametrize('n', range(4))\n"
        "def test_it(broker, n):\n"
        f"    with open({str(tmp_path / 'seen')!r}, 'a') as seen:\n"
        "        print(broker.bootstrap, os.getpid(), os.environ['MARKETFLOW_TEST_RUN'], file=seen)\n"
        "    if n == 3:\n"
        "        os.kill(os.getpid(), 9)\n"
    )

    environment = {k: v for k, v in os.environ.items() if not k.startswith(("PYTEST_", "MARKETFLOW_TEST"))}
    command = [sys.executable, "-m", "pytest", "-q", "-n2", "-p", "no:cacheprovider", "--rootdir", str(tmp_path)]
    subprocess.run([*command, str(tmp_path)], env=environment, cwd=tmp_path, check=False, capture_output=True)
    seen = [line.split() for line in (tmp_path / "seen").read_text().splitlines()]
    assert len({address for address, _, _ in seen}) == 1
    assert len({pid for _, pid, _ in seen}) >= 2
    assert who_holds(int(seen[0][0].rpartition(":")[2])) is None
    assert not Path(seen[0][2]).exists()
