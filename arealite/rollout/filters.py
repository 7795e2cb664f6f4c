"""Which finished episodes are trained: shipped filters by name, users' own by import path."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from arealite.loading import load_filter
from arealite.types import Episode

Keep = Callable[[Episode], bool]
"""keep(episode): whether it is trained."""


def rewards_differ(episode: Episode) -> bool:
    """Dynamic sampling (DAPO, arXiv:2503.14476, section 3.2): a group of equal rewards has no
    advantage, so it teaches nothing."""
    rewards = [t.reward for t in episode.trajectories]
    return max(rewards) > min(rewards)


def any_complete(episode: Episode) -> bool:
    """Where every sample was cut off by its length, no reward says anything about an answer."""
    return not all(t.truncated for t in episode.trajectories)


SHIPPED: dict[str, Keep] = {"equal_rewards": rewards_differ, "overlong": any_complete}
"""By what each of them filters out."""


def keep_of(names: Sequence[str]) -> Keep:
    """What passes all of them. Raises ConfigError for a name that is neither shipped nor code."""
    filters = [SHIPPED[name] if name in SHIPPED else load_filter(name) for name in names]
    return lambda episode: all(passes(episode) for passes in filters)
