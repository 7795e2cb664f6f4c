"""Choosing a token: a pure function of its logits, its parameters, its seed and its position.

One uniform number per token comes from a counter-based hash, so a sample does not depend on who
shares its batch, on how many tokens were drawn before, or on whether the request was interrupted
and sent again with the tokens it already had.
"""

from __future__ import annotations

import torch
from torch import Tensor

_GOLDEN = 0x9E3779B97F4A7C15 - (1 << 64)  # splitmix64's constants, as signed 64-bit integers
_MIX_1 = 0xBF58476D1CE4E5B9 - (1 << 64)
_MIX_2 = 0x94D049BB133111EB - (1 << 64)


def _mixed(x: Tensor) -> Tensor:
    """splitmix64's finaliser on int64 (whose arithmetic wraps; shifts are made logical)."""
    x = (x ^ ((x >> 30) & 0x3FFFFFFFF)) * _MIX_1
    x = (x ^ ((x >> 27) & 0x1FFFFFFFFF)) * _MIX_2
    return x ^ ((x >> 31) & 0x1FFFFFFFF)


def uniforms(seeds: Tensor, positions: Tensor) -> Tensor:
    """One number in [0, 1) for each pair. int64 [n], int64 [n] -> float64 [n]."""
    # The seed is mixed first: without that, seed s at position p and seed s + golden at position
    # p - 1 would draw the same numbers, and so would neighbouring seeds be correlated.
    bits = _mixed(_mixed(seeds + _GOLDEN) + positions * _GOLDEN)
    return ((bits >> 11) & 0x1FFFFFFFFFFFFF).double() * 2.0**-53


def draw(logprobs: Tensor, uniform: Tensor) -> Tensor:
    """Inverse-CDF draw. [n, vocab] normalised or not, [n] -> int64 [n].

    Tokens of probability 0 are never drawn. Rows that are not finite give some valid id; the
    caller sees that the log-probability of what was drawn is not finite.
    """
    return _invert(logprobs.exp(), uniform)


def draw_cut(logprobs: Tensor, uniform: Tensor, top_p: Tensor, top_k: Tensor) -> Tensor:
    """As `draw`, over the tokens that both cuts keep.

    top_p [n]: keeps the likeliest tokens until their mass reaches it. top_k [n] int64: keeps so
    many of the likeliest. Of equally likely tokens the lower id comes first.
    """
    ordered, ids = logprobs.sort(dim=-1, descending=True, stable=True)
    p = ordered.exp()
    mass_before = p.cumsum(-1, dtype=torch.float64) - p
    rank = torch.arange(p.shape[-1], device=p.device)
    kept = (mass_before < top_p[:, None]) & (rank < top_k[:, None])
    kept[:, 0] = True
    chosen = _invert(p * kept, uniform)
    return ids.gather(-1, chosen[:, None]).squeeze(-1)


def _invert(p: Tensor, uniform: Tensor) -> Tensor:
    cdf = p.cumsum(-1, dtype=torch.float64)
    target = uniform[:, None] * cdf[:, -1:]
    # right=True: the first index whose cumulated mass exceeds the target, so never a zero one.
    index = torch.searchsorted(cdf, target, right=True)
    return index.clamp_(max=p.shape[-1] - 1).squeeze(-1)
