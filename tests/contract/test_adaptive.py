"""The session beside its engines: how many episodes run, and what filtered ones cost."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any

import pytest
from session_support import Solo, numbered_rows, update

from arealite.engines.scripted import Sample, ScriptedEngine
from arealite.rollout.limits import Limits
from arealite.rollout.runner import MOST_FILTERED
from arealite.rollout.session import Session
from arealite.simulate.clock import run_virtually


class Reports(ScriptedEngine):
    """Its requests never end in time; its counters are the given ones."""

    def __init__(self, counters: Callable[[float], Mapping[str, float]]) -> None:
        super().__init__(lambda request, serial: Sample(length=1, first_s=1e6))
        self.counters = counters

    async def server_metrics(self) -> Mapping[str, float]:
        told = {"running": float(self.running), "waiting": 0.0, "refused": 0.0}
        return told | dict(self.counters(asyncio.get_running_loop().time()))


def _limits_seen(
    counters: Callable[[float], Mapping[str, float]], **limits: Any
) -> list[int | None]:
    """How many episodes may run in each of the first seconds, for batches of 8."""

    async def run() -> list[int | None]:
        rules = Limits(8, 8, adaptive=True, **limits)
        session = Session(Reports(counters), Solo(), numbered_rows(), rules)
        await session.wait_ready()
        await session.publish(update(0))
        await asyncio.sleep(0.5)
        seen = [session.buffer.max_running]
        for _ in range(7):
            await asyncio.sleep(1.0)
            seen.append(session.buffer.max_running)
        return seen

    return run_virtually(run())


def test_without_a_queue_more_episodes_run_each_second() -> None:
    assert _limits_seen(lambda now: {}) == [8, 10, 12, 14, 16, 18, 20, 22]
    assert _limits_seen(lambda now: {}, max_running=15) == [8, 10, 12, 14, 15, 15, 15, 15]
    assert _limits_seen(lambda now: {}, max_running=5) == [5] * 8


@pytest.mark.parametrize(
    ("counters", "seen"),
    [
        # a queue that stays
        (lambda now: {"waiting": 8.0 if now > 3.5 else 2.0}, [8, 10, 12, 14, 10, 7, 5, 3]),
        # 429 before it began, and from then on in every second
        (lambda now: {"refused": 7.0 + max(0.0, now - 3.5)}, [8, 6, 8, 10, 7, 5, 3, 2]),
    ],
)
def test_a_queue_or_a_refusal_lets_fewer_run(
    counters: Callable[[float], Mapping[str, float]], seen: list[int]
) -> None:
    assert _limits_seen(counters) == seen


def test_every_second_episode_may_be_filtered_for_ever() -> None:
    """Only filtered ones in a row, without one that is kept, end a run."""

    async def run() -> int:
        session = Session(
            ScriptedEngine(),
            Solo(),
            numbered_rows(),
            Limits(4, 0),
            keep=lambda e: bool(e.row["row"] % 2),
        )
        await session.wait_ready()
        await session.publish(update(0))
        for version in range(1, 101):
            assert len(await session.next_batch()) == 4
            await session.publish(update(version))
        return int(session.counts["counts/filtered"])

    assert run_virtually(run()) > 4 * MOST_FILTERED
