"""Episodes -> samples: what one training step consumes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from arealite.protocols import Algorithm
from arealite.types import Episode, Trajectory


@dataclass(frozen=True, slots=True)
class Sample:
    """One trajectory on its way to the loss.

    trained: positions of the tokens in the loss (sampled, and not too old). behave: the
    behaviour policy's log-probabilities of these tokens. advantage: the same for each of them, or
    one for each. weight: what each of them counts in the loss, 1 on average over the batch
    (aggregation). group: samples of one group have one number; None for a sample of its own.
    values, returns: of the state before each of these tokens, what a critic expected and what it
    should have; empty without a critic. prox: the log-probabilities of the policy that takes the
    batch; empty where they are not known yet.
    """

    tokens: Sequence[int]
    trained: Sequence[int]
    behave: Sequence[float]
    advantage: float | Sequence[float]
    group: int | None = None
    weight: float = 1.0
    values: Sequence[float] = ()
    returns: Sequence[float] = ()
    prox: Sequence[float] = ()

    @property
    def advantages(self) -> Sequence[float]:
        """One for each trained token."""
        if isinstance(self.advantage, Sequence):
            return self.advantage
        return [self.advantage] * len(self.trained)


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
    algorithm: Algorithm,
    version: int,
    max_lag: int | None,
) -> Batch:
    """The batch that turns policy `version` into the next one.

    A token older than max_lag versions (None: no limit), and every token of a sample without
    credit (None), is left out of the loss and of its normaliser. A sample whose advantage is
    exactly 0 has exactly zero gradient, where the algorithm says so: it counts in the normaliser,
    and its forward and backward pass is saved.
    """
    credits = algorithm.credit(episodes)
    oldest = 0 if max_lag is None else version - max_lag
    trained = [
        [
            [] if advantage is None else _fresh(trajectory, oldest)
            for trajectory, advantage in zip(episode.trajectories, credits[group], strict=True)
        ]
        for group, episode in enumerate(episodes)
    ]
    lengths = [[len(tokens) for tokens in group] for group in trained]
    weights = algorithm.weigh(lengths)
    samples, idle_at_zero = [], algorithm.idle_at_zero
    for group, episode in enumerate(episodes):
        parts = zip(episode.trajectories, trained[group], credits[group], strict=True)
        for (trajectory, tokens, advantage), weight in zip(parts, weights[group], strict=True):
            if advantage is not None and tokens and not (advantage == 0.0 and idle_at_zero):
                behave = [trajectory.logprobs[i] for i in tokens]
                samples.append(Sample(trajectory.tokens, tokens, behave, advantage, group, weight))
    excluded = sum(advantage is None for group in credits for advantage in group)
    n_samples = sum(map(len, lengths))
    stats = _stats(episodes) | _staleness(episodes, credits, trained, version)
    stats["train/samples"] = float(n_samples)
    stats["train/excluded_samples"] = float(excluded)
    stats["train/idle_samples"] = float(n_samples - excluded - len(samples))
    return Batch(samples, max(sum(map(sum, lengths)), 1), stats)


def minibatches(batch: Batch, parts: int) -> list[tuple[Sequence[Sample], int]]:
    """Each with its share of the global token count; every parts-th sample."""
    if parts == 1:
        return [(batch.samples, batch.n_tokens)]
    share = max(batch.n_tokens // parts, 1)
    return [(batch.samples[i::parts], share) for i in range(parts)]


def _staleness(
    episodes: Sequence[Episode],
    credits: Sequence[Sequence[float | None]],
    trained: Sequence[Sequence[Sequence[int]]],
    version: int,
) -> dict[str, float]:
    """How old the trained tokens are, and how many were too old."""
    masked = 0
    lags: list[int] = []
    heads: list[int] = []
    tails: list[int] = []
    for episode, advantages, group in zip(episodes, credits, trained, strict=True):
        for trajectory, advantage, tokens in zip(
            episode.trajectories, advantages, group, strict=True
        ):
            masked += 0 if advantage is None else trajectory.sampled - len(tokens)
            of_tokens = [version - trajectory.versions[i] for i in tokens]
            lags.extend(of_tokens)
            heads.extend(of_tokens[:1])
            tails.extend(of_tokens[-1:])
    return {
        "staleness/masked_tokens": float(masked),
        "staleness/max": float(max(lags, default=0)),
        "staleness/mean": _mean(lags),
        "staleness/head": _mean(heads),  # of each trajectory's first trained token
        "staleness/tail": _mean(tails),
    }


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
