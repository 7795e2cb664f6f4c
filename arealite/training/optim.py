"""AdamW and the learning rate as a pure function of the update's number."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from arealite.config import OptimizerConfig


def learning_rate(config: OptimizerConfig, update: int, total: int) -> float:
    """The rate of update number `update` (from 0) out of `total`.

    Linear warm-up to config.lr, then constant, linear or cosine down to min_lr_ratio * lr at the
    last update.
    """
    warmup = config.warmup_steps
    if warmup is None:
        warmup = round(config.warmup_steps_proportion * total)
    if update < warmup:
        return config.lr * (update + 1) / warmup
    progress = min((update - warmup) / max(total - 1 - warmup, 1), 1.0)
    floor = config.min_lr_ratio
    if config.lr_scheduler_type == "linear":
        return config.lr * (1.0 - (1.0 - floor) * progress)
    if config.lr_scheduler_type == "cosine":
        return config.lr * (floor + (1.0 - floor) * 0.5 * (1.0 + math.cos(math.pi * progress)))
    return config.lr


def build_optimizer(model: nn.Module, config: OptimizerConfig) -> torch.optim.AdamW:
    """AdamW; weight decay touches matrices only, never norms and biases."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    matrices = [p for p in parameters if p.ndim >= 2]
    vectors = [p for p in parameters if p.ndim < 2]
    return torch.optim.AdamW(
        [
            {"params": matrices, "weight_decay": config.weight_decay},
            {"params": vectors, "weight_decay": 0.0},
        ],
        lr=config.lr,
        betas=(config.beta1, config.beta2),
        eps=config.eps,
        fused=True,
    )


def clip_gradients(parameters: Iterable[Tensor], largest: float) -> float:
    """Scales all gradients to a global norm of at most `largest` (0: no limit); the norm before."""
    limit = largest if largest > 0 else math.inf
    return float(torch.nn.utils.clip_grad_norm_(list(parameters), limit))
