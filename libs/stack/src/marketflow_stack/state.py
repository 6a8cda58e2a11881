"""What runs, written down: `<state>/run/stack.json`, for `status`, `down` and whoever wants to connect.

A process is written with its start time, so that a pid that was given to another program is never signalled.
"""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from marketflow_stack.errors import StackError
from marketflow_stack.processes import ProcessId

_NAME = "stack.json"


@dataclass(frozen=True)
class ProcessState:
    """One process: its phase (see supervisor.Phase), identity if it runs, and where to reach it.

    `restarts` are those by this supervisor after a crash; `starts` are all in this folder, former supervisors' too.
    `ready` is the URL that answers 200 while it can do its work, empty if it has none.
    """

    name: str
    phase: str
    process: ProcessId | None
    restarts: int
    ports: Mapping[str, int]
    url: str
    log: str
    starts: int = 0
    ready: str = ""


@dataclass(frozen=True)
class StackState:
    """The supervisor and its processes; `info` is what the stack's owner wants remembered."""

    supervisor: ProcessId
    processes: Sequence[ProcessState]
    info: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of_this_process(cls, processes: Sequence[ProcessState], info: Mapping[str, str]) -> StackState:
        own = ProcessId.of(os.getpid())
        assert own is not None
        return cls(own, processes, info)

    @classmethod
    def read(cls, directory: Path) -> StackState | None:
        """The stack whose supervisor is alive; None if there is none. StackError for a file that is not ours."""
        try:
            content = json.loads((directory / _NAME).read_text())
            state = cls(
                ProcessId(**content["supervisor"]),
                [_process(entry) for entry in content["processes"]],
                content["info"],
            )
        except FileNotFoundError:
            return None
        except OSError as error:
            raise StackError(
                f"{directory / _NAME} cannot be read ({error.strerror})", "name a state folder that can be"
            ) from None
        except (ValueError, KeyError, TypeError) as error:
            raise StackError(
                f"{directory / _NAME} is not readable ({type(error).__name__}: {error})", "remove that file"
            ) from None
        return state if state.supervisor.alive() else None

    def write(self, directory: Path) -> None:
        """Replace the file at once: a reader sees the old state or the new one."""
        scratch = directory / f"{_NAME}.new"
        scratch.write_text(json.dumps(asdict(self), indent=1))
        scratch.replace(directory / _NAME)

    @staticmethod
    def remove(directory: Path) -> None:
        (directory / _NAME).unlink(missing_ok=True)

    def stop(self, deadline: float = 60) -> bool:
        """SIGTERM to the supervisor, which stops its processes; SIGKILL to it after `deadline` s, which kills them.

        True if SIGTERM was enough.
        """
        if not self.supervisor.signal(signal.SIGTERM) or self.supervisor.wait(deadline):
            return True
        self.supervisor.signal(signal.SIGKILL)
        for entry in self.processes:
            if entry.process is not None:
                entry.process.wait(10)
        return False


def make_folder(folder: Path) -> None:
    """Make a folder of the stack's state, and those above it. StackError if that cannot be."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StackError(
            f"{folder} cannot be made ({error.strerror})", "name a state folder in one that can be written to"
        ) from None


def _process(entry: dict[str, Any]) -> ProcessState:
    process = entry.pop("process")
    return ProcessState(process=ProcessId(**process) if process is not None else None, **entry)
