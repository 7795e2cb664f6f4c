"""Objectives: what each token adds to the sum that is maximised, as pure functions of tensors.

Every tensor is [tokens] float, `sequence` is [tokens] int64: which sample a token belongs to. Each
function returns ([tokens] objective, [tokens] bool: where clipping holds the gradient back). Sign,
weights and sums are the caller's.
"""

from __future__ import annotations

import torch
from torch import Tensor

LARGEST = 20.0
"""Above e^20 a ratio counts as e^20, without a gradient: its square would leave float32."""


def token_ratio(logprobs: Tensor, old: Tensor) -> Tensor:
    """r_t = pi_theta / pi_old of each token (PPO, arXiv:1707.06347, section 3)."""
    return torch.exp((logprobs - old).clamp(max=LARGEST))


def sequence_ratio(logprobs: Tensor, old: Tensor, sequence: Tensor) -> Tensor:
    """s_i = (pi_theta(y_i) / pi_old(y_i))^(1 / |y_i|), for each token that of its sample.

    Source: GSPO, arXiv:2507.18071, equation 7. y_i are the sample's trained tokens.
    """
    return torch.exp(sequence_mean(logprobs - old, sequence).clamp(max=LARGEST))


def sequence_sum(values: Tensor, sequence: Tensor) -> Tensor:
    """[tokens] the sum over the token's own sample."""
    n = int(sequence[-1]) + 1 if len(sequence) else 0  # it ascends
    return values.new_zeros(n).index_add(0, sequence, values)[sequence]


def sequence_mean(values: Tensor, sequence: Tensor) -> Tensor:
    """[tokens] the mean over the token's own sample."""
    return sequence_sum(values, sequence) / sequence_sum(torch.ones_like(values), sequence)


def ppo_clip(ratio: Tensor, advantages: Tensor, low: float, high: float) -> tuple[Tensor, Tensor]:
    """J = min(r A, clip(r, 1 - low, 1 + high) A).

    Source: PPO, arXiv:1707.06347, equation 7; high > low is DAPO's clip-higher, arXiv:2503.14476,
    section 3.1. With `sequence_ratio` it is GSPO's, arXiv:2507.18071, equation 5.
    """
    free = ratio * advantages
    bound = ratio.clamp(1.0 - low, 1.0 + high) * advantages
    return torch.minimum(free, bound), bound < free


def dual_clip(
    ratio: Tensor, advantages: Tensor, low: float, high: float, c: float
) -> tuple[Tensor, Tensor]:
    """J = max(min(r A, clip(r, 1 - low, 1 + high) A), c A) where A < 0, else PPO's; c > 1.

    Source: Ye et al., arXiv:1912.09729: a bad token that became far likelier pulls no
    harder than c times.
    """
    objective, clipped = ppo_clip(ratio, advantages, low, high)
    floor = torch.where(advantages < 0, c * advantages, -torch.inf)
    return torch.maximum(objective, floor), clipped | (objective < floor)


def cispo(
    logprobs: Tensor, ratio: Tensor, advantages: Tensor, low: float, high: float
) -> tuple[Tensor, Tensor]:
    """J = sg(clip(r, 1 - low, 1 + high)) A log pi_theta: the weight is clipped, never the gradient.

    Source: CISPO in MiniMax-M1, arXiv:2506.13585, equations 4 and 5.
    """
    weight = ratio.detach().clamp(1.0 - low, 1.0 + high)
    return weight * advantages * logprobs, torch.zeros_like(advantages, dtype=torch.bool)


def sapo(
    ratio: Tensor, advantages: Tensor, tau_pos: float, tau_neg: float
) -> tuple[Tensor, Tensor]:
    """J = (4 / tau) sigmoid(tau (r - 1)) A, tau = tau_pos where A > 0, else tau_neg.

    Source: SAPO, arXiv:2511.20347: a soft gate in the clip's place; at r = 1
    its gradient is that of r A.
    """
    tau = torch.where(advantages > 0, ratio.new_tensor(tau_pos), ratio.new_tensor(tau_neg))
    gate = torch.sigmoid(tau * (ratio - 1.0)) * 4.0 / tau
    return gate * advantages, torch.zeros_like(advantages, dtype=torch.bool)


def reinforce(logprobs: Tensor, advantages: Tensor) -> tuple[Tensor, Tensor]:
    """J = A log pi_theta (Williams 1992, doi:10.1007/BF00992696, section 5)."""
    return advantages * logprobs, torch.zeros_like(advantages, dtype=torch.bool)
