"""`python -m marketflow_operator`, and the console script `marketflow`."""

from __future__ import annotations

from .cli import main

__all__ = ["main"]

if __name__ == "__main__":
    main()
