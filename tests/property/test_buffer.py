"""The staleness rule over every interleaving of episodes, batches and versions.

A state machine drives the real Buffer as the runner and the trainer do: admit, end in one of the
ways an episode can end, take, train, publish; and crash, after which all that was not published is
played again. Versions of tokens are drawn at random within what an
engine could do: never older than some policy that was published, never newer than the newest.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from arealite.config import RolloutConfig
from arealite.data.batch import to_batch
from arealite.rollout.buffer import Buffer
from arealite.rollout.staleness import Late, has_fresh_token, is_usable, is_wholly_fresh
from arealite.types import Episode, Trajectory

TURNS = 4
"""Turns of the event loop after which a wait that can end has ended."""


def _trajectory(versions: list[int]) -> Trajectory:
    """A prompt token, then a sampled token per version, a tool's token before the last, which
    its workflow says to be of the newest version; that counts for nothing."""
    body = [*versions[:-1], None, versions[-1]]
    return Trajectory(
        tokens=[7, *range(len(body))],
        loss_mask=[0, *(int(v is not None) for v in body)],
        logprobs=[0.0, *(0.0 if v is None else -1.0 for v in body)],
        versions=[-1, *(max(versions) if v is None else v for v in body)],
        reward=float(len(body)),
    )


class _Everything:
    """Every sample is worth the same."""

    idle_at_zero = True

    def credit(self, episodes: Sequence[Episode]) -> list[list[float | None]]:
        return [[1.0 for _ in episode.trajectories] for episode in episodes]

    def weigh(self, lengths: Sequence[Sequence[int]]) -> list[list[float]]:
        return [[1.0] * len(group) for group in lengths]

    def loss(self, logprobs: Any, batch: Any) -> tuple[Any, dict[str, Any]]:
        raise NotImplementedError


class BufferMachine(RuleBasedStateMachine):
    """The model beside the buffer: plain sets of sample ids, one per fate."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.running: dict[str, int] = {}  # id -> version at admission
        self.fates: dict[str, list[str]] = {}
        self.batches: list[tuple[int, list[Episode]]] = []
        self.taking: asyncio.Task[list[Episode]] | None = None
        self.serial = 0
        self.again: list[str] = []  # rows that a crash gave back, oldest first
        self.committed: set[str] = set()  # trained, and their version was published
        self.uncommitted: list[str] = []
        self.n_batches = self.n_skipped = 0
        self.last_in_order = -1

    @initialize(
        batch_size=st.integers(1, 3),
        eta=st.integers(0, 3),
        late=st.sampled_from(["mask", "drop", "wait", "keep"]),
        start=st.integers(0, 2),
        cap=st.one_of(st.none(), st.integers(1, 5)),
    )
    def begin(self, batch_size: int, eta: int, late: Late, start: int, cap: int | None) -> None:
        def dropped(episode: Episode) -> None:
            self.fates[episode.sample_id].append("dropped_stale")

        self.late, self.start, self.cap = late, start, cap
        self.buffer = Buffer(batch_size, eta, late, cap, start, on_dropped=dropped)

    def teardown(self) -> None:
        taking, self.taking = self.taking, None
        if taking is not None:
            taking.cancel()
        self._turn()
        self.loop.close()

    def _run(self, coroutine: Any) -> Any:
        return self.loop.run_until_complete(coroutine)

    def _turn(self) -> None:
        async def turn() -> None:
            for _ in range(TURNS):
                await asyncio.sleep(0)

        self._run(turn())
        if self.taking is not None and self.taking.done():
            batch = self.taking.result()
            self.taking = None
            self.n_batches += 1
            youngest = max(int(episode.sample_id[2:]) for episode in batch)
            assert self.late != "wait" or all(int(i[2:]) > youngest for i in self.running), (
                "`wait` formed a batch past an older episode that still runs"
            )
            for episode in batch:
                self.fates[episode.sample_id].append("trained")
                self.uncommitted.append(episode.sample_id)
            self.batches.append((self.buffer.version, batch))
            self.trained_version = self.buffer.version

    @property
    def may_take(self) -> bool:
        """The trainer takes one batch per version, as the loop in main.py does."""
        return self.taking is None and getattr(self, "trained_version", -1) != self.buffer.version

    # --- rules

    @rule(wanted=st.integers(1, 4))
    def admit(self, wanted: int) -> None:
        for _ in range(wanted):
            task = self._ask()
            self._turn()
            self._admitted(task)

    def _ask(self) -> asyncio.Task[int]:
        """Asks for a place for the next row."""
        return self.loop.create_task(self.buffer.admit(self._next_id()))

    def _next_id(self) -> str:
        return self.again[0] if self.again else f"0:{self.serial}"

    def _admitted(self, task: asyncio.Task[int]) -> None:
        if not task.done():
            assert self.buffer.room <= 0, "admit waits although there is room"
            task.cancel()
            self._turn()
            return
        sample_id = self._next_id()
        if self.again:
            self.again.pop(0)
        else:
            self.serial += 1
        assert task.result() == self.buffer.version
        self.running[sample_id] = task.result()
        self.fates[sample_id] = []

    @precondition(lambda self: self.running)
    @rule(data=st.data(), wanted=st.integers(1, 4))
    def accept(self, data: Any, wanted: int) -> None:
        for _ in range(min(wanted, len(self.running))):
            self._accept(data.draw(st.sampled_from(sorted(self.running))), data)

    def _accept(self, sample_id: str, data: Any) -> None:
        admitted = self.running.pop(sample_id)
        versions = st.lists(st.integers(admitted, self.buffer.version), min_size=1, max_size=4)
        extremes = st.sampled_from([[[admitted]], [[self.buffer.version], [admitted]]])
        groups = data.draw(extremes | st.lists(versions, min_size=1, max_size=3))
        # An engine's versions never fall.
        trajectories = tuple(_trajectory(sorted(group)) for group in groups)
        self.buffer.accept(Episode(sample_id, admitted, trajectories))
        self._turn()

    @precondition(lambda self: self.running)
    @rule(data=st.data(), reason=st.sampled_from(["failed", "filtered"]))
    def give_back(self, data: Any, reason: str) -> None:
        sample_id = data.draw(st.sampled_from(sorted(self.running)))
        del self.running[sample_id]
        self.fates[sample_id].append(reason)
        self.buffer.give_back(sample_id, reason)
        self._turn()

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def skip(self, data: Any) -> None:
        """A filter without refill: the place stays taken, and nothing is in it."""
        sample_id = data.draw(st.sampled_from(sorted(self.running)))
        del self.running[sample_id]
        self.fates[sample_id].append("filtered")
        self.n_skipped += 1
        self.buffer.skip(sample_id)
        self._turn()

    @precondition(lambda self: self.taking is None)
    @rule(dice=st.integers(0, 9), cap=st.integers(1, 6))
    def what_is_rare(self, dice: int, cap: int) -> None:
        """What undoes much may happen, but seldom, or nothing else could build up."""
        if dice == 5:
            self._limit(cap)
        elif dice == 6:
            self._crash_and_restore()

    def _limit(self, cap: int) -> None:
        """Adaptive concurrency: what runs beyond a lower limit goes on."""
        self.cap = cap
        self.buffer.limit(cap)
        self._turn()

    def _crash_and_restore(self) -> None:
        """Only what was published is left; every other row is to do again."""
        left = [i for i, fates in self.fates.items() if fates in ([], ["dropped_stale"])]
        self.again = sorted({*self.again, *left, *self.uncommitted}, key=lambda i: int(i[2:]))
        assert not self.committed & set(self.again), "a row is trained twice"
        self.running.clear()
        self.fates.clear()
        self.uncommitted.clear()
        self.n_batches = self.n_skipped = 0
        self.last_in_order = -1
        self.trained_version = -1
        old = self.buffer
        self.begin(old.batch_size, old.eta, self.late, old.version, self.cap)

    @precondition(lambda self: not self.running)
    @rule()
    def nothing_can_end_that_was_not_admitted(self) -> None:
        with pytest.raises(RuntimeError, match="does not run"):
            self.buffer.give_back("1:0", "failed")

    @precondition(lambda self: self.may_take)
    @rule()
    def take(self) -> None:
        runner = self._ask() if self.buffer.room <= 0 else None
        self._turn()
        self.taking = self.loop.create_task(self.buffer.take())
        self._turn()
        if runner is not None:  # what take drops makes room for one who waits already
            self._admitted(runner)

    @precondition(lambda self: not self.may_take and self.taking is None)
    @rule()
    def advance(self) -> None:
        self.buffer.advance(self.buffer.version + 1)
        assert not self.committed & set(self.uncommitted), "a row is trained twice"
        self.committed.update(self.uncommitted)
        self.uncommitted.clear()
        self._turn()

    @precondition(lambda self: self.may_take)
    @rule()
    def step_on_fresh_episodes_alone(self) -> None:
        """No deadlock: from wherever the run is, fresh episodes complete a batch; the oldest
        in flight is left to grow older still, unless its place is needed."""
        self.take()
        places = (self.buffer.eta + 2) * self.buffer.batch_size + len(self.running)
        for _ in range(2 * places + 2):  # twice: a batch of skipped places alone is taken first
            if self.taking is None:
                break
            if self.buffer.room > 0:
                self.admit(1)
            # `wait` is owed the oldest; elsewhere stragglers are left alone if they can be
            choose = min if self.late == "wait" else max
            sample_id = choose(self.running, key=lambda i: int(i[2:]))
            del self.running[sample_id]
            fresh = (_trajectory([self.buffer.version]),)
            self.buffer.accept(Episode(sample_id, self.buffer.version, fresh))
            self._turn()
        assert self.taking is None, "no deadlock: a take that nothing can end"
        self.advance()

    @precondition(lambda self: self.may_take and self.running)
    @rule(steps=st.integers(1, 6), data=st.data())
    def a_straggler_ends_after_many_versions(self, steps: int, data: Any) -> None:
        """Admission alone cannot bound its age: short episodes overtake it."""
        oldest = min(self.running, key=lambda i: int(i[2:]))
        for _ in range(steps):
            self.step_on_fresh_episodes_alone()
        if oldest in self.running:
            self._accept(oldest, data)

    # --- invariants

    @invariant()
    def running_is_never_negative_and_is_what_runs(self) -> None:
        if hasattr(self, "buffer"):
            assert self.buffer.running == len(self.running) >= 0

    @invariant()
    def admission_never_exceeds_what_policies_within_eta_consume(self) -> None:
        if not hasattr(self, "buffer"):
            return
        b = self.buffer
        useful = len(self.running) + len(b) + self.n_batches * b.batch_size
        free = (b.version - self.start + b.eta + 1) * b.batch_size - useful
        assert free >= 0
        assert b.room == min(free, free if self.cap is None else self.cap - b.running)

    @invariant()
    def each_admitted_episode_has_exactly_one_fate(self) -> None:
        if not hasattr(self, "buffer"):
            return
        assert all(len(fates) <= 1 for fates in self.fates.values())
        counts = self.buffer.counts
        for fate in ("trained", "failed", "filtered", "dropped_stale"):
            assert counts[fate] == sum(f == [fate] for f in self.fates.values()), fate
        assert counts["admitted"] == len(self.fates)
        fateless = sum(not f for f in self.fates.values())
        assert fateless == len(self.running) + len(self.buffer) - self._skipped_and_ready

    @property
    def _skipped_and_ready(self) -> int:
        return sum(episode is None for _, episode in self.buffer._ready)

    @invariant()
    def every_batch_is_whole(self) -> None:
        """It consumes batch_size places: what was trained, and what was skipped among it."""
        if not hasattr(self, "buffer"):
            return
        size = self.buffer.batch_size
        skipped = self.n_batches * size - self.buffer.counts["trained"]
        freed = self.n_skipped - self._skipped_and_ready - skipped
        assert skipped >= 0
        assert freed >= 0
        assert freed % size == 0, "only whole batches of nothing are passed over"

    @invariant()
    def no_trained_token_is_older_than_eta(self) -> None:
        for version, batch in self.batches:
            assert 0 < len(batch) <= self.buffer.batch_size
            _check_lags(batch, version, self.buffer.eta, self.late)
            if self.late == "wait":
                orders = [int(episode.sample_id[2:]) for episode in batch]
                assert orders == sorted(orders)
                assert orders[0] > self.last_in_order
                self.last_in_order = orders[-1]
        self.batches.clear()


