"""Finished episodes between the engines and the trainer; the staleness rule is applied here.

Invariants: every admitted episode ends in exactly one of accept, skip, give_back (failed or
filtered) or a drop at take; nothing ends that does not run; take consumes exactly batch_size
places, of which the skipped ones hold no episode. All methods run on the event loop: no locks.
The ledger, where there is one, is told of each.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from typing import Any

from arealite.crash import crash_point
from arealite.errors import ConfigError
from arealite.ledger import Ledger
from arealite.rollout.snapshot import Ready, Snapshot
from arealite.rollout.staleness import Late, is_usable, is_wholly_in_order, room
from arealite.types import Episode


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
        ledger: Ledger | None = None,
        snapshot: Snapshot | None = None,
    ) -> None:
        """snapshot: goes on from there, at this version; the ledger knows of it already."""
        self.batch_size, self.eta, self.late = batch_size, eta, late
        self.max_running = max_running
        self.version = version
        self.newest = version  # engines may sample with it before it is published everywhere
        self._ledger = ledger
        snapshot = snapshot or Snapshot()
        self._running: dict[str, int] = {}  # sample id -> its place in the order of admission
        self._again = dict(snapshot.running)  # what is played again keeps its place
        self._admissions = snapshot.admissions
        self._ready: list[Ready] = list(snapshot.ready)
        self._taken: list[Ready] = []  # the batch being trained
        # Everything consumed before this run began counts as accepted, or room would be wrong.
        self.accepted = version * batch_size + len(self._ready)
        self.counts: Counter[str] = Counter() if ledger is None else _counts(ledger)
        self._checked = 0  # so many of the first in _ready are known to be usable at this version
        self._on_dropped = on_dropped
        self._failure: BaseException | None = None
        self._changed = asyncio.Event()

    def __len__(self) -> int:
        return len(self._ready)

    @property
    def running(self) -> int:
        """Episodes admitted and not yet ended."""
        return len(self._running)

    @property
    def running_ids(self) -> list[str]:
        """Their rows' ids, oldest admission first."""
        return list(self._running)

    @property
    def room(self) -> int:
        free = room(self.version, self.eta, self.batch_size, self.running, self.accepted)
        return free if self.max_running is None else min(free, self.max_running - self.running)

    def limit(self, max_running: int) -> None:
        """From now on at most so many run; what runs already goes on."""
        self.max_running = max_running
        self._changed.set()

    async def admit(self, sample_id: str) -> int:
        """Waits for room, takes one place, and returns the version to stamp on the episode."""
        await self._until(lambda: self.room > 0)
        if sample_id in self._running:
            raise ConfigError(f"row {sample_id} came twice; every row needs an id of its own")
        place = self._again.pop(sample_id, None)
        if place is None:
            place, self._admissions = self._admissions, self._admissions + 1
        self._running[sample_id] = place
        self.counts["admitted"] += 1
        self._note("planned", id=sample_id, version=self.version)
        crash_point("after_plan")
        return self.version

    def accept(self, episode: Episode) -> None:
        """A running episode ended and is kept for training."""
        place = self._end(episode.sample_id)
        crash_point("after_reply_before_ledger")
        tokens = sum(t.sampled for t in episode.trajectories)
        self._note("finished", id=episode.sample_id, tokens=tokens)
        self._fill(place, episode)
        crash_point("after_finish")

    def skip(self, sample_id: str, tokens: int = 0) -> None:
        """A running episode was filtered and is not replaced: its batch will be smaller."""
        self.counts["filtered"] += 1
        place = self._end(sample_id)
        self._note("filtered", id=sample_id, tokens=tokens)
        self._fill(place, None)

    def give_back(self, sample_id: str, reason: str, tokens: int = 0) -> None:
        """A running episode ended without a use ("failed", "filtered"): its place is free."""
        self._end(sample_id)
        self.counts[reason] += 1
        self._note(reason, id=sample_id, tokens=tokens)
        crash_point(f"after_{reason}")
        self._changed.set()

    async def take(self) -> list[Episode]:
        """The next batch, oldest admission first; never empty. Waits until it is complete."""
        while True:
            await self._until(self.is_complete)
            batch, self._ready = self._ready[: self.batch_size], self._ready[self.batch_size :]
            self._checked = len(self._ready)
            episodes = [episode for _, episode in batch if episode is not None]
            if episodes:
                self.counts["trained"] += len(episodes)
                self._taken = batch
                crash_point("batch_popped")
                return episodes
            self.accepted -= len(batch)  # a batch of nothing trains no version: places are free
            self._changed.set()

    async def idle(self) -> None:
        """Waits until nothing runs and nothing more may be admitted at this version."""
        await self._until(lambda: self.room <= 0 and not self._running)

    def advance(self, version: int) -> None:
        """Version `version` is published: there is room again."""
        if version < self.version:
            raise ValueError(f"version {version} is published after version {self.version}")
        self._settle(version)
        self.version = version
        self._checked = 0
        self._changed.set()

    def snapshot(self, version: int) -> Snapshot:
        """What is finished and what runs, for weights of this version: where they have learned
        from the batch that was taken last it is trained for good, else it is to train again."""
        self._settle(version)
        running = {**self._again, **self._running}
        return Snapshot((*self._taken, *self._ready), running, self._admissions)

    def _settle(self, version: int) -> None:
        if version > self.version and self._taken:
            ids = [episode.sample_id for _, episode in self._taken if episode is not None]
            self._note("trained", ids=ids, version=version)
            self._taken = []

    def fail(self, error: BaseException) -> None:
        """Ends every present and future wait with this error."""
        self._failure = self._failure or error
        self._changed.set()

    def is_complete(self) -> bool:
        """Whether take would not wait. What has become too old is dropped here."""
        self._drop_stale()
        if len(self._ready) < self.batch_size:
            return False
        self._ready.sort(key=lambda ready: ready[0])
        last = self._ready[self.batch_size - 1][0]
        return is_wholly_in_order(self.late, last, next(iter(self._running.values()), None))

    def _drop_stale(self) -> None:
        kept = self._ready[: self._checked]
        for order, episode in self._ready[self._checked :]:
            if episode is None or is_usable(self.late, episode, self.version, self.eta):
                kept.append((order, episode))
            else:
                self.accepted -= 1  # its place is free for a fresh one
                self.counts["dropped_stale"] += 1
                self._note("stale", id=episode.sample_id)
                self._on_dropped(episode)
                self._changed.set()
        self._ready, self._checked = kept, len(kept)

    def _fill(self, order: int, episode: Episode | None) -> None:
        self._ready.append((order, episode))
        self.accepted += 1
        self._changed.set()

    def _note(self, event: str, **fields: Any) -> None:
        if self._ledger is not None:
            self._ledger.note(event, **fields)

    def _end(self, sample_id: str) -> int:
        if sample_id not in self._running:
            raise RuntimeError(f"episode {sample_id} ended, but it does not run")
        return self._running.pop(sample_id)

    async def _until(self, true: Callable[[], bool]) -> None:
        while True:
            if self._failure is not None:
                raise self._failure
            if true():
                return
            self._changed.clear()
            await self._changed.wait()


def _counts(ledger: Ledger) -> Counter[str]:
    """What was counted before this run went on."""
    known = ledger.account.counts
    names = {"admitted": "planned", "dropped_stale": "stale"}
    names |= {name: name for name in ("trained", "filtered", "failed")}
    return Counter({name: known[event] for name, event in names.items()})
