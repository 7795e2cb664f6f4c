"""The door: episodes go on beside training, and every way to end is named and leaves nothing.

The engine is scripted. Nothing here depends on how fast this machine is: tests wait for events, and
time limits only turn a hang into a failure.
"""

from __future__ import annotations

import asyncio
import itertools
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest

from arealite.engines.scripted import Sample, ScriptedEngine
from arealite.errors import ArealiteError, EnginesExhausted, ErrorBudgetSpent, Stall
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


class Returns:
    """Gives the same answer, or raises the same error, for every row."""

    def __init__(self, answer: Any) -> None:
        self.answer = answer

    async def arun_episode(self, engine: Any, data: Mapping[str, Any]) -> Any:
        await asyncio.sleep(0)
        if isinstance(self.answer, BaseException):
            raise self.answer
        return self.answer


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


def _wait(true: Callable[[], bool], what: str) -> None:
    end = time.monotonic() + 20
    while not true():
        assert time.monotonic() < end, what
        time.sleep(0.002)


def test_batches_versions_and_counts(rollouts: Callable[..., Rollouts]) -> None:
    with rollouts(Workflow(), engine := ScriptedEngine()) as door:
        for version in range(5):
            assert door.publish(_update(version)) == 0.0
            batch = door.next_batch()
            assert len(batch) == 4
            for episode in batch:
                assert version - 2 <= episode.version <= version
        counts, stats = door.counts, door.stats()
        assert counts["counts/trained"] == 20.0
        assert counts["counts/failed"] == counts["counts/filtered"] == 0.0
        assert {"time/wait_batch_s", "time/publish_s", "weights/canary_max_diff"} <= set(stats)
        assert stats["rollout/tokens_per_s"] > 0.0
    assert engine.closed


def test_episodes_go_on_during_a_training_step(rollouts: Callable[..., Rollouts]) -> None:
    workflow = Workflow()
    in_flight: list[float] = []
    engine = ScriptedEngine(lambda request, serial: Sample(first_s=0.004 + 0.001 * (serial % 3)))
    with rollouts(workflow, engine, max_running=3) as door:
        plain = engine.script
        engine.script = lambda request, serial: (
            in_flight.append(door.counts["counts/in_flight"]) or plain(request, serial)
        )
        for version in range(3):
            door.publish(_update(version))
            door.next_batch()
            while workflow.ended.acquire(blocking=False):
                pass
            in_flight.clear()
            if version == 0:  # the window has eta * batch = 8 more: the step lasts for 4 of them
                for _ in range(4):
                    assert workflow.ended.acquire(timeout=20), "no episode ended during the step"
                assert in_flight, "no episode was admitted during the step"
                assert min(in_flight) >= 1, "in flight dropped to 0"
                assert door.counts["counts/in_flight"] >= 1.0


def test_eta_zero_is_synchronous(rollouts: Callable[..., Rollouts]) -> None:
    workflow = Workflow()
    with rollouts(workflow, eta=0) as door:
        for version in range(4):
            door.publish(_update(version))
            batch = door.next_batch()
            assert {e.version for e in batch} == {version}
            assert {v for e in batch for t in e.trajectories for v in t.versions[3:]} == {version}
            time.sleep(0.02)  # a training step, in which nothing may be admitted
            assert workflow.started == list(range(4 * (version + 1)))
            assert door.counts["counts/in_flight"] == 0.0


def test_new_weights_reach_episodes_in_flight(rollouts: Callable[..., Rollouts]) -> None:
    slow = Sample(length=4, abort_at=2, resume_s=0.5)
    engine = ScriptedEngine(lambda r, serial: slow if serial == 0 else Sample(length=1))
    with rollouts(Workflow(), engine, batch_size=1, eta=1, max_running=2) as door:
        door.publish(_update(0))
        door.next_batch()
        door.publish(_update(1))
        _wait(lambda: door.counts["counts/buffered"] == 2.0, "it never ends")
        (mixed,) = door.next_batch()
    assert (mixed.sample_id, mixed.version) == ("0:0", 0)
    assert mixed.trajectories[0].versions[3:] == [0, 0, 1, 1]


def test_a_failure_is_counted_and_its_place_returned(rollouts: Callable[..., Rollouts]) -> None:
    engine = ScriptedEngine(
        lambda r, serial: Sample(outcome="fail" if serial % 3 == 0 else "answer")
    )
    with rollouts(Workflow(), engine, eta=0) as door:
        for version in range(6):
            door.publish(_update(version))
            batch = door.next_batch()
            assert all(int(e.sample_id[2:]) % 3 for e in batch)
        assert door.counts["counts/trained"] == 24.0
        assert door.counts["counts/failed"] >= 11.0
        assert door.counts["counts/in_flight"] == 0.0


def test_eight_failures_of_eight_end_the_run(rollouts: Callable[..., Rollouts]) -> None:
    engine = ScriptedEngine(lambda r, serial: Sample(outcome="fail"))
    with rollouts(Workflow(), engine, max_running=1) as door:
        door.publish(_update(0))
        with pytest.raises(ErrorBudgetSpent, match="the script lets request"):
            door.next_batch()
        with pytest.raises(ErrorBudgetSpent):  # and it stays ended
            door.next_batch()
        assert door.counts["counts/failed"] == 8.0


