"""Plays episodes: a row is admitted, its workflow runs, and the result reaches the buffer.

A failing episode costs itself: it is counted, told, and its place is given back. When failures
are no longer exceptions, or when a filter lets nothing pass any more, the run ends with the cause.
"""

from __future__ import annotations

import asyncio
import itertools
import math
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from arealite.crash import crash_point
from arealite.errors import (
    ArealiteError,
    ConfigError,
    EpisodeError,
    EpisodeTimeout,
    ErrorBudgetSpent,
    WorkflowError,
    place,
    words,
)
from arealite.protocols import InferenceEngine, Workflow
from arealite.rollout.adapter import to_trajectories
from arealite.rollout.buffer import Buffer
from arealite.rollout.failures import ErrorBudget
from arealite.rollout.limits import Limits
from arealite.rollout.seeds import SeededEngine
from arealite.telemetry.quarantine import SAMPLE_ID
from arealite.telemetry.waits import Waits, is_cancelled, waited
from arealite.types import Episode, Trajectory

MOST_FILTERED = 20
"""So many batches' worth of episodes in a row may be filtered before the run ends."""
STARTS = 8
"""Episodes that start, or are let go, in one turn of the event loop where there are thousands."""

Tell = Callable[..., None]
"""tell(episode, fate, error=None): how an episode ended, for people. A failed one is empty."""


async def play(
    workflow: Workflow, engine: InferenceEngine, sample_id: str, row: Mapping[str, Any]
) -> Sequence[Trajectory]:
    """One episode's trajectories; empty if the workflow rejected the row. Raises EpisodeError."""
    where = f"row {sample_id}: {type(workflow).__name__}"
    SAMPLE_ID.set(sample_id)
    try:
        result = await workflow.arun_episode(engine, row)
    except ArealiteError:  # as it is: requests that travelled as one share the object
        raise
    except asyncio.CancelledError:
        if is_cancelled():
            raise
        raise WorkflowError(f"{where} was cancelled by its own code") from None
    except (Exception, SystemExit) as error:  # user code may raise anything; only this row is lost
        cause = first_of(error)
        if isinstance(cause, ArealiteError):  # out of a task group of the workflow's own
            raise cause from None
        at = place(traceback.extract_tb(cause.__traceback__ or error.__traceback__))
        raise WorkflowError(f"{where}: {words(cause)} {at}") from error
    try:
        return to_trajectories(result)
    except WorkflowError as error:
        raise WorkflowError(f"{where}: {error}") from None


async def play_in_time(
    workflow: Workflow,
    engine: InferenceEngine,
    sample_id: str,
    row: Mapping[str, Any],
    limits: Limits,
    waits: Waits,
    what: str = "an episode",
) -> Sequence[Trajectory]:
    """As play, under limits' seed and time-out; what: its name among the waits."""
    if limits.seed is not None:
        engine = SeededEngine(engine, limits.seed, sample_id)
    return await waited(
        play(workflow, engine, sample_id, row),
        waits=waits,
        owner="workflow",
        what=what,
        deadline_s=limits.episode_timeout_s,
        error=EpisodeTimeout,
        whole=1,
    )


