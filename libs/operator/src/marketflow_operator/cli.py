"""The command line `marketflow`; trace, backfill and rebuild are in warehouse_commands.py.

Wiring only: reads settings and options, calls the parts, turns their outcome into an exit code. Every error is one
line that names the thing and the remedy.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable
from contextlib import closing
from dataclasses import replace
from functools import wraps
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, Final, ParamSpec, get_args

import typer
from marketflow_common import clock
from marketflow_common.events import AccountOpened, Action
from marketflow_common.intervals import MINUTE
from marketflow_common.settings import InvalidSettings, load
from marketflow_stack.errors import StackError
from marketflow_stack.stack import StackConfig, open_market, running, specs, start_detached, supervisor
from marketflow_stack.state import StackState
from marketflow_stack.supervisor import Event
from rich.console import Console
from rich.text import Text

from . import asking, commanding
from . import demo as demonstration
from . import doctor as examination
from . import reconcile as reconciliation
from . import targets as addresses
from .access import Access
from .audit.gather import gather
from .audit.judge import Verdict, judge
from .audit.topics import CannotRead
from .klines import RestKlines, compare_all, read_candles
from .klines import show as show_klines
from .recording import Unreadable, check_market, examine
from .report import encode, verdict_json
from .settings import StackSettings
from .table import show_comparison, show_verdict
from .usage import WrongUsage, check_environment, check_speed, check_url, split, state_folder, unheard

__all__ = ["app", "main"]

HOLDS: Final = 0
WRONG: Final = 1
USAGE: Final = 2
CANNOT: Final = 3
INTERRUPTED: Final = 130
DEFAULT_SYMBOLS: Final = StackConfig.symbols
LONGEST: Final = 10_080
SEEDS: Final = 2**32 - 1

CODES: Final = (
    "Exit codes: 0 all is well (demo, audit: the audit holds); 1 it is not (the audit does not hold, something of the "
    "stack does not run, something is missing); 2 wrong usage or setting; 3 it could not be done or checked (nothing "
    "is reachable, not everything has come through yet, no Java, a taken port); 130 interrupted."
)

app = typer.Typer(
    name="marketflow",
    help="Run, watch and check MarketFlow on this machine.",
    epilog=CODES,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
out = Console(highlight=False, soft_wrap=True)
err = Console(stderr=True, highlight=False, soft_wrap=True)
P = ParamSpec("P")

State = Annotated[
    Path | None,
    typer.Option("--state", help="State folder of the stack (default: MARKETFLOW_STACK_STATE, .marketflow)."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]


def guarded(command: Callable[P, int]) -> Callable[P, None]:
    """Turn known errors into one line and an exit code."""

    @wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            code = command(*args, **kwargs)
        except (InvalidSettings, WrongUsage) as error:
            code = fail(str(error), USAGE)
        except (StackError, CannotRead) as error:
            code = fail(str(error), CANNOT)
        except KeyboardInterrupt:
            code = fail("interrupted", INTERRUPTED)
        raise typer.Exit(code)

    return run


def fail(text: str, code: int) -> int:
    """Say what went wrong on stderr."""
    err.print(Text.assemble(("marketflow: ", "bold red"), text))
    return code


def mention(lines: Iterable[str]) -> None:
    """Say on stderr what may surprise, a line for each."""
    for line in lines:
        err.print(Text(f"marketflow: {line}", "yellow"))


def _version(wanted: bool) -> None:
    if wanted:
        out.print(f"marketflow {version('marketflow-operator')}")
        raise typer.Exit


@app.callback()
def _root(
    _: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and leave.")
    ] = False,
) -> None:
    """Run, watch and check MarketFlow on this machine."""


@app.command(epilog=CODES)
@guarded
def demo(
    replay: Annotated[
        str | None,
        typer.Option(
            metavar="PATH", help="Capture (.jsonl, .jsonl.gz) or trade dump to replay; default: a synthetic market."
        ),
    ] = None,
    speed: Annotated[str, typer.Option(help="Market seconds per second, or max: as fast as it is read.")] = "60",
    minutes: Annotated[int, typer.Option(help="Minutes of the synthetic market.", min=1, max=LONGEST)] = 10,
    symbols: Annotated[
        str | None, typer.Option(help="Symbols, separated by commas; of a recording, all by default.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the synthetic market.", min=0, max=SEEDS)] = 7,
    report: Annotated[Path | None, typer.Option(help="File for the report as JSON.")] = None,
    keep: Annotated[
        bool, typer.Option("--keep", help="Leave the stack running after the summary, until Ctrl-C.")
    ] = False,
    state: State = None,
) -> int:
    """Run the whole chain once on free ports, watch it, check it, and stop it."""
    mention(check_environment())
    examination.check_platform()
    check_speed(speed)
    folder = state_folder(state)
    wanted_symbols = split(symbols)
    recording = None
    try:
        if replay is not None:
            recording = examine(replay, wanted_symbols)
        else:
            check_market(symbols=",".join(wanted_symbols or DEFAULT_SYMBOLS))
    except Unreadable as error:
        return fail(f"{'--replay (REPLAY): ' if replay is not None else ''}{error}", USAGE)
    if report is not None:
        if report.is_dir():
            return fail(f"--report (REPORT) is the folder {report}: name a file", USAGE)
        if not os.access(report if report.exists() else report.resolve().parent, os.W_OK):
            return fail(f"--report (REPORT): {report} cannot be written; name a file in a folder that is there", USAGE)
    wanted = demonstration.Demo(
        symbols=recording.symbols if recording else wanted_symbols or DEFAULT_SYMBOLS,
        speed=speed,
        minutes=minutes,
        seed=seed,
        replay=recording,
        report=report.resolve() if report else None,
        keep=keep,
    )
    # Also where a shell has started this in the background, with SIGINT ignored.
    signal.signal(signal.SIGINT, _interrupt)
    signal.signal(signal.SIGTERM, _interrupt)
    verdict = demonstration.run(wanted, demonstration.fresh_folder(folder / "demo"), out)
    return code_of(verdict)


def _interrupt(*_: object) -> None:
    """SIGTERM ends the demo, and a start, as Ctrl-C does; once, so that impatience cannot break off the stopping."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise KeyboardInterrupt


