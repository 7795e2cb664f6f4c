"""A deterministic run that is stopped between two versions never plays an episode with newer
weights than it began with."""

from __future__ import annotations

import asyncio
import json
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from session_support import Solo, numbered_rows, update

from arealite.commits import Commits
from arealite.engines.scripted import Sample, ScriptedEngine
from arealite.errors import EnginesExhausted, Preempted
from arealite.rollout.limits import Limits
from arealite.rollout.session import Session
from arealite.simulate.clock import run_virtually
from arealite.telemetry.run_folder import RunFolder
from arealite.telemetry.status import Status, read_status

LONG_S = 80.0


async def _stopped(in_order: bool) -> Session:
    """Version 1 is to be published while episodes of version 0 run; then somebody asks to stop."""
    engine = ScriptedEngine(lambda r, serial: Sample(length=8, token_s=LONG_S / 8 * (serial + 1)))
    session = Session(engine, Solo(), numbered_rows(), Limits(2, 2, in_order=in_order, seed=1))
    await session.wait_ready()
    assert await session.settles(1.0), "nothing has begun"
    await session.publish(update(0))
    await session.next_batch()
    publishing = asyncio.create_task(session.publish(update(1)))
    await asyncio.sleep(1.0)
    assert session.buffer.running
    assert publishing.done() != in_order
    publishing.cancel()
    with suppress(asyncio.CancelledError):
        await publishing
    return session


def test_what_runs_is_waited_for_where_its_weights_are_those_of_before() -> None:
    async def run() -> None:
        session = await _stopped(in_order=True)
        assert await session.settles(20 * LONG_S)
        snapshot, _ = await session.snapshot(1, lambda: None)
        assert snapshot.running == {}, "nothing is played again"
        assert {v for _, e in snapshot.ready if e for v in e.trajectories[0].versions} <= {-1, 0}

    run_virtually(run())


def test_it_is_not_waited_for_longer_than_that() -> None:
    async def run() -> None:
        session = await _stopped(in_order=True)
        assert not await session.settles(1.0)
        session.buffer.fail(EnginesExhausted("no server is left"))
        assert not await session.settles(20 * LONG_S)

    run_virtually(run())


def test_other_runs_play_it_again_with_newer_weights() -> None:
    async def run() -> None:
        session = await _stopped(in_order=False)
        assert session.buffer.running
        assert await session.settles(0.0)

    run_virtually(run())


@pytest.mark.parametrize("is_whole", [True, False])
def test_what_is_between_two_versions_is_no_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_whole: bool
) -> None:
    folder = RunFolder(tmp_path / "runs/e/t").create()
    run: Any = SimpleNamespace(
        folder=folder, status=Status(folder), first_version=0, recovered=None
    )
    policy: Any = SimpleNamespace(version=3)
    made: list[int] = []
    monkeypatch.setattr(Commits, "_make", lambda self, version: made.append(version))
    with pytest.raises(Preempted):
        with Commits(run, policy, SimpleNamespace(is_whole=is_whole)):  # type: ignore[arg-type]
            raise Preempted("stopped")
    run.status.flush()
    told = json.dumps(read_status(folder)["alarms"])
    assert (made, "stopped between two versions" in told) == (
        ([3], False) if is_whole else ([], True)
    )
