"""How many episodes run at once, found from the servers' queues: AIMD, as in TCP."""

from __future__ import annotations

BACK_OFF = 0.75
FULL = 0.25
"""A queue of this share of what runs keeps a server busy; a longer one only ages its requests."""


class Concurrency:
    """Additive increase, multiplicative decrease (Chiu and Jain, 1989). Pure bookkeeping.

    limit: episodes that may run now, from 1 to most (None: no end but staleness).
    """

    def __init__(self, start: int, most: int | None) -> None:
        self.step, self.most = max(1, start // 4), most
        self.limit = start
        self._refused = 0.0

    def look(self, episodes: int, running: float, waiting: float, refused: float) -> int:
        """The new limit. episodes: in flight now. running, waiting: the servers' samples.
        refused: how often they have answered 429 so far."""
        was_refused, self._refused = refused > self._refused, refused
        if was_refused or waiting > FULL * max(running, 1.0):
            self.limit = max(1, int(self.limit * BACK_OFF))
        elif episodes >= self.limit:  # more than is used need not be allowed
            self.limit += self.step
        if self.most is not None:
            self.limit = min(self.limit, self.most)
        return self.limit
