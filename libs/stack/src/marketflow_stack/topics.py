"""The topics of MarketFlow as infra/kafka-topics.tf declares them, brought to a broker.

That file is the only declaration; nothing here may know a topic's name, count or setting by itself.
Run as `python -m marketflow_stack.topics --bootstrap HOST:PORT --file infra/kafka-topics.tf`.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import hcl2
from confluent_kafka import KafkaError, KafkaException
from confluent_kafka.admin import (  # type: ignore[attr-defined]  # public there, but not declared as exports
    AdminClient,
    ConfigResource,
    NewTopic,
    ResourceType,
)

from marketflow_stack.errors import StackError

_REQUEST_TIMEOUT = 10  # seconds; a broker that answers at all answers these in milliseconds
_PASSING = frozenset(
    (KafkaError._TIMED_OUT, KafkaError._TRANSPORT, KafkaError._ALL_BROKERS_DOWN, KafkaError.REQUEST_TIMED_OUT)
)


class BrokerBusy(StackError):
    """The broker did not answer in time; it may in a moment."""


@dataclass(frozen=True)
class TopicSpec:
    """One declared topic: `partitions` as a number, `config` as Kafka names and writes it."""

    name: str
    partitions: int
    config: Mapping[str, str] = field(default_factory=dict)


def read_terraform(path: Path) -> list[TopicSpec]:
    """The `kafka_topic` resources of a Terraform file, in the file's order.

    Raises StackError, naming file and resource, for anything that is not a literal: an expression is
    Terraform's to evaluate, and a guess here would make the local topics differ from the real ones.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise StackError(f"cannot read {path}: {error.strerror}", "the topics are declared there") from None
    try:
        document = hcl2.loads(text)
    except Exception as error:  # noqa: BLE001  (the parser's own error types differ between its versions)
        line = str(error).strip().splitlines()[0]
        raise StackError(f"{path} is not valid Terraform: {line}", "run `terraform validate`") from None
    specs = []
    for block in document.get("resource", []):
        for kind, resources in block.items():
            if _unquoted(kind) != "kafka_topic":
                continue
            for label, body in resources.items():
                if isinstance(body, dict):
                    specs.append(_topic(path, _unquoted(label), body))
    if not specs:
        raise StackError(f"{path} declares no kafka_topic", "declare the topics there, or name another --file")
    names = [spec.name for spec in specs]
    if len(set(names)) < len(names):
        raise StackError(f"{path} declares a topic twice: {', '.join(names)}", "remove one of the two")
    return specs


def _topic(path: Path, label: str, body: Mapping[str, Any]) -> TopicSpec:
    where = f"{path}: kafka_topic.{label}"
    name = _literal(where, "name", body.get("name"))
    partitions = body.get("partitions")
    if isinstance(partitions, bool) or not isinstance(partitions, int) or partitions < 1:
        raise StackError(f"{where}: partitions is {partitions!r}", "write a literal number, 1 or more")
    config = body.get("config", {})
    if not isinstance(config, dict):
        raise StackError(f"{where}: config is {config!r}", "write a literal map")
    return TopicSpec(
        name,
        partitions,
        {
            _unquoted(key): _literal(where, f"config[{_unquoted(key)}]", value)
            for key, value in config.items()
            if not key.startswith("__")
        },
    )


def _literal(where: str, what: str, value: object) -> str:
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str) or not _unquoted(value) or "${" in value:
        raise StackError(f"{where}: {what} is {value!r}", "write a literal, not an expression")
    return _unquoted(value)


def _unquoted(text: str) -> str:
    """python-hcl2 keeps the quotes of strings and labels from version 8 on."""
    return text[1:-1] if len(text) >= 2 and text[0] == text[-1] == '"' else text


def ensure_topics_patiently(
    bootstrap: str, specs: Sequence[TopicSpec], timeout: float, replication_factor: int = 1, prefix: str = ""
) -> list[str]:
    """ensure_topics(), asked again for `timeout` seconds while the broker is too busy to answer: it may have just
    come back and be reading its log."""
    deadline = time.monotonic() + timeout
    while True:
        try:
            return ensure_topics(bootstrap, specs, replication_factor, prefix)
        except BrokerBusy:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.2)


