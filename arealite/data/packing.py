"""Sequences side by side in one row without padding, and what attention has to know of them.

A packed row is made of segments. A segment is a whole sequence, or what follows a context that
other segments of the row hold: the prompt of a group stands in the row once, and each answer is a
segment behind it. Everything but attention treats all positions alike. Attention takes the
segments in blocks of similar length: one batched product each, padded inside itself alone (no
[L, L] mask over the whole row).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, NamedTuple

import torch
from torch import Tensor


class Segment(NamedTuple):
    """length: its positions in the row, at least 1. context: the positions of the row that stand
    before it, in their order; none is a sequence of its own."""

    length: int
    context: tuple[range, ...] = ()

    @property
    def start(self) -> int:
        """The place of its first token in its own sequence."""
        return sum(map(len, self.context))


@dataclass(frozen=True)
class Block:
    """Segments whose attention is one batched product; s of them.

    queries: [s, Q] int64 into the packed row, padded on the right. keys: [s, K] int64: the
    context, padded on the left to K - Q, then what queries holds. Query q stands at K - Q + q.
    What pads is any position. mask: [s, 1, Q, K] bool, True where a query sees a
    key; None where it is plainly causal.
    """

    queries: Tensor
    keys: Tensor
    mask: Tensor | None

    def to(self, device: Any) -> Block:
        mask = None if self.mask is None else self.mask.to(device)
        return Block(self.queries.to(device), self.keys.to(device), mask)


@dataclass(frozen=True)
class Packing:
    """How a packed row [1, L] is read.

    position_ids: [1, L] int64, each token's place in its own sequence. blocks: every segment in
    one of them. order: [L] int64, where each token's output stands among all blocks' outputs,
    their padding included.
    """

    position_ids: Tensor
    blocks: tuple[Block, ...]
    order: Tensor

    def to(self, device: Any) -> Packing:
        blocks = tuple(block.to(device) for block in self.blocks)
        return Packing(self.position_ids.to(device), blocks, self.order.to(device))


def pack(segments: Sequence[Segment]) -> Packing:
    """The layout of a row that consists of these segments in this order."""
    lengths = [segment.length for segment in segments]
    starts = [0, *accumulate(lengths)]
    position_ids = torch.cat([torch.arange(s.length) + s.start for s in segments])
    order = torch.empty(starts[-1], dtype=torch.int64)
    blocks, done = [], 0
    for members in _alike(segments):
        start = torch.tensor([starts[i] for i in members])
        length = torch.tensor([lengths[i] for i in members])
        block = _block(start, length, [segments[i] for i in members])
        here = done + torch.arange(block.queries.numel()).view_as(block.queries)
        real = torch.arange(block.queries.shape[1]) < length[:, None]
        order[block.queries[real]] = here[real]
        done += block.queries.numel()
        blocks.append(block)
    return Packing(position_ids[None], tuple(blocks), order)


ALIKE = 0.75
"""A block's shortest segment, as a share of its longest; 16 positions less is always alike."""


def _alike(segments: Sequence[Segment]) -> list[list[int]]:
    """Indices in groups within which no segment is much shorter than the longest.

    More blocks cost more calls, fewer more padding. Segments with a context need a mask, so they
    stay among themselves.
    """
    order = sorted(range(len(segments)), key=lambda i: (segments[i].start > 0, -segments[i].length))
    groups: list[list[int]] = []
    for index in order:
        if groups:
            first = segments[groups[-1][0]]
            same_kind = (first.start > 0) == (segments[index].start > 0)
            if same_kind and segments[index].length >= min(ALIKE * first.length, first.length - 16):
                groups[-1].append(index)
                continue
        groups.append([index])
    return groups


def _block(start: Tensor, length: Tensor, segments: Sequence[Segment]) -> Block:
    """start, length: [s], of these segments in the row."""
    width, before = int(length.max()), max(segment.start for segment in segments)
    column = torch.arange(width)
    queries = start[:, None] + column * (column < length[:, None])
    if before == 0:
        return Block(queries, queries, None)
    contexts = torch.zeros(len(segments), before, dtype=torch.int64)
    for row, segment in enumerate(segments):
        flat = [position for positions in segment.context for position in positions]
        contexts[row, before - len(flat) :] = torch.tensor(flat)
    keys = torch.cat([contexts, queries], dim=1)
    first = torch.tensor([before - segment.start for segment in segments])
    seen = torch.arange(before + width) >= first[:, None]
    causal = torch.ones(width, before + width, dtype=torch.bool).tril(before)
    return Block(queries, keys, (seen[:, None] & causal)[:, None])
