"""Whether a run that has ended with an error is started again, and when."""

from __future__ import annotations

import time
from collections.abc import Callable

from arealite.errors import (
    EXIT_BUG,
    ArealiteError,
    EnginesExhausted,
    Killed,
    Preempted,
    Stall,
)

PASSING = tuple(e.exit_code for e in (EnginesExhausted, Stall, Killed, Preempted))
"""Exit codes of what another start may not meet again; so may a crash by a signal."""

BACK_OFF_S, LONGEST_S = 1.0, 60.0


class Attempts:
    """Pure bookkeeping of one command's starts of its run.

    newest: the version of the newest checkpoint, -1 where there is none. Two starts in a row that
    add none are a crash loop: what ends them would end a third.
    """

    def __init__(self, retries: int, newest: Callable[[], int]) -> None:
        self._retries, self._newest = retries, newest
        self._before, self._fruitless = newest(), 0
        self.count = 0

    def why_not(self, error: ArealiteError, by_signal: bool) -> str:
        """Why the run is not started again, for people; "" where it is."""
        if error.exit_code not in PASSING and not (by_signal and error.exit_code == EXIT_BUG):
            return "another start would end in the same way"
        before, self._before = self._before, self._newest()
        self._fruitless = 0 if self._before > before else self._fruitless + 1
        if self._fruitless > 1:
            return "two starts in a row have added no checkpoint"
        if self.count >= self._retries:
            return f"recover.retries allows {self._retries}"
        self.count += 1
        return ""

    def back_off(self) -> None:
        """Waits before the next start; a signal may end it."""
        time.sleep(self.pause_s)

    @property
    def pause_s(self) -> float:
        return min(BACK_OFF_S * 2.0 ** (self.count - 1), LONGEST_S)