@app.command(epilog=CODES)
@guarded
def live(
    symbols: Annotated[str, typer.Option(help="Symbols, separated by commas.")] = ",".join(DEFAULT_SYMBOLS),
    state: State = None,
) -> int:
    """Binance's public streams, no key, paper trading, with the demo's view, until Ctrl-C.

    At the end every candle is compared with Binance's klines. Data stays in the state folder under live/, and the
    next run goes on from there. MARKETFLOW_INGESTOR_WS_URL and _REST_URL name another exchange that speaks as
    Binance does.
    """
    mention(check_environment())
    examination.check_platform()
    wanted = split(symbols)
    signal.signal(signal.SIGINT, _interrupt)
    signal.signal(signal.SIGTERM, _interrupt)
    found = demonstration.live(wanted, state_folder(state) / "live", out)
    return HOLDS if all(row.ok for row in found) else WRONG


# --- up, status, logs, down --------------------------------------------------------------------------


@app.command(epilog=CODES)
@guarded
def up(
    market: Annotated[
        str, typer.Option(help="simulator, or binance (its public streams, paper trading).")
    ] = "simulator",
    symbols: Annotated[str, typer.Option(help="Symbols, separated by commas.")] = ",".join(DEFAULT_SYMBOLS),
    speed: Annotated[str, typer.Option(help="Market seconds per second, or max.")] = "1",
    seed: Annotated[int, typer.Option(help="Seed of the synthetic market.", min=0, max=SEEDS)] = 7,
    foreground: Annotated[bool, typer.Option("--foreground", help="Stay here until Ctrl-C.")] = False,
    state: State = None,
) -> int:
    """Start the local stack on its configured ports and leave it running."""
    if market not in ("simulator", "binance"):
        return fail(f"--market is {market!r}: it is simulator or binance", USAGE)
    mention(check_environment())
    examination.check_platform()
    check_speed(speed)
    ports, wanted_symbols = load(StackSettings).ports, split(symbols)
    for problem in examination.shared(ports):
        return fail(f"{problem}; give one of them another", USAGE)
    if market == "simulator":
        try:
            check_market(symbols=",".join(wanted_symbols))
        except Unreadable as error:
            return fail(str(error), USAGE)
    config = StackConfig(
        state=state_folder(state),
        ports=ports,
        market=market,  # type: ignore[arg-type]  # one of the two, as checked above
        symbols=wanted_symbols,
        speed=speed,
        seed=seed,
        # No trade comes before all services are there, so that the audit may ask for the very first one too.
        autostart=False,
        start_when_ready=True,
    )
    mention(unheard(specs(config)))
    if not foreground:
        signal.signal(signal.SIGINT, _interrupt)
        signal.signal(signal.SIGTERM, _interrupt)
        start_detached(config, tell)
        out.print(f"running on 127.0.0.1: Kafka {config.ports.kafka}, exchange {config.ports.simulator}")
        out.print("marketflow status · marketflow logs · marketflow audit · marketflow down")
        return HOLDS
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    signal.signal(signal.SIGINT, lambda *_: stop.set())
    config = replace(config, state=config.state.resolve())
    supervisor(config, tell).run(stop, on_ready=lambda: open_market(config))
    return HOLDS


