"""The door: episodes go on beside training, and every way to end is named and leaves nothing.

The engine is scripted. Nothing here depends on how fast this machine is: tests wait for events, and
time limits only turn a hang into a failure.
"""

from __future__ import annotations

import asyncio
import itertools
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest

from arealite.engines.scripted import ScriptedEngine
from arealite.errors import ArealiteError
from arealite.rollout.door import Limits, Rollouts
from arealite.types import (
    Episode,
    GenerationHyperparameters,
    ModelRequest,
    Probe,
    Trajectory,
    WeightUpdate,
)

GCONFIG = GenerationHyperparameters(max_new_tokens=16)


class Workflow:
    """One sample per row, worth its serial number; remembers what was played."""

    def __init__(self, group: int = 1) -> None:
        self.group = group
        self.ended = threading.Semaphore(0)
        self.started: list[int] = []

    async def arun_episode(self, engine: Any, data: Mapping[str, Any]) -> Any:
        self.started.append(data["index"])
        request = ModelRequest([1, 2, 3], GCONFIG)
        responses = await asyncio.gather(*(engine.agenerate(request) for _ in range(self.group)))
        self.ended.release()
        return [Trajectory.from_response(r, float(i)) for i, r in enumerate(responses)]


def _rows() -> Iterator[tuple[str, Mapping[str, Any]]]:
    return ((f"0:{i}", {"index": i}) for i in itertools.count())


def _update(version: int) -> WeightUpdate:
    return WeightUpdate(version, f"/v{version}", Probe((1, 2), (-1.0,), 0.1))


@pytest.fixture
def rollouts() -> Iterator[Callable[..., Rollouts]]:
    """Builds doors; afterwards their threads must have ended."""
    before = set(threading.enumerate())

    def build(workflow: Any, engine: Any = None, **options: Any) -> Rollouts:
        limits = {"batch_size": 4, "eta": 2, "stall_timeout_s": 30.0}
        limits |= {k: options.pop(k) for k in list(options) if k in Limits.__annotations__}
        return Rollouts(
            engine or ScriptedEngine(), workflow, options.pop("rows", None) or _rows(),
            Limits(**limits), **options
        )  # fmt: skip

    yield build
    assert set(threading.enumerate()) <= before, "a thread is left"


def test_a_filter_that_raises_ends_the_run_with_its_cause(
    rollouts: Callable[..., Rollouts],
) -> None:
    def keep(episode: Episode) -> bool:
        raise ZeroDivisionError("in keep")

    with rollouts(Workflow(), keep=keep) as door:
        door.publish(_update(0))
        with pytest.raises(ZeroDivisionError, match="in keep"):
            door.next_batch()


def test_rows_that_end_are_told(rollouts: Callable[..., Rollouts]) -> None:
    rows = list(itertools.islice(_rows(), 2))
    with rollouts(Workflow(), rows=rows) as door:
        door.publish(_update(0))
        with pytest.raises(ArealiteError, match="rows ended"):
            door.next_batch()
