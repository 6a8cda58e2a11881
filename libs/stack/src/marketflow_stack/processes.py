"""Starting, naming and ending operating system processes, so that none is orphaned or hit by mistake.

A process is named by its pid and its start time, never by the pid alone: pids are used again. Nothing here
knows what the processes do.
"""

from __future__ import annotations

import fcntl
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import IO

_LAUNCHER = Path(__file__).with_name("_launch.py")
_LOWEST_PORT = 15_000  # well above the ports that programs have for their own
_PROMISE_SECONDS = 120
_LISTEN = "0A"  # TCP_LISTEN in /proc/net/tcp, see proc(5)
_STAT_STARTTIME = 19  # field 22 of /proc/<pid>/stat, counted from the one after the command's name


@cache
def _spawner() -> ThreadPoolExecutor:
    """The one thread that forks: PR_SET_PDEATHSIG fires at the death of the forking *thread*, so a child
    started from a thread that ends (a test's, an executor's) would be killed while its process lives."""
    return ThreadPoolExecutor(max_workers=1, thread_name_prefix="spawn")


def spawn(
    argv: Sequence[str],
    *,
    output: IO[bytes],
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    stdin: socket.socket | None = None,
) -> subprocess.Popen[bytes]:
    """Start `argv` in a process group of its own; the kernel kills it when this process ends, in any way.

    Both output streams go to `output`; `stdin` is empty unless one is given. `env` is the whole environment (None:
    this process's own). A program that cannot be run shows as exit status 127 with the reason in `output`.
    """
    command = [sys.executable, "-I", "-S", str(_LAUNCHER), str(os.getpid()), *argv]

    def start() -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL if stdin is None else stdin.fileno(),
            stdout=output,
            stderr=subprocess.STDOUT,
            env=None if env is None else dict(env),
            cwd=cwd,
        )

    return _spawner().submit(start).result()


def end(process: subprocess.Popen[bytes], *, deadline: float) -> bool:
    """SIGTERM, then SIGKILL to the whole group after `deadline` seconds. True if SIGTERM was enough."""
    if not has_ended(process):
        terminate(process)
    gentle = wait_end(process, deadline)
    kill_group(process)
    return gentle


def terminate(process: subprocess.Popen[bytes]) -> None:
    """SIGTERM, which a frozen process (SIGSTOP) gets to see as well; does not wait."""
    process.terminate()
    process.send_signal(signal.SIGCONT)


def has_ended(process: subprocess.Popen[bytes]) -> bool:
    """Whether it has ended, without reaping it: until kill_group() does, its pid and group stay its own."""
    if process.returncode is not None:
        return True
    return os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def wait_end(process: subprocess.Popen[bytes], deadline: float) -> bool:
    """has_ended() within `deadline` seconds."""
    until = time.monotonic() + deadline
    while not has_ended(process):
        if time.monotonic() > until:
            return False
        time.sleep(0.02)
    return True


def kill_group(process: subprocess.Popen[bytes]) -> None:
    """SIGKILL to the process and to whatever it started in its group; reaps the process itself."""
    with suppress(ProcessLookupError, PermissionError):
        # Between fork and setsid the child is still in our own group, which must not be hit.
        if os.getpgid(process.pid) == process.pid:
            os.killpg(process.pid, signal.SIGKILL)
    if process.poll() is None:
        process.kill()
    process.wait()


@dataclass(frozen=True)
class ProcessId:
    """A process by pid and start time (clock ticks since `boot`); a recycled pid is another process."""

    pid: int
    started: int
    boot: str

    @classmethod
    def of(cls, pid: int) -> ProcessId | None:
        """The identity of a process that exists now; None if there is none (a zombie counts as none)."""
        fields = _stat(pid)
        if fields is None or fields[0] == "Z":
            return None
        return cls(pid, int(fields[_STAT_STARTTIME]), _boot())

    def alive(self) -> bool:
        return ProcessId.of(self.pid) == self

    def signal(self, number: signal.Signals) -> bool:
        """Send a signal if it is still the same process; True if it was sent."""
        # pidfd_open pins the process: between the check and the signal its pid cannot be given away.
        try:
            handle = os.pidfd_open(self.pid)
        except OSError:
            return False
        try:
            if not self.alive():
                return False
            signal.pidfd_send_signal(handle, number)
            return True
        except ProcessLookupError:
            return False
        finally:
            os.close(handle)

    def wait(self, deadline: float) -> bool:
        """Wait until it is gone; False if it is still there after `deadline` seconds."""
        until = time.monotonic() + deadline
        while self.alive():
            if time.monotonic() > until:
                return False
            time.sleep(0.05)
        return True


def _stat(pid: int) -> list[str] | None:
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except (OSError, UnicodeDecodeError):
        return None
    return text.rpartition(")")[2].split()


