"""Named places at which a test may kill this process, as kill -9 does; otherwise nothing.

    AREALITE_CRASH_AT=after_optimizer_step      the first time that it is passed
    AREALITE_CRASH_AT=checkpoint.renamed:3      the third time

The names are all in this package's calls of crash_point; tests/faults/kill_matrix.py visits them.
"""

from __future__ import annotations

import os
import signal

CRASH_AT = "AREALITE_CRASH_AT"

_name, _left = "", 0


def arm(text: str) -> None:
    """From now on as if the environment said so; "" for nowhere."""
    global _name, _left
    _name, _, count = text.partition(":")
    _left = int(count or 1)


def crash_point(name: str) -> None:
    """Ends the process here, without any clean-up, where the environment asks for it."""
    global _left
    if name == _name:
        _left -= 1
        if _left == 0:
            os.kill(os.getpid(), signal.SIGKILL)


arm(os.environ.get(CRASH_AT, ""))
