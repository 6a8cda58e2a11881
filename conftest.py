"""What every test of the workspace may use: see libs/stack/src/marketflow_stack/testing.py."""

pytest_plugins = ["marketflow_stack.testing"]
