"""Advantages as pure functions of rewards: a baseline within the group, then a scale; or, token by
token, of rewards and a critic's values."""

from __future__ import annotations

import math
from collections.abc import Sequence

EPSILON = 1e-6
"""Added to every standard deviation, which is the population's (divided by n)."""


def less_group_mean(rewards: Sequence[float]) -> list[float]:
    """A_i = r_i - mean(r) over the group.

    Source: GRPO, DeepSeekMath, arXiv:2402.03300, section 4.1.2; alone Dr. GRPO, arXiv:2503.20783,
    section 3.2. A group of equal rewards teaches nothing: exactly 0 for all.
    """
    if max(rewards) == min(rewards):
        return [0.0] * len(rewards)
    mean = math.fsum(rewards) / len(rewards)
    return [r - mean for r in rewards]


def less_others_mean(rewards: Sequence[float]) -> list[float]:
    """A_i = r_i - mean of the group's other rewards = n / (n - 1) (r_i - mean(r)).

    Source: RLOO, arXiv:2402.14740, section 2.2, after Kool et al. 2019. A baseline that does not
    contain the sample itself leaves the gradient unbiased. A group of one teaches nothing: 0.
    """
    n = len(rewards)
    return [n / max(n - 1, 1) * centred for centred in less_group_mean(rewards)]


def over_group_std(advantages: Sequence[float], rewards: Sequence[float]) -> list[float]:
    """A_i / std(r) over the group (GRPO, arXiv:2402.03300, section 4.1.2)."""
    std = math.sqrt(math.fsum(c * c for c in less_group_mean(rewards)) / len(rewards))
    return [a / (std + EPSILON) for a in advantages]


def whitened(
    advantages: Sequence[Sequence[float]], tokens: Sequence[Sequence[int]]
) -> list[list[float]]:
    """(A - mean) / std over all tokens of the batch; a sample's A counts once for each token.

    advantages, tokens: one number per sample, group by group. tokens of 0: the sample is moved
    and scaled as the others are, and does not count. Source: REINFORCE++, arXiv:2501.03262,
    section 3 (with a group's mean taken off before: its baseline form). Equal advantages: 0.
    """
    counted = [
        (a, k)
        for group, ks in zip(advantages, tokens, strict=True)
        for a, k in zip(group, ks, strict=True)
        if k
    ]
    values = [a for a, _ in counted]
    if not counted or max(values) == min(values):
        return [[0.0] * len(group) for group in advantages]
    n = sum(k for _, k in counted)
    mean = math.fsum(a * k for a, k in counted) / n
    std = math.sqrt(math.fsum(k * (a - mean) ** 2 for a, k in counted) / n)
    return [[(a - mean) / (std + EPSILON) for a in group] for group in advantages]


def gae(
    rewards: Sequence[float], values: Sequence[float], discount: float, gae_lambda: float
) -> list[float]:
    """[n] A_t = delta_t + gamma lambda A_(t+1), delta_t = r_t + gamma V_(t+1) - V_t.

    rewards: [n], what action t earned. values: [n], what the state was worth in which action t was
    taken; the state after the last action is worth 0. An action is a sampled token, of one turn or
    of several: what stands between them is context. A_t + V_t is the critic's target. With
    lambda = 1 A_t is the discounted sum of the rewards from t on, less V_t.

    Source: Schulman et al., arXiv:1506.02438, section 3, equation 16.
    """
    advantages, after, next_value = [], 0.0, 0.0
    for reward, value in zip(reversed(rewards), reversed(values), strict=True):
        delta = reward + discount * next_value - value
        after = delta + discount * gae_lambda * after
        next_value = value
        advantages.append(after)
    return advantages[::-1]
