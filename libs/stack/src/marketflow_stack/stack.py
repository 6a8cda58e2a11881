"""MarketFlow's own local stack: which processes there are, with which settings, in which order.

The services are named here, never imported. `python -m marketflow_stack.stack CONFIG.json` runs a stack until
SIGTERM; `start_detached` does that in the background.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from marketflow_stack.errors import StackError
from marketflow_stack.kafka import JAVA_ENVIRONMENT, KafkaBroker
from marketflow_stack.processes import ProcessId, free_ports
from marketflow_stack.state import StackState, make_folder
from marketflow_stack.supervisor import Event, ProcessSpec, Supervisor
from marketflow_stack.text import size, tail

SERVICES = ("ingestor", "aggregator", "strategy", "executor", "notifier", "loader")
API_KEY, API_SECRET = "simulator", "simulator-secret"  # the simulator's account; no secret of anybody
TELEGRAM_TOKEN, TELEGRAM_CHAT = "100000:local", "1"  # the recorder takes any
WEBHOOK = "/api/webhooks/1/local"
ACCOUNT = USER = PASSWORD = "local"  # the local warehouse takes any
DATABASE = "MARKETFLOW"
_REST = "MARKETFLOW_INGESTOR_REST_URL"


@dataclass(frozen=True)
class Ports:
    """Where each part listens on 127.0.0.1; these are the configured ports of `make up`."""

    kafka: int = 9092
    controller: int = 9093
    warehouse: int = 9070
    recorder: int = 9071
    simulator: int = 9080
    ingestor: int = 9101
    aggregator: int = 9102
    strategy: int = 9103
    executor: int = 9104
    notifier: int = 9105
    loader: int = 9106

    @classmethod
    def free(cls) -> Ports:
        """Ports that nobody holds now."""
        return cls(*free_ports(len(cls.__dataclass_fields__)))


@dataclass(frozen=True, kw_only=True)
class StackConfig:
    """What to run.

    `market`: "simulator" (orders go to it, mode testnet) or "binance" (its public streams, paper trading).
    `speed`: market seconds per second, or "max". `replay`: a capture or trade dump instead of the synthetic
    market, which ends after `minutes` market minutes (0: never). `autostart` false: the market waits for
    `POST /sim/market/start`, which `start_when_ready` has the stack itself send once all else is ready: then no trade
    comes before there is somebody to take it. `services`: which of the six to run; `instances`: how many of one
    ("aggregator": 2 makes "aggregator" and "aggregator-2", the second on a free port). `env`: more variables by
    service, or for all services under "*"; they go before what is set here.
    """

    state: Path
    ports: Ports = field(default_factory=Ports)
    market: Literal["simulator", "binance"] = "simulator"
    symbols: tuple[str, ...] = ("BTCUSDT", "ETHUSDT", "SOLUSDT")
    seed: int = 7
    speed: str = "1"
    replay: Path | None = None
    minutes: int = 0
    autostart: bool = True
    start_when_ready: bool = False
    services: tuple[str, ...] = SERVICES
    instances: Mapping[str, int] = field(default_factory=dict)
    env: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    root: Path = field(default_factory=lambda: checkout())

    @property
    def run(self) -> Path:
        """Where stack.json is."""
        return self.state / "run"

    @property
    def logs(self) -> Path:
        return self.state / "logs"

    @property
    def recording(self) -> Path:
        """The recorder's file of messages."""
        return self.state / "recorder" / "messages.jsonl"

    @property
    def bootstrap(self) -> str:
        return f"127.0.0.1:{self.ports.kafka}"

    @property
    def exchange(self) -> str:
        """REST of the market's exchange, as the ingestor is told it."""
        if self.market == "simulator":
            return self.url("simulator")
        own = self.env.get("ingestor", {}).get(_REST) or os.environ.get(_REST)
        return own or "https://api.binance.com"

    def url(self, part: str) -> str:
        """http://127.0.0.1:<port of the part>"""
        return f"http://127.0.0.1:{getattr(self.ports, part)}"

    def to_json(self) -> str:
        return json.dumps(asdict(self), default=str, indent=1)

    @classmethod
    def from_json(cls, text: str) -> StackConfig:
        """The reverse of to_json(). Raises ValueError, KeyError or TypeError for anything else."""
        found: dict[str, Any] = json.loads(text)
        found["ports"] = Ports(**found["ports"])
        for name in ("state", "root"):
            found[name] = Path(found[name])
        found["replay"] = Path(found["replay"]) if found["replay"] else None
        for name in ("symbols", "services"):
            found[name] = tuple(found[name])
        return cls(**found)


