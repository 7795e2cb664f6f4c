"""Attention of a decode step: one query per sequence over what its slot has cached.

The operands that are the same in all layers are bound once per step.
"""

from __future__ import annotations

from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from arealite.engines.embedded.spec import ModelSpec


class Attend(Protocol):
    """Either way to compute it."""

    def __call__(self, cache: Tensor, query: Tensor, out: Tensor) -> None:
        """cache [2, slots, kv_heads, context, head_dim], query [n, heads, head_dim].

        Writes out [n * kv_heads, heads / kv_heads, head_dim]. The query is scaled already.
        """
        ...


class BatchedAttention:
    """Decode attention by batched products: on CPU faster than the fused kernel for one query."""

    def __init__(
        self, spec: ModelSpec, mask: Tensor, scratch: Tensor, rows: int, length: int
    ) -> None:
        self.rows, self.length, self.spec = rows, length, spec
        self.mask = mask[:rows, None, None, :length]
        shape = (rows * spec.kv_heads, spec.heads // spec.kv_heads, length)
        count = shape[0] * shape[1] * shape[2]
        self.scores = scratch[:count].view(shape)
        self.by_slot = self.scores.view(rows, spec.kv_heads, shape[1], length)
        self.weights = scratch[count : 2 * count].view(shape)

    def __call__(self, cache: Tensor, query: Tensor, out: Tensor) -> None:
        """cache [2, slots, kv_heads, context, head_dim], query [n, heads, head_dim], into out."""
        spec = self.spec
        heads = self.rows * spec.kv_heads
        keys, values = (part.flatten(0, 1)[:heads, : self.length] for part in cache)
        grouped = query.reshape(heads, -1, spec.head_dim)
        torch.bmm(grouped, keys.transpose(1, 2), out=self.scores)
        self.by_slot.add_(self.mask)
        torch.softmax(self.scores, -1, out=self.weights)
        torch.bmm(self.weights, values, out=out)


class FusedAttention:
    """Decode attention by the device's fused kernel."""

    def __init__(self, spec: ModelSpec, mask: Tensor, rows: int, length: int) -> None:
        self.rows, self.length, self.spec = rows, length, spec
        group = self.spec.heads // self.spec.kv_heads
        self.mask = mask[:rows, None, None, :length].expand(-1, self.spec.kv_heads, group, -1)

    def __call__(self, cache: Tensor, query: Tensor, out: Tensor) -> None:
        keys, values = (part[: self.rows, :, : self.length] for part in cache)
        grouped = torch.unflatten(query, 1, (self.spec.kv_heads, -1))
        attended = F.scaled_dot_product_attention(
            grouped, keys, values, attn_mask=self.mask, scale=1.0
        )
        out.copy_(attended.flatten(0, 1))