@cache
def _boot() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


@dataclass(frozen=True)
class PortHolder:
    """The process that listens on a port; `pid` None: it belongs to another user and cannot be seen."""

    port: int
    pid: int | None
    command: str

    def __str__(self) -> str:
        who = f"{self.command} (pid {self.pid})" if self.pid is not None else self.command
        return f"port {self.port} is taken by {who}"


def free_port() -> int:
    """A TCP port on 127.0.0.1 that nobody holds at this moment."""
    return free_ports(1)[0]


def free_ports(count: int) -> list[int]:
    """That many different ones, below the range from which the kernel takes ports for outgoing connections.

    A port of that range (which binding port 0 gives) may belong to somebody's connection by the time that the
    server starts which it was chosen for: a stack makes hundreds of connections while it comes up.
    """
    candidates = list(range(_LOWEST_PORT, _ephemeral()))
    random.SystemRandom().shuffle(candidates)
    ports: list[int] = []
    with _promised_ports() as promised:
        for port in candidates:
            if len(ports) == count:
                break
            if port in promised:
                continue
            with socket.socket() as probe, suppress(OSError):
                probe.bind(("127.0.0.1", port))
                ports.append(port)
        promised.update(dict.fromkeys(ports, time.time()))
    if len(ports) < count:
        raise OSError(f"only {len(ports)} of {count} ports are free in {_LOWEST_PORT} to {_ephemeral() - 1}")
    return ports


@contextmanager
def _promised_ports() -> Iterator[dict[int, float]]:
    """Ports that choosers of this user were given less than two minutes ago, and when; what is added is kept.

    Between the choice and the start of the server nobody holds a port: two stacks that start side by side, or a
    few hundred tests, would now and then choose the same one.
    """
    with (Path(tempfile.gettempdir()) / f"marketflow-ports-{os.getuid()}").open("a+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.seek(0)
        promised, now = dict[int, float](), time.time()
        for line in file:
            with suppress(ValueError):  # somebody wrote to it
                port, at = line.split()
                if 0 <= now - float(at) < _PROMISE_SECONDS:
                    promised[int(port)] = float(at)
        yield promised
        file.truncate(0)
        file.write("".join(f"{port} {at:.3f}\n" for port, at in promised.items()))


def _ephemeral() -> int:
    """The first port of the range for outgoing connections (Linux: 32768 if not set otherwise)."""
    try:
        first = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    except (OSError, ValueError):
        return 32_768
    return first if first > _LOWEST_PORT + 1_000 else 65_536


def port_is_free(port: int, host: str = "127.0.0.1") -> bool:
    """Whether a server could bind the port now (a connection in TIME_WAIT does not count as taken)."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
        return True


def port_answers(port: int, host: str = "127.0.0.1") -> bool:
    """Whether somebody accepts connections on the port."""
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex((host, port)) == 0


def who_holds(port: int) -> PortHolder | None:
    """Who listens on a TCP port of this machine, from /proc; None if nobody does."""
    inodes = _listening_inodes(port)
    if not inodes:
        return None if port_is_free(port) else PortHolder(port, None, "a process that cannot be seen from here")
    wanted = {f"socket:[{inode}]" for inode in inodes}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and _has_socket(entry, wanted):
            return PortHolder(port, int(entry.name), _command(entry))
    return PortHolder(port, None, "a process of another user")


def _listening_inodes(port: int) -> set[str]:
    inodes = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        try:
            lines = Path(table).read_text().splitlines()[1:]
        except OSError:
            continue
        for line in lines:
            fields = line.split()
            if fields[3] == _LISTEN and int(fields[1].rpartition(":")[2], 16) == port:
                inodes.add(fields[9])
    return inodes


def _has_socket(process: Path, wanted: set[str]) -> bool:
    try:
        descriptors = list((process / "fd").iterdir())
    except OSError:
        return False  # ended meanwhile, or another user's
    for descriptor in descriptors:
        # One that is closed meanwhile says nothing of the others.
        with suppress(OSError):
            if str(descriptor.readlink()) in wanted:
                return True
    return False


def _command(process: Path) -> str:
    """`java kafka.Kafka` rather than ten lines of class path: the program, and what it runs."""
    try:
        words = [w for w in (process / "cmdline").read_bytes().decode(errors="replace").split("\0") if w]
    except OSError:
        words = []
    if not words:
        return "an unnamed process"
    program = Path(words[0]).name
    if "-m" in words[:4]:
        return " ".join([program, *words[words.index("-m") :][:2]])
    skip_next, shown = False, ""
    for word in words[1:]:
        if skip_next:
            skip_next = False
        elif word in ("-cp", "-classpath"):
            skip_next = True
        elif not word.startswith("-"):
            shown = word
            break
    return f"{program} {shown}".strip()
