"""`python -m marketflow_simulator`: read the settings, run, and say in one line why if that cannot be."""

import asyncio
import gc
import sys

from marketflow_simulator.app import StartError, run
from marketflow_simulator.settings import SettingsError, parse


def main() -> int:
    """Exit code 0 after SIGTERM or SIGINT, 2 if the simulator cannot start as it is set."""
    try:
        settings = parse(sys.argv[1:])
        gc.freeze()
        asyncio.run(run(settings))
    except (SettingsError, StartError) as error:
        sys.stderr.write(f"marketflow-simulator: {error}\n")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
