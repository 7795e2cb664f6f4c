"""Advantages as pure functions of the rewards of one group: A of each of its samples."""

from __future__ import annotations

import math
from collections.abc import Sequence


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
