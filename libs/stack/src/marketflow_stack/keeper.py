"""Owns the one Kafka broker of a test run, outside of the test processes, and ends with the last of them.

Started by marketflow_stack.testing as `python -m marketflow_stack.keeper <folder of the run>`; nobody else
needs it. It must end whenever no process holds the folder's users.lock, also after SIGKILL to all of pytest.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import sys
from pathlib import Path

from marketflow_stack.errors import StackError
from marketflow_stack.kafka import KafkaBroker
from marketflow_stack.processes import free_port


def main(run: Path) -> int:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    (run / "keeper.pid").write_text(str(os.getpid()))
    data = run / "kafka"
    broker = KafkaBroker(data, free_port(), free_port(), log=run / "kafka.log", lasting=True)
    with (run / "users.lock").open("w") as users:
        try:
            broker.start()
            _replace(run / "bootstrap", broker.bootstrap)
            fcntl.flock(users, fcntl.LOCK_EX)  # waits until no user is left
        except StackError as error:
            _replace(run / "failure", str(error))
            return 1
        finally:
            # Who comes now waits for the lock that is held here, then finds no address and starts anew.
            (run / "bootstrap").unlink(missing_ok=True)
            broker.kill()  # its data is not needed any more
            shutil.rmtree(data, ignore_errors=True)
            if os.getppid() == 1:  # pytest is gone, so nobody else tidies up
                shutil.rmtree(run, ignore_errors=True)
    return 0


def _replace(path: Path, text: str) -> None:
    """Write so that a reader sees all of it or nothing."""
    scratch = path.with_suffix(".new")
    scratch.write_text(text)
    scratch.replace(path)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
