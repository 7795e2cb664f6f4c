"""What a critic minimises, and how well it foresees: pure functions of values and returns.

Every tensor is [tokens] float. values: V of the state before each token; old: the same, of the
critic that took the batch; returns: what they should have been.
"""

from __future__ import annotations

import torch
from torch import Tensor


def value_loss(
    values: Tensor, old: Tensor, returns: Tensor, eps_clip: float | None
) -> tuple[Tensor, Tensor]:
    """([tokens] loss, [tokens] bool: where clipping holds the gradient back).

    l = 1/2 max((V - R)^2, (clip(V, V_old - eps, V_old + eps) - R)^2); without eps 1/2 (V - R)^2.

    Source: the value function's clipping in PPO's own implementation, as Engstrom et al. describe
    it, arXiv:2005.12729, section 3, item 1.
    """
    free = (values - returns).square()
    if eps_clip is None:
        return free / 2, torch.zeros_like(free, dtype=torch.bool)
    bound = (old + (values - old).clamp(-eps_clip, eps_clip) - returns).square()
    return torch.maximum(free, bound) / 2, bound > free


def explained_variance(values: Tensor, returns: Tensor) -> float:
    """1 - var(R - V) / var(R): 1 foresees all, 0 no more than a constant would; below 0 is worse.

    0 where the returns do not differ, and there is nothing to explain.
    """
    if len(returns) == 0:
        return 0.0
    spread = returns.double().var(correction=0)
    missed = (returns - values).double().var(correction=0)
    return 0.0 if float(spread) == 0.0 else float(1.0 - missed / spread)
