"""Each thing that can be wrong before anything runs is one line that names it and the remedy, with its exit code."""

from __future__ import annotations

import gzip
import io
import os
import re
import sys
from pathlib import Path
from typing import Any

import pytest
from marketflow_operator import __main__ as entry
from marketflow_operator import cli
from marketflow_operator.audit.judge import Verdict, judge
from marketflow_operator.audit.model import could_not_run, verdict
from marketflow_operator.demo import KEPT, fresh_folder, nothing_compared
from marketflow_operator.doctor import examine as look
from marketflow_operator.recording import Unreadable, examine
from marketflow_operator.settings import known_settings, strays
from marketflow_operator.table import show_verdict
from marketflow_operator.targets import of_stack
from marketflow_operator.usage import unheard
from marketflow_stack.processes import free_port
from marketflow_stack.stack import Ports, StackConfig, specs
from rich.console import Console

LINE = '1723161255611000000 {"stream":"ethusdt@trade","data":{"e":"trade","E":1723161255612,"s":"ETHUSDT","t":%d,'
LINE += '"p":"2683.80000000","q":"0.01000000","T":1723161255611,"m":true,"M":true}}\n'


def test_help_lists_the_commands_and_documents_the_exit_codes(run: Any) -> None:
    code, text = run("--help")
    assert code == 0
    for name in (
        "demo", "up", "status", "logs", "down", "audit", "command", "reconcile", "doctor",
        "trace", "backfill", "rebuild",
    ):  # fmt: skip
        assert re.search(rf"^│ {name} ", text, re.MULTILINE)
    assert "Exit codes: 0 all is well" in " ".join(text.split())


def test_the_version_is_said(run: Any) -> None:
    code, text = run("--version")
    assert code == 0
    assert re.fullmatch(r"marketflow \d+\.\d+\.\d+\n", text)


@pytest.mark.parametrize("speed", ["fast", "0", "-1", "nan", "1e9"])
def test_a_wrong_speed_is_refused_before_anything_starts(run: Any, tmp_path: Path, speed: str) -> None:
    code, text = run("demo", f"--speed={speed}")
    assert code == cli.USAGE
    assert text.strip() == f"marketflow: --speed (SPEED) is '{speed}': a number above 0 and at most 100000, or max"
    assert not (tmp_path / "state").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--speed", "0"), "marketflow: --speed (SPEED) is '0': a number above 0 and at most 100000, or max"),
        (("--symbols", ","), "marketflow: --symbols (SYMBOLS) is ',': name at least one, such as BTCUSDT,ETHUSDT"),
        (("--symbols", ""), "marketflow: --symbols (SYMBOLS) is '': name at least one, such as BTCUSDT,ETHUSDT"),
        (("--symbols", "FOO"), "marketflow: wrong setting: MARKETFLOW_SIMULATOR_SYMBOLS='FOO': symbol 'FOO' ends"),
    ],
)
@pytest.mark.parametrize("command", ["demo", "up"])
def test_what_the_market_is_to_be_is_checked_before_anything_starts(
    run: Any, tmp_path: Path, command: str, arguments: tuple[str, ...], said: str
) -> None:
    code, text = run(command, *arguments)
    assert code == cli.USAGE
    assert text.startswith(said)
    assert text.count("\n") == 1
    assert not (tmp_path / "state").exists()


@pytest.mark.parametrize(
    "arguments",
    ["up --market=x", "up --seed=-1", "up --seed=4294967296", "demo --seed=4294967296", "demo --minutes=10081"],
)
def test_numbers_beyond_all_sense_are_wrong_usage(run: Any, tmp_path: Path, arguments: str) -> None:
    assert run(*arguments.split())[0] == cli.USAGE
    assert not (tmp_path / "state").exists()


@pytest.mark.parametrize("command", ["status", "down", "logs", "audit --json", "doctor", "demo", "up"])
@pytest.mark.parametrize("below", ["", "/run"])
def test_a_state_folder_that_is_a_file_is_one_line(run: Any, tmp_path: Path, command: str, below: str) -> None:
    (tmp_path / "file").write_text("")
    code, text = run(*command.split(), "--state", f"{tmp_path}/file{below}")
    assert code == cli.USAGE
    assert text == (
        f"marketflow: --state (MARKETFLOW_STACK_STATE) is {tmp_path}/file{below}, "
        f"but {tmp_path}/file is no folder; name another\n"
    )


