"""The held-out set, played beside training; it takes no place of the training episodes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from arealite.errors import EpisodeError, ErrorBudgetSpent
from arealite.protocols import InferenceEngine, Workflow
from arealite.rollout.runner import first_of, play
from arealite.telemetry.waits import Waits, waited
from arealite.types import Episode


async def evaluate(
    workflow: Workflow,
    engine: InferenceEngine,
    rows: Sequence[tuple[str, Mapping[str, Any]]],
    version: int,
    tell: Callable[..., None],
    *,
    name: str = "valid",
    success: float = 1.0,
    concurrency: int = 64,
    waits: Waits | None = None,
    deadline_s: float | None = None,
) -> dict[str, float]:
    """Plays every row and returns flat metrics `eval/<name>/...`.

    mean: mean reward over samples. accuracy: share of samples whose reward reaches `success`.
    pass@k: share of rows with at least one such sample, k the samples per row. An episode that
    fails is counted in `failed` and is in no mean. Raises Stall when an episode takes longer than
    deadline_s seconds, ErrorBudgetSpent when more than half fail.
    """
    places = asyncio.Semaphore(concurrency)
    limits: dict[str, Any] = {"waits": waits or Waits(), "deadline_s": deadline_s}
    episodes: list[Episode] = []
    failures: list[EpisodeError] = []

    async def one(sample_id: str, row: Mapping[str, Any]) -> None:
        async with places:
            try:
                playing = play(workflow, engine, sample_id, row)
                played = tuple(await waited(playing, owner="workflow", what="an episode", **limits))
            except EpisodeError as error:
                failures.append(error)
                tell(Episode(sample_id, version, (), row), "failed", error=error)
                return
            episode = Episode(sample_id, version, played, row)
            tell(episode, "evaluated")
            if played:
                episodes.append(episode)

    try:
        async with asyncio.TaskGroup() as group:
            for sample_id, row in rows:
                group.create_task(one(sample_id, row))
    except ExceptionGroup as errors:
        raise first_of(errors) from None
    if len(failures) > len(rows) / 2:
        count = f"{len(failures)} of {len(rows)} held-out rows failed"
        raise ErrorBudgetSpent(f"{count}; the last one: {failures[-1]}")
    return _metrics(episodes, len(failures), name, success)


def _metrics(
    episodes: Sequence[Episode], failed: int, name: str, success: float
) -> dict[str, float]:
    samples = [t for e in episodes for t in e.trajectories]
    metrics = {f"eval/{name}/samples": float(len(samples)), f"eval/{name}/failed": float(failed)}
    if not samples:  # no number is invented for a set that was not played
        return metrics
    n = len(samples)
    solved = sum(t.reward >= success for t in samples)
    metrics[f"eval/{name}/mean"] = sum(t.reward for t in samples) / n
    metrics[f"eval/{name}/accuracy"] = solved / n
    metrics[f"eval/{name}/completion_length"] = sum(t.sampled for t in samples) / n
    k = max(len(e.trajectories) for e in episodes)
    if k > 1:
        passed = sum(any(t.reward >= success for t in e.trajectories) for e in episodes)
        metrics[f"eval/{name}/pass@{k}"] = passed / len(episodes)
    return metrics