def tell(event: Event) -> None:
    """One line for something that happened to a process of the stack."""
    style = {"ready": "green", "done": "green", "failed": "bold red", "backoff": "yellow"}.get(event.phase, "dim")
    if event.phase not in ("waiting", "preparing"):
        out.print(Text.assemble((f"{event.name:18}", "bold"), (event.text, style)))


@app.command(epilog=CODES)
@guarded
def status(as_json: AsJson = False, state: State = None) -> int:
    """Say what runs, where, and how it is: each part that can be asked is, for at most two seconds."""
    found = running(state_folder(state))
    if found is None:
        out.print(
            json.dumps({"running": False, "processes": []}) if as_json else "Nothing runs; start it with `make up`."
        )
        return WRONG
    stack, config = found
    conditions = asking.look(stack.processes)
    well = all(condition.well for condition in conditions.values())
    if as_json:
        rows = [
            {
                "name": e.name,
                "phase": e.phase,
                **vars(conditions[e.name]),
                "pid": e.process.pid if e.process else None,
                "restarts": e.restarts,
                "url": e.url,
                "log": e.log,
            }
            for e in stack.processes
        ]
        out.print(json.dumps({"running": True, "well": well, "market": config.market, "processes": rows}, indent=1))
        return HOLDS if well else WRONG
    # No table: on a narrow terminal it would cut off the reason.
    line = "{:18}{:11}{:>8}  {:>8}  {:23}".format
    out.print(Text(line("process", "state", "pid", "restarts", "where"), "bold"))
    for e in stack.processes:
        condition = conditions[e.name]
        style = "bold red" if not condition.well else "yellow" if condition.trading not in (None, "ACTIVE") else "green"
        pid = str(e.process.pid) if e.process else "-"
        text = Text(f"{line(e.name, condition.state, pid, e.restarts, e.url)} {condition.note}".rstrip())
        text.stylize(style, 18, 18 + len(condition.state))
        text.stylize(style, 72)
        out.print(text)
    return HOLDS if well else WRONG


