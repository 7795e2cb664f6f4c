"""Advantages and losses as pure functions of tensors and numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def group_advantages(rewards: Sequence[float], divide_by_std: bool) -> list[float]:
    """Group-relative advantages: A_i = (r_i - mean(r)) / std(r).

    Source: DeepSeekMath, arXiv:2402.03300, section 4.1.2; without the division Dr. GRPO,
    arXiv:2503.20783, section 3.2. A group of equal rewards teaches nothing: exactly 0 for all.
    The standard deviation is the population's (divided by n), as 1e-6 is added to it.
    """
    if max(rewards) == min(rewards):
        return [0.0] * len(rewards)
    mean = math.fsum(rewards) / len(rewards)
    centred = [r - mean for r in rewards]
    if not divide_by_std:
        return centred
    std = math.sqrt(math.fsum(c * c for c in centred) / len(rewards))
    return [c / (std + 1e-6) for c in centred]


def decoupled_ppo_loss(
    logprobs: Tensor,
    prox: Tensor,
    behave: Tensor,
    advantages: Tensor,
    clip_low: float,
    clip_high: float,
    behave_cap: float,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Summed decoupled PPO loss over tokens; every argument is [tokens] float32.

        L = - sum_t  min(pi_prox / pi_behave, cap) * min(u_t A_t, clip(u_t, 1 - low, 1 + high) A_t)
        u_t = pi_theta / pi_prox

    Source: AReaL, arXiv:2505.24298, equation 5, after Hilton et al., arXiv:2110.00641; the cap is
    truncated importance sampling. With prox = behave it is PPO's own objective
    (arXiv:1707.06347, equation 7), and clip_high > clip_low is DAPO's clip-higher
    (arXiv:2503.14476, section 3.1).

    Returns the sum and summed statistics: clipped tokens, capped tokens, the k3 estimate of
    KL(behave || theta), and the behaviour weight.
    """
    ratio = torch.exp(logprobs - prox)
    clipped = ratio.clamp(1.0 - clip_low, 1.0 + clip_high)
    objective = torch.minimum(ratio * advantages, clipped * advantages)
    raw_weight = torch.exp(prox - behave)
    weight = raw_weight.clamp(max=behave_cap)
    loss = -(weight * objective).sum()
    with torch.no_grad():
        to_behave = logprobs - behave
        stats = {
            "clip_fraction": (clipped * advantages < ratio * advantages).float().sum(),
            "cap_fraction": (raw_weight > behave_cap).float().sum(),
            "behave_kl": (torch.expm1(to_behave) - to_behave).sum(),
            "behave_weight": weight.sum(),
        }
    return loss, stats
