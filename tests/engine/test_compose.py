"""The whole suite in containers, on a real engine: up, healthy, trading, and whole again after kills.

MARKETFLOW_COMPOSE_BUILD names another command for `docker compose` where images are built.
"""

from __future__ import annotations

import json
import os
import secrets
import shlex
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import Consumer, TopicPartition
from marketflow_stack.processes import free_port
from marketflow_stack.testing import eventually

pytestmark = [pytest.mark.engine, pytest.mark.timeout(1_800)]
ROOT = Path(__file__).parents[2]
SIMULATOR = ["--env-file", "infra/compose/sim.env", "--profile", "sim"]
SERVICES = ("ingestor", "aggregator", "strategy", "executor", "notifier", "loader")
PARTS = ("kafka", "warehouse", "recorder", "simulator", *SERVICES)
TOPICS = ("ohlcv_raw", "ohlcv_agg", "trading_signals", "order_events")
LIMIT = 300_000_000
MAY_BE_LARGER = ("loader",)  # Snowflake's connector and Arrow


class Suite:
    """One compose project with ports of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.name = f"marketflow-test-{os.getpid()}-{secrets.token_hex(2)}"
        self.ports: dict[str, int] = {}
        # Images of its own too: what somebody else builds meanwhile must not take their place.
        self.env = os.environ | {"IMAGE_TAG": self.name}

    def choose_ports(self) -> None:
        """Right before they are used: a port that is free now may be somebody's once the images are built."""
        self.ports = {part: free_port() for part in PARTS}
        self.env |= {f"{part.upper()}_PORT": str(port) for part, port in self.ports.items()}

    def compose(self, *arguments: str, build: bool = False) -> str:
        command = shlex.split(
            os.environ.get("MARKETFLOW_COMPOSE_BUILD", "docker compose") if build else "docker compose"
        )
        return self.run([*command, "-p", self.name, *SIMULATOR, *arguments])

    def run(self, command: list[str]) -> str:
        done = subprocess.run(command, cwd=ROOT, env=self.env, capture_output=True, text=True, timeout=1_500)
        assert done.returncode == 0, f"{shlex.join(command)}: {done.stdout[-3_000:]}\n{done.stderr[-6_000:]}"
        return done.stdout

    def kill(self, service: str) -> None:
        self.run(["docker", "kill", self.compose("ps", "-q", service).strip()])

    def states(self) -> dict[str, str]:
        """Health of what runs, exit code of what has ended."""
        rows = [json.loads(line) for line in self.compose("ps", "--all", "--format", "json").splitlines()]
        return {row["Service"]: row["Health"] or f"{row['State']} {row['ExitCode']}" for row in rows}

    def ends(self) -> dict[str, int]:
        """Records in each topic, as far as offsets tell."""
        address = f"127.0.0.1:{self.ports['kafka']}"
        consumer = Consumer({"bootstrap.servers": address, "group.id": "engine-test", "log_level": 0})
        try:
            return {
                topic: sum(consumer.get_watermark_offsets(TopicPartition(topic, p), timeout=10)[1] for p in range(3))
                for topic in TOPICS
            }
        finally:
            consumer.close()

    def grows(self) -> None:
        """All four topics get more records: trades come in at one end, and orders out at the other."""
        before = self.ends()
        eventually(lambda: all(now > before[topic] for topic, now in self.ends().items()), timeout=240, interval=1)

    def audit(self) -> dict[str, Any]:
        settings = {
            "KAFKA_BOOTSTRAP_SERVERS": f"127.0.0.1:{self.ports['kafka']}",
            "SNOWFLAKE_ACCOUNT": "local",
            "SNOWFLAKE_USER": "local",
            "SNOWFLAKE_PASSWORD": "local",
            "SNOWFLAKE_HOST": "127.0.0.1",
            "SNOWFLAKE_PORT": str(self.ports["warehouse"]),
            "SNOWFLAKE_PROTOCOL": "http",
            "EXCHANGE_URL": f"http://127.0.0.1:{self.ports['simulator']}",
            "RECORDER_URL": f"http://127.0.0.1:{self.ports['recorder']}",
        }
        done = subprocess.run(
            [sys.executable, "-m", "marketflow_operator", "audit", "--json", "--timeout=180", f"--state={self.folder}"],
            env=os.environ | {f"MARKETFLOW_{name}": value for name, value in settings.items()},
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=600,
        )
        assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
        return dict(json.loads(done.stdout))

    @contextmanager
    def explained(self) -> Iterator[None]:
        """A failure comes with what the containers said last."""
        try:
            yield
        except BaseException:
            for arguments in (["ps", "--all"], ["logs", "--no-color", "--tail", "20"]):
                print(self.compose(*arguments)[-20_000:])
            raise


@pytest.fixture
def suite(tmp_path: Path) -> Iterator[Suite]:
    suite = Suite(tmp_path)
    yield suite
    suite.compose("down", "--volumes", "--timeout", "20")
    built = suite.run(["docker", "image", "ls", "--quiet", "--filter", f"reference=marketflow/*:{suite.name}"]).split()
    if built:
        suite.run(["docker", "image", "rm", "--force", *set(built)])


def healthy(suite: Suite) -> bool:
    return suite.states() == dict.fromkeys(PARTS, "healthy") | {"topics": "exited 0", "schema": "exited 0"}


def test_the_suite_comes_up_trades_and_is_whole_again_after_kills(suite: Suite) -> None:
    with suite.explained():
        suite.compose("build", build=True)
        suite.choose_ports()
        suite.compose("up", "--build", "--wait", build=True)
        assert healthy(suite)
        suite.grows()
        first = suite.audit()
        assert first["ok"]
        assert len(first["checks"]) >= 10
        for victim in ("aggregator", "kafka"):
            suite.kill(victim)
            assert suite.states()[victim] == "exited 137"
            suite.compose("up", "-d", "--wait")
            eventually(lambda: healthy(suite), timeout=60, interval=1)
            suite.grows()
            assert suite.audit()["ok"]


@pytest.mark.parametrize("service", [name for name in SERVICES if name not in MAY_BE_LARGER])
def test_a_services_image_is_small_and_runs_as_an_ordinary_user(suite: Suite, service: str) -> None:
    suite.compose("build", service, build=True)
    image = json.loads(suite.run(["docker", "image", "inspect", f"marketflow/{service}:{suite.name}"]))[0]
    assert image["Size"] < LIMIT
    assert image["Config"]["User"] == "10001"
    assert "healthz" in " ".join(image["Config"]["Healthcheck"]["Test"])