def checkout() -> Path:
    """The folder that holds infra/kafka-topics.tf: the working directory or one above, or this file's checkout."""
    for folder in (Path.cwd(), *Path.cwd().parents, *Path(__file__).resolve().parents):
        if (folder / "infra" / "kafka-topics.tf").is_file():
            return folder
    raise StackError("no infra/kafka-topics.tf here or above", "run this in a checkout of MarketFlow")


def client_environment(config: StackConfig) -> dict[str, str]:
    """Variables by which a program (the audit, dbt, a test) reaches this stack's Kafka and warehouse."""
    return {
        "MARKETFLOW_KAFKA_BOOTSTRAP_SERVERS": config.bootstrap,
        "MARKETFLOW_SNOWFLAKE_ACCOUNT": ACCOUNT,
        "MARKETFLOW_SNOWFLAKE_USER": USER,
        "MARKETFLOW_SNOWFLAKE_PASSWORD": PASSWORD,
        "MARKETFLOW_SNOWFLAKE_HOST": "127.0.0.1",
        "MARKETFLOW_SNOWFLAKE_PORT": str(config.ports.warehouse),
        "MARKETFLOW_SNOWFLAKE_PROTOCOL": "http",
        "MARKETFLOW_SNOWFLAKE_DATABASE": DATABASE,
    }


def specs(config: StackConfig) -> list[ProcessSpec]:
    """All processes of the stack. StackError if Java is missing or Kafka's jars cannot be had."""
    unknown = {*config.services, *config.instances, *config.env} - {*SERVICES, "*", "simulator"}
    if unknown:
        raise StackError(f"there is no service {', '.join(sorted(unknown))}", f"there are: {', '.join(SERVICES)}")
    found = [_kafka(config), _topics(config), _recorder(config)]
    if "loader" in config.services:
        found += [_warehouse(config), _schema(config)]
    if config.market == "simulator":
        found.append(_simulator(config))
    names = {spec.name for spec in found}
    for service in config.services:
        found += _service(config, service, names)
    return found


def _python(module: str, *arguments: str) -> list[str]:
    return [sys.executable, "-m", module, *arguments]


def _kafka(config: StackConfig) -> ProcessSpec:
    log = config.logs / "kafka.log"
    broker = KafkaBroker(config.state / "kafka", config.ports.kafka, config.ports.controller, log)
    return ProcessSpec(
        name="kafka",
        argv=broker.argv(),
        log=log,
        env=JAVA_ENVIRONMENT,
        prepare=broker.prepare,
        ready=broker.ready,
        ports={"kafka": config.ports.kafka, "controller": config.ports.controller},
        url=config.bootstrap,
        stop_deadline=30,
    )


def _topics(config: StackConfig) -> ProcessSpec:
    declared = config.root / "infra" / "kafka-topics.tf"
    return ProcessSpec(
        name="topics",
        argv=_python("marketflow_stack.topics", "--bootstrap", config.bootstrap, "--file", str(declared)),
        log=config.logs / "topics.log",
        depends_on=("kafka",),
        one_shot=True,
    )


def _warehouse(config: StackConfig) -> ProcessSpec:
    port = config.ports.warehouse
    data = config.state / "warehouse"
    return ProcessSpec(
        name="warehouse",
        argv=_python("marketflow_stack.warehouse", "--port", str(port), "--data", str(data)),
        log=config.logs / "warehouse.log",
        ready=f"{config.url('warehouse')}/health",
        ports={"warehouse": port},
        url=config.url("warehouse"),
    )


def _schema(config: StackConfig) -> ProcessSpec:
    return ProcessSpec(
        name="warehouse-schema",
        argv=_python("marketflow_loader.schema"),
        log=config.logs / "warehouse-schema.log",
        env=client_environment(config),
        depends_on=("warehouse",),
        one_shot=True,
        cwd=config.root,
    )


def _recorder(config: StackConfig) -> ProcessSpec:
    port = config.ports.recorder
    return ProcessSpec(
        name="recorder",
        argv=_python("marketflow_stack.recorder", "--port", str(port), "--file", str(config.recording)),
        log=config.logs / "recorder.log",
        ready=f"{config.url('recorder')}/health",
        ports={"recorder": port},
        url=config.url("recorder"),
    )