def _check_lags(episodes: list[Episode], version: int, eta: int, late: Late) -> None:
    limit = RolloutConfig(max_head_offpolicyness=eta, late=late).max_trained_lag
    batch = to_batch(episodes, _Everything(), version, limit)
    lags = []
    expected = 0
    by_tokens = {id(t.tokens): t for e in episodes for t in e.trajectories}
    for sample in batch.samples:
        trajectory = by_tokens[id(sample.tokens)]
        assert all(trajectory.loss_mask[i] for i in sample.trained)
        lags += [version - trajectory.versions[i] for i in sample.trained]
    for trajectory in by_tokens.values():
        expected += sum(
            bool(m) and (limit is None or version - v <= limit)
            for m, v in zip(trajectory.loss_mask, trajectory.versions, strict=True)
        )
    assert len(lags) == batch.n_tokens == expected, "no fresh token is left out"
    assert batch.stats["staleness/max"] == max(lags)
    if late == "keep":
        return
    assert all(0 <= lag <= eta for lag in lags), "0 <= lag <= eta"
    assert all(
        any(version - v <= eta for t in e.trajectories for v in t.versions if v >= 0)
        for e in episodes
    ), "an episode with nothing to train takes a place in the batch"
    if late in ("drop", "wait"):
        assert batch.stats["staleness/masked_tokens"] == 0


