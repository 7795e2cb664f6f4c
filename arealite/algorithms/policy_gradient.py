"""The `Algorithm` that the trainer runs: advantage, objective, weights and mean, each by name.

GRPO, DAPO, GSPO and the others are combinations of the settings that are read here
(docs/algorithms.md); there is no code of any of them alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from arealite.algorithms import aggregation, objectives
from arealite.algorithms.advantages import (
    less_group_mean,
    less_others_mean,
    over_group_std,
    whitened,
)
from arealite.algorithms.corrections import importance_weights, mismatch
from arealite.algorithms.kl import ESTIMATORS
from arealite.algorithms.shaping import overlong_penalty, shaped
from arealite.config import Config
from arealite.types import Episode, Trajectory

if TYPE_CHECKING:  # the two rooms of this floor meet only in types
    from arealite.data.micro_batch import MicroBatch


@dataclass(frozen=True)
class PolicyGradient:
    """What `config.actor` combines. It is stateless: one object serves a whole run."""

    config: Config

    @property
    def idle_at_zero(self) -> bool:
        """See protocols.Algorithm. What keeps to a reference is pulled there by every token, and a
        critic learns from every token, and may find it better or worse than the rest."""
        return self.config.actor.kl_ctl == 0.0 and not self._by_token

    @property
    def _by_token(self) -> bool:
        """Whether a token's own worth is found later (training.credit), of a sample's reward."""
        return self.config.actor.adv_baseline == "critic" or self.config.actor.penalises_kl

    def credit(self, episodes: Sequence[Episode]) -> list[list[float | None]]:
        """See protocols.Algorithm."""
        advantages = [self._of_episode(episode) for episode in episodes]
        lengths = [
            [0 if self._is_masked(t) else t.sampled for t in episode.trajectories]
            for episode in episodes
        ]
        if self.config.actor.adv_norm == "batch" and not self._by_token:
            advantages = whitened(advantages, lengths)
        return [
            [a if length else None for a, length in zip(group, lengths_of_group, strict=True)]
            for group, lengths_of_group in zip(advantages, lengths, strict=True)
        ]

    def _is_masked(self, trajectory: Trajectory) -> bool:
        """Whether its tokens leave the loss; its reward is in the baseline all the same."""
        return self.config.actor.mask_truncated_completions and trajectory.truncated

    def _reward(self, trajectory: Trajectory) -> float:
        c, earned = self.config.actor, trajectory.reward
        if c.overlong_share is not None:
            longest = self.config.gconfig.max_new_tokens
            earned += overlong_penalty(
                trajectory.sampled, longest, c.overlong_share * longest, c.overlong_penalty_factor
            )
        return shaped(earned, c.reward_bias, c.reward_scaling, c.reward_clip)

    def _of_episode(self, episode: Episode) -> list[float]:
        """Rewards are compared within the group, and there with those of the same name."""
        found = [0.0] * len(episode.trajectories)
        for name in dict.fromkeys(t.name for t in episode.trajectories):
            own = [i for i, t in enumerate(episode.trajectories) if t.name == name]
            rewards = [self._reward(episode.trajectories[i]) for i in own]
            for i, advantage in zip(own, self._within_group(rewards), strict=True):
                found[i] = advantage
        return found

    def _within_group(self, rewards: list[float]) -> list[float]:
        c = self.config.actor
        match c.adv_baseline:
            case "group":
                advantages = less_group_mean(rewards)
            case "leave_one_out":
                advantages = less_others_mean(rewards)
            case "critic" | "none":
                advantages = rewards
        return over_group_std(advantages, rewards) if c.adv_norm == "group" else advantages

    def weigh(self, lengths: Sequence[Sequence[int]]) -> list[list[float]]:
        """See protocols.Algorithm."""
        match self.config.actor.loss_agg_mode:
            case "token":
                return aggregation.token_mean(lengths)
            case "sequence":
                return aggregation.sequence_mean(lengths)
            case "prompt":
                return aggregation.prompt_mean(lengths)
            case "constant":
                return aggregation.constant(lengths, self.config.gconfig.max_new_tokens)

    def loss(self, logprobs: Tensor, batch: MicroBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """L = - sum_t a_t w_t J_t: the aggregation's weights, the correction's, the objective.

        J_t is measured from pi_prox, which takes the batch, and w_t corrects for pi_behave, which
        sampled it (AReaL, arXiv:2505.24298, equation 5, after Hilton et al., arXiv:2110.00641);
        with use_decoupled_loss: false J_t is measured from pi_behave, and w_t = 1. With a reference
        a_t kl_ctl KL_t is added (GRPO, arXiv:2402.03300, equation 3). logprobs:
        [tokens] float32. The sums are those of protocols.Algorithm: tokens whose ratio is clipped
        and whose weight is cut, the k3 estimate of KL(behave || theta), the weight, and what
        corrections.mismatch tells.
        """
        c = self.config.actor
        prox = batch.prox if batch.prox is not None else logprobs.detach()
        objective, clipped = self._objective(
            logprobs, prox if c.use_decoupled_loss else batch.behave, batch
        )
        weight, cut = importance_weights(
            prox - batch.behave,
            batch.sequence,
            c.behave_imp_weight_mode if c.use_decoupled_loss else "disabled",
            c.behave_imp_weight_floor,
            c.behave_imp_weight_cap,
        )
        loss = -(batch.weights * weight * objective).sum()
        if batch.ref is not None:
            kl = ESTIMATORS[c.kl_estimator](logprobs, batch.ref)
            loss = loss + c.kl_ctl * (batch.weights * kl).sum()
        with torch.no_grad():
            to_behave = (logprobs - batch.behave).clamp(max=objectives.LARGEST)
            stats = mismatch(prox - batch.behave) | {
                "clip_fraction": clipped.float().sum(),
                "cap_fraction": cut.float().sum(),
                "behave_kl": (torch.expm1(to_behave) - to_behave).sum(),
                "behave_weight": weight.sum(),
            }
            if batch.ref is not None:
                stats["ref_kl"] = kl.sum()
        return loss, stats

    def _objective(self, logprobs: Tensor, old: Tensor, batch: MicroBatch) -> tuple[Tensor, Tensor]:
        c, advantages = self.config.actor, batch.advantages
        if c.policy_loss == "reinforce":
            return objectives.reinforce(logprobs, advantages)
        if c.policy_loss == "gspo":
            ratio = objectives.sequence_ratio(logprobs, old, batch.sequence)
        else:
            ratio = objectives.token_ratio(logprobs, old)
        low, high = c.eps_clip, c.eps_clip if c.eps_clip_higher is None else c.eps_clip_higher
        if c.policy_loss == "cispo":
            return objectives.cispo(logprobs, ratio, advantages, low, high)
        if c.policy_loss == "sapo":
            return objectives.sapo(ratio, advantages, c.sapo_tau_pos, c.sapo_tau_neg)
        if c.c_clip is not None:
            return objectives.dual_clip(ratio, advantages, low, high, c.c_clip)
        return objectives.ppo_clip(ratio, advantages, low, high)
