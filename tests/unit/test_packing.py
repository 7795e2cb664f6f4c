"""Packed rows: attention sees what it would see in rows of their own, and no more."""

from __future__ import annotations

import random
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from arealite.data.packing import Segment, pack
from arealite.training.attention import packed_attention

HEADS, KV_HEADS, WIDTH = 4, 2, 8
MODULE: Any = SimpleNamespace(is_causal=True, num_key_value_groups=HEADS // KV_HEADS)


def row(seed: int) -> list[Segment]:
    """A beginning of all, prompts with answers behind them, and sequences of their own."""
    rng = random.Random(seed)
    frame = rng.choice([0, 4])
    segments = [Segment(frame)] if frame else []
    behind = (range(frame),) if frame else ()
    for _ in range(rng.randint(1, 4)):
        start, prompt = sum(s.length for s in segments), rng.randint(1, 9)
        before = rng.choice([behind, ()])
        segments.append(Segment(prompt, before))
        context = (*before, range(start, start + prompt))
        segments += [Segment(rng.randint(1, 12), context) for _ in range(rng.choice([0, 0, 1, 3]))]
    return segments


def reference(segments: list[Segment], window: int | None) -> tuple[Tensor, Tensor]:
    """([L, L] bool, who sees whom; [L] positions), one pair at a time."""
    sequences: list[list[int]] = []  # for each token the positions of the row that lead to it
    for segment in segments:
        sequence = [position for part in segment.context for position in part]
        for _ in range(segment.length):
            sequence = [*sequence, len(sequences)]
            sequences.append(sequence)
    seen = torch.zeros(len(sequences), len(sequences), dtype=torch.bool)
    for query, sequence in enumerate(sequences):
        seen[query, sequence[0 if window is None else -window :]] = True
    return seen, torch.tensor([len(sequence) - 1 for sequence in sequences])


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**6), window=st.sampled_from([None, 1, 3, 9]))
def test_attention_equals_one_mask_over_the_row(seed: int, window: int | None) -> None:
    segments = row(seed)
    packing = pack(segments)
    seen, positions = reference(segments, window)
    assert packing.position_ids.tolist() == [positions.tolist()]
    torch.manual_seed(seed)
    inputs = [
        torch.randn(1, heads, len(seen), WIDTH, dtype=torch.float64, requires_grad=True)
        for heads in (HEADS, KV_HEADS, KV_HEADS)
    ]
    found, _ = packed_attention(
        MODULE, *inputs, None, packing=packing, sliding_window=window, scaling=0.3
    )
    query, key, value = inputs[0], *(x.repeat_interleave(2, dim=1) for x in inputs[1:])
    scores = (query @ key.transpose(2, 3) * 0.3).masked_fill(~seen, float("-inf"))
    expected = (scores.softmax(-1) @ value).transpose(1, 2)
    torch.testing.assert_close(found, expected)
    weigh = torch.randn_like(expected)
    mine, theirs = (torch.autograd.grad((x * weigh).sum(), inputs) for x in (found, expected))
    torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize("window", [None, 2])
def test_without_a_packing_it_is_plainly_causal(window: int | None) -> None:
    torch.manual_seed(0)
    inputs = [torch.randn(2, heads, 5, WIDTH) for heads in (HEADS, KV_HEADS, KV_HEADS)]
    found, _ = packed_attention(MODULE, *inputs, None, sliding_window=window)
    packing = pack([Segment(5)])
    for row_number in range(2):
        one = [x[row_number : row_number + 1] for x in inputs]
        expected, _ = packed_attention(MODULE, *one, None, packing, sliding_window=window)
        torch.testing.assert_close(found[row_number : row_number + 1], expected)


def test_blocks_hold_what_is_alike() -> None:
    lengths = (80, 60, 59, 43, 42, 3)  # three quarters of the longest, or sixteen less
    segments = [Segment(n) for n in lengths]
    segments += [Segment(9, (range(16),)), Segment(2, (range(4), range(80, 83)))]
    blocks = pack(segments).blocks
    shapes = [tuple(block.keys.shape) for block in blocks]
    assert shapes == [(2, 80), (2, 59), (1, 42), (1, 3), (2, 9 + 16)]
    assert [block.mask is None for block in blocks] == [True] * 4 + [False]
    assert blocks[-1].keys[1, 9:18].tolist() == [0, 1, 2, 3, 80, 81, 82, 296, 297]