@pytest.mark.parametrize("command", ["demo", "up"])
def test_a_state_folder_that_cannot_be_made_is_one_line(run: Any, command: str) -> None:
    code, text = run(command, "--state", "/proc/nope")
    assert code == cli.CANNOT
    assert re.fullmatch(r"marketflow: /proc/nope/\w+ cannot be made \(.+\); name a state folder in one .*\n", text)


@pytest.mark.parametrize("option", ["--exchange", "--recorder"])
@pytest.mark.parametrize("url", ["http://[::1", "127.0.0.1:9080", "http://", "ftp://there"])
def test_an_address_at_which_nothing_can_be_asked_is_one_line(run: Any, option: str, url: str) -> None:
    code, text = run("audit", option, url, "--quiet", "0")
    assert code == cli.USAGE
    assert text.startswith(f"marketflow: {option} (MARKETFLOW_{option[2:].upper()}_URL) is '{url}': it is the URL of")
    assert text.count("\n") == 1


@pytest.mark.parametrize("command", ["up", "demo", "audit", "doctor"])
@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("MARKETFLOW_EXECUTER_MODE", "MARKETFLOW_EXECUTOR_MODE"),
        ("MARKETFLOW_EXCHANGE_ULR", "MARKETFLOW_EXCHANGE_URL"),
        ("MARKETFLOW_KAFAK_TOPIC_PREFIX", "MARKETFLOW_KAFKA_TOPIC_PREFIX"),
        ("MARKETFLOW_EXECUTOR_ORDER_QOUTE", "MARKETFLOW_EXECUTOR_ORDER_QUOTE"),
        ("MARKETFLOW_SIMULATOR_SEEDS", "MARKETFLOW_SIMULATOR_SEED"),
    ],
)
def test_a_misspelt_variable_that_no_part_reads_is_an_error(
    run: Any, monkeypatch: pytest.MonkeyPatch, command: str, name: str, meant: str
) -> None:
    monkeypatch.setenv(name, "live")
    code, text = run(command)
    assert (code, text) == (cli.USAGE, f"marketflow: {name}: there is no such setting; did you mean {meant}?\n")


def test_variables_of_every_part_are_let_pass_and_others_are_told() -> None:
    known = ["MARKETFLOW_EXECUTOR_MODE", "MARKETFLOW_DBT_TARGET", "MARKETFLOW_RECORDER_URL", "PATH", "MARKETFLOW_LOG_X"]
    assert strays(known) == ([], [])
    assert strays(["MARKETFLOW_HOME"]) == ([], ["MARKETFLOW_HOME"])
    strange = "MARKETFLOW_LOADER_ZZZZZZZZZZZZZZZZZZ"
    assert strays([strange], known_settings()) == ([(strange, "")], [])


