"""Programs as tests start them: asked, hurt, started again, and a test that waits for a dead one fails at once."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from marketflow_stack.processes import ProcessId, has_ended
from marketflow_stack.testing import Program, Programs, ask, eventually, free_port

RECORDER = ("-m", "marketflow_stack.recorder")


@pytest.fixture
def recorder(programs: Programs, tmp_path: Path) -> Callable[[], Program]:
    def start() -> Program:
        port = free_port()
        arguments = [*RECORDER, "--port", str(port), "--file", str(tmp_path / f"{port}.jsonl")]
        return programs.start(Program, "recorder", arguments, {}, port).wait_for("/health")

    return start


def test_a_program_is_stopped_killed_and_started_again_where_it_was(recorder: Callable[[], Program]) -> None:
    one = recorder()
    assert ask(f"{one.url}/recorded") == []
    assert one.stop() == 0
    one.launch().wait_for("/health").kill()
    assert one.launch().wait_for("/health").answers("/recorded")


def test_waiting_for_a_program_that_has_ended_fails_at_once_with_its_log(programs: Programs) -> None:
    one = programs.start(Program, "wrong", [*RECORDER, "--port", "no number"], {}, free_port())
    assert one.wait() == 2
    with pytest.raises(pytest.fail.Exception, match=r"ended with 2:(?s:.*)no number"):
        one.wait_ready()
    assert one.health() == {}


def test_what_was_frozen_or_runs_is_ended_in_the_end(recorder: Callable[[], Program], programs: Programs) -> None:
    frozen, running = recorder(), recorder()
    frozen.signal(signal.SIGSTOP)
    programs.close()
    assert [has_ended(one.process) for one in (frozen, running)] == [True, True]


def test_an_answer_that_is_an_error_fails_the_test_with_what_it_said(recorder: Callable[[], Program]) -> None:
    with pytest.raises(pytest.fail.Exception, match="404 from"):
        ask(f"{recorder().url}/nowhere")


ASKED = """
import json, os, sys
print(json.dumps({
    "name": __name__, "file": __file__, "arguments": sys.argv, "path": sys.path[0], "parent": os.getppid(),
    "own_group": os.getpgid(0) == os.getpid(), "input": sys.stdin.read(),
    "settings": {name: value for name, value in os.environ.items() if name.startswith("MARKETFLOW_")},
}))
sys.exit(5)
"""


def test_a_program_is_started_as_the_interpreter_would(programs: Programs, tmp_path: Path) -> None:
    script = tmp_path / "asked.py"
    script.write_text(ASKED)
    one = programs.start(Program, "asked", [script, "1", "two"], {"COLOUR": "blue"}, free_port())
    assert one.wait() == 5
    assert json.loads(one.log.read_text()) == {
        "name": "__main__",
        "file": str(script),
        "arguments": [str(script), "1", "two"],
        "path": str(tmp_path),
        "parent": os.getpid(),
        "own_group": True,
        "input": "",
        "settings": {"MARKETFLOW_COLOUR": "blue"},
    }


def test_a_program_dies_with_the_process_that_started_it(tmp_path: Path) -> None:
    waits, starts = tmp_path / "waits.py", tmp_path / "starts.py"
    waits.write_text("import signal; signal.pause()")
    starts.write_text(
        "import os, signal, sys\n"
        "from marketflow_stack.forkserver import ForkServer\n"
        "out = open(os.devnull, 'wb')\n"
        f"print(ForkServer().start([sys.executable, {str(waits)!r}], out, os.environ).pid, flush=True)\n"
        "signal.pause()\n"
    )
    with subprocess.Popen([sys.executable, starts], stdout=subprocess.PIPE, text=True) as starter:
        assert starter.stdout is not None
        program = ProcessId.of(int(starter.stdout.readline()))
        assert program is not None
        starter.kill()
    assert eventually(lambda: not program.alive())
