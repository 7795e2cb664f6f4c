"""From the reward that was earned to the reward that is learned from."""

from __future__ import annotations


def overlong_penalty(length: int, longest: int, margin: float, factor: float) -> float:
    """Soft overlong punishment, at most 0: nothing up to longest - margin tokens, then a straight
    line down to -factor at `longest` and beyond.

        factor * clip((longest - margin - length) / margin, -1, 0)

    Source: DAPO, arXiv:2503.14476, section 3.4, equation 13.
    """
    return factor * min(max((longest - margin - length) / margin, -1.0), 0.0)


def shaped(reward: float, bias: float, scaling: float, clip: float | None) -> float:
    """(reward + bias) * scaling, then within -clip to clip where one is given."""
    value = (reward + bias) * scaling
    return value if clip is None else min(max(value, -clip), clip)
