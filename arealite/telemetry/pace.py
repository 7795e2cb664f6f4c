"""What holds a version up: shares of the time since the version before, and one word for them.

    share/waiting      the trainer waited for samples      share/training   it annotated and updated
    share/publishing   it published weights                share/engine_idle   a server had nothing
                                                           to decode, mean over the servers

They are metrics as all others; engine_idle is absent where the servers do not count it. What is
left of the trainer's time is everything else: making the batch, saving, evaluations that are waited
for.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

from arealite.telemetry.view import number

TRAINER = (("waiting", ("wait_batch",)), ("training", ("annotate", "update")),
           ("publishing", ("publish",)))  # fmt: skip


class Pace:
    """Made with the run, told of each version in turn. clock: monotonic seconds."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._last: tuple[float, float | None] | None = None

    def shares(self, metrics: Mapping[str, Any]) -> dict[str, float]:
        """The shares, from 0 to 1, of the version with these metrics; {} of the first."""
        now, idle = self._clock(), number(metrics.get("engine/idle_s"))
        before, self._last = self._last, (now, idle)
        if before is None or now <= before[0]:
            return {}
        elapsed = now - before[0]
        shares = {
            f"share/{name}": sum(number(metrics.get(f"time/{part}_s")) or 0.0 for part in parts)
            / elapsed
            for name, parts in TRAINER
        }
        servers = number(metrics.get("engine/servers"))
        # A server that was started again counts from 0.
        if servers and idle is not None and before[1] is not None and idle >= before[1]:
            shares["share/engine_idle"] = (idle - before[1]) / servers / elapsed
        return {key: min(1.0, share) for key, share in shares.items()}


def bound_by(row: Mapping[str, Any]) -> str | None:
    """generation | training | reward | publishing, of a version's metrics; None where unknown.

    The trainer's largest share names it. Where that is waiting, the servers are what is waited for,
    unless they too were idle for at least half of it: then it is rewards, or what else a workflow
    does between its requests.
    """
    shares = {name: number(row.get(f"share/{name}")) for name, _ in TRAINER}
    known = {name: share for name, share in shares.items() if share is not None}
    if not known:
        return None
    largest = max(known, key=lambda name: known[name])
    if largest != "waiting":
        return largest
    # Two shares that add up to more than 1 overlap by at least the excess.
    both = known["waiting"] + (number(row.get("share/engine_idle")) or 0.0) - 1.0
    return "reward" if both >= known["waiting"] / 2 else "generation"


def verdict(row: Mapping[str, Any]) -> str:
    """`generation (trainer idle 62 %, engine idle 3 %)`; "" where unknown."""
    bound = bound_by(row)
    if bound is None:
        return ""
    idle = [("trainer", row.get("share/waiting")), ("engine", row.get("share/engine_idle"))]
    told = [f"{who} idle {share:.0%}" for who, x in idle if (share := number(x)) is not None]
    return f"{bound} ({', '.join(told)})" if told else bound
