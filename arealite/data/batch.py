"""Episodes -> samples: what one training step consumes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from arealite.types import Episode, Trajectory


@dataclass(frozen=True, slots=True)
class Sample:
    """One trajectory on its way to the loss.

    trained: positions of the tokens in the loss (sampled, and not too old). behave: the
    behaviour policy's log-probabilities of these tokens. advantage: the same for each of them.
    group: samples of one group have one number; None for a sample of its own.
    """

    tokens: Sequence[int]
    trained: Sequence[int]
    behave: Sequence[float]
    advantage: float
    group: int | None = None


@dataclass(frozen=True)
class Batch:
    """What one training step consumes.

    samples: those that can move the weights. n_tokens: valid tokens of *all* samples, the global
    normaliser. stats: what is known of the batch before the step, flat metric keys.
    """

    samples: list[Sample]
    n_tokens: int
    stats: dict[str, float] = field(default_factory=dict)


def to_batch(
    episodes: Sequence[Episode],
    credit: Callable[[Episode], list[float]],
    version: int,
    max_lag: int | None,
) -> Batch:
    """The batch that turns policy `version` into the next one.

    A token older than max_lag versions (None: no limit) is left out of the loss and of its
    normaliser. A sample
    whose advantage is exactly 0 has exactly zero gradient: it counts in the normaliser, and its
    forward and backward pass is saved.
    """
    samples: list[Sample] = []
    n_tokens = masked = 0
    lags: list[int] = []
    heads: list[int] = []
    tails: list[int] = []
    for group, episode in enumerate(episodes):
        for trajectory, advantage in zip(episode.trajectories, credit(episode), strict=True):
            trained = _fresh(trajectory, 0 if max_lag is None else version - max_lag)
            masked += trajectory.sampled - len(trained)
            n_tokens += len(trained)
            of_tokens = [version - trajectory.versions[i] for i in trained]
            lags.extend(of_tokens)
            heads.extend(of_tokens[:1])
            tails.extend(of_tokens[-1:])
            if advantage != 0.0 and trained:
                behave = [trajectory.logprobs[i] for i in trained]
                samples.append(Sample(trajectory.tokens, trained, behave, advantage, group))
    stats = _stats(episodes) | {
        "staleness/masked_tokens": float(masked),
        "staleness/max": float(max(lags, default=0)),
        "staleness/mean": _mean(lags),
        "staleness/head": _mean(heads),  # of each trajectory's first trained token
        "staleness/tail": _mean(tails),
    }
    n_samples = sum(len(e.trajectories) for e in episodes)
    stats["train/samples"] = float(n_samples)
    stats["train/idle_samples"] = float(n_samples - len(samples))
    return Batch(samples, max(n_tokens, 1), stats)


def _fresh(trajectory: Trajectory, oldest: int) -> list[int]:
    return [
        i
        for i, (mask, version) in enumerate(
            zip(trajectory.loss_mask, trajectory.versions, strict=True)
        )
        if mask and version >= oldest
    ]


def _mean(numbers: Sequence[float]) -> float:
    return sum(numbers) / max(len(numbers), 1)


def _stats(episodes: Sequence[Episode]) -> dict[str, float]:
    trajectories = [t for e in episodes for t in e.trajectories]
    n = max(len(trajectories), 1)
    sampled = [t.sampled for t in trajectories]
    names = sorted({name for t in trajectories for name in t.components})
    mean = {
        "reward/mean": sum(t.reward for t in trajectories) / n,
        "rollout/completion_length": sum(sampled) / n,
        "rollout/truncated": sum(t.truncated for t in trajectories) / n,
        "rollout/tokens": float(sum(sampled)),
        "train/tokens": float(sum(len(t.tokens) for t in trajectories)),
    }
    for name in names:
        mean[f"reward/{name}"] = sum(t.components.get(name, 0.0) for t in trajectories) / n
    return mean