@app.command(epilog=CODES)
@guarded
def logs(
    service: Annotated[str | None, typer.Argument(help="Process whose log is shown; all by default.")] = None,
    follow: Annotated[bool, typer.Option("-f", "--follow", help="Go on showing what comes.")] = False,
    lines: Annotated[int, typer.Option("-n", help="Lines from the end.")] = 50,
    state: State = None,
) -> int:
    """Show the logs of the stack's processes, also of one that has ended."""
    folder = state_folder(state) / "logs"
    files = sorted(folder.glob("*.log"))
    if service is not None:
        files = [file for file in files if file.stem == service]
        if not files:
            known = ", ".join(sorted(file.stem for file in folder.glob("*.log"))) or "none"
            return fail(f"there is no log of {service!r} in {folder}; there are: {known}", USAGE)
    if not files:
        return fail(f"there are no logs in {folder}; start the stack with `make up`", CANNOT)
    command = ["tail", "-n", str(lines), *(["-F"] if follow else []), *map(str, files)]
    return subprocess.run(command, check=False).returncode


@app.command(epilog=CODES)
@guarded
def down(state: State = None) -> int:
    """Stop the stack that runs; its data stays."""
    found = running(state_folder(state))
    if found is None:
        out.print("Nothing runs.")
        return HOLDS
    gentle = found[0].stop()
    out.print("Stopped." if gentle else "Stopped, by force: a process did not end in time.")
    return HOLDS


# --- audit, command, reconcile, doctor ---------------------------------------------------------------


def look_at(state: Path | None, kafka: str | None) -> tuple[tuple[StackState, StackConfig] | None, addresses.Targets]:
    """The local stack if one runs, and where everything is: there, or where the environment says."""
    found = running(state_folder(state))
    places = addresses.of_stack(found[1], found[0]) if found is not None else addresses.of_environment()
    if kafka is not None:
        places = replace(places, kafka=places.kafka.model_copy(update={"bootstrap_servers": kafka}))
    return found, places


@app.command(epilog=CODES)
@guarded
def audit(
    as_json: AsJson = False,
    timeout: Annotated[float, typer.Option(help="Seconds to wait for what is still on its way.", min=0)] = 60.0,
    quiet: Annotated[float, typer.Option(help="Judge after so many seconds without any movement.", min=0)] = 15.0,
    kafka: Annotated[str | None, typer.Option(help="Broker, host:port.")] = None,
    exchange: Annotated[str | None, typer.Option(help="The exchange's URL.")] = None,
    recorder: Annotated[str | None, typer.Option(help="URL of the recording of notifications.")] = None,
    klines: Annotated[
        bool, typer.Option("--klines", help="Only the candles, against the exchange's REST klines; no key is needed.")
    ] = False,
    since: Annotated[int | None, typer.Option(help="--klines: only the last so many minutes.", min=1)] = None,
    state: State = None,
) -> int:
    """Compare the exchange's ledger, the topics, the warehouse and the notifications.

    With --klines it compares every candle of the topic with the exchange's own klines by REST, field by field: what
    can also be asked of Binance itself, where nobody shows a ledger.

    Looks at the local stack if one runs, otherwise at Kafka 127.0.0.1:9092, the exchange :9080, the warehouse :9070
    and the recorder :9071, as docker compose publishes them; MARKETFLOW_KAFKA_*, MARKETFLOW_SNOWFLAKE_*,
    MARKETFLOW_EXCHANGE_URL and MARKETFLOW_RECORDER_URL name others.
    """
    mention(check_environment())
    _, places = look_at(state, kafka)
    places = replace(places, exchange=exchange or places.exchange, recorder=recorder or places.recorder)
    check_url("--exchange (MARKETFLOW_EXCHANGE_URL)", places.exchange)
    check_url("--recorder (MARKETFLOW_RECORDER_URL)", places.recorder)
    if klines or since is not None:
        if not klines:
            raise WrongUsage("--since goes with --klines")
        return _audit_klines(places, since, as_json)
    if not places.simulated:
        return fail(
            f"{places.exchange} shows nobody its ledger; compare the candles with `marketflow audit --klines`", CANNOT
        )
    if as_json or not err.is_terminal:
        evidence = gather(places, timeout, quiet)
    else:
        with err.status("reading …") as line:
            evidence = gather(places, timeout, quiet, lambda text: line.update(f"waiting: {text}"))
    verdict = judge(evidence)
    if as_json:
        sys.stdout.buffer.write(encode(verdict_json(verdict)))
        sys.stdout.buffer.flush()
    else:
        show_verdict(out, verdict)
    return code_of(verdict)


