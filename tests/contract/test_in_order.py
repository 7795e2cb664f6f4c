"""deterministic's order: what runs ends before weights change, and batches keep their order."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from session_support import Solo, numbered_rows, update

from arealite.engines.scripted import Sample, ScriptedEngine
from arealite.rollout.limits import Limits
from arealite.rollout.session import Session
from arealite.simulate.clock import run_virtually
from arealite.types import Episode, Trajectory, WeightUpdate

SIZE, VERSIONS = 4, 12


class Watches(ScriptedEngine):
    """Early requests take longer than later ones; it keeps what ran when its weights changed."""

    def __init__(self) -> None:
        super().__init__(lambda r, serial: Sample(length=8, token_s=10.0 / (1 + serial % 7)))
        self.ran: list[int] = []

    async def update_weights(self, update: WeightUpdate) -> float:
        self.ran.append(self.running)
        return await super().update_weights(update)


async def _learn(session: Session) -> list[list[Episode]]:
    """The batches of a trainer that needs no time."""
    await session.wait_ready()
    await session.publish(update(0))
    batches = []
    for version in range(1, VERSIONS + 1):
        batches.append(await session.next_batch())
        await session.publish(update(version))
    return batches


def _batches(in_order: bool, **limits: Any) -> tuple[list[list[Episode]], Watches]:
    async def run() -> list[list[Episode]]:
        rules = Limits(SIZE, 2, in_order=in_order, seed=1, **limits)
        return await _learn(Session(engine, Solo(), numbered_rows(), rules))

    engine = Watches()
    return run_virtually(run()), engine


def _versions(episode: Episode) -> set[int]:
    return {v for t in episode.trajectories for v in t.versions if v >= 0}


def test_weights_change_only_when_nothing_runs() -> None:
    batches, engine = _batches(in_order=True)
    assert engine.ran == [0] * (VERSIONS + 1)
    assert all(len(_versions(episode)) == 1 for batch in batches for episode in batch)


def test_batches_keep_the_order_of_admission_whoever_ends_first() -> None:
    batches, _ = _batches(in_order=True, late="mask")
    rows = [episode.row["row"] for batch in batches for episode in batch]
    assert rows == list(range(SIZE * VERSIONS))


def test_neither_holds_without_it() -> None:
    """Or the two tests above would show nothing."""
    batches, engine = _batches(in_order=False)
    assert max(engine.ran) > 0
    assert any(len(_versions(episode)) == 2 for batch in batches for episode in batch)
    rows = [episode.row["row"] for batch in batches for episode in batch]
    assert rows != sorted(rows)


def _later_tokens(in_order: bool) -> list[float]:
    """Of a held-out set of long episodes at each version, played beside training."""

    class Long(Solo):
        async def arun_episode(self, engine: Any, data: Mapping[str, Any]) -> list[Trajectory]:
            first = await super().arun_episode(engine, data)
            await asyncio.sleep(200.0)
            return first + await super().arun_episode(engine, data)

    async def run() -> list[float]:
        session = Session(
            Watches(),
            Solo(),
            numbered_rows(),
            Limits(SIZE, 2, in_order=in_order, seed=1),
            eval_workflow=Long(),
            eval_rows=list(numbered_rows(3)),
        )
        await session.wait_ready()
        await session.publish(update(0))
        held_out = []
        for version in range(1, 4):
            held_out.append(asyncio.create_task(session.evaluate(version - 1)))
            await session.next_batch()
            await session.publish(update(version))
        return [(await task)["eval/valid/later_tokens"] for task in held_out]

    return run_virtually(run())


def test_a_held_out_set_is_played_by_its_version_alone() -> None:
    assert _later_tokens(in_order=True) == [0.0, 0.0, 0.0]
    assert max(_later_tokens(in_order=False)) > 0.0
