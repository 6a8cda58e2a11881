"""The demo: the whole chain in one go, watched, transformed by dbt, audited and summed up.

Must leave nothing running, however it ends, and must say 0 only when the audit holds.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any, Final

import httpx
from marketflow_stack.stack import Ports, StackConfig, client_environment, open_market, specs, supervisor
from marketflow_stack.state import StackState, make_folder
from marketflow_stack.supervisor import Event
from marketflow_stack.text import tail
from rich.console import Console
from rich.text import Text

from .audit.gather import gather
from .audit.judge import Verdict, judge
from .audit.model import Check, Evidence, verdict
from .klines import Comparison, RestKlines, compare_all, read_candles
from .klines import show as show_klines
from .recording import Recording
from .report import build, encode
from .table import show_summary
from .targets import of_stack, restarts_of
from .usage import unheard
from .view.board import Board
from .view.live import Watch, show

__all__ = ["ENVIRONMENT", "Demo", "fresh_folder", "live", "run"]

ENVIRONMENT: Final[Mapping[str, Mapping[str, str]]] = {
    "strategy": {
        "MARKETFLOW_STRATEGY_STRATEGIES": "weak_levels,band",
        # With the first design's 1.008 and 0.992 nearly every minute is a BUY; these trade both ways within minutes.
        "MARKETFLOW_STRATEGY_PARAMETERS": json.dumps(
            {
                "band": {"buy_factor": "1.00025", "sell_factor": "0.9992"},
                "weak_levels": {
                    "lookback": 6,
                    "swing": 1,
                    "bias_window": 3,
                    "momentum_window": 1,
                    "volume_window": 4,
                    "volume_factor": "1.2",
                },
            }
        ),
    },
    "executor": {
        "MARKETFLOW_EXECUTOR_ORDER_QUOTE": "200",
        "MARKETFLOW_EXECUTOR_MAX_SIGNAL_AGE_S": "0",
    },
}
_NAMED: Final = 10
"""Symbols in the headline."""
KEPT: Final = 3
"""Runs whose data and logs are kept."""
DRAIN: Final = 180.0
"""Seconds after the market's end for everything to come through; condition-bound, this is only the limit."""
QUIET: Final = 40.0
"""Seconds without any movement after which waiting ends: longer than a restart, a session and a transaction."""


@dataclass(frozen=True)
class Demo:
    """What is to be run."""

    symbols: tuple[str, ...]
    speed: str = "60"
    minutes: int = 10
    seed: int = 7
    replay: Recording | None = None
    report: Path | None = None
    keep: bool = False


def fresh_folder(base: Path) -> Path:
    """A new folder for a run under ``base``; older ones beyond the last few, if nothing runs in them, are removed.

    Raises StackError if no folder can be made there.
    """
    make_folder(base)
    older = sorted(folder for folder in base.iterdir() if folder.is_dir() and not folder.is_symlink())
    for folder in older[: max(0, len(older) - KEPT + 1)]:
        if StackState.read(folder / "run") is None:
            shutil.rmtree(folder, ignore_errors=True)
    folder = base / f"{datetime.now():%Y%m%d-%H%M%S}-{os.getpid()}"  # noqa: DTZ005  (a name for people here)
    folder.mkdir()
    latest = base / "latest"
    scratch = base / f"latest-{os.getpid()}"
    scratch.symlink_to(folder.name)
    scratch.replace(latest)
    return folder


