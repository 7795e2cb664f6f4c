"""The configuration's reward function, ready to be awaited."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from arealite.config import Config
from arealite.loading import load_reward
from arealite.rewards.pool import Limits, Pool
from arealite.rewards.scorer import Score, Scorer


@contextmanager
def open_reward(config: Config) -> Iterator[Score]:
    """rollout.reward_fn, run as `reward` says. Raises ConfigError where it cannot be used."""
    reference, reward = config.rollout.reward_fn, config.reward
    if reward.mode == "inline":
        yield Scorer(load_reward(reference), reference, reward.timeout_s)
        return
    limits = Limits(
        reward.workers, reward.timeout_s, reward.memory_mb, config.rollout.setup_timeout_s
    )
    pool = Pool(reference, limits)
    try:
        if pool.is_async:
            pool.close()
            yield Scorer(load_reward(reference), reference, reward.timeout_s)
        else:
            yield pool
    finally:
        pool.close()
