"""The real executor, told to kill (SIGKILL) or freeze (SIGSTOP) itself at the n-th time of a step.

python runner.py STEP kill|freeze N
"""

from __future__ import annotations

import os
import signal
import sys
import threading

from marketflow_common import service
from marketflow_common.health import Health
from marketflow_executor.app import main
from marketflow_executor.settings import ExecutorSettings


def work(settings: ExecutorSettings, health: Health, stop: threading.Event) -> None:
    wanted, how, left = sys.argv[1], sys.argv[2], [int(sys.argv[3])]

    def step(name: str) -> None:
        if name == wanted:
            left[0] -= 1
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL if how == "kill" else signal.SIGSTOP)

    main(settings, health, stop, step=step)


if __name__ == "__main__":
    sys.exit(service.run("executor", ExecutorSettings, work, argv=[]))