def _audit_klines(places: addresses.Targets, since: int | None, as_json: bool) -> int:
    """See `audit --klines`."""
    rest = RestKlines(places.exchange)
    try:
        candles = read_candles(places.kafka)
        if since is not None:
            newest = max((at for windows in candles.values() for at in windows), default=0)
            cut = newest - since * MINUTE
            kept = {series: {at: c for at, c in windows.items() if at > cut} for series, windows in candles.items()}
            candles = {series: windows for series, windows in kept.items() if windows}
        if as_json or not err.is_terminal:
            found = compare_all(candles, rest)
        else:
            with err.status("reading …") as line:
                found = compare_all(candles, rest, line.update)
    finally:
        rest.close()
    compared, well = sum(row.compared for row in found), all(row.ok for row in found)
    if as_json:
        sys.stdout.buffer.write(encode({"ok": well and compared > 0, "exchange": places.exchange, "series": found}))
        sys.stdout.buffer.flush()
    else:
        show_klines(out, found, places.exchange)
    return CANNOT if not compared else HOLDS if well else WRONG


def code_of(verdict: Verdict) -> int:
    """0 holds, 1 does not hold, 3 could not be checked, or not to its end: something was still on its way."""
    return HOLDS if verdict.ok else WRONG if verdict.failed_beyond_waiting else CANNOT


ACTIONS: Final[dict[str, Action]] = {name.replace("_", "-"): name for name in get_args(Action)}


@app.command(epilog=CODES)
@guarded
def command(
    action: Annotated[str, typer.Argument(help="halt, reduce-only, resume or flatten.")],
    account: Annotated[
        str | None, typer.Option(help="Account of the executor (default: MARKETFLOW_EXECUTOR_ACCOUNT, main).")
    ] = None,
    reason: Annotated[str, typer.Option(help="Why, for those who read of it.")] = "",
    kafka: Annotated[str | None, typer.Option(help="Broker, host:port.")] = None,
    as_json: AsJson = False,
    state: State = None,
) -> int:
    """Tell the executor to halt, to sell only, to go on, or to sell all that it holds.

    Writes a record to trading_signals, signed with MARKETFLOW_EXECUTOR_COMMAND_SECRET or the file named by
    _COMMAND_SECRET_FILE, which the executor must have as well. A halt needs no secret. What the executor makes of it
    is a trading_state_changed with the command's id in order_events, and a message of the notifier.
    An account that order_events does not know, while it knows others, is given nothing but a halt, and that is said.
    """
    if action not in ACTIONS:
        raise WrongUsage(f"ACTION is {action!r}: it is one of {', '.join(ACTIONS)}")
    mention(check_environment())
    access = Access()
    name = account if account is not None else access.account
    if not re.fullmatch(r"[A-Za-z0-9_-]{1,32}", name):
        raise WrongUsage(f"--account (MARKETFLOW_EXECUTOR_ACCOUNT) is {name!r}: letters, digits, - and _, at most 32")
    _, places = look_at(state, kafka)
    halting = ACTIONS[action] == "halt"
    # A halt must not fail for a file that cannot be read: it needs no signature.
    secret = "" if halting else access.read("command_secret")
    if not halting and (known := commanding.others(places.kafka, name)):
        return fail(f"{_no_account(name, known)}; nothing was given", CANNOT)
    made = commanding.compose(ACTIONS[action], name, reason, secret, clock.now_us())
    where = commanding.publish(places.kafka, made)
    if as_json:
        out.print(json.dumps({"id": made.id, "account": name, "action": made.action, "where": where}))
    else:
        out.print(f"{made.action} of {name} is given: command {made.id} at {where}{'' if secret else ', unsigned'}")
    # Asked only now: no question may hold up a halt.
    try:
        if halting and (known := commanding.others(places.kafka, name)):
            return fail(f"{_no_account(name, known)}; the halt was given all the same", CANNOT)
    except CannotRead as error:
        mention([f"whether there is an account {name!r} could not be looked up: {error}"])
    return HOLDS


