"""How far the policy has moved from a reference, estimated at the tokens that were sampled.

Estimates of KL(pi_theta || pi_ref) in nats, one per token; logprobs and reference are [tokens]
float, and the gradient runs through logprobs. Source: http://joschu.net/blog/kl-approx.html.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from arealite.algorithms.objectives import LARGEST


def k1(logprobs: Tensor, reference: Tensor) -> Tensor:
    """log pi_theta - log pi_ref: unbiased, and of either sign.

    As a reward its policy gradient is that of the KL; in a loss its own gradient is 0 on average.
    """
    return logprobs - reference


def k2(logprobs: Tensor, reference: Tensor) -> Tensor:
    """(log pi_theta - log pi_ref)^2 / 2: biased as a number, but its gradient is that of the KL.

    Source of the latter: Tang and Munos, arXiv:2506.09477.
    """
    return (logprobs - reference).square() / 2


def k3(logprobs: Tensor, reference: Tensor) -> Tensor:
    """q - 1 - log q with q = pi_ref / pi_theta: unbiased and never negative.

    Source: GRPO, arXiv:2402.03300, equation 4. Above e^20 q counts as e^20, without a gradient.
    """
    log_q = (reference - logprobs).clamp(max=LARGEST)
    return torch.expm1(log_q) - log_q


ESTIMATORS = {"k1": k1, "k2": k2, "k3": k3}
"""By the name of actor.kl_estimator."""


def adapted(coefficient: float, kl: float, target: float, gain: float) -> float:
    """beta (1 + K e), e = clip((KL - target) / target, -0.2, 0.2): towards the target KL.

    kl, target: in nats per sample. gain: K, 0.1 in the source; its code has the batch's samples
    over a horizon. Source: Ziegler et al., arXiv:1909.08593, section 2.2. A KL that is not finite
    changes nothing.
    """
    if not math.isfinite(kl):
        return coefficient
    return coefficient * (1.0 + gain * min(max(kl / target - 1.0, -0.2), 0.2))
