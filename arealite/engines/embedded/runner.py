"""The model runner: weights, the preallocated KV cache, and the forward passes over it.

One slot of the cache belongs to one sequence. A decode step works on slots 0..n-1, which the
scheduler keeps compact, so every operand is a plain view. Prefill only fills the cache: the last
prompt token is always fed by a decode step, which therefore is the one place that samples.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from arealite.engines.embedded.attention import Attend, BatchedAttention, FusedAttention
from arealite.engines.embedded.weights import LayerWeights, Weights
from arealite.engines.embedded.workspace import Workspace, Workspaces

_HIDDEN = float("-inf")  # the additive mask of a key that may not be seen

SCORE_ROWS = 256
"""Rows of logits held at once while scoring, so that a large vocabulary fits."""


class Runner:
    """Runs one model on one device. Not thread-safe: one scheduler drives it between awaits.

    slots: how many sequences fit. context: the longest sequence, in tokens. deterministic: every
    decode step has the same shapes, so that a sequence's arithmetic cannot depend on its company.
    """

    def __init__(
        self, weights: Weights, slots: int, context: int, deterministic: bool = False
    ) -> None:
        self.weights, self.spec = weights, weights.spec
        self.slots, self.context, self.deterministic = slots, context, deterministic
        spec, like = self.spec, weights.embedding
        self.device, self.dtype = like.device, like.dtype
        # zeros, not empty: a masked key must still be finite. Untouched pages cost nothing on CPU.
        self.cache = torch.zeros(
            (spec.layers, 2, slots, spec.kv_heads, context, spec.head_dim),
            device=self.device,
            dtype=self.dtype,
        )
        self._flat = [layer.view(-1, spec.head_dim) for layer in self.cache]
        self.mask = torch.full((slots, context), _HIDDEN, device=self.device, dtype=self.dtype)
        self._mask_rows = torch.arange(slots, device=self.device) * context
        cos, sin = spec.rope_table(context)
        scale = spec.head_dim**-0.5
        self._rope = torch.stack((cos * scale, cos, sin * scale, sin), dim=1).to(like)
        self._workspace = Workspaces(spec, slots, context, like)
        self._scratch = self.mask.new_empty(0)
        self._on_cpu = self.device.type == "cpu"

    @torch.inference_mode()
    def decode(self, tokens: Tensor, positions: Tensor, n: int, longest: int) -> Tensor:
        """One token for each of slots 0..n-1: stores its key and value, returns its logits.

        tokens, positions: int64 [slots], of which the first n count. longest: 1 + the highest
        position. Returns float32 [n, vocab], valid until the next call.
        """
        rows = self.slots if self.deterministic else n
        length = self.context if self.deterministic else longest
        w = self._workspace(rows)
        tokens, positions = tokens[:rows], positions[:rows]
        self.mask.view(-1).index_fill_(0, self._mask_rows[:rows] + positions, 0.0)
        torch.index_select(self.weights.embedding, 0, tokens, out=w.x)
        angles = self._rope.index_select(0, positions)[:, :, None, None, :]
        for target, source in zip(w.cos_parts, (0, 1), strict=True):
            target.copy_(angles[:, source])
        for target, source in zip(w.sin_parts, (2, 3), strict=True):
            target.copy_(angles[:, source, 0])
        at = (w.rows + positions[:, None]).view(-1)
        attend = self._attention(rows, length)
        for index, layer in enumerate(self.weights.layers):
            self._decode_layer(layer, index, w, at, attend)
        hidden = self._norm(w.x, self.weights.norm)
        return torch.mm(hidden, self.weights.head, out=w.logits)[:n].float()

    def _decode_layer(
        self, layer: LayerWeights, index: int, w: Workspace, at: Tensor, attend: Attend
    ) -> None:
        heads, spec = self.spec.heads, self.spec
        hidden = self._norm(w.x, layer.attention_norm)
        if layer.qkv_bias is None:
            torch.mm(hidden, layer.qkv, out=w.qkv)
        else:
            torch.addmm(layer.qkv_bias, hidden, layer.qkv, out=w.qkv)
        if layer.qk_norm is not None:
            self._norm_heads(w.qkv_heads[:, : spec.rotated], layer.qk_norm)
        torch.mul(w.qkv_heads, w.cos, out=w.rotated)
        w.low.addcmul_(w.qkv_high, w.sin, value=-1)
        w.high.addcmul_(w.qkv_low, w.sin)
        self._flat[index].index_copy_(0, at, w.rotated[:, heads:].reshape(-1, spec.head_dim))
        attend(self.cache[index], w.rotated[:, :heads], w.attended)
        w.x.addmm_(w.attended_flat, layer.out)
        hidden = self._norm(w.x, layer.mlp_norm)
        torch.mm(hidden, layer.gate_up, out=w.gate_up)
        gate, up = w.gate_up.chunk(2, dim=-1)
        w.x.addmm_(F.silu(gate).mul_(up), layer.down)

    def _attention(self, rows: int, length: int) -> Attend:
        """The attention of one step: every operand that is the same in all layers, bound once."""
        spec = self.spec
        if not self._on_cpu:
            return FusedAttention(spec, self.mask, rows, length)
        needed = 2 * rows * spec.heads * length
        if self._scratch.numel() < needed:
            self._scratch = self.mask.new_empty(2 * needed)
        return BatchedAttention(spec, self.mask, self._scratch, rows, length)

    @torch.inference_mode()
    def prefill(self, sequences: Sequence[Sequence[int]], slots: Sequence[int]) -> None:
        """Fills the cache of `slots` with the keys and values of `sequences`, one for one."""
        self._prompt(sequences, into=torch.tensor(slots, device=self.device))

    @torch.inference_mode()
    def score(self, tokens: Sequence[int]) -> list[float]:
        """log pi(tokens[i + 1] | tokens[: i + 1]) at temperature 1, in nats; touches no slot."""
        hidden = self._prompt([tokens], into=None)[0, :-1]
        targets = torch.tensor(tokens[1:], dtype=torch.int64, device=self.device)
        found: list[float] = []
        for rows, wanted in zip(
            torch.split(hidden, SCORE_ROWS), torch.split(targets, SCORE_ROWS), strict=True
        ):
            logprobs = torch.mm(rows, self.weights.head).float().log_softmax(-1)
            found += logprobs.gather(-1, wanted[:, None]).squeeze(-1).tolist()
        return found

    @torch.inference_mode()
    def see(self, slots: Sequence[int], lengths: Sequence[int]) -> None:
        """Makes exactly the first `lengths` cached positions of `slots` visible."""
        ends = torch.tensor(lengths, device=self.device)[:, None]
        hidden = torch.arange(self.context, device=self.device) >= ends
        rows = torch.zeros(hidden.shape, device=self.device, dtype=self.dtype)
        where = torch.tensor(slots, device=self.device)
        self.mask.index_copy_(0, where, rows.masked_fill_(hidden, _HIDDEN))

    @torch.inference_mode()
    def copy(self, source: int, targets: Sequence[int], length: int) -> None:
        """Copies the first `length` cached positions of one slot to others."""
        for target in targets:
            self.cache[:, :, target, :, :length] = self.cache[:, :, source, :, :length]

    @torch.inference_mode()
    def move(self, source: int, target: int, length: int) -> None:
        """Copies a whole sequence of `length` cached positions, and what it sees."""
        self.copy(source, [target], length)
        self.mask[target] = self.mask[source]

    @torch.inference_mode()
    def clear(self, slot: int) -> None:
        """Zeroes a slot: a masked NaN would still reach the next sequence (0 * NaN is NaN)."""
        self.cache[:, :, slot] = 0

    def _prompt(self, sequences: Sequence[Sequence[int]], into: Tensor | None) -> Tensor:
        """Hidden states [batch, length, hidden] after the last norm; rows are padded at the end.

        into: int64 [batch], slots that receive the keys and values. Then nobody needs the hidden
        states, and the last layer is left as soon as its keys and values are stored.
        """
        spec, batch = self.spec, len(sequences)
        length = max(map(len, sequences))
        padded = [[*tokens, *[0] * (length - len(tokens))] for tokens in sequences]
        ids = torch.tensor(padded, device=self.device)
        x = self.weights.embedding[ids].view(batch * length, spec.hidden)
        rope = self._rope[:length, :, None, :]
        for index, layer in enumerate(self.weights.layers):
            hidden = self._norm(x, layer.attention_norm)
            qkv = torch.mm(hidden, layer.qkv)
            if layer.qkv_bias is not None:
                qkv += layer.qkv_bias
            heads = qkv.view(batch, length, -1, spec.head_dim)
            if layer.qk_norm is not None:
                self._norm_heads(heads[:, :, : spec.rotated], layer.qk_norm)
            query, keys, values = torch.split(
                heads, [spec.heads, spec.kv_heads, spec.kv_heads], dim=2
            )
            query, keys = (
                _rotate(query, rope[:, 0], rope[:, 2]),
                _rotate(keys, rope[:, 1], rope[:, 3]),
            )
            query, keys, values = (t.transpose(1, 2) for t in (query, keys, values))
            if into is not None:
                self.cache[index, 0, :, :, :length].index_copy_(0, into, keys)
                self.cache[index, 1, :, :, :length].index_copy_(0, into, values)
                if index + 1 == spec.layers:
                    break
            attended = F.scaled_dot_product_attention(
                query, keys, values, is_causal=True, scale=1.0, enable_gqa=True
            )
            x.addmm_(attended.transpose(1, 2).reshape(batch * length, -1), layer.out)
            gate, up = torch.mm(self._norm(x, layer.mlp_norm), layer.gate_up).chunk(2, dim=-1)
            x.addmm_(F.silu(gate).mul_(up), layer.down)
        return self._norm(x, self.weights.norm).view(batch, length, spec.hidden)

    def _norm(self, x: Tensor, weight: Tensor) -> Tensor:
        return F.rms_norm(x, weight.shape, weight, self.spec.norm_eps)

    def _norm_heads(self, heads: Tensor, weight: Tensor) -> None:
        """Normalises each head [..., heads, head_dim] in place; one weight row per head."""
        normed = F.rms_norm(heads, heads.shape[-1:], None, self.spec.norm_eps)
        torch.mul(normed, weight, out=heads)


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary positions. x [batch, length, heads, head_dim]; cos, sin [length, 1, head_dim / 2]."""
    low, high = x.chunk(2, dim=-1)
    return torch.cat((low * cos - high * sin, high * cos + low * sin), dim=-1)