def run(demo: Demo, state: Path, out: Console) -> Verdict:
    """Run it all. Raises StackError if something does not start; KeyboardInterrupt after everything has stopped."""
    config = StackConfig(
        state=state,
        ports=Ports.free(),
        symbols=demo.symbols,
        seed=demo.seed,
        speed=demo.speed,
        replay=demo.replay.path if demo.replay else None,
        minutes=0 if demo.replay else demo.minutes,
        autostart=False,
        start_when_ready=True,
        env=ENVIRONMENT,
    )
    wanted = specs(config)  # Java and Kafka's jars: what is missing is said before anything starts
    began = time.monotonic()
    out.print(Text.assemble(("MarketFlow demo: ", "bold"), _title(demo), (f"  data and logs in {state}", "dim")))
    for line in unheard(wanted):
        out.print(Text(line, "yellow"))
    with ExitStack() as stack:
        stack.callback(lambda: out.print("everything has stopped", style="dim"))
        try:
            running = stack.enter_context(supervisor(config, _teller(out)))
        except KeyboardInterrupt:
            out.print("interrupted while starting")
            raise
        out.print(Text(f"all ready after {time.monotonic() - began:.0f} s; the market opens", "green"))
        try:
            evidence = _watch(demo, config, out)
            restarts = {entry.name: entry.restarts for entry in running.status() if entry.restarts}
            notifiers = [entry for entry in running.status() if entry.name.startswith("notifier")]
            evidence = replace(evidence, notifier_restarts=restarts_of(notifiers))
            dbt = _dbt(config, out)
        except KeyboardInterrupt:
            out.print("interrupted; stopping everything …")
            raise
        found = judge(evidence)
        found = Verdict((*found.checks, dbt, *nothing_compared(found)))
        report = build(
            evidence,
            found,
            run={
                "what": _title(demo),
                "seconds": round(time.monotonic() - began, 1),
                "restarts": restarts,
                "state": str(state),
            },
        )
        show_summary(out, found, report)
        written = encode(report)
        (state / "report.json").write_bytes(written)
        if demo.report is not None:
            demo.report.write_bytes(written)
        _where_next(out, demo, state)
        if demo.keep:
            out.print("the stack goes on running; Ctrl-C stops it")
            with suppress(KeyboardInterrupt):
                threading.Event().wait()
    return found


def live(symbols: tuple[str, ...], state: Path, out: Console) -> list[Comparison]:
    """Binance's public streams with paper trading, watched until Ctrl-C; then all candles beside Binance's klines.

    The data stays in ``state``: the next run goes on from there and fills what happened meanwhile. Raises StackError
    if something does not start, CannotRead if the klines cannot be had.
    """
    own = any(name.startswith("MARKETFLOW_STRATEGY_") for name in os.environ)
    config = StackConfig(
        state=state,
        ports=Ports.free(),
        market="binance",
        symbols=symbols,
        env={} if own else {"strategy": ENVIRONMENT["strategy"]},
    )
    wanted = specs(config)
    rest = RestKlines(config.exchange)
    rest.ping()
    title = f"{config.exchange}, paper trading, {', '.join(symbols)}"
    out.print(Text.assemble(("MarketFlow live: ", "bold"), title, (f"  data and logs in {state}", "dim")))
    for line in unheard(wanted):
        out.print(Text(line, "yellow"))
    places = of_stack(config)
    with ExitStack() as stack:
        stack.callback(rest.close)
        stack.callback(lambda: out.print("everything has stopped; its data stays", style="dim"))
        stack.enter_context(supervisor(config, _teller(out)))
        out.print(Text("all ready; Ctrl-C ends it", "green"))
        with suppress(KeyboardInterrupt), Watch(places, Board()) as watch:
            show(out, watch, lambda: False, title)
        found = compare_all(read_candles(places.kafka), rest)
        show_klines(out, found, places.exchange)
    return found


def _title(demo: Demo) -> str:
    speed = "as fast as it is read" if demo.speed == "max" else f"{demo.speed} market seconds per second"
    if demo.replay is not None:
        return (
            f"replay of {demo.replay.path.name} ({demo.replay.trades:,} trades of {', '.join(demo.symbols)}), {speed}"
        )
    named = [*demo.symbols[:_NAMED], *([f"{len(demo.symbols) - _NAMED} more"] if len(demo.symbols) > _NAMED else [])]
    return f"{demo.minutes} minutes of a synthetic market of {', '.join(named)} (seed {demo.seed}), {speed}"


def _teller(out: Console) -> Callable[[Event], None]:
    """Only what a person waits for or has to know while the stack starts; ends are told all at once."""
    styles = {"ready": "green", "done": "green", "backoff": "yellow", "failed": "bold red"}

    def tell(event: Event) -> None:
        if event.phase in styles:
            out.print(Text.assemble((f"  {event.name:18}", ""), (event.text, styles[event.phase])))

    return tell


