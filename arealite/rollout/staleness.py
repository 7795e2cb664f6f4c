"""The staleness rule as pure functions. Lag = version being trained - version that sampled.

Admission keeps the *mean* lag small: an episode may start only if, were everything before it
consumed in order, it would be trained at most eta versions later. Consumption makes the bound
*strict per token*: what is older than eta when its batch is formed does not enter the loss.
Admission alone is not enough: a long episode is overtaken by short ones and grows old.
docs/staleness.md proves the bound and compares the four rules of consumption.
"""

from __future__ import annotations

from typing import Literal

from arealite.types import Episode

Late = Literal["mask", "drop", "wait", "keep"]
"""What becomes of tokens that are too old when their batch is formed.

mask: they are left out of the loss; an episode without any fresh token is dropped. drop: the whole
episode is dropped. wait: batches keep the order of admission, so nothing can grow too old, and the
trainer waits for the longest. keep: they are trained all the same; the bound does not hold.
"""


def room(version: int, eta: int, batch_size: int, running: int, accepted: int) -> int:
    """How many more episodes may be admitted now.

    version: the newest published policy. running: admitted and not yet ended. accepted: ended and
    kept, over the whole run, whether consumed or still buffered.

    Policies up to version + eta consume (version + eta + 1) * batch_size episodes; what is
    admitted within this number is consumed, in order, at most eta versions from now.
    """
    return (version + eta + 1) * batch_size - running - accepted


def is_usable(late: Late, episode: Episode, version: int, eta: int) -> bool:
    """Whether a batch formed at this version may hold the episode; otherwise it is dropped."""
    if late == "keep":
        return True
    if late == "drop":
        return is_wholly_fresh(episode, version, eta)
    return has_fresh_token(episode, version, eta)


def is_wholly_in_order(late: Late, last: int, oldest_running: int | None) -> bool:
    """Whether a batch whose youngest episode was admitted as number `last` may be formed now.

    oldest_running: the number of the oldest episode that still runs, None if none does. Only
    `wait` minds that an older one is still under way.
    """
    return late != "wait" or oldest_running is None or last < oldest_running


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
