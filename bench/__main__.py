"""``python -m bench``: runs the parts asked for, prints a table, writes REPORT. `make bench` calls it."""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from marketflow_stack.errors import StackError

from .loading import loading
from .orders import orders
from .parts import Plan, Row, aggregator, ingestor, latency, memory
from .stand import Stand, TookTooLong

PARTS: dict[str, Callable[[Stand, Plan], list[Row]]] = {
    "aggregator": aggregator,
    "latency": latency,
    "orders": orders,
    "ingestor": ingestor,
    "loader": loading,
    "memory": memory,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the bench; 0 when every part has measured something."""
    parser = argparse.ArgumentParser(prog="make bench", description="How fast the hot path is, beside yardsticks.")
    parser.add_argument("parts", nargs="*", help=f"of {', '.join(PARTS)}; all if none is named")
    parser.add_argument("--report", type=Path, help="write the rows as JSON to this file")
    parser.add_argument("--replay", type=Path, help="a capture to feed the aggregator with, not the synthetic market")
    parser.add_argument("--runs", type=int, default=3, help="runs of each part (memory: one)")
    parser.add_argument(
        "--trades", type=int, default=1_000_000, help="trades on the topic for the aggregator (loader: at most 300,000)"
    )
    parser.add_argument("--long-trades", type=int, default=10_000_000, help="trades of the memory's long replay")
    arguments = parser.parse_args(argv)
    unknown = [name for name in arguments.parts if name not in PARTS]
    if unknown:
        parser.error(f"{unknown[0]} is no part; there are {', '.join(PARTS)}")
    if arguments.report is not None and not os.access(arguments.report.resolve().parent, os.W_OK):
        parser.error(f"{arguments.report} cannot be written")
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ended from outside it tidies up, too
    began = time.monotonic()

    def say(text: str) -> None:
        sys.stdout.write(f"[{time.monotonic() - began:5.0f} s] {text}\n")
        sys.stdout.flush()

    plan = Plan(
        runs=arguments.runs,
        trades=arguments.trades,
        long_trades=arguments.long_trades,
        replay=arguments.replay,
        say=say,
    )
    rows: list[Row] = []
    failed: list[str] = []
    try:
        with Stand() as stand:
            say(f"broker at {stand.bootstrap}, everything in {stand.folder}")
            for name in arguments.parts or PARTS:
                try:
                    rows += PARTS[name](stand, plan)
                except TookTooLong as error:
                    failed.append(f"{name}: {error}")
                    say(failed[-1])
    except (StackError, OSError) as error:
        sys.stderr.write(f"bench: {error}\n")
        return 1
    except KeyboardInterrupt:
        sys.stderr.write("bench: interrupted\n")
        return 130
    sys.stdout.write(table(rows) + "\n")
    if arguments.report is not None:
        arguments.report.write_text(json.dumps([row.as_json() for row in rows], indent=2) + "\n")
        say(f"written to {arguments.report}")
    for text in failed:
        sys.stderr.write(f"bench: {text}\n")
    return 1 if failed else 0


def table(rows: Sequence[Row]) -> str:
    """The rows in columns; numbers to the right."""
    cells = [("figure", "ours", "yardstick", "ratio", "runs", "unit", "")]
    for row in rows:
        cells.append(
            (
                row.name, _shown(row.ours), _shown(row.yardstick), "" if row.ratio is None else f"{row.ratio:.2f}",
                str(len(row.samples)), row.unit, row.note,
            )
        )  # fmt: skip
    widths = [max(len(line[i]) for line in cells) for i in range(6)]
    lines = []
    for line in cells:
        shown = [line[0].ljust(widths[0]), *(line[i].rjust(widths[i]) for i in range(1, 5)), line[5].ljust(widths[5])]
        lines.append("  ".join([*shown, line[6]]).rstrip())
    return "\n".join(["", *lines, ""])


def _shown(value: float | None) -> str:
    return "" if value is None else f"{value:,.0f}" if value >= 1000 else f"{value:,.1f}"


if __name__ == "__main__":
    sys.exit(main())
