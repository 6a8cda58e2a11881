"""Becomes another program that dies with the process that started it; run as a script, never imported.

Usage: python -I -S _launch.py <pid of the starter> <program> [arguments...]

It asks the kernel for SIGKILL at the starter's death (prctl PR_SET_PDEATHSIG survives execve), makes a
process group of its own and then replaces itself, so the pid stays the one that the starter knows. A
`preexec_fn` could do the same, but it runs Python between fork and exec of a process that has threads
(librdkafka's, aiohttp's), where a lock that was held at the fork stays held for ever.
"""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1


def main() -> None:
    starter = int(sys.argv[1])
    program = sys.argv[2:]
    os.setsid()
    if sys.platform == "linux":
        if ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
            sys.exit(f"prctl(PR_SET_PDEATHSIG) failed with errno {ctypes.get_errno()}")
        # The starter may have died before prctl took hold: then nobody would ever send the signal.
        if os.getppid() != starter:
            sys.exit(f"process {starter}, which started this one, is gone")
    try:
        os.execvp(program[0], program)
    except OSError as error:
        sys.stderr.write(f"cannot run {program[0]}: {error.strerror}\n")
        sys.exit(127)


if __name__ == "__main__":
    main()
