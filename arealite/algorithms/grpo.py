"""GRPO with the decoupled PPO objective: the `Algorithm` that the trainer runs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

from arealite.algorithms.functional import decoupled_ppo_loss, group_advantages
from arealite.config import ActorConfig
from arealite.types import Episode

if TYPE_CHECKING:  # the two rooms of this floor meet only in types
    from arealite.data.micro_batch import MicroBatch


@dataclass(frozen=True)
class GRPO:
    """Advantages relative to the group, token-level loss, global token mean."""

    config: ActorConfig

    def credit(self, episode: Episode) -> list[float]:
        c = self.config
        rewards = [(t.reward + c.reward_bias) * c.reward_scaling for t in episode.trajectories]
        return group_advantages(rewards, c.adv_std)

    def loss(self, logprobs: Tensor, batch: MicroBatch) -> tuple[Tensor, dict[str, Tensor]]:
        c = self.config
        prox = batch.prox if batch.prox is not None else logprobs.detach()
        return decoupled_ppo_loss(
            logprobs,
            prox if c.use_decoupled_loss else batch.behave,
            batch.behave,
            batch.advantages,
            c.eps_clip,
            c.eps_clip if c.eps_clip_higher is None else c.eps_clip_higher,
            c.behave_imp_weight_cap,
        )
