"""Named places at which a test may kill this process, as kill -9 does; otherwise nothing.

    AREALITE_CRASH_AT=after_optimizer_step      the first time that it is passed
    AREALITE_CRASH_AT=checkpoint.renamed:3      the third time
    AREALITE_CRASH_AT=before_update:2:SIGTERM   nobody is killed: the process that started this
                                                one, the launcher, gets this signal there

The names are all in this package's calls of crash_point; tests/faults/kill_matrix.py visits them,
and tests/faults/launch_matrix.py stops runs there.
"""

from __future__ import annotations

import os
import signal
import sys
import time

CRASH_AT = "AREALITE_CRASH_AT"

STAY_S = 0.5
"""So long this process stays where its launcher is signalled, and is asked to stop there."""

_name, _left, _signal = "", 0, ""


def arm(text: str) -> None:
    """From now on as if the environment said so; "" for nowhere."""
    global _name, _left, _signal
    _name, count, _signal = [*text.split(":"), "", ""][:3]
    _left = int(count or 1)


def crash_point(name: str) -> None:
    """Ends the process here, without any clean-up, where the environment asks for it."""
    global _left
    if name == _name:
        _left -= 1
        if _left == 0 and _signal:
            print(f"{name} at {time.time()}", file=sys.stderr, flush=True)
            os.kill(os.getppid(), signal.Signals[_signal])
            time.sleep(STAY_S)
        elif _left == 0:
            os.kill(os.getpid(), signal.SIGKILL)


arm(os.environ.get(CRASH_AT, ""))
