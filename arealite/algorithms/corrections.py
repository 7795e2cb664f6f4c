"""Corrections for tokens that another policy sampled: an older version, or an engine whose numbers
differ from the trainer's.

Every tensor is [tokens] float, without a gradient; `sequence` is [tokens] int64. The ratio is
rho_t = pi_prox / pi_behave: the trainer's policy that took the batch against what the engine told.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from arealite.algorithms.objectives import LARGEST, sequence_mean, sequence_sum


def importance_weights(
    log_ratio: Tensor, sequence: Tensor, mode: str, floor: float, cap: float
) -> tuple[Tensor, Tensor]:
    """([tokens] weight of each token's objective, [tokens] bool: where it was cut).

    With rho = rho_t of the token, or for a sequence's modes the product over the sample's tokens:

        token_truncate, sequence_truncate   min(rho, cap)
        token_mask, sequence_mask           rho if floor <= rho <= cap, else 0
        geometric_mask                      1 if floor <= (prod rho_t)^(1 / |y|) <= cap, else 0
        disabled                            1

    Sources: token_truncate AReaL, arXiv:2505.24298, equation 5, and Yao et al. 2025, "Your
    Efficient RL Framework Secretly Brings You Off-Policy RL Training" (TIS); token_mask IcePop in
    Ring-1T, arXiv:2510.18855; the sequence's modes and the geometric one Liu et al.
    2025, "When Speed Kills Stability" (MIS). What is masked stays in the loss's normaliser.
    """
    if mode == "disabled":
        return torch.ones_like(log_ratio), torch.zeros_like(log_ratio, dtype=torch.bool)
    if mode == "geometric_mask":
        log_ratio = sequence_mean(log_ratio, sequence)
    elif mode.startswith("sequence_"):
        log_ratio = sequence_sum(log_ratio, sequence)
    ratio = torch.exp(log_ratio.clamp(max=LARGEST))
    if mode.endswith("_truncate"):
        return ratio.clamp(max=cap), ratio > cap
    kept = (ratio >= floor) & (ratio <= cap)
    weight = torch.ones_like(ratio) if mode == "geometric_mask" else ratio
    return torch.where(kept, weight, 0.0), ~kept


def mismatch(log_ratio: Tensor) -> dict[str, Tensor]:
    """Sums over tokens that tell how far pi_behave is from pi_prox, whatever is done about it.

    mismatch_kl: the k3 estimate rho - 1 - log rho of KL(behave || prox), in nats
    (http://joschu.net/blog/kl-approx.html). is_ratio, is_ratio_squared: rho and its square, of
    which `effective_sample_size` is made.
    """
    bounded = log_ratio.clamp(max=LARGEST)
    ratio = torch.exp(bounded)
    return {
        "mismatch_kl": (torch.expm1(bounded) - bounded).sum(),
        "is_ratio": ratio.sum(),
        "is_ratio_squared": ratio.square().sum(),
    }


def effective_sample_size(mean: float, mean_square: float) -> float:
    """(sum rho)^2 / (n sum rho^2), from the means over n tokens; 1: as good as on-policy.

    Source: Kong 1992, in Owen, Monte Carlo theory, methods and examples, equation 9.13. It is of
    the uncorrected ratios, so that runs with different corrections can be compared.
    """
    return mean * mean / mean_square if mean_square > 0 and math.isfinite(mean_square) else 0.0
