"""What every test of the workspace may use: see libs/stack/src/marketflow_stack/testing.py."""

import pytest
from hypothesis import HealthCheck, settings

pytest_plugins = ["marketflow_stack.testing"]

# Other tests keep both cores busy: how long an example takes says nothing about the code. The same examples are drawn
# each time, so that a failure is of the change at hand; `make chaos` draws new ones, as it does seeds.
settings.register_profile("explore", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("marketflow", settings.get_profile("explore"), derandomize=True)
settings.load_profile("marketflow")

FIRST = (
    "tests/engine/", "tests/e2e/", "ingestor/tests/integration/", "executor/tests/integration/test_resting.py",
    "executor/tests/integration/", "tests/faults/",
    "libs/operator/tests/integration/", "loader/tests/integration/", "libs/common/tests/integration/",
    "notifier/tests/integration/", "libs/stack/tests/integration/", "strategy/tests/integration/",
    "aggregator/tests/integration/", "libs/simulator/tests/integration/",
)  # fmt: skip
"""What takes long is started first, and what waits much beside what works much: fewer workers wait for the last one."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: next((i for i, start in enumerate(FIRST) if item.nodeid.startswith(start)), len(FIRST)))
