"""The configuration's reward function, ready to be awaited."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from arealite.config import Config
from arealite.loading import load_reward
from arealite.rewards.pool import Limits, Pool
from arealite.rewards.scorer import Score, Scorer

log = logging.getLogger("arealite.rewards")


@contextmanager
def open_reward(config: Config, alarm: Callable[[str], None] = log.warning) -> Iterator[Score]:
    """rollout.reward_fn, run as `reward` says. Raises ConfigError where it cannot be used.

    alarm: hears it where this machine cannot isolate the workers as the configuration asks.
    """
    reference, reward = config.rollout.reward_fn, config.reward
    if reward.mode == "inline":
        yield Scorer(load_reward(reference), reference, reward.timeout_s)
        return
    limits = Limits(
        reward.workers,
        reward.timeout_s,
        reward.memory_mb,
        reward.isolation,
        config.rollout.setup_timeout_s,
    )
    pool = Pool(reference, limits)
    try:
        if pool.is_async:
            pool.close()
            yield Scorer(load_reward(reference), reference, reward.timeout_s)
        else:
            (log.info if pool.is_as_asked else alarm)(pool.isolation)
            yield pool
    finally:
        pool.close()
