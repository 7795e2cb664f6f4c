"""The numbers that rule the rollouts."""

from __future__ import annotations

from dataclasses import dataclass

from arealite.config import Config
from arealite.rollout.staleness import Late


@dataclass(frozen=True)
class Limits:
    """See the configuration's fields of the same names for their meaning.

    in_order: batches keep the order of admission and weights change only when nothing runs, so
    that which episodes a batch holds and which version sampled them do not depend on timing.
    seed: where it is given, every request gets a seed of its own made from it.
    refill: an episode that a filter rejects is replaced by another; else its batch is smaller.
    adaptive: the number of episodes in flight follows the servers' queues.
    """

    batch_size: int
    eta: int
    late: Late = "mask"
    max_running: int | None = None
    setup_timeout_s: float = 300.0
    stall_timeout_s: float = 600.0
    episode_timeout_s: float | None = None
    eval_concurrency: int = 64
    eval_success: float = 1.0
    in_order: bool = False
    seed: int | None = None
    refill: bool = True
    adaptive: bool = False


def limits_of(config: Config) -> Limits:
    """The rollouts' numbers, as this configuration sets them."""
    rollout = config.rollout
    return Limits(
        batch_size=config.train_dataset.batch_size,
        eta=rollout.max_head_offpolicyness,
        late=rollout.late,
        max_running=rollout.max_concurrent_rollouts,
        setup_timeout_s=rollout.setup_timeout_s,
        stall_timeout_s=rollout.stall_timeout_s,
        episode_timeout_s=rollout.episode_timeout_s,
        eval_concurrency=2 * rollout.max_running_requests,
        eval_success=config.evaluator.success,
        in_order=config.deterministic,
        seed=config.seed if config.deterministic else None,
        refill=rollout.filtered == "refill",
        adaptive=rollout.concurrency == "adaptive",
    )
