"""The staleness rule: two pure functions. Lag = version being trained - version that sampled.

Admission keeps the *mean* lag small: an episode may start only if, were everything before it
consumed in order, it would be trained at most eta versions later. Consumption makes the bound
*strict per token*: what is older than eta when its batch is formed does not enter the loss.
Admission alone is not enough: a long episode is overtaken by short ones and grows old.
"""

from __future__ import annotations

from arealite.types import Episode


def room(version: int, eta: int, batch_size: int, running: int, accepted: int) -> int:
    """How many more episodes may be admitted now.

    version: the newest published policy. running: admitted and not yet ended. accepted: ended and
    kept, over the whole run, whether consumed or still buffered.

    Policies up to version + eta consume (version + eta + 1) * batch_size episodes; what is
    admitted within this number is consumed, in order, at most eta versions from now.
    """
    return (version + eta + 1) * batch_size - running - accepted


def has_fresh_token(episode: Episode, version: int, eta: int) -> bool:
    """Whether `mask` leaves anything of the episode to train at this version."""
    return any(
        mask and token_version >= version - eta
        for t in episode.trajectories
        for mask, token_version in zip(t.loss_mask, t.versions, strict=True)
    )


def is_wholly_fresh(episode: Episode, version: int, eta: int) -> bool:
    """Whether `drop` keeps the episode at this version."""
    return all(t.oldest_version >= version - eta for t in episode.trajectories)
