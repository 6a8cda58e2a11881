"""What every test of the workspace may use: see libs/stack/src/marketflow_stack/testing.py."""

from hypothesis import HealthCheck, settings

pytest_plugins = ["marketflow_stack.testing"]

# Other tests keep both cores busy: how long an example takes says nothing about the code.
settings.register_profile("marketflow", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("marketflow")