def test_more_than_half_of_the_last_64_end_the_run(rollouts: Callable[..., Rollouts]) -> None:
    engine = ScriptedEngine(lambda r, serial: Sample(outcome="fail" if serial >= 40 else "answer"))
    with (  # noqa: PT012
        rollouts(Workflow(), engine, eta=0, max_running=1) as door,
        pytest.raises(ErrorBudgetSpent),
    ):
        for version in range(100):
            door.publish(_update(version))
            door.next_batch()
    assert door.counts["counts/trained"] == 40.0
    assert door.counts["counts/failed"] == 33.0


def test_a_stall_names_who_owes_what_and_ends(rollouts: Callable[..., Rollouts]) -> None:
    engine = ScriptedEngine(lambda r, serial: Sample(outcome="hang"))
    with rollouts(Workflow(), engine, stall_timeout_s=0.2) as door:
        door.publish(_update(0))
        started = time.monotonic()
        with pytest.raises(Stall, match=r"rollouts did not deliver a batch of 4 .*deadline 0.2 s"):
            door.next_batch()
        assert time.monotonic() - started < 10.0
    assert engine.running == 0


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (ValueError("bad digit"), r"row 0:\d+: Returns: ValueError: bad digit .*test_door.py"),
        (TimeoutError(), r"row 0:\d+: Returns: TimeoutError"),
        (asyncio.CancelledError(), r"row 0:\d+: Returns was cancelled by its own code"),
        (SystemExit(3), r"row 0:\d+: Returns: SystemExit: 3"),
        ([], "empty list"),
        (7, "returned a int"),
        ([None], "item 0 is a NoneType"),
        ({"input_ids": 1}, "without loss_mask"),
    ],
)
def test_what_a_workflow_does_wrong_is_told(
    rollouts: Callable[..., Rollouts], answer: Any, words: str
) -> None:
    with rollouts(Returns(answer)) as door:
        door.publish(_update(0))
        with pytest.raises(ErrorBudgetSpent, match=words):
            door.next_batch()


def test_rejected_and_filtered_rows_are_replaced(rollouts: Callable[..., Rollouts]) -> None:
    def keep(episode: Episode) -> bool:
        return int(episode.sample_id[2:]) % 2 == 1

    with rollouts(Workflow(group=2), eta=0, keep=keep) as door:
        for version in range(3):
            door.publish(_update(version))
            assert all(keep(e) and len(e.trajectories) == 2 for e in door.next_batch())
        assert door.counts["counts/filtered"] >= 11.0
        assert door.counts["counts/trained"] == 12.0


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


def test_evaluation_beside_training_takes_no_training_place(
    rollouts: Callable[..., Rollouts],
) -> None:
    held = [(f"valid:{i}", {"index": -1 - i}) for i in range(10)]
    hold = ScriptedEngine()
    with rollouts(Workflow(), hold, eta=0, eval_rows=held, eval_concurrency=3) as door:
        door.publish(_update(0))
        door.next_batch()
        hold.script = lambda r, serial: Sample(outcome="hang")
        future = door.evaluate(0)
        _wait(lambda: hold.running == 3, "the evaluation never started")
        hold.script = lambda r, serial: Sample()
        door.publish(_update(1))
        assert len(door.next_batch()) == 4  # while the evaluation hangs
        assert door.counts["counts/admitted"] == 8.0
        assert not future.done()
        metrics = door.evaluate(1).result(20)
        assert metrics["eval/valid/samples"] == 10.0
        assert metrics["eval/valid/failed"] == 0.0
        assert door.counts["counts/admitted"] == 8.0
    assert future.cancelled() or future.done()


def test_an_error_in_the_trainer_ends_everything(rollouts: Callable[..., Rollouts]) -> None:
    engine = ScriptedEngine(lambda r, serial: Sample(outcome="hang"))
    with (  # noqa: PT012
        pytest.raises(KeyError, match="trainer"),
        rollouts(Workflow(), engine) as door,
    ):
        door.publish(_update(0))
        _wait(lambda: engine.running == 12, "the episodes never started")
        raise KeyError("trainer")
    assert (engine.running, engine.closed) == (0, True)
    assert door._loop.is_closed()


def test_engines_that_never_come_up_end_the_start(rollouts: Callable[..., Rollouts]) -> None:
    engine = ScriptedEngine(ready=False)
    with pytest.raises(EnginesExhausted), rollouts(Workflow(), engine, setup_timeout_s=0.05):
        raise AssertionError("it must not start")
    assert engine.closed


def test_weights_that_are_not_verified_do_not_count(rollouts: Callable[..., Rollouts]) -> None:
    engine = ScriptedEngine()
    with rollouts(Workflow(), engine, eta=0) as door:
        door.publish(_update(0))
        door.next_batch()
        engine.difference = 0.5
        with pytest.raises(EnginesExhausted, match=r"differs by 0.5"):
            door.publish(_update(1))
        assert door.counts["counts/admitted"] == 4.0
