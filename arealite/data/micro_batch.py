"""Samples -> micro-batches of tensors: packed rows without padding, or padded rows.

Packed, the samples of one group stand behind their common prompt, which is computed once. Padded
on the right, plain causal attention needs no mask: what stands to the right of a token cannot reach
it; that is for models whose attention cannot be told where a sequence begins.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from arealite.data.batch import Sample
from arealite.data.bins import fill_bins
from arealite.data.packing import Packing, Segment, pack


@dataclass(frozen=True)
class MicroBatch:
    """One forward and backward pass.

    input_ids: [n, T] int64: n padded rows, 0 on the right, or one packed row; what stands behind a
    sample's last trained token predicts nothing and is left out. source: [tokens] int64, index
    into the flattened [n * T] of the position that predicts each trained token. targets: [tokens]
    int64. behave, advantages: [tokens] float32. sequence: [tokens] int64, ascending from 0: which
    sample a token belongs to; a sample's tokens are never parted. weights: [tokens] float32, what
    each counts in the loss; all 1 in the token mean. prox: [tokens] float32, the proximal policy's
    log-probabilities; None where they are the current policy's own. ref: [tokens] float32, the
    reference model's; None without one. packing: how a packed row is read; None for padded rows.
    """

    input_ids: Tensor
    source: Tensor
    targets: Tensor
    behave: Tensor
    advantages: Tensor
    sequence: Tensor
    weights: Tensor
    prox: Tensor | None = None
    ref: Tensor | None = None
    packing: Packing | None = None

    def to(self, device: Any) -> MicroBatch:
        moved: dict[str, Any] = {
            name: value if value is None else value.to(device) for name, value in vars(self).items()
        }
        return MicroBatch(**moved)


class _Bundle(NamedTuple):
    """Samples behind the first `shared` tokens of each of them, which are the same."""

    samples: Sequence[Sample]
    shared: int

    @property
    def size(self) -> int:
        return self.shared + sum(_length(sample) - self.shared for sample in self.samples)


def micro_batches(
    samples: Sequence[Sample], max_tokens: int, packed: bool = False, share_prompts: bool = False
) -> Iterator[MicroBatch]:
    """Cuts samples into micro-batches of at most max_tokens positions, the fullest first.

    Packed: bins filled evenly, in one row each; with share_prompts a group's common prompt stands
    once before the answers that share its bin. Padded: sorted by length, longest first, which
    keeps the padding small. Either way the first micro-batch shows whether the memory suffices,
    and a single sample above max_tokens travels alone.
    """
    if not packed:
        for lot in _cut(sorted(samples, key=_length, reverse=True), max_tokens):
            yield _pad(lot)
        return
    bundles = _bundles(samples, max_tokens) if share_prompts else [_Bundle([s], 0) for s in samples]
    for members in fill_bins([bundle.size for bundle in bundles], max_tokens):
        yield _pack([bundles[i] for i in members])


def _length(sample: Sample) -> int:
    """Positions to compute: up to the one that predicts the last trained token."""
    return sample.trained[-1]


# --- padded


def _cut(samples: Sequence[Sample], max_positions: int) -> list[list[Sample]]:
    """Consecutive samples, longest first, as many at a time as fit when padded."""
    lots: list[list[Sample]] = []
    for sample in samples:
        if lots and (len(lots[-1]) + 1) * _length(lots[-1][0]) <= max_positions:
            lots[-1].append(sample)
        else:
            lots.append([sample])
    return lots


def _pad(samples: Sequence[Sample]) -> MicroBatch:
    width = _length(samples[0])
    input_ids = torch.zeros(len(samples), width, dtype=torch.int64)
    source: list[int] = []
    for index, sample in enumerate(samples):
        input_ids[index, : _length(sample)] = torch.tensor(sample.tokens[: _length(sample)])
        source.extend(index * width + i - 1 for i in sample.trained)
    return _micro_batch(input_ids, source, samples)


# --- packed


def _bundles(samples: Sequence[Sample], max_tokens: int) -> list[_Bundle]:
    """The samples behind their groups' prompts; a group above max_tokens in several bundles."""
    groups: dict[int, list[Sample]] = {}
    for index, sample in enumerate(samples):
        # samples of their own get keys that no group has
        groups.setdefault(-1 - index if sample.group is None else sample.group, []).append(sample)
    bundles = []
    for group in groups.values():
        shared = _common_prefix(group)
        if shared == 0:
            bundles += [_Bundle([sample], 0) for sample in group]
            continue
        rests = [_length(sample) - shared for sample in group]
        for members in fill_bins(rests, max_tokens - shared):
            bundles.append(_Bundle([group[i] for i in members], shared))
    return bundles


def _common_prefix(group: Sequence[Sample]) -> int:
    """Tokens that all samples begin with, short of the first trained one.

    0 where the samples' contexts differ (a workflow may vary the prompt within its group).
    """
    if len(group) == 1:
        return 0
    shared = min(sample.trained[0] for sample in group)
    first = list(group[0].tokens[:shared])
    return shared if all(list(s.tokens[:shared]) == first for s in group) else 0


def _pack(bundles: Sequence[_Bundle]) -> MicroBatch:
    ids: list[int] = []
    source: list[int] = []
    segments: list[Segment] = []
    samples: list[Sample] = []
    for group, shared in bundles:
        context = (len(ids), shared)
        if shared:
            ids.extend(group[0].tokens[:shared])
            segments.append(Segment(shared))
        for sample in group:
            # position i of the sample, from `shared` on, stands at own + i; before, at context + i
            own, length = len(ids) - shared, _length(sample)
            ids.extend(sample.tokens[shared:length])
            if length > shared:
                segments.append(Segment(length - shared, context))
            source.extend((own if i > shared else context[0]) + i - 1 for i in sample.trained)
            samples.append(sample)
    return _micro_batch(torch.tensor([ids]), source, samples, pack(segments))


def _micro_batch(
    input_ids: Tensor,
    source: Sequence[int],
    samples: Sequence[Sample],
    packing: Packing | None = None,
) -> MicroBatch:
    counts = torch.tensor([len(sample.trained) for sample in samples])
    advantages = torch.tensor([sample.advantage for sample in samples], dtype=torch.float32)
    weights = torch.tensor([sample.weight for sample in samples], dtype=torch.float32)
    behave = [logprob for sample in samples for logprob in sample.behave]
    return MicroBatch(
        input_ids=input_ids,
        source=torch.tensor(source),
        targets=torch.tensor([sample.tokens[i] for sample in samples for i in sample.trained]),
        behave=torch.tensor(behave, dtype=torch.float32),
        advantages=advantages.repeat_interleave(counts),
        sequence=torch.arange(len(samples)).repeat_interleave(counts),
        weights=weights.repeat_interleave(counts),
        packing=packing,
    )
