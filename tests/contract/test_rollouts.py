"""The door: what the trainer's thread may rely on while episodes run on the loop of another."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pytest
from session_support import numbered_rows, update

from arealite.engines.scripted import Sample, ScriptedEngine
from arealite.errors import (
    ConfigError,
    EngineError,
    EnginesExhausted,
    ErrorBudgetSpent,
    Stall,
    WorkflowError,
)
from arealite.rollout.door import Rollouts
from arealite.rollout.limits import Limits
from arealite.rollout.runner import ErrorBudget
from arealite.types import Episode, ModelRequest, Trajectory

DEADLINE_S = 30.0


class Solo:
    """One sample per row, worth its length. Keeps which rows began, at which engine version."""

    def __init__(self) -> None:
        self.began: list[tuple[int, int]] = []

    async def arun_episode(self, engine: Any, data: Mapping[str, Any]) -> Any:
        self.began.append((data["row"], engine.version))
        response = await engine.agenerate(ModelRequest([1, 2]))
        return [Trajectory.from_response(response, float(response.output_len))]


class Gated(Solo):
    """Each episode needs a permit to go on."""

    def __init__(self) -> None:
        super().__init__()
        self.permits = asyncio.Semaphore(0)

    async def arun_episode(self, engine: Any, data: Mapping[str, Any]) -> Any:
        result = await super().arun_episode(engine, data)
        await self.permits.acquire()
        return result


class Calls(Solo):
    """Does what a function of the row says, then plays."""

    def __init__(self, function: Callable[[int], Any]) -> None:
        super().__init__()
        self.function = function

    async def arun_episode(self, engine: Any, data: Mapping[str, Any]) -> Any:
        result = self.function(data["row"])
        return await super().arun_episode(engine, data) if result is Ellipsis else result


class Told:
    """Stands where transcripts are written: (sample_id, fate, sentence)."""

    def __init__(self) -> None:
        self.lines: list[tuple[str, str, str]] = []

    def write(self, sample_id: str, version: int, fate: str, *_: Any, **fields: Any) -> None:
        self.lines.append((sample_id, fate, str(fields.get("error"))))


@contextmanager
def _rollouts(
    workflow: Any = None, engine: Any = None, batch: int = 2, eta: int = 0, **options: Any
) -> Iterator[Rollouts]:
    """Published at version 0. Whatever happens within, nothing of it may outlive the context."""
    engine = engine or ScriptedEngine()
    limits = Limits(batch, eta, **options.pop("limits", {"stall_timeout_s": DEADLINE_S}))
    threads = set(threading.enumerate())
    rows = options.pop("rows", numbered_rows())
    try:
        with Rollouts(engine, workflow or Solo(), rows, limits, **options) as rollouts:
            loop = rollouts._loop
            rollouts.publish(update(0))
            yield rollouts
    finally:
        assert set(threading.enumerate()) <= threads
        assert engine.closed
        assert engine.running == 0
    assert loop.is_closed()


def _until(true: Callable[[], bool]) -> None:
    """A main thread that is busy, as in a training step: it never sleeps."""
    deadline = time.monotonic() + DEADLINE_S
    while not true():
        assert time.monotonic() < deadline


def _let_the_loop_turn(rollouts: Rollouts, turns: int = 50) -> None:
    async def turn() -> None:
        for _ in range(turns):
            await asyncio.sleep(0)

    asyncio.run_coroutine_threadsafe(turn(), rollouts._loop).result(DEADLINE_S)


def _permit(rollouts: Rollouts, gate: Gated, n: int) -> None:
    for _ in range(n):
        rollouts._loop.call_soon_threadsafe(gate.permits.release)


# --- beside training


def test_episodes_stay_in_flight_through_every_training_step() -> None:
    gate, in_flight = Gated(), []

    async def watch() -> None:
        while True:
            in_flight.append(rollouts._session.buffer.running)
            await asyncio.sleep(0.0005)

    with _rollouts(gate, batch=4, eta=1) as rollouts:
        asyncio.run_coroutine_threadsafe(watch(), rollouts._loop)
        for version in range(3):
            _permit(rollouts, gate, 4)
            assert len(rollouts.next_batch()) == 4
            start = len(in_flight)
            _until(lambda start=start: len(in_flight) >= start + 20)  # type: ignore[misc]
            assert set(in_flight[start + 1 :]) == {4}  # eta batches, none waits for the trainer
            rollouts.publish(update(version + 1))
    assert min(in_flight) > 0


def test_a_batch_is_made_while_the_trainer_is_busy() -> None:
    gate = Gated()
    with _rollouts(gate, batch=4, eta=1) as rollouts:
        _permit(rollouts, gate, 4)
        rollouts.next_batch()
        _permit(rollouts, gate, 4)
        _until(lambda: rollouts.counts["counts/buffered"] == 4)


def test_eta_0_admits_nothing_of_a_version_before_it_is_published() -> None:
    workflow = Solo()
    with _rollouts(workflow, batch=3, eta=0) as rollouts:
        for version in range(4):
            batch = rollouts.next_batch()
            _let_the_loop_turn(rollouts)
            assert workflow.began == [(i, i // 3) for i in range(3 * (version + 1))]
            assert [e.version for e in batch] == [version] * 3
            assert {v for e in batch for t in e.trajectories for v in t.versions} == {-1, version}
            rollouts.publish(update(version + 1))


def test_at_most_max_running_at_once() -> None:
    workflow = Gated()
    limits = {"max_running": 2}
    with _rollouts(workflow, batch=8, eta=1, limits=limits) as rollouts:
        _until(lambda: len(workflow.began) == 2)
        _let_the_loop_turn(rollouts)
        assert len(workflow.began) == 2
        _permit(rollouts, workflow, 3)
        _until(lambda: len(workflow.began) == 5)


def test_an_episode_lives_through_a_publish_and_carries_both_versions() -> None:
    class Twice(Gated):
        async def arun_episode(self, engine: Any, data: Mapping[str, Any]) -> Any:
            (first,) = await super().arun_episode(engine, data)
            second = await engine.agenerate(ModelRequest(first.tokens))
            return [
                Trajectory(
                    [*first.tokens, *second.output_tokens],
                    [*first.loss_mask, *[1] * second.output_len],
                    [*first.logprobs, *second.output_logprobs],
                    [*first.versions, *second.output_versions],
                    1.0,
                )
            ]

    engine = ScriptedEngine(lambda request, serial: Sample(length=2))
    workflow = Twice()
    with _rollouts(workflow, engine, batch=1, eta=1) as rollouts:
        _until(lambda: len(workflow.began) == 2)
        rollouts.publish(update(1))
        _permit(rollouts, workflow, 1)
        (episode,) = rollouts.next_batch()
    assert episode.version == 0
    assert episode.trajectories[0].versions == [-1, -1, 0, 0, 1, 1]


def test_a_refused_update_does_not_count() -> None:
    engine = ScriptedEngine()
    with _rollouts(engine=engine) as rollouts:
        engine.difference = 0.5
        with pytest.raises(EnginesExhausted, match=r"differs by 0\.5"):
            rollouts.publish(update(1))
        assert rollouts._session.buffer.version == 0


def test_an_evaluation_takes_no_place_of_training() -> None:
    gate, solo, told = Gated(), Solo(), Told()
    held_out = [(f"valid:{i}", {"row": i}) for i in range(5)]
    options: dict[str, Any] = {"eval_workflow": solo, "eval_rows": held_out, "transcripts": told}
    limits = {"eval_concurrency": 2, "eval_success": 8.0}
    with _rollouts(gate, batch=3, limits=limits, **options) as rollouts:
        _until(lambda: len(gate.began) == 3)  # every training place is taken, and none moves
        before = rollouts.counts
        assert rollouts.evaluate(0).result() == {
            "eval/valid/samples": 5.0,
            "eval/valid/failed": 0.0,
            "eval/valid/mean": 8.0,
            "eval/valid/accuracy": 1.0,
            "eval/valid/completion_length": 8.0,
            "eval/valid/later_tokens": 0.0,
        }
        assert rollouts.counts == before
        assert len(gate.began) == 3
        _permit(rollouts, gate, 3)
        assert len(rollouts.next_batch()) == 3
    assert [line[:2] for line in told.lines] == [(f"valid:{i}", "evaluated") for i in range(5)]


def test_a_failed_evaluation_episode_is_in_no_mean() -> None:
    def fails(row: int) -> Any:
        return 3 if row == 1 else ...

    options: dict[str, Any] = {"eval_workflow": Calls(fails), "transcripts": Told()}
    options["eval_rows"] = [(f"valid:{i}", {"row": i}) for i in range(3)]
    with _rollouts(**options) as rollouts:
        found = rollouts.evaluate(0).result()
    assert (found["eval/valid/samples"], found["eval/valid/failed"]) == (2.0, 1.0)
    assert ("valid:1", "failed") in [line[:2] for line in options["transcripts"].lines]


# --- failures


def _raise(error: BaseException) -> Any:
    raise error


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        (lambda: _raise(ValueError("no such column")), "ValueError: no such column .*line"),
        (lambda: _raise(SystemExit(3)), "SystemExit: 3"),
        (lambda: _raise(asyncio.CancelledError()), "cancelled by its own code"),
        (lambda: _raise(ExceptionGroup("two", [KeyError("x"), OSError()])), "KeyError: 'x'"),
        (list, "empty list"),
        (lambda: 3.5, "returned a float"),
        (lambda: [None], "item 0 is a NoneType"),
        (lambda: {"input_ids": 1}, "without loss_mask"),
    ],
)
def test_a_workflow_that_raises_or_returns_junk_is_named_with_its_row(bad: Any, words: str) -> None:
    told = Told()
    workflow = Calls(lambda row: bad() if row == 1 else ...)
    with _rollouts(workflow, batch=3, transcripts=told) as rollouts:
        batch = rollouts.next_batch()
        assert [e.sample_id for e in batch] == ["0:0", "0:2", "0:3"]  # its place was given back
        assert rollouts.counts["counts/failed"] == 1
    ((sample_id, fate, sentence),) = told.lines
    assert (sample_id, fate) == ("0:1", "failed")
    assert sentence.startswith("row 0:1: Calls")
    with pytest.raises(WorkflowError, match=words):
        raise WorkflowError(sentence)


def test_an_engine_error_in_a_task_group_of_the_workflow_stays_one() -> None:
    seen: list[BaseException] = []

    class Grouped(Solo):
        async def arun_episode(self, engine: Any, data: Mapping[str, Any]) -> Any:
            async with asyncio.TaskGroup() as group:
                group.create_task(super().arun_episode(engine, data))

    class Keeps(Told):
        def write(self, *_: Any, **fields: Any) -> None:
            seen.append(fields["error"])

    engine = ScriptedEngine(lambda request, serial: Sample(outcome="fail"))
    with _rollouts(Grouped(), engine, transcripts=Keeps()) as rollouts:
        with pytest.raises(ErrorBudgetSpent):
            rollouts.next_batch()
    assert {type(error) for error in seen} == {EngineError}


@pytest.mark.parametrize("fate", ["failed", "filtered"])
def test_what_comes_to_nothing_is_counted_and_its_place_is_used_again(fate: str) -> None:
    failing = Sample(outcome="fail")
    engine = ScriptedEngine(lambda r, serial: failing if serial % 2 else Sample())
    workflow = Solo() if fate == "failed" else Calls(lambda row: None if row % 3 else ...)
    with _rollouts(workflow, engine if fate == "failed" else None, batch=4) as rollouts:
        for version in range(3):
            assert len(rollouts.next_batch()) == 4
            rollouts.publish(update(version + 1))
        counts = {name.partition("/")[2]: n for name, n in rollouts.counts.items()}
    ended = sum(counts[k] for k in ("trained", "failed", "filtered", "dropped_stale"))
    assert counts["admitted"] == ended + counts["in_flight"] + counts["buffered"]
    assert counts["trained"] == 12
    assert counts[fate] >= 11


def test_a_run_in_which_everything_fails_ends_with_the_cause() -> None:
    workflow = Calls(lambda row: {}["answer"])  # type: ignore[index]
    with _rollouts(workflow, batch=4) as rollouts:
        words = "too many .*row 0:7: Calls: KeyError: 'answer'"
        with pytest.raises(ErrorBudgetSpent, match=words) as error:
            rollouts.next_batch()
        assert error.value.exit_code == 3
        with pytest.raises(ErrorBudgetSpent):  # also whoever asks again
            rollouts.next_batch()
    assert rollouts.counts["counts/failed"] == 8


def test_the_error_budget_in_numbers() -> None:
    budget = ErrorBudget()
    assert [budget.spend(ok=False) for _ in range(8)] == [False] * 7 + [True]
    budget = ErrorBudget()
    assert not budget.spend(ok=True)
    assert not any(budget.spend(ok=i % 2 == 0) for i in range(500))  # half is not too many
    budget = ErrorBudget()
    results = [budget.spend(ok=i < 31) for i in range(64)]
    assert results == [False] * 63 + [True]


def test_an_error_that_is_not_an_episodes_ends_the_run() -> None:
    error = EnginesExhausted("nobody serves")
    with _rollouts(Calls(lambda row: _raise(error))) as rollouts:
        with pytest.raises(EnginesExhausted, match="nobody serves"):
            rollouts.next_batch()
    with _rollouts(rows=[("0:0", {"row": 0})]) as rollouts:
        with pytest.raises(ConfigError, match="rows ended"):
            rollouts.next_batch()


def test_a_stall_names_who_owes_what() -> None:
    engine = ScriptedEngine(lambda request, serial: Sample(outcome="hang"))
    with _rollouts(engine=engine, limits={"stall_timeout_s": 0.2}) as rollouts:
        words = r"deliver a batch of 2 episodes: nothing has moved for .*; workflow owes an episode"
        with pytest.raises(Stall, match=words) as stall:
            rollouts.next_batch()
        assert stall.value.exit_code == 6


# --- filters and ends


def test_what_a_filter_rejects_is_refilled() -> None:
    def even(episode: Episode) -> bool:
        return int(episode.row["row"]) % 2 == 0

    told = Told()
    with _rollouts(batch=3, keep=even, transcripts=told) as rollouts:
        batch = rollouts.next_batch()
        assert [e.row["row"] for e in batch] == [0, 2, 4]
        assert rollouts.counts["counts/filtered"] == 2
    assert [line[:2] for line in told.lines] == [("0:1", "filtered"), ("0:3", "filtered")]


def test_an_error_in_the_trainers_loop_leaves_nothing_behind() -> None:
    evaluations: list[Any] = []
    engine = ScriptedEngine(lambda request, serial: Sample(outcome="hang"))

    def train() -> None:
        with _rollouts(engine=engine, batch=4, eta=2) as rollouts:
            _until(lambda: engine.running == 12)
            evaluations.append(rollouts.evaluate(0))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        train()
    assert evaluations[0].done()


def test_engines_that_are_not_ready_leave_nothing_behind() -> None:
    engine = ScriptedEngine(ready=False)
    with pytest.raises(EnginesExhausted, match=r"not ready in 0\.05 s"):
        with _rollouts(engine=engine, limits={"setup_timeout_s": 0.05}):
            raise AssertionError("it must not start")