def ensure_topics(
    bootstrap: str, specs: Sequence[TopicSpec], replication_factor: int = 1, prefix: str = ""
) -> list[str]:
    """Create what is missing, then compare all of it with the broker; returns the names that were created.

    Raises StackError that lists every difference in partition count or declared setting: an existing topic is
    never changed, because a count that changes moves symbols to other partitions.
    """
    admin = AdminClient({"bootstrap.servers": bootstrap, "log_level": 0})
    wanted = [
        NewTopic(
            prefix + spec.name,
            num_partitions=spec.partitions,
            replication_factor=replication_factor,
            config=dict(spec.config),
        )
        for spec in specs
    ]
    created = []
    try:
        for name, future in admin.create_topics(wanted, request_timeout=_REQUEST_TIMEOUT).items():
            try:
                future.result()
                created.append(name)
            except KafkaException as error:
                if error.args[0].code() != KafkaError.TOPIC_ALREADY_EXISTS:
                    raise
        differences = _settled_differences(admin, specs, prefix)
    except KafkaException as error:
        passing = error.args[0].code() in _PASSING or error.args[0].retriable()
        raise (BrokerBusy if passing else StackError)(
            f"the broker at {bootstrap} refused the topics: {error.args[0].str()}", "see the broker's log"
        ) from None
    if differences:
        raise StackError(
            f"topics at {bootstrap} differ from their declaration: {'; '.join(differences)}",
            "bring broker and infra/kafka-topics.tf together by hand; topics are not changed here",
        )
    return created


def _settled_differences(admin: AdminClient, specs: Sequence[TopicSpec], prefix: str) -> list[str]:
    """Compare, and allow a moment for a topic just created to show up in the broker's metadata."""
    deadline = time.monotonic() + _REQUEST_TIMEOUT
    while True:
        found = topic_differences(admin, specs, prefix)
        if not any(difference.endswith("does not exist") for difference in found):
            return found
        if time.monotonic() > deadline:
            return found
        time.sleep(0.05)


def topic_differences(admin: AdminClient, specs: Sequence[TopicSpec], prefix: str = "") -> list[str]:
    """What the broker holds otherwise than declared, one line each; empty if nothing."""
    metadata = admin.list_topics(timeout=_REQUEST_TIMEOUT).topics
    differences = []
    present = []
    for spec in specs:
        name = prefix + spec.name
        if name not in metadata or not metadata[name].partitions:
            differences.append(f"{name} does not exist")
            continue
        present.append(spec)
        count = len(metadata[name].partitions)
        if count != spec.partitions:
            differences.append(f"{name} has {count} partitions, declared are {spec.partitions}")
    resources = {ConfigResource(ResourceType.TOPIC, prefix + spec.name): spec for spec in present}
    if not resources:
        return differences
    answers = admin.describe_configs(list(resources), request_timeout=_REQUEST_TIMEOUT)
    for resource, future in answers.items():
        spec = resources[resource]
        try:
            entries = future.result()
        except KafkaException as error:
            if error.args[0].code() != KafkaError.UNKNOWN_TOPIC_OR_PART:
                raise
            differences.append(f"{prefix}{spec.name} does not exist")
            continue
        for key, declared in spec.config.items():
            actual = entries[key].value if key in entries else None
            if actual != declared:
                differences.append(f"{prefix}{spec.name} has {key}={actual}, declared is {declared}")
    return differences


def wait_for_broker(bootstrap: str, timeout: float) -> None:
    """Until a broker answers a metadata request; StackError after `timeout` seconds."""
    deadline = time.monotonic() + timeout
    admin = AdminClient({"bootstrap.servers": bootstrap, "log_level": 0, "reconnect.backoff.max.ms": 500})
    while True:
        try:
            if admin.list_topics(timeout=1).brokers:
                return
        except KafkaException:
            pass
        if time.monotonic() > deadline:
            raise StackError(
                f"no Kafka broker answered at {bootstrap} within {timeout:g} s",
                "start it, or check the address",
            )


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status 0 when all topics are there as declared, 1 with one line on stderr otherwise."""
    parser = argparse.ArgumentParser(
        prog="python -m marketflow_stack.topics", description="Create and check MarketFlow's Kafka topics."
    )
    parser.add_argument("--bootstrap", required=True, help="broker to ask first, HOST:PORT")
    parser.add_argument("--file", required=True, type=Path, help="infra/kafka-topics.tf")
    parser.add_argument("--replication-factor", type=int, default=1, help="copies of every partition (1)")
    parser.add_argument("--prefix", default="", help="put before every topic's name")
    parser.add_argument("--timeout", type=float, default=60, help="seconds to wait for the broker (60)")
    options = parser.parse_args(arguments)
    try:
        specs = read_terraform(options.file)
        wait_for_broker(options.bootstrap, options.timeout)
        created = ensure_topics_patiently(
            options.bootstrap, specs, options.timeout, options.replication_factor, options.prefix
        )
    except StackError as error:
        print(f"topics: {error}", file=sys.stderr)  # noqa: T201
        return 1
    names = ", ".join(options.prefix + spec.name for spec in specs)
    print(f"topics: {names} are as declared, {len(created)} newly created")  # noqa: T201
    return 0


if __name__ == "__main__":
    sys.exit(main())
