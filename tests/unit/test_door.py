"""The door: episodes go on beside training, and every way to end is named and leaves nothing.

The engine is scripted. Nothing here depends on how fast this machine is: tests wait for events, and
time limits only turn a hang into a failure.
"""

from __future__ import annotations

import asyncio
import gc
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from typing import Any

import pytest
from session_support import numbered_rows, update

from arealite.engines.scripted import ScriptedEngine
from arealite.errors import ArealiteError, ErrorBudgetSpent, Stall
from arealite.rollout.door import Rollouts
from arealite.rollout.limits import Limits
from arealite.types import (
    Episode,
    GenerationHyperparameters,
    ModelRequest,
    Trajectory,
)

GCONFIG = GenerationHyperparameters(max_new_tokens=16)


class Workflow:
    """One sample per row, worth its serial number; remembers what was played."""

    def __init__(self, group: int = 1) -> None:
        self.group = group
        self.ended = threading.Semaphore(0)
        self.started: list[int] = []

    async def arun_episode(self, engine: Any, data: Mapping[str, Any]) -> Any:
        self.started.append(data["row"])
        request = ModelRequest([1, 2, 3], GCONFIG)
        responses = await asyncio.gather(*(engine.agenerate(request) for _ in range(self.group)))
        self.ended.release()
        return [Trajectory.from_response(r, float(i)) for i, r in enumerate(responses)]


@pytest.fixture
def rollouts() -> Iterator[Callable[..., Rollouts]]:
    """Builds doors; afterwards their threads must have ended."""
    before = set(threading.enumerate())

    def build(workflow: Any, engine: Any = None, **options: Any) -> Rollouts:
        limits = {"batch_size": 4, "eta": 2, "stall_timeout_s": 30.0}
        limits |= {k: options.pop(k) for k in list(options) if k in Limits.__annotations__}
        return Rollouts(
            engine or ScriptedEngine(), workflow, options.pop("rows", None) or numbered_rows(),
            Limits(**limits), **options
        )  # fmt: skip

    yield build
    assert set(threading.enumerate()) <= before, "a thread is left"


def test_what_the_engine_counts_is_recorded_under_its_name(
    rollouts: Callable[..., Rollouts],
) -> None:
    class Counting(ScriptedEngine):
        async def server_metrics(self) -> Mapping[str, float]:
            return {"aborted": 3.0, "versions_stamped_by_client": 7.0, "anything": 1.0}

    with rollouts(Workflow(), Counting()) as door:
        found = {key: value for key, value in door.stats().items() if key.startswith("engine/")}
    assert found == {"engine/aborted": 3.0, "engine/versions_stamped_by_client": 7.0}


def test_a_filter_that_raises_ends_the_run_with_its_cause(
    rollouts: Callable[..., Rollouts],
) -> None:
    def keep(episode: Episode) -> bool:
        raise ZeroDivisionError("in keep")

    with rollouts(Workflow(), keep=keep) as door:
        door.publish(update(0))
        with pytest.raises(ZeroDivisionError, match="in keep"):
            door.next_batch()


def test_rows_that_end_are_told(rollouts: Callable[..., Rollouts]) -> None:
    rows = list(numbered_rows(2))
    with rollouts(Workflow(), rows=rows) as door:
        door.publish(update(0))
        with pytest.raises(ArealiteError, match="rows ended"):
            door.next_batch()


def test_code_that_blocks_the_event_loop_is_named(
    rollouts: Callable[..., Rollouts], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("arealite.rollout.door.SILENT_S", 0.5)
    monkeypatch.setattr("arealite.rollout.door.LOOK_S", 0.1)
    freed = threading.Event()

    class Blocks:
        async def arun_episode(self, engine: Any, data: Mapping[str, Any]) -> Any:
            freed.wait(60.0)  # what a reward that never returns does

    with rollouts(Blocks(), stall_timeout_s=0.1) as door:
        door.publish(update(0))
        with pytest.raises(Stall, match=r"wait \(.*threading.py, line \d+\) does not return"):
            door.next_batch()
    freed.set()
    for thread in threading.enumerate():
        if thread.name == "rollouts":
            thread.join(1.0)


def test_a_workflow_that_ends_the_interpreter_is_told_with_its_line(
    rollouts: Callable[..., Rollouts],
) -> None:
    class Ends:
        async def arun_episode(self, engine: Any, data: Mapping[str, Any]) -> Any:
            await asyncio.gather(self.end())

        async def end(self) -> None:
            raise SystemExit(3)

    for _ in range(5):  # which task is told first is chance
        with rollouts(Ends()) as door:
            door.publish(update(0))
            with pytest.raises(ErrorBudgetSpent, match=r"SystemExit\(3\) \(.*test_door.py, line"):
                door.next_batch()
        tasks = [one for one in gc.get_objects() if isinstance(one, asyncio.Task)]
        assert all(task.done() for task in tasks)


def test_an_evaluation_in_which_most_rows_fail_is_no_number(
    rollouts: Callable[..., Rollouts],
) -> None:
    class Fails(Workflow):
        async def arun_episode(self, engine: Any, data: Mapping[str, Any]) -> Any:
            return await super().arun_episode(engine, data) if data["row"] == 0 else 3

    rows = [(f"valid:{i}", {"row": i}) for i in range(3)]
    words = "2 of 3 held-out rows failed; the last one: row"
    with rollouts(Workflow(), eval_workflow=Fails(), eval_rows=rows) as door:
        found = door.evaluate(0)
        with pytest.raises(ErrorBudgetSpent, match=words):
            found.result()


def test_code_that_blocks_in_a_held_out_episode_is_named_too(
    rollouts: Callable[..., Rollouts], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("arealite.rollout.door.SILENT_S", 0.5)
    monkeypatch.setattr("arealite.rollout.door.LOOK_S", 0.1)
    released = threading.Event()

    class Blocks(Workflow):
        async def arun_episode(self, engine: Any, data: Mapping[str, Any]) -> Any:
            released.wait(60.0)
            return await super().arun_episode(engine, data)

    held_out = [("valid:0", {"row": 0})]
    options: dict[str, Any] = {"eval_workflow": Blocks(), "eval_rows": held_out}
    with rollouts(Workflow(), stall_timeout_s=0.1, **options) as door:
        thread = door._thread
        door.publish(update(0))
        with pytest.raises(Stall, match=r"because .* does not return"):
            door.evaluate(0).result()
    released.set()
    assert thread is not None
    thread.join(30.0)


def test_user_code_that_swallows_every_cancel_does_not_hold_the_end_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("arealite.rollout.door.END_S", 0.2)
    released = threading.Event()

    class Swallows(Workflow):
        async def arun_episode(self, engine: Any, data: Mapping[str, Any]) -> Any:
            while not released.is_set():
                with suppress(asyncio.CancelledError):
                    await asyncio.sleep(0.05)
            return None

    with Rollouts(ScriptedEngine(), Swallows(), numbered_rows(), Limits(2, 0)) as ended:
        thread = ended._thread
        ended.publish(update(0))
    assert thread is not None
    assert thread.is_alive()
    released.set()
    thread.join(30.0)
    assert not thread.is_alive()