def _watch(demo: Demo, config: StackConfig, out: Console) -> Evidence:
    """Open the market, show the view until it has ended and everything has come through; the evidence for that."""
    places = of_stack(config)
    board = Board(due_trades=demo.replay.trades if demo.replay else None)
    open_market(config)
    market: dict[str, Any] = httpx.get(f"{config.url('simulator')}/sim/market", timeout=10, trust_env=False).json()
    if demo.replay is None:
        board.ends_at = int(market["start_time_us"]) + demo.minutes * 60_000_000
    collected: list[Evidence] = []
    failures: list[BaseException] = []

    def collect() -> None:
        def say(text: str) -> None:
            board.waiting = text

        try:
            collected.append(gather(places, DRAIN, QUIET, say))
        except Exception as error:  # noqa: BLE001  (raised again by the main thread)
            failures.append(error)

    collecting = threading.Thread(target=collect, name="gather", daemon=True)

    def done() -> bool:
        if not collecting.is_alive() and not collected and not failures and board.market.get("ended"):
            collecting.start()
        return bool(collected or failures)

    with Watch(places, board) as watch:
        show(out, watch, done, _title(demo).split(",")[0] if out.width < 110 else _title(demo))
    if failures:
        raise failures[0]
    return collected[0]


def _dbt(config: StackConfig, out: Console) -> Check:
    """dbt build on what has landed; its own tests count as one check of the audit."""
    logs, target = config.state / "dbt" / "logs", config.state / "dbt" / "target"
    logs.mkdir(parents=True, exist_ok=True)
    program = Path(sys.executable).with_name("dbt")
    project = config.root / "dbt"
    if not program.exists():
        return verdict("dbt_build", "done", "not done", [f"there is no {program}; run `make setup`"])
    environment = {
        **os.environ,
        **client_environment(config),
        "DO_NOT_TRACK": "1",
        "NO_PROXY": "127.0.0.1,localhost",
    }
    command = [str(program), "build", "--project-dir", str(project), "--profiles-dir", str(project)]
    command += ["--target-path", str(target), "--log-path", str(logs)]
    output = logs / "build.txt"
    with output.open("wb") as sink, out.status("dbt build …") if out.is_terminal else _nothing():
        code = subprocess.run(command, stdout=sink, stderr=subprocess.STDOUT, env=environment, check=False).returncode
    try:
        results = json.loads((target / "run_results.json").read_text())["results"]
    except (OSError, ValueError, KeyError):
        return verdict("dbt_build", "done", f"status {code}", [f"see {output}, which ends with: {tail(output, 3)}"])
    results = [entry for entry in results if entry["status"] != "no-op"]  # exposures: nothing to run
    good = [entry for entry in results if entry["status"] in ("success", "pass")]
    bad = [f"{entry['unique_id']}: {entry['status']}" for entry in results if entry not in good]
    if code and not bad:
        bad.append(f"dbt ended with status {code}, see {output}")
    return verdict("dbt_build", len(results), len(good), bad)


def nothing_compared(found: Verdict) -> list[Check]:
    """A check that does not hold where there was not one whole minute to compare: that all is equal says nothing."""
    candles = next((check for check in found.checks if check.name == "candles_equal_klines"), None)
    if candles is None or candles.ok is None or candles.expected != 0:
        return []
    reason = "nothing was compared: the market had 0 whole minutes; take a recording that holds at least one"
    return [verdict("minutes_compared", "at least 1", 0, [reason])]


def _nothing() -> ExitStack:
    return ExitStack()


def _where_next(out: Console, demo: Demo, state: Path) -> None:
    shown = str(state.relative_to(Path.cwd()) if state.is_relative_to(Path.cwd()) else state)
    out.print()
    out.print(f"logs of every process   {shown}/logs/   (marketflow logs --state {shown} executor)")
    out.print(f"dbt's log and results   {shown}/dbt/")
    out.print(f"what people were told   {shown}/recorder/messages.jsonl")
    out.print(f"this report as JSON     {demo.report or shown + '/report.json'}")
    out.print("keep a stack running    make up, then make status, make audit, make logs, make down")
