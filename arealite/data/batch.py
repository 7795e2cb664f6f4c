"""Episodes -> samples -> micro-batches of tensors.

Only tokens that are trained travel as targets. A micro-batch is padded on the right, so plain
causal attention needs no mask: what stands to the right of a token cannot reach it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from arealite.types import Episode, Trajectory


@dataclass(frozen=True, slots=True)
class Sample:
    """One trajectory on its way to the loss.

    trained: positions of the tokens in the loss (sampled, and not too old). behave: the
    behaviour policy's log-probabilities of these tokens. advantage: the same for each of them.
    """

    tokens: Sequence[int]
    trained: Sequence[int]
    behave: Sequence[float]
    advantage: float


@dataclass(frozen=True)
class Batch:
    """What one training step consumes.

    samples: those that can move the weights. n_tokens: valid tokens of *all* samples, the global
    normaliser. stats: what is known of the batch before the step, flat metric keys.
    """

    samples: list[Sample]
    n_tokens: int
    stats: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class MicroBatch:
    """One forward and backward pass.

    input_ids: [n, T] int64, padded with 0 on the right. source: [tokens] int64, index into the
    flattened [n * T] of the position that predicts each trained token. targets: [tokens] int64.
    behave, advantages: [tokens] float32. prox: [tokens] float32, the proximal policy's
    log-probabilities; None where they are the current policy's own.
    """

    input_ids: Tensor
    source: Tensor
    targets: Tensor
    behave: Tensor
    advantages: Tensor
    prox: Tensor | None = None

    def to(self, device: Any) -> MicroBatch:
        return MicroBatch(
            *(t.to(device, non_blocking=True) if t is not None else None for t in (
                self.input_ids, self.source, self.targets, self.behave, self.advantages, self.prox
            ))  # type: ignore[arg-type]
        )  # fmt: skip


def to_batch(
    episodes: Sequence[Episode],
    credit: Callable[[Episode], list[float]],
    version: int,
    max_lag: int,
) -> Batch:
    """The batch that turns policy `version` into the next one.

    A token older than max_lag versions is left out of the loss and of its normaliser. A sample
    whose advantage is exactly 0 has exactly zero gradient: it counts in the normaliser, and its
    forward and backward pass is saved.
    """
    samples: list[Sample] = []
    n_tokens = masked = 0
    lags: list[int] = []
    for episode in episodes:
        for trajectory, advantage in zip(episode.trajectories, credit(episode), strict=True):
            trained = _fresh(trajectory, version - max_lag)
            masked += trajectory.sampled - len(trained)
            n_tokens += len(trained)
            lags.extend(version - trajectory.versions[i] for i in trained)
            if advantage != 0.0 and trained:
                behave = [trajectory.logprobs[i] for i in trained]
                samples.append(Sample(trajectory.tokens, trained, behave, advantage))
    stats = _stats(episodes, lags) | {"staleness/masked_tokens": float(masked)}
    n_samples = sum(len(e.trajectories) for e in episodes)
    stats["train/samples"] = float(n_samples)
    stats["train/idle_samples"] = float(n_samples - len(samples))
    return Batch(samples, max(n_tokens, 1), stats)


def micro_batches(samples: Sequence[Sample], max_tokens: int) -> Iterator[MicroBatch]:
    """Cuts samples into padded micro-batches of at most max_tokens, longest first.

    Sorting by length keeps the padding small; starting with the longest shows early whether the
    memory suffices.
    """
    ordered = sorted(samples, key=lambda s: len(s.tokens), reverse=True)
    start = 0
    while start < len(ordered):
        width = len(ordered[start].tokens)
        count = max(1, max_tokens // width)
        yield _collate(ordered[start : start + count], width)
        start += count


def _fresh(trajectory: Trajectory, oldest: int) -> list[int]:
    return [
        i
        for i, (mask, version) in enumerate(
            zip(trajectory.loss_mask, trajectory.versions, strict=True)
        )
        if mask and version >= oldest
    ]


def _collate(samples: Sequence[Sample], width: int) -> MicroBatch:
    input_ids = torch.zeros(len(samples), width, dtype=torch.int64)
    source: list[int] = []
    targets: list[int] = []
    behave: list[float] = []
    for row, sample in enumerate(samples):
        input_ids[row, : len(sample.tokens)] = torch.tensor(sample.tokens)
        source.extend(row * width + i - 1 for i in sample.trained)
        targets.extend(sample.tokens[i] for i in sample.trained)
        behave.extend(sample.behave)
    counts = torch.tensor([len(s.trained) for s in samples])
    advantages = torch.tensor([s.advantage for s in samples], dtype=torch.float32)
    return MicroBatch(
        input_ids=input_ids,
        source=torch.tensor(source),
        targets=torch.tensor(targets),
        behave=torch.tensor(behave, dtype=torch.float32),
        advantages=advantages.repeat_interleave(counts),
    )


def _stats(episodes: Sequence[Episode], lags: Sequence[int]) -> dict[str, float]:
    trajectories = [t for e in episodes for t in e.trajectories]
    n = max(len(trajectories), 1)
    sampled = [t.sampled for t in trajectories]
    names = sorted({name for t in trajectories for name in t.components})
    mean = {
        "reward/mean": sum(t.reward for t in trajectories) / n,
        "rollout/completion_length": sum(sampled) / n,
        "rollout/truncated": sum(t.truncated for t in trajectories) / n,
        "rollout/tokens": float(sum(sampled)),
        "staleness/mean": sum(lags) / max(len(lags), 1),
        "staleness/max": float(max(lags, default=0)),
        "train/tokens": float(sum(len(t.tokens) for t in trajectories)),
    }
    for name in names:
        mean[f"reward/{name}"] = sum(t.components.get(name, 0.0) for t in trajectories) / n
    return mean
