"""AdamW and the learning rate as a pure function of the update's number."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

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
    """AdamW; weight decay touches matrices only, never norms and biases.

    It holds the model's own parameters, or their MasterWeights where these are narrower than
    float32: gradients are then to be cleared on the model.
    """
    masters = MasterWeights([p for p in model.parameters() if p.requires_grad])
    parameters = masters.parameters
    matrices = [p for p in parameters if p.ndim >= 2]
    vectors = [p for p in parameters if p.ndim < 2]
    optimizer = torch.optim.AdamW(
        [
            {"params": matrices, "weight_decay": config.weight_decay},
            {"params": vectors, "weight_decay": 0.0},
        ],
        lr=config.lr,
        betas=(config.beta1, config.beta2),
        eps=config.eps,
        fused=True,
    )
    optimizer.register_step_pre_hook(lambda *_: masters.take_gradients())
    optimizer.register_step_post_hook(lambda *_: masters.return_weights())
    return optimizer


class MasterWeights:
    """float32 copies of narrower weights, for an optimizer to move in their place.

    bfloat16 has 8 significant bits: an update below 1/512 of a weight would round to nothing, each
    time anew. In its copy it adds up until the weight can show it. A parameter that is float32
    stands for itself.

    parameters: what the optimizer moves, shapes and order as given.
    """

    def __init__(self, weights: Sequence[nn.Parameter]) -> None:
        self.parameters = [
            nn.Parameter(w.detach().float()) if w.dtype.itemsize < 4 else w for w in weights
        ]
        pairs = zip(weights, self.parameters, strict=True)
        self._copied = [(weight, master) for weight, master in pairs if master is not weight]

    def take_gradients(self) -> None:
        """Moves the weights' gradients to the copies; the weights keep none."""
        for weight, master in self._copied:
            master.grad = None if weight.grad is None else weight.grad.float()
            weight.grad = None

    @torch.no_grad()
    def return_weights(self) -> None:
        """Rounds the copies into the weights."""
        for weight, master in self._copied:
            weight.copy_(master)
            master.grad = None


def clip_gradients(parameters: Iterable[Tensor], largest: float) -> float:
    """Scales all gradients to a global norm of at most `largest` (0: no limit); the norm before."""
    limit = largest if largest > 0 else math.inf
    return float(torch.nn.utils.clip_grad_norm_(list(parameters), limit))