def test_the_staleness_rule_holds_in_every_interleaving() -> None:
    run_state_machine_as_test(
        BufferMachine,
        settings=settings(
            max_examples=250, stateful_step_count=40, deadline=None, derandomize=True
        ),
    )


@given(
    st.lists(st.lists(st.integers(0, 6), min_size=1, max_size=3), min_size=1, max_size=3),
    st.integers(6, 9),
    st.integers(0, 4),
)
@example([[4]], 7, 3)  # exactly as old as may be
@example([[3]], 7, 3)  # one version too old
@example([[3], [4]], 7, 3)
@settings(max_examples=100, deadline=None, derandomize=True)
def test_fresh_means_a_lag_of_at_most_eta(groups: list[list[int]], version: int, eta: int) -> None:
    episode = Episode("0:0", 0, tuple(_trajectory(group) for group in groups))
    fresh = [version - v <= eta for group in groups for v in group]
    assert has_fresh_token(episode, version, eta) == any(fresh)
    assert is_wholly_fresh(episode, version, eta) == all(fresh)
    assert is_usable("keep", episode, version, eta)
    assert is_usable("drop", episode, version, eta) == all(fresh)
    assert is_usable("mask", episode, version, eta) == any(fresh)


@pytest.mark.parametrize("late", ["mask", "drop"])
def test_what_was_fresh_enough_for_one_batch_is_looked_at_again_for_the_next(late: Late) -> None:
    """Two stragglers of version 0 end at version 1; eta is 1, and a batch holds one of them."""

    async def play() -> None:
        dropped: list[Episode] = []
        buffer = Buffer(1, 1, late, on_dropped=dropped.append)
        for sample_id in ("0:0", "0:1"):
            await buffer.admit(sample_id)
        buffer.advance(1)
        old = (_trajectory([0]),)
        for sample_id in ("0:0", "0:1"):
            buffer.accept(Episode(sample_id, 0, old))
        assert [e.sample_id for e in await buffer.take()] == ["0:0"]
        buffer.advance(2)
        assert not buffer.is_complete()
        assert [e.sample_id for e in dropped] == ["0:1"]
        await buffer.admit("0:2")
        buffer.accept(Episode("0:2", 2, (_trajectory([2]),)))
        assert [e.sample_id for e in await buffer.take()] == ["0:2"]

    asyncio.run(play())
