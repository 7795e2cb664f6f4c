"""A run that crashes anywhere trains the same batches, when it keeps the order of admission.

The real buffer, ledger and rows, with episodes that end in any order; a crash throws all away but a
snapshot as a checkpoint keeps it, which may be older than the crash.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from arealite.data.rows import Rows
from arealite.errors import CheckpointError
from arealite.ledger import Ledger
from arealite.rollout.buffer import Buffer
from arealite.rollout.snapshot import Snapshot, from_lines, to_lines
from arealite.types import Episode, Trajectory

N_ROWS, VERSIONS = 7, 6
DATA = [{"index": i} for i in range(N_ROWS)]


def episode_of(sample_id: str, version: int) -> Episode:
    seed = sum(map(ord, sample_id)) / 7
    trajectory = Trajectory(
        tokens=[1, 2, 3],
        loss_mask=[0, 1, 1],
        logprobs=[0.0, -seed, -0.1],
        versions=[-1, version, version],
        reward=seed,
        components={"form": 1, "answer": seed - 1},
        text="é\u2028\n",
    )
    return Episode(sample_id, version, (trajectory,), DATA[int(sample_id.partition(":")[2])])


class Life:
    """One start of a run, in turns of one step each."""

    def __init__(self, path: Path, saved: tuple[Any, ...] | None) -> None:
        if saved is None:
            self.version, snapshot = 0, Snapshot()
            self.ledger = Ledger(path, N_ROWS)
        else:
            self.version, text, sequence, account = saved
            snapshot = from_lines(iter(text.splitlines()), Rows(DATA, 1, True).row)
            self.ledger = Ledger(path, N_ROWS, state=json.loads(account), sequence=sequence)
        first = sorted(snapshot.running, key=lambda i: snapshot.running[i])
        known = self.ledger.account
        rows = Rows(
            DATA, 1, True, first=first, is_done=known.is_known, epoch=known.settled.whole
        )  # fmt: skip
        self.rows = iter(rows)
        self.buffer = Buffer(
            2, 1, "wait", None, self.version, ledger=self.ledger, snapshot=snapshot
        )  # fmt: skip
        self.batch: list[str] = []

    def save(self) -> tuple[Any, ...]:
        lines = "".join(to_lines(self.buffer.snapshot(self.version)))
        sequence, account = self.ledger.state()
        return self.version, lines, sequence, json.dumps(account)

    async def admit(self) -> None:
        while self.buffer.room > 0:
            sample_id, _ = next(self.rows)
            await self.buffer.admit(sample_id)

    async def step(self, choose: Callable[[int], int]) -> None:
        """One episode ends; or, where nothing runs, a batch is trained and published."""
        await self.admit()
        if self.batch:
            self.version += 1
            self.buffer.advance(self.version)
            self.batch = []
        elif self.buffer.running:
            ids = self.buffer.running_ids
            sample_id = ids[choose(len(ids))]
            if sample_id.endswith(":3"):
                self.buffer.give_back(sample_id, "filtered", 2)
            else:
                self.buffer.accept(episode_of(sample_id, self.buffer.version))
        else:
            self.batch = [episode.sample_id for episode in await self.buffer.take()]


async def play(
    folder: Path, choose: Callable[[int], int], may_save: Any, may_crash: Any
) -> tuple[list[list[str]], Ledger]:
    """The batches by version, of the lives that count."""
    life, saved = Life(folder / "ledger.jsonl", None), None
    batches: list[list[str]] = []
    while life.version < VERSIONS:
        await life.step(choose)
        if life.batch:
            batches[life.version :] = [life.batch]
        if may_save():
            saved = life.save()
            life.ledger.committed(life.version, saved[2])
        if may_crash():
            life.ledger.close()
            life = Life(folder / "ledger.jsonl", saved)
    life.ledger.close()
    return batches, life.ledger


@given(data=st.data())
@settings(max_examples=60, deadline=None, derandomize=True)
def test_the_same_batches_whatever_crashes(data: Any) -> None:
    crashes = itertools.count()

    def crash() -> bool:
        return data.draw(st.integers(0, 5)) == 5 and next(crashes) < 4

    def drawn(count: int) -> int:
        return int(data.draw(st.integers(0, count - 1)))

    with tempfile.TemporaryDirectory() as undisturbed, tempfile.TemporaryDirectory() as disturbed:
        expected, _ = asyncio.run(
            play(Path(undisturbed), lambda n: 0, lambda: False, lambda: False)
        )
        found, ledger = asyncio.run(
            play(Path(disturbed), drawn, lambda: data.draw(st.booleans()), crash)
        )
    assert found == expected
    trained = [i for batch in found for i in batch]
    assert len(trained) == len(set(trained)) == 2 * VERSIONS
    assert ledger.account.problems() == []
    assert ledger.account.counts["trained"] == 2 * VERSIONS


def test_a_snapshot_comes_back_bit_for_bit() -> None:
    ready = ((4, episode_of("0:2", 1)), (5, None), (7, episode_of("1:3", 2)))
    snapshot = Snapshot(ready, {"1:0": 6}, 8)
    lines = "".join(to_lines(snapshot))
    assert from_lines(iter(lines.splitlines()), Rows(DATA, 1, True).row) == snapshot


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"running": {}, "admissions": 0}\n[0, {}]'])
def test_what_is_no_snapshot_is_told(text: str) -> None:
    with pytest.raises(CheckpointError, match="the rollouts of the checkpoint cannot be read"):
        from_lines(iter(text.splitlines()), lambda sample_id: {})


def test_what_is_to_be_played_again_is_not_forgotten_by_a_second_crash_before_it_is() -> None:
    snapshot = Snapshot((), {"0:4": 2, "0:1": 5}, 6)
    buffer = Buffer(2, 1, "wait", None, 3, snapshot=snapshot)
    assert buffer.snapshot(3) == snapshot
    asyncio.run(buffer.admit("0:4"))
    assert buffer.snapshot(3) == snapshot