class Runner:
    """Keeps as many episodes in flight as the buffer has room for."""

    def __init__(
        self,
        buffer: Buffer,
        engine: InferenceEngine,
        workflow: Workflow,
        rows: Iterator[tuple[str, Mapping[str, Any]]],
        keep: Callable[[Episode], bool],
        tell: Tell,
        limits: Limits,
        waits: Waits,
    ) -> None:
        self._buffer, self._engine, self._workflow = buffer, engine, workflow
        self._rows, self._keep, self._tell = rows, keep, tell
        self._limits, self._waits = limits, waits
        self._budget = ErrorBudget()
        self._filtered_in_a_row = self._rejected_in_a_row = 0
        self.vocabulary: int | None = None
        """How many token ids the model has; None: not known."""

    async def run(self) -> None:
        """Until cancelled. Cancelling ends the episodes in flight too."""
        try:
            async with asyncio.TaskGroup() as episodes:
                for count in itertools.count(1):
                    sample_id, row = self._next_row()
                    version = await self._buffer.admit(sample_id)
                    episodes.create_task(self._episode(sample_id, row, version))
                    crash_point("after_dispatch")
                    if count % STARTS == 0:
                        await asyncio.sleep(0)
        except* Exception as group:
            self._buffer.fail(first_of(group))

    def _next_row(self) -> tuple[str, Mapping[str, Any]]:
        try:
            return next(self._rows)
        except StopIteration:
            raise ConfigError("the rows ended; give an endless stream, as data.rows.Rows") from None

    async def _episode(self, sample_id: str, row: Mapping[str, Any], version: int) -> None:
        try:
            trajectories = await play_in_time(
                self._workflow, self._engine, sample_id, row, self._limits, self._waits
            )
            self._check(sample_id, trajectories)
        except EpisodeError as error:
            self._failed(Episode(sample_id, version, (), row), error)
            return
        self._budget.spend(ok=True)
        episode = Episode(sample_id, version, tuple(trajectories), row)
        if trajectories and self._keep(episode):
            self._filtered_in_a_row = 0
            self._buffer.accept(episode)
        else:
            self._filtered(episode)

    def _check(self, sample_id: str, trajectories: Sequence[Trajectory]) -> None:
        """What only the run knows: a token of the future would never be too old, and one that the
        model does not have cannot be trained."""
        newest = self._buffer.newest
        most = math.inf if self.vocabulary is None else self.vocabulary
        for number, trajectory in enumerate(trajectories):
            where = f"row {sample_id}: {type(self._workflow).__name__}: trajectory {number} has a "
            if (found := max(trajectory.versions)) > newest:
                raise WorkflowError(
                    f"{where}token of version {found}, and the newest is {newest}; versions are "
                    "those of the engine's responses"
                )
            if (found := max(trajectory.tokens)) >= most:
                raise WorkflowError(
                    f"{where}token id {found}, but the model of actor.path has the ids 0 to "
                    f"{most - 1}; give the tokenizer of this model"
                )

    def _failed(self, episode: Episode, error: EpisodeError) -> None:
        self._buffer.give_back(episode.sample_id, "failed")
        self._tell(episode, "failed", error=error)
        if self._budget.spend(ok=False):
            where = "" if isinstance(error, WorkflowError) else f"row {episode.sample_id}: "
            raise ErrorBudgetSpent(
                f"too many episodes failed; the last one: {where}{error} "
                "(every failure is in transcripts.jsonl, the first traceback of each kind in "
                "status.json)"
            ) from error

    def _filtered(self, episode: Episode) -> None:
        tokens = sum(t.sampled for t in episode.trajectories)
        if self._limits.refill or not episode.trajectories:
            self._buffer.give_back(episode.sample_id, "filtered", tokens)
        else:
            self._buffer.skip(episode.sample_id, tokens)
        self._tell(episode, "filtered")
        self._filtered_in_a_row += 1
        self._rejected_in_a_row = 0 if episode.trajectories else self._rejected_in_a_row + 1
        most = MOST_FILTERED * self._limits.batch_size
        if self._rejected_in_a_row >= most:
            raise ErrorBudgetSpent(
                f"{type(self._workflow).__name__}.arun_episode returned None for the last {most} "
                f"rows, the last of them row {episode.sample_id}, so no batch can be made; it must "
                "return trajectories, and None only for a row that it rejects"
            )
        if self._filtered_in_a_row >= most:
            raise ErrorBudgetSpent(
                f"the last {self._filtered_in_a_row} episodes were all filtered, so no batch can "
                "be made; look at their rewards in transcripts.jsonl: the rows may be far too "
                "hard or too easy for this model, or a filter too strict"
            )


def first_of(error: BaseException) -> BaseException:
    """The cause inside nested groups: the first error that is not itself a group."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
