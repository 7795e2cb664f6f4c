"""Plays episodes: a row is admitted, its workflow runs, and the result reaches the buffer.

A failing episode costs itself: it is counted, told, and its place is given back. When failures
are no longer exceptions (the first 8 all failed, or more than half of the last 64), the run ends,
since going on would only hide the cause.
"""

from __future__ import annotations

import asyncio
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from arealite.errors import (
    ArealiteError,
    ConfigError,
    EpisodeError,
    ErrorBudgetSpent,
    WorkflowError,
)
from arealite.protocols import InferenceEngine, Workflow
from arealite.rollout.adapter import to_trajectories
from arealite.rollout.buffer import Buffer
from arealite.types import Episode, Trajectory

FIRST, LAST = 8, 64

Tell = Callable[..., None]
"""tell(episode, fate, error=None): how an episode ended, for people. A failed one is empty."""


class ErrorBudget:
    """Pure bookkeeping of successes and failures."""

    def __init__(self) -> None:
        self._ended = 0
        self._recent: deque[bool] = deque(maxlen=LAST)

    def spend(self, ok: bool) -> bool:
        """Books one end; True when the budget is spent."""
        self._ended += 1
        self._recent.append(ok)
        failed = len(self._recent) - sum(self._recent)
        return (self._ended == FIRST and failed == FIRST) or (
            len(self._recent) == LAST and failed > LAST // 2
        )


async def play(
    workflow: Workflow, engine: InferenceEngine, sample_id: str, row: Mapping[str, Any]
) -> Sequence[Trajectory]:
    """One episode's trajectories; empty if the workflow rejected the row. Raises EpisodeError."""
    where = f"row {sample_id}: {type(workflow).__name__}"
    try:
        result = await workflow.arun_episode(engine, row)
    except ArealiteError as error:
        error.add_note(f"row {sample_id}")
        raise
    except asyncio.CancelledError:
        if _is_cancelled():
            raise
        raise WorkflowError(f"{where} was cancelled by its own code") from None
    except (Exception, SystemExit) as error:  # user code may raise anything; only this row is lost
        cause = first_of(error)
        if isinstance(cause, ArealiteError):  # out of a task group of the workflow's own
            raise cause from None
        frame = traceback.extract_tb(cause.__traceback__ or error.__traceback__)[-1]
        raise WorkflowError(
            f"{where}: {type(cause).__name__}: {cause} ({frame.filename}, line {frame.lineno})"
        ) from error
    try:
        return to_trajectories(result)
    except WorkflowError as error:
        raise WorkflowError(f"{where}: {error}") from None


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
    ) -> None:
        self._buffer, self._engine, self._workflow = buffer, engine, workflow
        self._rows, self._keep, self._tell = rows, keep, tell
        self._budget = ErrorBudget()

    async def run(self) -> None:
        """Until cancelled. Cancelling ends the episodes in flight too."""
        try:
            async with asyncio.TaskGroup() as episodes:
                while True:
                    sample_id, row = self._next_row()
                    version = await self._buffer.admit(sample_id)
                    episodes.create_task(self._episode(sample_id, row, version))
        except* Exception as group:
            self._buffer.fail(first_of(group))

    def _next_row(self) -> tuple[str, Mapping[str, Any]]:
        try:
            return next(self._rows)
        except StopIteration:
            raise ConfigError("the rows ended; give an endless stream, as data.rows.Rows") from None

    async def _episode(self, sample_id: str, row: Mapping[str, Any], version: int) -> None:
        try:
            trajectories = await play(self._workflow, self._engine, sample_id, row)
        except EpisodeError as error:
            self._buffer.give_back(sample_id, "failed")
            self._tell(Episode(sample_id, version, (), row), "failed", error=error)
            if self._budget.spend(ok=False):
                where = "" if isinstance(error, WorkflowError) else f"row {sample_id}: "
                raise ErrorBudgetSpent(
                    f"too many episodes failed; the last one: {where}{error} "
                    "(every failure is in transcripts.jsonl)"
                ) from error
            return
        self._budget.spend(ok=True)
        episode = Episode(sample_id, version, tuple(trajectories), row)
        if not trajectories or not self._keep(episode):
            self._buffer.give_back(sample_id, "filtered")
            self._tell(episode, "filtered")
            return
        self._buffer.accept(episode)


def _is_cancelled() -> bool:
    """Whether this task is being cancelled from outside."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def first_of(error: BaseException) -> BaseException:
    """The cause inside nested groups: the first error that is not itself a group."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
