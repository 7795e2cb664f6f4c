"""What a worker asks of the kernel; where a kernel lacks it, nothing happens."""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import shutil
import signal
import subprocess
import sys

_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36


def die_with_parent() -> None:
    """The kernel kills this process when the one that started it is gone."""
    parent = os.getppid()
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died in between
        os._exit(1)


def live_without_parent() -> None:
    """Takes back die_with_parent."""
    _prctl(_PR_SET_PDEATHSIG, 0)


def own_orphans() -> None:
    """Descendants whose parent ends become children of this process, not of the machine's first."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def limit_memory(megabytes: int) -> None:
    """This process may take so much more memory than it has; beyond it there is MemoryError."""
    try:
        with open("/proc/self/statm") as file:
            taken = int(file.read().split()[0]) * resource.getpagesize()
    except OSError:  # no Linux; its address space is hardly limited anyway
        return
    limit(resource.RLIMIT_AS, taken + megabytes * 2**20)
    limit(resource.RLIMIT_CORE, 0)  # writing a core file takes seconds


def removing(folder: str) -> subprocess.Popen[bytes] | None:
    """Removes what a worker left, however much and deep: None where that is done already."""
    with contextlib.suppress(OSError):
        os.rmdir(folder)  # most leave nothing
        return None
    if not os.path.lexists(folder):
        return None
    remover = shutil.which("rm", path="/bin:/usr/bin")
    if remover is None:  # Python's own has limits of depth
        with contextlib.suppress(RecursionError):
            shutil.rmtree(folder, ignore_errors=True)
        return None
    nothing = subprocess.DEVNULL
    command = [remover, "-rf", "--", folder]
    return subprocess.Popen(command, stdin=nothing, stdout=nothing, stderr=nothing)


def limit(kind: int, value: int) -> None:
    with contextlib.suppress(ValueError, OSError):  # it is lower already
        resource.setrlimit(kind, (value, value))


def _prctl(option: int, value: int) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(option, value, 0, 0, 0)
