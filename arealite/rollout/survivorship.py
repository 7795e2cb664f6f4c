"""What was dropped for its age beside what was trained: a filter on age is a filter on length."""

from __future__ import annotations

from collections.abc import Sequence

from arealite.types import Episode


def survivorship(
    trained: Sequence[Episode], dropped: Sequence[tuple[int, Episode]], version: int
) -> dict[str, float]:
    """Flat metrics of one version.

    trained: the batch formed at `version`. dropped: since the last version, each with the version
    at which it was dropped. `staleness/dropped_episodes` is always there; where it is not 0, so
    are mean length (sampled tokens per trajectory), reward and age (versions since admission) of
    both sides: `survivorship/{trained,dropped}_{length,reward,age}`.
    """
    metrics = {"staleness/dropped_episodes": float(len(dropped))}
    if dropped and trained:
        metrics |= _means("trained", [(version, episode) for episode in trained])
        metrics |= _means("dropped", dropped)
    return metrics


def _means(side: str, episodes: Sequence[tuple[int, Episode]]) -> dict[str, float]:
    trajectories = [t for _, episode in episodes for t in episode.trajectories]
    ages = [version - episode.version for version, episode in episodes]
    return {
        f"survivorship/{side}_length": sum(t.sampled for t in trajectories) / len(trajectories),
        f"survivorship/{side}_reward": sum(t.reward for t in trajectories) / len(trajectories),
        f"survivorship/{side}_age": sum(ages) / len(ages),
    }
