"""A child never outlives its launcher, however the launcher dies.

The launcher keeps the write end of a pipe and never writes to it. Each child watches the read
end: the kernel closes it with the launcher, also after kill -9, and the child ends itself.
"""

from __future__ import annotations

import os
import signal
import threading
import time

LIFELINE = "AREALITE_LIFELINE_FD"
"""Environment variable with the number of the inherited read end."""

ROLE = "AREALITE_ROLE"
"""Environment variable that tells a process started by the launcher what it is."""

GRACE_S = 5.0


def is_trainer() -> bool:
    """Whether the launcher started this process as the trainer."""
    return os.environ.get(ROLE) == "trainer"


def follow_parent() -> None:
    """Call first thing in a child's main(). Without a launcher it does nothing."""
    number = os.environ.pop(LIFELINE, None)
    if number is None:
        return
    threading.Thread(target=_watch, args=(int(number),), name="lifeline", daemon=True).start()


def _watch(descriptor: int) -> None:
    try:
        while os.read(descriptor, 1):
            pass
    except OSError:
        pass
    os.kill(os.getpid(), signal.SIGTERM)  # first the clean way: files are closed
    time.sleep(GRACE_S)
    os._exit(143)  # then the certain one: the main thread may hang in a kernel
