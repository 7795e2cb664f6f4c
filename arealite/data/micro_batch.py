"""Samples -> micro-batches of tensors.

A micro-batch is padded on the right, so plain causal attention needs no mask: what stands to the
right of a token cannot reach it. The samples of one group begin with the same prompt; where it
saves work, the prompt is computed once for all of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from arealite.data.batch import Sample


@dataclass(frozen=True)
class Prefix:
    """What several rows of a micro-batch begin with, so that it is computed once.

    ids: [g, P] int64, padded with 0 on the right. lengths: [g] int64. of_row: [n] int64, which
    prefix stands before each row of the micro-batch.
    """

    ids: Tensor
    lengths: Tensor
    of_row: Tensor

    def to(self, device: Any) -> Prefix:
        return Prefix(self.ids.to(device), self.lengths.to(device), self.of_row.to(device))


@dataclass(frozen=True)
class MicroBatch:
    """One forward and backward pass.

    input_ids: [n, T] int64, padded with 0 on the right; a sample's last token predicts nothing
    and is left out. source: [tokens] int64, index into the flattened [n * T] of the position that
    predicts each trained token. targets: [tokens] int64. behave, advantages: [tokens] float32.
    sequence: [tokens] int64 below n, ascending: which row a token belongs to; a sample's tokens
    are never parted. weights: [tokens] float32, what each counts in the loss; all 1 in the token
    mean. prox: [tokens] float32, the proximal policy's log-probabilities; None where they are the
    current policy's own. ref: [tokens] float32, the reference model's; None without one. prefix:
    what stands before the rows; None where they are complete.
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
    prefix: Prefix | None = None

    def to(self, device: Any) -> MicroBatch:
        moved: dict[str, Any] = {
            name: value if value is None else value.to(device) for name, value in vars(self).items()
        }
        return MicroBatch(**moved)


class _Row(NamedTuple):
    """A sample, and how many of its first tokens are its group's common prefix."""

    sample: Sample
    shared: int

    @property
    def length(self) -> int:
        return len(self.sample.tokens) - 1 - self.shared

    @property
    def prefix(self) -> Sequence[int]:
        return self.sample.tokens[: self.shared]

    @property
    def key(self) -> int | None:
        """Which prefix it is: the group's, or the empty one."""
        return self.sample.group if self.shared else None


class _Lot:
    """The rows of one micro-batch to be."""

    def __init__(self) -> None:
        self.rows: list[_Row] = []
        self.prefixes: dict[int | None, Sequence[int]] = {}
        self.longest_prefix = self.width = 0

    def add(self, row: _Row, max_positions: int) -> bool:
        """Takes the row if it fits; an empty lot takes any."""
        longest, width = max(self.longest_prefix, row.shared), max(self.width, row.length)
        prefixes = len(self.prefixes) + (row.key not in self.prefixes)
        if self.rows and prefixes * longest + (len(self.rows) + 1) * width > max_positions:
            return False
        self.rows.append(row)
        self.prefixes.setdefault(row.key, row.prefix)
        self.longest_prefix, self.width = longest, width
        return True

    @property
    def positions(self) -> int:
        """What is computed, padding included."""
        return len(self.prefixes) * self.longest_prefix + len(self.rows) * self.width


def micro_batches(
    samples: Sequence[Sample], max_tokens: int, share_prompts: bool = False
) -> Iterator[MicroBatch]:
    """Cuts samples into padded micro-batches of at most max_tokens positions, longest first.

    Sorting by length keeps the padding small; starting with the longest shows early whether the
    memory suffices. With share_prompts, groups stay together behind their common prompt where
    this leaves fewer positions to compute. A single sample above max_tokens travels alone.
    """
    alone = sorted((_Row(sample, 0) for sample in samples), key=lambda row: -row.length)
    lots = _cut(alone, max_tokens)
    if share_prompts:
        together = _cut(_behind_prompts(samples), max_tokens)
        lots = min(lots, together, key=lambda lots: sum(lot.positions for lot in lots))
    for lot in lots:
        yield _collate(lot)


def _behind_prompts(samples: Sequence[Sample]) -> list[_Row]:
    """Rows group by group, the group with the longest row first."""
    groups: dict[int, list[Sample]] = {}
    for index, sample in enumerate(samples):
        # samples of their own get keys that no group has
        groups.setdefault(-1 - index if sample.group is None else sample.group, []).append(sample)
    rows = []
    for group in groups.values():
        shared = _common_prefix(group)
        rows.append(sorted((_Row(s, shared) for s in group), key=lambda row: -row.length))
    return [row for group in sorted(rows, key=lambda g: -g[0].length) for row in group]


def _common_prefix(group: Sequence[Sample]) -> int:
    """Tokens that all samples begin with, short of the one that predicts the first trained token.

    0 where the samples' contexts differ (a workflow may vary the prompt within its group).
    """
    if len(group) == 1:
        return 0
    shared = min(sample.trained[0] for sample in group) - 1
    first = list(group[0].tokens[:shared])
    return shared if all(list(s.tokens[:shared]) == first for s in group) else 0


def _cut(rows: Sequence[_Row], max_positions: int) -> list[_Lot]:
    """Consecutive rows, as many at a time as fit."""
    lots: list[_Lot] = []
    for row in rows:
        if not lots or not lots[-1].add(row, max_positions):
            lots.append(_Lot())
            lots[-1].add(row, max_positions)
    return lots


def _collate(lot: _Lot) -> MicroBatch:
    rows, width = lot.rows, lot.width
    input_ids = torch.zeros(len(rows), width, dtype=torch.int64)
    source: list[int] = []
    targets: list[int] = []
    behave: list[float] = []
    for index, (sample, shared) in enumerate(rows):
        tokens = sample.tokens[shared:-1]
        input_ids[index, : len(tokens)] = torch.tensor(tokens)
        source.extend(index * width + i - 1 - shared for i in sample.trained)
        targets.extend(sample.tokens[i] for i in sample.trained)
        behave.extend(sample.behave)
    counts = torch.tensor([len(row.sample.trained) for row in rows])
    advantages = torch.tensor([row.sample.advantage for row in rows], dtype=torch.float32)
    weights = torch.tensor([row.sample.weight for row in rows], dtype=torch.float32)
    return MicroBatch(
        input_ids=input_ids,
        source=torch.tensor(source),
        targets=torch.tensor(targets),
        behave=torch.tensor(behave, dtype=torch.float32),
        advantages=advantages.repeat_interleave(counts),
        sequence=torch.arange(len(rows)).repeat_interleave(counts),
        weights=weights.repeat_interleave(counts),
        prefix=_prefix(lot) if lot.longest_prefix else None,
    )


def _prefix(lot: _Lot) -> Prefix:
    ids = torch.zeros(len(lot.prefixes), lot.longest_prefix, dtype=torch.int64)
    for index, tokens in enumerate(lot.prefixes.values()):
        ids[index, : len(tokens)] = torch.tensor(tokens)
    order = {key: index for index, key in enumerate(lot.prefixes)}
    return Prefix(
        ids=ids,
        lengths=torch.tensor([len(tokens) for tokens in lot.prefixes.values()]),
        of_row=torch.tensor([order[row.key] for row in lot.rows]),
    )