def _simulator(config: StackConfig) -> ProcessSpec:
    settings = {
        "HOST": "127.0.0.1",
        "PORT": str(config.ports.simulator),
        "SYMBOLS": ",".join(config.symbols),
        "SEED": str(config.seed),
        "SPEED": config.speed,
        "REPLAY": str(config.replay.resolve()) if config.replay is not None else "",
        "MINUTES": "0" if config.replay is not None else str(config.minutes),
        "AUTOSTART": str(config.autostart).lower(),
        "API_KEY": API_KEY,
        "API_SECRET": API_SECRET,
        "STATE": str((config.state / "simulator").resolve()),
    }
    return ProcessSpec(
        name="simulator",
        argv=_python("marketflow_simulator"),
        log=config.logs / "simulator.log",
        env={
            **{f"MARKETFLOW_SIMULATOR_{name}": value for name, value in settings.items()},
            **_extra(config, "simulator"),
        },
        ready=f"{config.url('simulator')}/sim/health",
        ports={"simulator": config.ports.simulator},
        url=config.url("simulator"),
    )


def _service(config: StackConfig, service: str, others: set[str]) -> list[ProcessSpec]:
    """One spec for each instance; the first has the configured port, the others free ones."""
    count = config.instances.get(service, 1)
    ports = [getattr(config.ports, service), *free_ports(count - 1)][:count]
    return [
        service_spec(config, service, port, number, {*_NEEDS[service]} & others)
        for number, port in enumerate(ports, start=1)
    ]


_NEEDS: Mapping[str, tuple[str, ...]] = {
    "ingestor": ("topics", "simulator"),
    "aggregator": ("topics",),
    "strategy": ("topics",),
    "executor": ("topics", "simulator"),
    "notifier": ("topics", "recorder"),
    "loader": ("topics", "warehouse-schema"),
}


def service_spec(
    config: StackConfig, service: str, port: int, number: int = 1, depends_on: set[str] | None = None
) -> ProcessSpec:
    """Instance `number` of a service on `port`, as Supervisor.add() takes it for a further one."""
    name = service if number == 1 else f"{service}-{number}"
    environment = {
        "MARKETFLOW_KAFKA_BOOTSTRAP_SERVERS": config.bootstrap,
        f"MARKETFLOW_{service.upper()}_HTTP_HOST": "127.0.0.1",
        f"MARKETFLOW_{service.upper()}_HTTP_PORT": str(port),
        **(_SETTINGS[service](config) if service in _SETTINGS else {}),
        **_extra(config, service),
    }
    return ProcessSpec(
        name=name,
        argv=_python(f"marketflow_{service}"),
        log=config.logs / f"{name}.log",
        env=environment,
        ready=f"http://127.0.0.1:{port}/readyz",
        depends_on=sorted(depends_on or ()),
        ports={name: port},
        url=f"http://127.0.0.1:{port}",
    )


def _extra(config: StackConfig, service: str) -> dict[str, str]:
    common = config.env.get("*", {}) if service in SERVICES else {}
    return {**common, **config.env.get(service, {})}


def _ingestor(config: StackConfig) -> dict[str, str]:
    found = {"MARKETFLOW_INGESTOR_SYMBOLS": ",".join(config.symbols)}
    if config.market == "simulator":
        found["MARKETFLOW_INGESTOR_WS_URL"] = f"ws://127.0.0.1:{config.ports.simulator}"
        found[_REST] = config.url("simulator")
    return found


def _executor(config: StackConfig) -> dict[str, str]:
    if config.market == "binance":
        return {"MARKETFLOW_EXECUTOR_MODE": "paper"}
    return {
        "MARKETFLOW_EXECUTOR_MODE": "testnet",
        "MARKETFLOW_EXECUTOR_REST_URL": config.url("simulator"),
        "MARKETFLOW_EXECUTOR_WS_URL": f"ws://127.0.0.1:{config.ports.simulator}",
        "MARKETFLOW_EXECUTOR_API_KEY": API_KEY,
        "MARKETFLOW_EXECUTOR_API_SECRET": API_SECRET,
        # Market time is a recording's or the seed's: an age by the exchange's clock would mean nothing.
        "MARKETFLOW_EXECUTOR_MAX_SIGNAL_AGE_S": "0",
    }


def _notifier(config: StackConfig) -> dict[str, str]:
    return {
        "MARKETFLOW_NOTIFIER_TELEGRAM_URL": f"{config.url('recorder')}/bot",
        "MARKETFLOW_NOTIFIER_TELEGRAM_TOKEN": TELEGRAM_TOKEN,
        "MARKETFLOW_NOTIFIER_TELEGRAM_CHAT_ID": TELEGRAM_CHAT,
        "MARKETFLOW_NOTIFIER_DISCORD_WEBHOOK_URL": f"{config.url('recorder')}{WEBHOOK}",
    }


_SETTINGS: Mapping[str, Callable[[StackConfig], dict[str, str]]] = {
    "ingestor": _ingestor,
    "executor": _executor,
    "notifier": _notifier,
    "loader": client_environment,
}


