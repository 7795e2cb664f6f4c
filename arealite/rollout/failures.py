"""What failed: counted by kind, the first of each kept whole, and the budget for it."""

from __future__ import annotations

import traceback
from collections import deque
from typing import Any

from arealite.errors import EpisodeError

FIRST, LAST = 8, 64
HELD_OUT = "held-out "

MOST_CHARACTERS = 4000
"""Of a traceback that is kept; its end says most."""


class ErrorBudget:
    """Pure bookkeeping of successes and failures.

    When failures are no longer exceptions (the first 8 all failed, or more than half of the last
    64), going on would only hide the cause.
    """

    def __init__(self) -> None:
        self._ended = 0
        self._recent: deque[bool] = deque(maxlen=LAST)

    def spend(self, ok: bool) -> bool:
        """Books one end; True when the budget is spent."""
        self._ended += 1
        self._recent.append(ok)
        failed = len(self._recent) - sum(self._recent)
        return (self._ended == FIRST and failed == FIRST) or (
            len(self._recent) == LAST and failed > LAST // 2
        )


class Failures:
    """Failed episodes by the kind of their error: {kind: {count, first, traceback}}."""

    def __init__(self) -> None:
        self.by_kind: dict[str, dict[str, Any]] = {}

    def add(self, sample_id: str, error: EpisodeError, is_held_out: bool = False) -> None:
        """A held-out row's failure is kept under a kind of its own, and is in no count."""
        kind = f"{HELD_OUT}{error.kind}" if is_held_out else error.kind
        kept = self.by_kind.get(kind)
        if kept is None:
            text = "".join(traceback.format_exception(error))
            kept = self.by_kind[kind] = {
                "count": 0,
                "first": f"row {sample_id}: {error}",
                "traceback": text[-MOST_CHARACTERS:],
            }
        kept["count"] += 1

    @property
    def counts(self) -> dict[str, float]:
        """Flat `counts/failed/<kind>`."""
        return {
            f"counts/failed/{kind}": float(of["count"])
            for kind, of in self.by_kind.items()
            if not kind.startswith(HELD_OUT)
        }
