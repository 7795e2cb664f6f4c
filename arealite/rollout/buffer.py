"""Finished episodes between the engines and the trainer; the staleness rule is applied here.

Invariants: every admitted episode ends in exactly one of accept, give_back (failed or filtered)
or a drop at take; running never goes below 0; take returns exactly batch_size episodes. All
methods run on the event loop: no locks.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from typing import Literal

from arealite.rollout.staleness import has_fresh_token, is_wholly_fresh, room
from arealite.types import Episode

Late = Literal["mask", "drop"]


class Buffer:
    """Admission, the finished episodes, and the batches made of them."""

    def __init__(
        self,
        batch_size: int,
        eta: int,
        late: Late = "mask",
        max_running: int | None = None,
        version: int = 0,
        on_dropped: Callable[[Episode], None] = lambda episode: None,
    ) -> None:
        self.batch_size, self.eta, self.late = batch_size, eta, late
        self.max_running = max_running
        self.version = version
        self.running = 0
        # Everything consumed before this run began counts as accepted, or room would be wrong.
        self.accepted = version * batch_size
        self.counts: Counter[str] = Counter()
        self._ready: list[Episode] = []
        self._on_dropped = on_dropped
        self._failure: BaseException | None = None
        self._changed = asyncio.Event()

    def __len__(self) -> int:
        return len(self._ready)

    @property
    def room(self) -> int:
        free = room(self.version, self.eta, self.batch_size, self.running, self.accepted)
        return free if self.max_running is None else min(free, self.max_running - self.running)

    async def admit(self) -> int:
        """Waits for room, takes one place, and returns the version to stamp on the episode."""
        await self._until(lambda: self.room > 0)
        self.running += 1
        self.counts["admitted"] += 1
        return self.version

    def accept(self, episode: Episode) -> None:
        """A running episode ended and is kept for training."""
        self._end_one()
        self.accepted += 1
        self._ready.append(episode)
        self._changed.set()

    def give_back(self, reason: str) -> None:
        """A running episode ended without a use ("failed", "filtered"): its place is free."""
        self._end_one()
        self.counts[reason] += 1
        self._changed.set()

    async def take(self) -> list[Episode]:
        """The next batch, oldest admission first. Waits until there are enough episodes."""
        await self._until(self._enough)
        self._ready.sort(key=lambda e: e.version)  # stable: equal versions stay in order of ending
        batch, self._ready = self._ready[: self.batch_size], self._ready[self.batch_size :]
        self.counts["trained"] += len(batch)
        return batch

    def advance(self, version: int) -> None:
        """Version `version` is published: there is room again."""
        if version < self.version:
            raise ValueError(f"version {version} is published after version {self.version}")
        self.version = version
        self._changed.set()

    def fail(self, error: BaseException) -> None:
        """Ends every present and future wait with this error."""
        self._failure = self._failure or error
        self._changed.set()

    def _enough(self) -> bool:
        self._drop_stale()
        return len(self._ready) >= self.batch_size

    def _drop_stale(self) -> None:
        usable = is_wholly_fresh if self.late == "drop" else has_fresh_token
        kept: list[Episode] = []
        for episode in self._ready:
            if usable(episode, self.version, self.eta):
                kept.append(episode)
            else:
                self.accepted -= 1  # its place is free for a fresh one
                self.counts["dropped_stale"] += 1
                self._on_dropped(episode)
                self._changed.set()
        self._ready = kept

    def _end_one(self) -> None:
        if self.running < 1:
            raise RuntimeError("an episode ended that was never admitted")
        self.running -= 1

    async def _until(self, true: Callable[[], bool]) -> None:
        while True:
            if self._failure is not None:
                raise self._failure
            if true():
                return
            self._changed.clear()
            await self._changed.wait()
