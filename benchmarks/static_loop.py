"""The reference for engine.py: a fixed batch of equal lengths, decoded by a plain loop.

Fused weights, preallocated keys and values, no mask, no scheduling, no HTTP: what a server for
changing batches is measured against. It samples at temperature 1 and keeps the log-probabilities.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import Qwen2ForCausalLM


class _Work(Protocol):
    @property
    def prompt(self) -> list[int]: ...


class StaticLoop:
    """Up to `batch` sequences of up to `length` tokens of one Qwen2 model."""

    def __init__(self, model: Qwen2ForCausalLM, batch: int, length: int) -> None:
        config = model.config
        self.heads, self.kv_heads = config.num_attention_heads, config.num_key_value_heads
        self.dim, self.eps = config.hidden_size // self.heads, config.rms_norm_eps
        self.embedding = model.model.embed_tokens.weight.detach()
        self.norm = model.model.norm.weight.detach()
        self.layers = []
        for layer in model.model.layers:
            a, m = layer.self_attn, layer.mlp
            projections = (a.q_proj, a.k_proj, a.v_proj)
            qkv = torch.cat([p.weight.detach() for p in projections]).t().contiguous()
            bias = torch.cat([p.bias.detach() for p in projections])
            gate_up = torch.cat([m.gate_proj.weight.detach(), m.up_proj.weight.detach()])
            self.layers.append(
                (
                    layer.input_layernorm.weight.detach(),
                    qkv,
                    bias,
                    a.o_proj.weight.detach().t().contiguous(),
                    layer.post_attention_layernorm.weight.detach(),
                    gate_up.t().contiguous(),
                    m.down_proj.weight.detach().t().contiguous(),
                )
            )
        shape = (len(self.layers), 2, batch, self.kv_heads, length, self.dim)
        self.cache = torch.zeros(shape)
        theta = config.rope_parameters["rope_theta"]
        frequencies = theta ** (-torch.arange(0, self.dim, 2).float() / self.dim)
        angles = torch.arange(length).float()[:, None] * frequencies
        self.cos, self.sin = angles.cos().repeat(1, 2), angles.sin().repeat(1, 2)

    def measure(self, works: Sequence[_Work], new: int) -> float:
        """Tokens per second for `new` tokens after each prompt, prefill included."""
        began = time.perf_counter()
        self.run(torch.tensor([work.prompt for work in works]), new)
        return len(works) * new / (time.perf_counter() - began)

    @torch.inference_mode()
    def run(self, prompts: Tensor, new: int) -> tuple[Tensor, Tensor]:
        """prompts [batch, length] -> tokens and log-probabilities, each [batch, new]."""
        tokens, logprobs = [], []
        logits = self._forward(prompts, 0)
        for step in range(new):
            chances = logits.log_softmax(-1)
            token = torch.multinomial(chances.exp(), 1)
            tokens.append(token)
            logprobs.append(chances.gather(-1, token))
            if step + 1 < new:
                logits = self._forward(token, prompts.shape[1] + step)
        return torch.cat(tokens, 1), torch.cat(logprobs, 1)

    def _forward(self, ids: Tensor, start: int) -> Tensor:
        """Logits [batch, vocab] of the last of `ids` [batch, length], which begin at `start`."""
        batch, length = ids.shape
        end = start + length
        cos, sin = self.cos[start:end, None], self.sin[start:end, None]
        x = self.embedding[ids].view(batch * length, -1)
        for index, (norm, qkv, bias, out, mlp_norm, gate_up, down) in enumerate(self.layers):
            h = torch.addmm(bias, F.rms_norm(x, norm.shape, norm, self.eps), qkv)
            q, k, v = h.view(batch, length, -1, self.dim).split(  # type: ignore[no-untyped-call]
                [self.heads, self.kv_heads, self.kv_heads], dim=2
            )
            q, k = q * cos + _half_turned(q) * sin, k * cos + _half_turned(k) * sin
            keys, values = self.cache[index, :, :batch, :, :end]
            keys[:, :, start:], values[:, :, start:] = k.transpose(1, 2), v.transpose(1, 2)
            attended = self._attend(q, keys, values)
            x.addmm_(attended.reshape(batch * length, -1), out)
            gate, up = torch.mm(F.rms_norm(x, norm.shape, mlp_norm, self.eps), gate_up).chunk(2, -1)
            x.addmm_(F.silu(gate).mul_(up), down)
        last = x.view(batch, length, -1)[:, -1]
        return torch.mm(F.rms_norm(last, self.norm.shape, self.norm, self.eps), self.embedding.t())

    def _attend(self, q: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        batch, length = q.shape[:2]
        if length > 1:
            return F.scaled_dot_product_attention(
                q.transpose(1, 2), keys, values, is_causal=True, enable_gqa=True
            ).transpose(1, 2)
        rows = batch * self.kv_heads
        grouped = q.reshape(rows, -1, self.dim) * self.dim**-0.5
        keys, values = keys.flatten(0, 1), values.flatten(0, 1)
        weights = torch.bmm(grouped, keys.transpose(1, 2)).softmax(-1)
        return torch.bmm(weights, values)


def _half_turned(x: Tensor) -> Tensor:
    low, high = x.chunk(2, dim=-1)
    return torch.cat((-high, low), dim=-1)
