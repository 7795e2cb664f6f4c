"""A model on its way through optimizer updates: what a policy and a critic have in common."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import nn

from arealite.config import ActorConfig, OptimizerConfig
from arealite.data.batch import Sample
from arealite.data.micro_batch import MicroBatch, micro_batches
from arealite.training.guard import Guard
from arealite.training.optim import (
    MasterWeights,
    build_optimizer,
    clip_gradients,
    learning_rate,
)


def cut(samples: Sequence[Sample], actor: ActorConfig, is_packed: bool) -> list[MicroBatch]:
    """The passes in which they are computed."""
    budget = actor.mb_spec.max_tokens_per_mb
    return list(micro_batches(samples, budget, is_packed, actor.share_prompts))


class Learner:
    """The weights of a model that learn, their optimizer and its schedule.

    total_updates: where the schedule ends. updates: how many were made or left out. named: what
    the optimizer moves, by the weight's name.
    """

    def __init__(
        self,
        model: nn.Module,
        config: OptimizerConfig,
        total_updates: int,
        guard: Guard | None = None,
    ) -> None:
        self.model, self._config, self._total_updates = model, config, total_updates
        self._guard = guard or Guard()
        self._masters = MasterWeights(model.parameters())
        learned = (name for name, weight in model.named_parameters() if weight.requires_grad)
        self.named = dict(zip(learned, self._masters.parameters, strict=True))
        self.optimizer = build_optimizer(self._masters, config)
        self.updates = 0

    @property
    def rate(self) -> float:
        """The learning rate of the last update."""
        return float(self.optimizer.param_groups[0]["lr"])

    def gradient_norm(self) -> float:
        """The global norm before clipping."""
        for parameter in self._masters.parameters:
            if parameter.grad is None:  # a batch that teaches nothing still moves AdamW's moments
                parameter.grad = torch.zeros_like(parameter)
        return clip_gradients(self._masters.parameters, self._config.gradient_clipping)

    def step(self, loss: float, norm: float, version: int, samples: Sequence[Sample]) -> bool:
        """Moves the weights to this version's; False where loss or norm is not finite, and nothing
        moved. Raises NonFinite for the third of these in a row."""
        rate = learning_rate(self._config, self.updates, self._total_updates)
        self.updates += 1
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        is_finite = math.isfinite(loss) and math.isfinite(norm)
        if is_finite:
            self.optimizer.step()
            self._guard.passed()
        self.optimizer.zero_grad()
        if not is_finite:
            odd = f"the gradient norm is {norm}" if math.isfinite(loss) else f"the loss is {loss}"
            self._guard.left_out(odd, version, self.updates, samples)
        return is_finite
