"""How a process has ended, in words for people."""

from __future__ import annotations

import signal
from pathlib import Path


def suspect(code: int, before: int | None) -> str:
    """Who sent SIGKILL: the kernel where memory ran out, and hardly anybody else."""
    if code != -signal.SIGKILL:
        return ""
    if before is not None and before == count_oom_kills():
        return " (by hand or by a job scheduler: the kernel has killed nothing for want of memory)"
    return (
        ", likely by the out-of-memory killer (lower actor.mb_spec.max_tokens_per_mb or "
        "rollout.max_running_requests, or give the run more memory)"
    )


def count_oom_kills() -> int | None:
    """How many processes the kernel has killed for memory since it was started; None: no count."""
    try:
        lines = Path("/proc/vmstat").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("oom_kill "))
    except (OSError, ValueError, StopIteration):
        return None


def ending(code: int) -> str:
    if code < 0:
        return f"signal {name(-code)}"
    return f"exit code {code}"


def name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # a real-time signal
        return str(number)