def supervisor(config: StackConfig, on_event: Callable[[Event], None] = lambda _: None) -> Supervisor:
    """A supervisor for the stack, not yet started: use it as a context manager, or run() it."""
    info = {"market": config.market, "config": config.to_json()}
    return Supervisor(specs(config), config.run, on_event=on_event, info=info)


def open_market(config: StackConfig) -> None:
    """What is left to do when all is ready: start the market that waited for it. StackError if it does not start."""
    if not config.start_when_ready or config.market != "simulator":
        return
    url = f"{config.url('simulator')}/sim/market/start"
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        opener.open(urllib.request.Request(url, method="POST"), timeout=10).close()
    except OSError as error:
        raise StackError(f"the market did not start at POST {url}: {error}", "see the simulator's log") from None


def running(state: Path) -> tuple[StackState, StackConfig] | None:
    """The stack that runs in this state folder, and how it was configured; None if none does."""
    found = StackState.read(state / "run")
    return (found, StackConfig.from_json(found.info["config"])) if found is not None else None


def start_detached(config: StackConfig, on_event: Callable[[Event], None] = lambda _: None) -> StackState:
    """Start the stack in the background and return when all of it is ready.

    Raises StackError, with nothing left running, if it does not start; Ctrl-C stops it as well.
    """
    config = replace(config, state=config.state.resolve(), root=config.root.resolve())
    already = StackState.read(config.run)
    if already is not None:
        raise StackError(
            f"a stack runs in {config.state} already (pid {already.supervisor.pid})", "stop it with `marketflow down`"
        )
    specs(config)  # what is missing on this machine is said here, and jars are fetched while somebody looks on
    for folder in (config.run, config.logs):
        make_folder(folder)
    described, events = config.run / "config.json", config.run / "events.jsonl"
    described.write_text(config.to_json())
    events.unlink(missing_ok=True)
    log = config.logs / "supervisor.log"
    began = size(log)
    process: ProcessId | None = None
    try:
        # A signal that comes between the start and the taking down of its pid would leave the stack running.
        held = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM))
        try:
            process = _start_alone(_python("marketflow_stack.stack", str(described)), log, held)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, held)
        return _await(config, process, events, began, on_event)
    except BaseException:
        if process is not None and process.signal(signal.SIGTERM) and not process.wait(60):
            process.signal(signal.SIGKILL)
        raise


def _start_alone(argv: list[str], log: Path, mask: Iterable[int]) -> ProcessId | None:
    """Start a program in a session of its own: neither Ctrl-C nor the end of the terminal reaches it."""
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    try:
        pid = os.posix_spawn(
            sys.executable,
            argv,
            os.environ,
            file_actions=[
                (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
                (os.POSIX_SPAWN_DUP2, output, 1),
                (os.POSIX_SPAWN_DUP2, output, 2),
            ],
            setsid=True,
            setsigmask=mask,
        )
    finally:
        os.close(output)
    return ProcessId.of(pid)


def _await(
    config: StackConfig, process: ProcessId | None, events: Path, began: int, on_event: Callable[[Event], None]
) -> StackState:
    seen = 0
    while True:
        alive = process is not None and process.alive()
        lines = events.read_text().splitlines() if events.exists() else []
        for line in lines[seen:]:
            told = json.loads(line)
            if "error" in told:
                raise StackError(told["error"]["what"], told["error"]["remedy"])
            if "all_ready" in told:
                state = StackState.read(config.run)
                if state is not None:
                    return state
            else:
                on_event(Event(**told))
        seen = len(lines)
        if not alive:
            log = config.logs / "supervisor.log"
            last = tail(log, since=began)
            raise StackError("the stack ended while it was starting", f"see {log}, which ends with:\n{last}")
        time.sleep(0.05)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the stack that a JSON file describes until SIGTERM or SIGINT; 1 if it does not start."""
    (path,) = sys.argv[1:] if arguments is None else arguments
    config = StackConfig.from_json(Path(path).read_text())
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    make_folder(config.run)
    with (config.run / "events.jsonl").open("a") as events:

        def tell(**told: object) -> None:
            events.write(json.dumps(told) + "\n")
            events.flush()

        try:
            whole = supervisor(config, lambda event: tell(**asdict(event)))

            def ready() -> None:
                open_market(config)
                tell(all_ready=True)

            whole.run(stop, on_ready=ready)
        except StackError as error:
            sys.stderr.write(f"stack: {error}\n")
            tell(error={"what": error.what, "remedy": error.remedy})
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
