"""A child never outlives its launcher, however the launcher dies.

The launcher keeps the write end of a pipe and never writes to it. Each child watches the read
end: the kernel closes it with the launcher, also after kill -9, and the child ends itself.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence

LIFELINE = "AREALITE_LIFELINE_FD"
"""Environment variable with the number of the inherited read end."""

ROLE = "AREALITE_ROLE"
"""Environment variable that tells a process started by the launcher what it is."""

ADDRESSES = "AREAL_LLM_SERVER_ADDRS"
"""Environment variable with the servers' host:port, separated by commas."""

KEY = "AREALITE_SERVER_KEY"
"""Environment variable with the key that the servers ask for."""

WEIGHTS_DIR = "AREALITE_WEIGHTS_DIR"
"""Environment variable with the folder that the launcher made for published weights."""

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
    _until_closed(descriptor)
    os.kill(os.getpid(), signal.SIGTERM)  # first the clean way: files are closed
    time.sleep(GRACE_S)
    if is_trainer() and (weights := os.environ.get(WEIGHTS_DIR)):
        shutil.rmtree(weights, ignore_errors=True)  # memory that nobody else would free
    os._exit(143)  # then the certain one: the main thread may hang in a kernel


def _until_closed(descriptor: int) -> None:
    try:
        while os.read(descriptor, 1):
            pass
    except OSError:
        pass


def lead(command: Sequence[str]) -> int:
    """Runs a program that knows nothing of lifelines; with the launcher it ends all the same.

    This process leads a group of its own: what the program starts ends with it. Returns its exit
    code, or minus the number of the signal that ended it.
    """
    descriptor = int(os.environ[LIFELINE])
    asked = False

    def stop(*_: object) -> None:
        nonlocal asked
        asked = True
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # this process is of the group, too
        os.killpg(0, signal.SIGTERM)

    def watch() -> None:
        _until_closed(descriptor)
        os.kill(os.getpid(), signal.SIGTERM)  # the main thread's to handle
        time.sleep(GRACE_S)
        os.killpg(0, signal.SIGKILL)

    signal.signal(signal.SIGTERM, stop)
    program = subprocess.Popen(command, pass_fds=(descriptor,))
    threading.Thread(target=watch, name="lifeline", daemon=True).start()
    code = None if asked else program.wait()
    if asked:  # what the program has left behind
        os.killpg(0, signal.SIGKILL)
    return code or 0


def main() -> None:
    """`python -m arealite.processes PROGRAM ARGUMENT...`: ends as the program ends."""
    code = lead(sys.argv[1:])
    if code < 0:
        if -code not in (signal.SIGKILL, signal.SIGSTOP):
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    raise SystemExit(code)


if __name__ == "__main__":
    main()