def test_what_the_local_stack_sets_itself_is_told_without_its_value(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MARKETFLOW_EXECUTOR_API_SECRET", "my own")
    monkeypatch.setenv("MARKETFLOW_EXECUTOR_MODE", "testnet")  # what the stack sets as well
    monkeypatch.setenv("MARKETFLOW_EXECUTOR_LOTS", "fifo")  # left to the user
    said = unheard(specs(StackConfig(state=tmp_path)))
    assert said == ["MARKETFLOW_EXECUTOR_API_SECRET: the local stack has its own value for this; yours is not used"]


def test_an_interruption_while_the_command_line_is_imported_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Impatient:
        def find_spec(self, name: str, *_: object) -> None:
            if name == "marketflow_operator.cli":
                raise KeyboardInterrupt

    monkeypatch.delitem(sys.modules, "marketflow_operator.cli")
    monkeypatch.setattr(sys, "meta_path", [Impatient(), *sys.meta_path])
    with pytest.raises(SystemExit) as ended:
        entry.main()
    assert ended.value.code == cli.INTERRUPTED
    assert capsys.readouterr().err == "marketflow: interrupted\n"


def test_only_linux_can_run_the_local_stack(run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.platform", "darwin")
    for command in ("demo", "up"):
        code, text = run(command)
        assert code == cli.CANNOT
        assert text.startswith("marketflow: the local stack needs Linux, this is darwin; run it in a Linux machine")
        assert text.count("\n") == 1
    assert not (tmp_path / "state").exists()
    code, text = run("doctor")
    assert code == cli.WRONG
    assert text.startswith("MISSING system: the local stack needs Linux, this is darwin")


def test_up_lets_the_market_wait_for_all_services_so_that_its_first_trade_is_due(
    run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[StackConfig] = []
    monkeypatch.setattr(cli, "start_detached", lambda config, _: started.append(config))
    assert run("up")[0] == cli.HOLDS
    (config,) = started
    assert (config.autostart, config.start_when_ready) == (False, True)
    assert of_stack(config).from_start


def test_two_of_our_own_parts_on_one_port_are_named(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MARKETFLOW_STACK_LOADER_PORT", "9092")
    said = "MARKETFLOW_STACK_KAFKA_PORT and MARKETFLOW_STACK_LOADER_PORT are both 9092"
    assert run("up") == (cli.USAGE, f"marketflow: {said}; give one of them another\n")
    code, text = run("doctor")
    assert code == cli.WRONG
    assert f"MISSING ports: {said}" in text


def test_an_empty_replay_is_none(run: Any, tmp_path: Path) -> None:
    code, text = run("demo", "--replay", "")
    assert code == cli.USAGE
    assert text.startswith("marketflow: --replay (REPLAY): there is no recording ''; name a capture")
    assert not (tmp_path / "state").exists()


def test_a_folder_with_something_else_than_recordings_is_refused(run: Any, tmp_path: Path) -> None:
    (tmp_path / "captures").mkdir()
    (tmp_path / "captures" / "a.jsonl").write_text(LINE % 1)
    assert examine(tmp_path / "captures").trades == 1
    (tmp_path / "captures" / "notes.txt").write_text(LINE % 2)
    code, text = run("demo", "--replay", str(tmp_path / "captures"))
    assert code == cli.USAGE
    assert f"the folder {tmp_path}/captures holds notes.txt, which is no recording (.jsonl, " in text


@pytest.mark.parametrize(("width", "said"), [(40, "warehouse_rows_signals_stream: ok (7 of 7)"), (100, "ok")])
def test_the_audit_can_be_read_in_a_narrow_terminal(width: int, said: str) -> None:
    console = Console(file=io.StringIO(), width=width, soft_wrap=True)
    show_verdict(console, Verdict([verdict("warehouse_rows_signals_stream", 7, 7), could_not_run("other", "away")]))
    lines = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert any(line.rstrip().endswith(said) and "warehouse_rows_signals_stream" in line for line in lines)


def test_a_market_without_a_whole_minute_does_not_hold(world: Any) -> None:
    found = judge(world(minutes=0))
    assert next(check for check in found.checks if check.name == "candles_equal_klines").expected == 0
    (check,) = nothing_compared(found)
    assert check.detail.startswith("nothing was compared: the market had 0 whole minutes")
    assert cli.code_of(Verdict((*found.checks, check))) == cli.WRONG
    assert nothing_compared(judge(world(minutes=1))) == []


def test_a_recording_that_is_not_there_is_refused_before_anything_starts(run: Any, tmp_path: Path) -> None:
    code, text = run("demo", "--replay", "/no/such/file.jsonl.gz")
    assert code == cli.USAGE
    assert text.startswith("marketflow: --replay (REPLAY): there is no recording /no/such/file.jsonl.gz; name a")
    assert text.count("\n") == 1
    assert not (tmp_path / "state").exists()


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("text.jsonl", b"this is no capture\n", "line 1: it begins with b'this', not with a receive time; expected"),
        ("half.jsonl", (LINE % 1).encode() + b'1723161255611000000 {"stream":\n', "line 2: "),
        ("cut.jsonl.gz", gzip.compress((LINE % 1).encode() * 500)[:-20], "broken gzip data"),
        ("empty.jsonl", b"", "holds no trades"),
        ("other.csv", b"1,2,3\n", "the name of a trade dump tells its symbol"),
    ],
)
def test_a_malformed_recording_is_refused_with_file_line_and_what_was_expected(
    run: Any, tmp_path: Path, name: str, content: bytes, said: str
) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    code, text = run("demo", "--replay", str(path))
    assert code == cli.USAGE
    assert str(path) in text
    assert said in text
    assert text.count("\n") == 1


def test_a_symbol_that_the_exchange_cannot_have_is_refused_before_anything_starts(run: Any, tmp_path: Path) -> None:
    code, text = run("demo", "--symbols", "FOO")
    assert code == cli.USAGE
    assert text.startswith("marketflow: wrong setting: MARKETFLOW_SIMULATOR_SYMBOLS='FOO': symbol 'FOO' ends with none")
    assert not (tmp_path / "state").exists()


def test_a_recording_tells_its_symbols_and_how_many_trades_it_holds(tmp_path: Path) -> None:
    path = tmp_path / "some.jsonl"
    path.write_text("".join(LINE % number for number in range(5)))
    found = examine(path)
    assert (found.symbols, found.trades) == (("ETHUSDT",), 5)
    with pytest.raises(Unreadable, match="no trades of"):
        examine(path, ("BTCUSDT",))


def test_a_report_that_cannot_be_written_is_refused_before_anything_starts(run: Any, tmp_path: Path) -> None:
    assert run("demo", "--report", str(tmp_path))[0] == cli.USAGE
    code, text = run("demo", "--report", str(tmp_path / "nowhere" / "report.json"))
    assert code == cli.USAGE
    assert "cannot be written" in text
    assert not (tmp_path / "state").exists()


def test_without_java_the_demo_says_so_and_starts_nothing(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JAVA_HOME", "/no/java/here")
    code, text = run("demo")
    assert code == cli.CANNOT
    assert text.splitlines()[-1].startswith("marketflow: JAVA_HOME is /no/java/here, but there is no")


def test_a_wrong_setting_is_named_with_its_variable(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MARKETFLOW_STACK_KAFKA_PORT", "many")
    code, text = run("up")
    assert code == cli.USAGE
    assert "MARKETFLOW_STACK_KAFKA_PORT" in text
    monkeypatch.delenv("MARKETFLOW_STACK_KAFKA_PORT")
    monkeypatch.setenv("MARKETFLOW_STACK_KAFKA_PROT", "9092")
    code, text = run("doctor")
    assert code == cli.USAGE
    assert "did you mean MARKETFLOW_STACK_KAFKA_PORT?" in text


def test_without_a_stack_status_says_so_and_down_has_nothing_to_do(run: Any) -> None:
    assert run("status") == (1, "Nothing runs; start it with `make up`.\n")
    code, text = run("status", "--json")
    assert (code, text) == (1, '{"running": false, "processes": []}\n')
    assert run("down") == (0, "Nothing runs.\n")
    assert run("logs")[0] == cli.CANNOT
    assert run("logs", "executor")[0] == cli.USAGE


def test_an_audit_of_nothing_could_not_be_done(run: Any) -> None:
    nowhere = f"127.0.0.1:{free_port()}"
    code, text = run("audit", "--kafka", nowhere, "--exchange", f"http://{nowhere}", "--quiet", "0")
    assert code == cli.CANNOT
    assert f"no Kafka broker answers at {nowhere}" in text
    assert "The audit could not be done" in text
    assert " ok" not in text


def test_the_doctor_names_who_holds_a_port(tmp_path: Path) -> None:
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        found = look(Ports(kafka=port), tmp_path, running=False)
    holder = next(finding for finding in found if finding.name == f"port {port}")
    assert not holder.ok
    assert f"(pid {os.getpid()})" in holder.found
    assert "MARKETFLOW_STACK_KAFKA_PORT" in holder.remedy


def test_the_doctor_names_a_missing_java_with_its_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JAVA_HOME", "/no/java/here")
    java = next(finding for finding in look(Ports(), tmp_path, running=True) if finding.name == "Java")
    assert not java.ok
    assert java.remedy


def test_the_doctor_says_that_a_c_module_of_another_machine_cannot_be_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "_skim.abi3.so").write_text("of another machine")
    monkeypatch.setattr("marketflow_aggregator.__path__", [str(tmp_path)])
    monkeypatch.delitem(sys.modules, "marketflow_aggregator._skim", raising=False)
    core = next(finding for finding in look(Ports(), tmp_path, running=True) if finding.name == "aggregator")
    assert not core.ok
    assert core.optional
    assert "by Python" in core.found
    assert "cannot be loaded: " in core.found
    assert core.remedy


def test_old_runs_make_room_for_new_ones(tmp_path: Path) -> None:
    for number in range(KEPT + 3):
        (tmp_path / f"2024010{number}-000000-1" / "logs").mkdir(parents=True)
    made = fresh_folder(tmp_path)
    folders = [folder for folder in tmp_path.iterdir() if not folder.is_symlink()]
    assert len(folders) == KEPT
    assert made in folders
    assert (tmp_path / "latest").resolve() == made
