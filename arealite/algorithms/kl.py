"""How far the policy has moved from a reference, estimated at the tokens that were sampled.

Estimates of KL(pi_theta || pi_ref) in nats, one per token; logprobs and reference are [tokens]
float, and the gradient runs through logprobs. Source: http://joschu.net/blog/kl-approx.html.
"""

from __future__ import annotations

import torch
from torch import Tensor

from arealite.algorithms.objectives import LARGEST


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


ESTIMATORS = {"k2": k2, "k3": k3}
"""By the name of actor.kl_estimator."""
