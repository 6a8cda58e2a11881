"""Programs as tests start them: asked, hurt, started again, and a test that waits for a dead one fails at once."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from marketflow_stack.processes import has_ended
from marketflow_stack.testing import Program, Programs, ask, free_port

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
