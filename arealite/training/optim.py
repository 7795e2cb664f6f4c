"""Optimizers, and the learning rate as a pure function of the update's number."""

from __future__ import annotations

import math
from collections.abc import Iterable
from functools import partial

import torch
from torch import Tensor, nn

from arealite.config import OptimizerConfig


def learning_rate(config: OptimizerConfig, update: int, total: int) -> float:
    """The rate of update number `update` (from 0) out of `total`.

    Linear warm-up to config.lr, then constant, or down to min_lr_ratio * lr at the last update:
    with p the share of the way and f that ratio, f + (1 - f) s(p) times lr, where s is 1 - p
    (linear), (1 + cos(pi p)) / 2 (cosine) or (1 - p)^power (polynomial).
    """
    warmup = config.warmup_steps
    if warmup is None:
        warmup = round(config.warmup_steps_proportion * total)
    if update < warmup:
        return config.lr * (update + 1) / warmup
    progress = min((update - warmup) / max(total - 1 - warmup, 1), 1.0)
    kind, shape = config.lr_scheduler_type, 1.0
    if kind == "linear":
        shape = 1.0 - progress
    elif kind == "cosine":
        shape = 0.5 * (1.0 + math.cos(math.pi * progress))
    elif kind == "polynomial":
        shape = float((1.0 - progress) ** config.lr_scheduler_power)
    return config.lr * (config.min_lr_ratio + (1.0 - config.min_lr_ratio) * shape)


def build_optimizer(masters: MasterWeights, config: OptimizerConfig) -> torch.optim.Optimizer:
    """AdamW or SGD over masters.parameters.

    Weight decay touches matrices only, never norms and biases. It is decoupled in AdamW; in SGD it
    is part of the gradient, and so of the momentum.

    A step also brings the model's own weights up to date.
    """
    matrices = [p for p in masters.parameters if p.ndim >= 2]
    vectors = [p for p in masters.parameters if p.ndim < 2]
    groups = [
        {"params": matrices, "weight_decay": config.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    optimizer: torch.optim.Optimizer
    if config.type == "sgd":
        optimizer = torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum, fused=True)
    else:
        betas = (config.beta1, config.beta2)
        optimizer = torch.optim.AdamW(groups, lr=config.lr, betas=betas, eps=config.eps, fused=True)
    optimizer.register_step_post_hook(lambda *_: masters.return_weights())
    return optimizer


class MasterWeights:
    """float32 copies of narrower weights, for an optimizer to move in their place.

    bfloat16 has 8 significant bits: an update below 1/512 of a weight would round to nothing, each
    time anew, and so would a micro-batch's gradient beside the sum of those before it. In its copy
    it adds up until the weight can show it. A parameter that is float32 stands for itself.

    parameters: what the optimizer moves and where gradients gather, shapes and order as given.
    """

    def __init__(self, weights: Iterable[nn.Parameter]) -> None:
        weights = [w for w in weights if w.requires_grad]
        self.parameters = [
            nn.Parameter(w.detach().float()) if w.dtype.itemsize < 4 else w for w in weights
        ]
        pairs = zip(weights, self.parameters, strict=True)
        self._copied = [(weight, master) for weight, master in pairs if master is not weight]
        for weight, master in self._copied:
            hand_over = partial(_hand_over, master=master)
            weight.register_post_accumulate_grad_hook(hand_over)  # type: ignore[no-untyped-call]

    @torch.no_grad()
    def return_weights(self) -> None:
        """Rounds the copies into the weights."""
        for weight, master in self._copied:
            weight.copy_(master)


def _hand_over(weight: Tensor, master: nn.Parameter) -> None:
    """Adds a backward pass's gradient of one weight to its copy's; the weight keeps none."""
    assert weight.grad is not None
    if master.grad is None:
        master.grad = weight.grad.float()
    else:
        master.grad += weight.grad
    weight.grad = None


def clip_gradients(parameters: Iterable[Tensor], largest: float) -> float:
    """Scales all gradients to a global norm of at most `largest` (0: no limit); the norm before."""
    limit = largest if largest > 0 else math.inf
    return float(torch.nn.utils.clip_grad_norm_(list(parameters), limit))
