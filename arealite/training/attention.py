"""Attention over packed rows, for any transformers model that leaves its attention to a function.

Registered under a name of its own and given to the model, it reads the packing that the forward
pass is called with; called without one it is transformers' sdpa, plainly causal.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from arealite.data.packing import Block, Packing

NAME = "arealite_packed"


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    packing: Packing | None = None,
    sliding_window: int | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """([1, L, heads, head_dim], None) of query [1, heads, L, head_dim] over key and value.

    transformers' interface; no mask comes in, since none is registered under this name.
    """
    if packing is None:
        if attention_mask is None and sliding_window is not None:
            attention_mask = _windowed(None, query.shape[2], query.shape[2], sliding_window, query)
        return sdpa_attention_forward(module, query, key, value, attention_mask, **options)  # type: ignore[no-any-return]
    rows = [part[0].transpose(0, 1) for part in (query, key, value)]  # [L, heads, head_dim]
    outputs = []
    for block in packing.blocks:
        indices = (block.queries, block.keys, block.keys)
        q, k, v = (_gather(part, index) for part, index in zip(rows, indices, strict=True))
        mask = _mask(block, sliding_window, query)
        output, _ = sdpa_attention_forward(module, q, k, v, mask, **options)
        outputs.append(output.flatten(0, 1))
    return torch.cat(outputs).index_select(0, packing.order)[None], None


def _gather(row: Tensor, index: Tensor) -> Tensor:
    """[s, heads, T, head_dim] of row [L, heads, head_dim] and index [s, T]."""
    picked = row.index_select(0, index.flatten())
    return picked.view(*index.shape, *picked.shape[1:]).transpose(1, 2)


def _mask(block: Block, window: int | None, like: Tensor) -> Tensor | None:
    if window is None:
        return block.mask
    return _windowed(block.mask, block.queries.shape[1], block.keys.shape[1], window, like)


def _windowed(
    mask: Tensor | None, queries: int, keys: int, window: int, like: Tensor
) -> Tensor | None:
    """The mask where a query sees no further back than `window` keys, itself included."""
    if keys <= window:
        return mask
    ones = torch.ones(queries, keys, dtype=torch.bool, device=like.device)
    band = ones.tril(keys - queries) & ones.triu(keys - queries - window + 1)
    return band[None, None] if mask is None else mask & band


AttentionInterface.register(NAME, packed_attention)
