"""From tokens to one number: how the loss is averaged, as a weight per sample.

The trainer sums the weighted loss over all micro-batches and divides once by N, the trained tokens
of the whole batch. Every aggregation is therefore a weight, known before the batch is cut, and k
micro-batches equal one batch exactly.
"""

from __future__ import annotations

from collections.abc import Sequence

Lengths = Sequence[Sequence[int]]
"""Trained tokens of each sample, group by group; 0 for a sample that is not in the loss."""


def token_mean(lengths: Lengths) -> list[list[float]]:
    """L = (1 / N) sum_t l_t (DAPO, arXiv:2503.14476, section 3.3)."""
    return [[1.0] * len(group) for group in lengths]


def sequence_mean(lengths: Lengths) -> list[list[float]]:
    """L = mean over samples of (1 / |y_i|) sum_t l_t (GRPO, arXiv:2402.03300, equation 3).

    The weight is N / (S |y_i|), S counting the samples that have trained tokens.
    """
    n = sum(map(sum, lengths))
    samples = sum(length > 0 for group in lengths for length in group)
    return [[n / (samples * k) if k else 0.0 for k in group] for group in lengths]


def prompt_mean(lengths: Lengths) -> list[list[float]]:
    """L = mean over groups of (1 / |tokens of the group|) sum_t l_t (DAPO's equation 8 as it is
    written: an expectation over prompts of the group's token mean).

    The weight is N / (G |tokens of the group|), G counting the groups that have trained tokens.
    """
    n = sum(map(sum, lengths))
    groups = sum(any(group) for group in lengths)
    return [[n / (groups * sum(group)) if k else 0.0 for k in group] for group in lengths]


def constant(lengths: Lengths, max_new_tokens: int) -> list[list[float]]:
    """L = (1 / (B max_new_tokens)) sum_t l_t, B all samples of the batch.

    Source: Dr. GRPO, arXiv:2503.20783, section 3.2: a normaliser that does not
    know the lengths does not favour long wrong answers.
    """
    n = sum(map(sum, lengths))
    weight = n / (max(sum(map(len, lengths)), 1) * max_new_tokens)
    return [[weight] * len(group) for group in lengths]
