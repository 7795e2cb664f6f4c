"""The held-out set, played beside training; it takes no place of the training episodes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from arealite.errors import EpisodeError, ErrorBudgetSpent
from arealite.protocols import InferenceEngine, Workflow
from arealite.rollout.limits import Limits
from arealite.rollout.runner import first_of, play_in_time
from arealite.telemetry.waits import Waits
from arealite.types import Episode


async def evaluate(
    workflow: Workflow,
    engine: InferenceEngine,
    rows: Sequence[tuple[str, Mapping[str, Any]]],
    version: int,
    tell: Callable[..., None],
    limits: Limits,
    waits: Waits,
    name: str = "valid",
) -> dict[str, float]:
    """Plays every row and returns flat metrics `eval/<name>/...`.

    mean: mean reward over samples. accuracy: share of samples whose reward reaches
    limits.eval_success. pass@k: share of rows with at least one such sample, k the samples per
    row. later_tokens: share of sampled tokens that a later version than this one sampled, since
    engines take new weights while the set is played. An episode that fails is counted in `failed`
    and is in no mean, as a sample without a score (counts/unscorable_held_out) is in none. Raises
    ErrorBudgetSpent when more than half fail.
    """
    places = asyncio.Semaphore(limits.eval_concurrency)
    episodes: list[Episode] = []
    failures: list[EpisodeError] = []

    async def one(sample_id: str, row: Mapping[str, Any]) -> None:
        async with places:
            try:
                played = await play_in_time(
                    workflow, engine, sample_id, row, limits, waits, "a held-out episode"
                )
            except EpisodeError as error:
                failures.append(error)
                tell(Episode(sample_id, version, (), row), "failed", error=error)
                return
            episode = Episode(sample_id, version, tuple(played), row)
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
    return _metrics(episodes, len(failures), version, name, limits.eval_success)


def _metrics(
    episodes: Sequence[Episode], failed: int, version: int, name: str, success: float
) -> dict[str, float]:
    samples = [t for e in episodes for t in e.trajectories]
    metrics = {f"eval/{name}/samples": float(len(samples)), f"eval/{name}/failed": float(failed)}
    if not samples:  # no number is invented for a set that was not played
        return metrics
    n = len(samples)
    solved = sum(t.reward >= success for t in samples)
    metrics[f"eval/{name}/mean"] = sum(t.reward for t in samples) / n
    metrics[f"eval/{name}/accuracy"] = solved / n
    tokens = sum(t.sampled for t in samples)
    metrics[f"eval/{name}/completion_length"] = tokens / n
    later = sum(v > version for t in samples for v in t.versions)
    metrics[f"eval/{name}/later_tokens"] = later / tokens
    k = max(len(e.trajectories) for e in episodes)
    if k > 1:
        passed = sum(any(t.reward >= success for t in e.trajectories) for e in episodes)
        metrics[f"eval/{name}/pass@{k}"] = passed / len(episodes)
    return metrics
