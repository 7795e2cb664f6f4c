"""Samples -> micro-batches of tensors: packed rows without padding, or padded rows.

Packed, what all samples begin with (a system prompt) and what the samples of one group begin with
(its prompt) stand in a row once, before all that follows them. Padded on the right, plain causal
attention needs no mask: what stands to the right of a token cannot reach it; that is for models
whose attention cannot be told where a sequence begins.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
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
    values, returns: [tokens] float32, of a critic; None without one. samples: what it is made of,
    in the order of `sequence`.
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
    values: Tensor | None = None
    returns: Tensor | None = None
    samples: tuple[Sample, ...] = ()

    def to(self, device: Any) -> MicroBatch:
        moved: dict[str, Any] = {
            name: value.to(device) if isinstance(value, Tensor | Packing) else value
            for name, value in vars(self).items()
        }
        return MicroBatch(**moved)

    def by_sample(self, tensor: Tensor) -> list[list[float]]:
        """One number for each trained token: those of each sample, in the order of `samples`."""
        numbers = iter(tensor.tolist())
        return [list(islice(numbers, len(sample.trained))) for sample in self.samples]


class _Bundle(NamedTuple):
    """Samples behind the first `shared` tokens of each of them, which are the same."""

    samples: Sequence[Sample]
    shared: int

    def size(self, frame: int) -> int:
        """Positions in a row that begins with the first `frame` of those tokens."""
        return self.shared - frame + sum(_length(sample) - self.shared for sample in self.samples)


def micro_batches(
    samples: Sequence[Sample], max_tokens: int, packed: bool = False, share_prompts: bool = False
) -> Iterator[MicroBatch]:
    """Cuts samples into micro-batches of at most max_tokens positions, the fullest first.

    Packed: bins filled evenly, in one row each; with share_prompts what all samples, or those of
    one group, begin with stands there once. Padded: sorted by length, longest first, which
    keeps the padding small. Either way the first micro-batch shows whether the memory suffices,
    and a single sample above max_tokens travels alone.
    """
    if not packed:
        for lot in _cut(sorted(samples, key=_length, reverse=True), max_tokens):
            yield _pad(lot)
        return
    frame = _frame(samples) if share_prompts else 0
    bundles = _bundles(samples, max_tokens, frame, share_prompts)
    sizes = [bundle.size(frame) for bundle in bundles]
    for members in fill_bins(sizes, max_tokens - frame):
        yield _pack([bundles[i] for i in members], frame)


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


WORTH = 0.05
"""A common beginning of all samples is shared where this leaves out such a share of positions: what
stands behind a context costs a mask in attention."""


def _frame(samples: Sequence[Sample]) -> int:
    """Tokens that all samples begin with, where it pays to compute them once; else 0."""
    if len(samples) < 2:
        return 0
    shared = _common_prefix(samples)
    saved = shared * (len(samples) - 1)
    return shared if saved >= WORTH * sum(map(_length, samples)) else 0


def _bundles(
    samples: Sequence[Sample], max_tokens: int, frame: int, share_prompts: bool
) -> list[_Bundle]:
    """The samples behind their groups' prompts; a group above max_tokens in several bundles."""
    if not share_prompts:
        return [_Bundle([sample], 0) for sample in samples]
    groups: dict[int, list[Sample]] = {}
    for index, sample in enumerate(samples):
        # samples of their own get keys that no group has
        groups.setdefault(-1 - index if sample.group is None else sample.group, []).append(sample)
    bundles = []
    for group in groups.values():
        shared = _common_prefix(group) if len(group) > 1 else frame
        rests = [_length(sample) - shared for sample in group]
        for members in fill_bins(rests, max_tokens - shared):
            bundles.append(_Bundle([group[i] for i in members], shared))
    return bundles


def _common_prefix(samples: Sequence[Sample]) -> int:
    """Tokens that all samples begin with, short of the first trained one."""
    shortest = min(sample.trained[0] for sample in samples)
    beginnings = [list(sample.tokens[:shortest]) for sample in samples]
    first, last = min(beginnings), max(beginnings)  # what lies between begins as these two do
    return next((i for i in range(shortest) if first[i] != last[i]), shortest)


def _pack(bundles: Sequence[_Bundle], frame: int) -> MicroBatch:
    ids: list[int] = list(bundles[0].samples[0].tokens[:frame])
    source: list[int] = []
    segments: list[Segment] = [Segment(frame)] if frame else []
    samples: list[Sample] = []
    for group, shared in bundles:
        prompt = range(len(ids), len(ids) + shared - frame)
        context = tuple(part for part in (range(frame), prompt) if part)
        if prompt:
            ids.extend(group[0].tokens[frame:shared])
            segments.append(Segment(len(prompt), context[:-1]))
        for sample in group:
            own = len(ids) - shared
            ids.extend(sample.tokens[shared : _length(sample)])
            if _length(sample) > shared:
                segments.append(Segment(_length(sample) - shared, context))
            # where the token before each trained one stands
            place = [*range(frame), *prompt] if sample.trained[0] <= shared else []
            source.extend(own + i - 1 if i > shared else place[i - 1] for i in sample.trained)
            samples.append(sample)
    return _micro_batch(torch.tensor([ids]), source, samples, pack(segments))


def _micro_batch(
    input_ids: Tensor,
    source: Sequence[int],
    samples: Sequence[Sample],
    packing: Packing | None = None,
) -> MicroBatch:
    counts = torch.tensor([len(sample.trained) for sample in samples])
    weights = torch.tensor([sample.weight for sample in samples], dtype=torch.float32)
    is_judged, is_known = (
        all(of) for of in ((s.values for s in samples), (s.prox for s in samples))
    )
    return MicroBatch(
        input_ids=input_ids,
        source=torch.tensor(source),
        targets=torch.tensor([sample.tokens[i] for sample in samples for i in sample.trained]),
        behave=_column(sample.behave for sample in samples),
        advantages=_column(sample.advantages for sample in samples),
        sequence=torch.arange(len(samples)).repeat_interleave(counts),
        weights=weights.repeat_interleave(counts),
        prox=_column(sample.prox for sample in samples) if is_known else None,
        packing=packing,
        values=_column(sample.values for sample in samples) if is_judged else None,
        returns=_column(sample.returns for sample in samples) if is_judged else None,
        samples=tuple(samples),
    )


def _column(of_samples: Iterable[Sequence[float]]) -> Tensor:
    """[tokens] float32."""
    return torch.tensor([x for of_tokens in of_samples for x in of_tokens], dtype=torch.float32)
