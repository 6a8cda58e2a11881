"""`python -m marketflow_operator`, and the console script `marketflow`."""

from __future__ import annotations

import sys

__all__ = ["main"]


def main() -> None:
    """Run the command line. Its parts are imported here, which takes a second: Ctrl-C in it is one line too."""
    try:
        from .cli import main as run
    except KeyboardInterrupt:
        sys.stderr.write("marketflow: interrupted\n")
        sys.exit(130)
    run()


if __name__ == "__main__":
    main()
