"""The buffers of a decode step, as views bound once per number of rows."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from arealite.engines.embedded.spec import ModelSpec


@dataclass(frozen=True)
class Workspace:
    """Buffers of one decode step over n rows: views of the largest ones, bound once per n."""

    x: Tensor  # [n, hidden], the residual stream
    qkv: Tensor  # [n, (heads + 2 kv_heads) * head_dim]
    qkv_heads: Tensor  # the same as [n, heads + 2 kv_heads, head_dim]
    rotated: Tensor  # like qkv_heads, after rotation
    low: Tensor  # rotated[..., : head_dim / 2] of queries and keys
    high: Tensor  # the other half
    qkv_low: Tensor  # the same halves before rotation
    qkv_high: Tensor
    cos: Tensor  # like qkv_heads; 1 for values, times the softmax scale for queries
    cos_parts: tuple[Tensor, Tensor]  # queries' and keys' part of cos, [n, heads, 2, half]
    sin: Tensor  # [n, heads + kv_heads, half]
    sin_parts: tuple[Tensor, Tensor]
    rows: Tensor  # [n, 2 kv_heads], row of the flat cache of position 0 of each head
    attended: Tensor  # [n * kv_heads, group, head_dim]
    attended_flat: Tensor  # the same as [n, heads * head_dim]
    gate_up: Tensor  # [n, 2 intermediate]
    logits: Tensor  # [n, vocab]


class Workspaces:
    """One Workspace per number of rows; all are views of the largest, made on first use.

    slots, context: the shape of the cache that `rows` points into. like: gives device and dtype.
    """

    def __init__(self, spec: ModelSpec, slots: int, context: int, like: Tensor) -> None:
        self.spec, self.slots, self.context = spec, slots, context
        sizes = {
            "x": (spec.hidden,),
            "qkv": (spec.qkv_heads * spec.head_dim,),
            "rotated": (spec.qkv_heads, spec.head_dim),
            "cos": (spec.qkv_heads, spec.head_dim),
            "sin": (spec.rotated, spec.head_dim // 2),
            "attended": (spec.heads * spec.head_dim,),
            "gate_up": (2 * spec.intermediate,),
            "logits": (spec.vocab,),
        }
        # Ones, not empty: the values' part of cos is never written, it must leave them alone.
        self._whole = {name: like.new_ones((slots, *size)) for name, size in sizes.items()}
        which = torch.arange(2 * spec.kv_heads, device=like.device)
        of_slot = torch.arange(slots, device=like.device)[:, None] * spec.kv_heads
        part, head = which // spec.kv_heads, which % spec.kv_heads
        self._rows = (part * slots * spec.kv_heads + of_slot + head) * context
        self._bound: dict[int, Workspace] = {}

    def __call__(self, n: int) -> Workspace:
        """The buffers for n rows."""
        if n not in self._bound:
            self._bound[n] = self._bind(n)
        return self._bound[n]

    def _bind(self, n: int) -> Workspace:
        spec, half = self.spec, self.spec.head_dim // 2
        part = {name: whole[:n] for name, whole in self._whole.items()}
        heads = part["qkv"].view(n, spec.qkv_heads, spec.head_dim)
        rotated, cos, sin = part["rotated"], part["cos"], part["sin"]
        halves = cos.view(n, spec.qkv_heads, 2, half)
        return Workspace(
            x=part["x"],
            qkv=part["qkv"],
            qkv_heads=heads,
            rotated=rotated,
            low=rotated[:, : spec.rotated, :half],
            high=rotated[:, : spec.rotated, half:],
            qkv_low=heads[:, : spec.rotated, :half],
            qkv_high=heads[:, : spec.rotated, half:],
            cos=cos,
            cos_parts=(halves[:, : spec.heads], halves[:, spec.heads : spec.rotated]),
            sin=sin,
            sin_parts=(sin[:, : spec.heads], sin[:, spec.heads :]),
            rows=self._rows[:n],
            attended=part["attended"].view(n * spec.kv_heads, -1, spec.head_dim),
            attended_flat=part["attended"],
            gate_up=part["gate_up"],
            logits=part["logits"],
        )