def _no_account(name: str, known: Iterable[str]) -> str:
    return f"order_events has no account {name!r}, it has {', '.join(known)}; name one of them with --account"


@app.command(epilog=CODES)
@guarded
def reconcile(
    account: Annotated[
        str | None, typer.Option(help="Account of the executor (default: MARKETFLOW_EXECUTOR_ACCOUNT, main).")
    ] = None,
    kafka: Annotated[str | None, typer.Option(help="Broker, host:port.")] = None,
    exchange: Annotated[str | None, typer.Option(help="The exchange's URL.")] = None,
    timeout: Annotated[float, typer.Option(help="Seconds in which a difference may pass.", min=0)] = 10.0,
    as_json: AsJson = False,
    state: State = None,
) -> int:
    """Compare balances, open orders and fills at the exchange with what order_events says of the account.

    The key is the executor's: MARKETFLOW_EXECUTOR_API_KEY, with _API_SECRET or _PRIVATE_KEY_FILE (Ed25519), or their
    _FILE; it needs no right but to read. Of the local stack's simulator it is known.
    """
    mention(check_environment())
    access = Access()
    name = account if account is not None else access.account
    found, places = look_at(state, kafka)
    url = exchange or (places.exchange if found is not None else access.rest_url or places.exchange)
    check_url("--exchange (MARKETFLOW_EXECUTOR_REST_URL)", url)
    key, sign = access.signer(local=found is not None)
    events = reconciliation.read_events(places.kafka, name)
    opened = next(event for event in events if isinstance(event, AccountOpened))
    if opened.mode == "paper":
        return fail(f"{name} is a paper account: no exchange keeps it, its books are all there is", CANNOT)
    with closing(reconciliation.Private(url, key, sign)) as private:

        def look() -> reconciliation.Comparison:
            now = reconciliation.read_events(places.kafka, name)
            return reconciliation.compare(name, now, private.read(now))

        compared = reconciliation.settle(look, timeout)
    if as_json:
        out.print(json.dumps(compared.plain() | {"exchange": url}, indent=1))
    else:
        show_comparison(out, compared, url)
    return HOLDS if compared.ok else WRONG


@app.command(epilog=CODES)
@guarded
def doctor(as_json: AsJson = False, state: State = None) -> int:
    """Look whether this machine has what MarketFlow needs."""
    mention(check_environment())
    folder = state_folder(state)
    findings = examination.examine(load(StackSettings).ports, folder, running(folder) is not None)
    well = all(finding.ok or finding.optional for finding in findings)
    if as_json:
        rows: list[dict[str, Any]] = [vars(finding) for finding in findings]
        out.print(json.dumps({"ok": well, "findings": rows}, indent=1))
        return HOLDS if well else WRONG
    for finding in findings:
        word = "ok" if finding.ok else "absent" if finding.optional else "MISSING"
        style = {"ok": "green", "absent": "yellow"}.get(word, "bold red")
        out.print(Text.assemble((f"{word:7}", style), f" {finding.name}: {finding.found}"))
        if finding.remedy:
            out.print(Text(f"        {finding.remedy}", "yellow"))
    return HOLDS if well else WRONG


def main() -> None:
    """Entry of the console script."""
    app()


# Adds trace, backfill and rebuild; it needs what is above.
from . import warehouse_commands as _warehouse_commands  # noqa: E402, F401
