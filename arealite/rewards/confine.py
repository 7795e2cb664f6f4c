"""How far a reward worker is shut in, by reward.isolation; what was reached is told in words.

off        the time and memory limits alone
standard   an environment without secrets, a scratch folder to work in, no new processes, no
           network, no signals to other processes
strict     also: a fresh worker for each call, files only where Python and the reward file lie
           (to read) and in the scratch folder (to write), no /proc
"""

from __future__ import annotations

import os
import resource
import sys
from collections.abc import Mapping
from typing import Literal

from arealite.rewards.landlock import restrict_files
from arealite.rewards.seccomp import refuse_calls
from arealite.rewards.system import limit

Isolation = Literal["strict", "standard", "off"]

_KEPT = ("PATH", "HOME", "LANG", "TZ", "VIRTUAL_ENV", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH")
_KEPT_PREFIXES = ("LC_", "PYTHON")
_SYSTEM = ("/usr", "/lib", "/lib64", "/etc/localtime", "/etc/ld.so.cache", "/dev/urandom")
_DEVICES = ("/dev/null", "/dev/zero")
_MOST_FILE = 64 * 2**20
_MOST_FILES = 256


def environment(isolation: Isolation) -> dict[str, str]:
    """What a worker's environment holds: the names that Python needs, and no others."""
    threads = {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    if isolation == "off":
        return {**os.environ, **threads}
    kept = {k: v for k, v in os.environ.items() if k in _KEPT or k.startswith(_KEPT_PREFIXES)}
    return {**kept, **threads}


def confine(
    isolation: Isolation, scratch: str, timeout_s: float, reads_path: bool = True
) -> Mapping[str, bool]:
    """Shuts this process in, for good. Returns what was asked of the kernel: whether it did it.

    reads_path: the folders of sys.path, one of which may hold the run's own data, are readable.
    """
    if isolation == "off":
        return {}
    os.chdir(scratch)
    os.environ["TMPDIR"] = scratch
    reached = {}
    if isolation == "strict":
        limit(resource.RLIMIT_FSIZE, _MOST_FILE)
        limit(resource.RLIMIT_NOFILE, _MOST_FILES)
        limit(resource.RLIMIT_CPU, int(timeout_s) + 2)
        _silence()
        path = sys.path if reads_path else ()
        readable = [*path, sys.prefix, sys.base_prefix, sys.exec_prefix, *_SYSTEM]
        reached["files outside its scratch folder"] = restrict_files(
            [path for path in readable if path], [scratch, *_DEVICES]
        )
    reached["new processes, network, other processes"] = refuse_calls(isolation == "strict")
    return reached


def _silence() -> None:
    """The trainer's log is a file outside, too."""
    nothing = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):
        os.dup2(nothing, stream)
    os.close(nothing)


def in_words(isolation: Isolation, reached: Mapping[str, bool]) -> str:
    """One sentence on what holds and what this kernel did not allow."""
    done = [what for what, is_so in reached.items() if is_so]
    lacking = [what for what, is_so in reached.items() if not is_so]
    sentence = f"reward.isolation {isolation}: "
    sentence += f"workers have no access to {'; '.join(done)}" if done else "limits alone"
    if lacking:
        sentence += f"; this machine cannot refuse them: {'; '.join(lacking)}"
    return sentence
