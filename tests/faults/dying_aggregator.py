"""The aggregator, except that it kills itself with SIGKILL when its loop comes to a step for the nth time.

Run by the fault matrix as `dying_aggregator.py <step> <times>`.
"""

import os
import signal
import sys
from functools import partial

from marketflow_aggregator import __main__, app
from marketflow_common.kafka.transform import Transform

STEP, TIMES = sys.argv[1], int(sys.argv[2])
left = TIMES


def die(step: str) -> None:
    global left
    if step == STEP:
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)


app.Transform = partial(Transform, step=die)  # type: ignore[misc,assignment]
sys.argv = sys.argv[:1]
sys.exit(__main__.main())
