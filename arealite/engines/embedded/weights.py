"""The parameters as the runner wants them (fused, one tensor per product), filled from safetensors.

A checkpoint's tensor is copied into a view of the fused one. An update is staged and checked as a
whole before the first byte of the old weights changes, and happens in place, so that everything
bound to the tensors stays valid.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from arealite.engines.embedded.spec import ModelSpec


class BadWeights(Exception):
    """The folder does not hold this model's weights; the message says which tensor and why."""


@dataclass(frozen=True)
class LayerWeights:
    """One decoder layer. Matrices are stored [inputs, outputs].

    qkv: queries, keys and values side by side; qkv_bias and qk_norm only where the family has
    them (qk_norm: [heads + kv_heads, head_dim], one row per rotated head).
    """

    attention_norm: Tensor
    qkv: Tensor
    qkv_bias: Tensor | None
    qk_norm: Tensor | None
    out: Tensor
    mlp_norm: Tensor
    gate_up: Tensor
    down: Tensor


class Weights:
    """All parameters of one model on one device, and the checkpoint names that fill them."""

    def __init__(self, spec: ModelSpec, device: torch.device, dtype: torch.dtype) -> None:
        self.spec = spec
        self._like = torch.empty(0, device=device, dtype=dtype)
        self._views: dict[str, list[Tensor]] = {}
        self.embedding = self._whole("model.embed_tokens.weight", spec.vocab, spec.hidden)
        self.layers = [self._layer(f"model.layers.{i}.") for i in range(spec.layers)]
        self.norm = self._whole("model.norm.weight", spec.hidden)
        head = self.embedding
        if not spec.tied:
            head = self._whole("lm_head.weight", spec.vocab, spec.hidden)
        self.head = head.t()

    @property
    def parameters(self) -> int:
        """How many numbers the checkpoint holds (a tied head counts once)."""
        return sum(views[0].numel() for views in self._views.values())

    def check(self, staged: Mapping[str, Tensor]) -> None:
        """Raises BadWeights unless `staged` is exactly this model, tensor by tensor."""
        for name, views in self._views.items():
            if name not in staged:
                raise BadWeights(f"the tensor {name} is missing")
            wanted, found = tuple(views[0].shape), tuple(staged[name].shape)
            if wanted != found:
                raise BadWeights(f"the tensor {name} has shape {found}, expected {wanted}")
            if not staged[name].is_floating_point():
                raise BadWeights(f"the tensor {name} has dtype {staged[name].dtype}")
        for name in staged:
            if name not in self._views and not _ignorable(name, self.spec):
                raise BadWeights(f"the tensor {name} is not part of a {self.spec.model_type} model")

    @torch.inference_mode()
    def load(self, staged: Mapping[str, Tensor]) -> None:
        """Copies checked tensors in, in place."""
        for name, views in self._views.items():
            for view in views:
                view.copy_(staged[name])

    def _new(self, *shape: int) -> Tensor:
        return self._like.new_empty(shape)

    def _whole(self, name: str, *shape: int) -> Tensor:
        tensor = self._new(*shape)
        self._views[name] = [tensor]
        return tensor

    def _fused(self, inputs: int, parts: Mapping[str, int]) -> Tensor:
        """A matrix [inputs, sum of parts] whose column blocks are the named tensors."""
        tensor = self._new(inputs, sum(parts.values()))
        for name, block in zip(
            parts, torch.split(tensor, list(parts.values()), dim=1), strict=True
        ):
            self._views[name] = [block.t()]
        return tensor

    def _layer(self, prefix: str) -> LayerWeights:
        spec, attention = self.spec, prefix + "self_attn."
        queries, keys = spec.heads * spec.head_dim, spec.kv_heads * spec.head_dim
        sizes = {"q_proj": queries, "k_proj": keys, "v_proj": keys}
        bias = qk_norm = None
        if spec.qkv_bias:
            bias = self._new(sum(sizes.values()))
            for part, block in zip(sizes, torch.split(bias, list(sizes.values())), strict=True):
                self._views[f"{attention}{part}.bias"] = [block]
        if spec.qk_norm:
            qk_norm = self._new(spec.rotated, spec.head_dim)
            self._views[attention + "q_norm.weight"] = list(qk_norm[: spec.heads])
            self._views[attention + "k_norm.weight"] = list(qk_norm[spec.heads :])
        mlp = {f"{prefix}mlp.{part}_proj.weight": spec.intermediate for part in ("gate", "up")}
        return LayerWeights(
            attention_norm=self._whole(prefix + "input_layernorm.weight", spec.hidden),
            qkv=self._fused(spec.hidden, {f"{attention}{k}.weight": v for k, v in sizes.items()}),
            qkv_bias=bias,
            qk_norm=qk_norm,
            out=self._fused(queries, {attention + "o_proj.weight": spec.hidden}),
            mlp_norm=self._whole(prefix + "post_attention_layernorm.weight", spec.hidden),
            gate_up=self._fused(spec.hidden, mlp),
            down=self._fused(spec.intermediate, {prefix + "mlp.down_proj.weight": spec.hidden}),
        )


def _ignorable(name: str, spec: ModelSpec) -> bool:
    """Tensors that some checkpoints carry and that hold nothing new."""
    return name.endswith("rotary_emb.inv_freq") or (spec.tied and name == "lm_head.weight")


def read_folder(folder: Path) -> dict[str, Tensor]:
    """All tensors of a folder, on the CPU, from one safetensors file or an indexed set.

    Raises BadWeights when there are none or a file cannot be read.
    """
    index = folder / "model.safetensors.index.json"
    try:
        if index.is_file():
            files = sorted(set(json.loads(index.read_text())["weight_map"].values()))
        else:
            files = sorted(path.name for path in folder.glob("*.safetensors"))
        if not files:
            raise BadWeights(f"{folder} holds no *.safetensors file")
        tensors: dict[str, Tensor] = {}
        for file in files:
            with safe_open(str(folder / file), framework="pt") as opened:
                names = opened.keys()
                tensors.update({name: opened.get_tensor(name) for name in names})
    except (OSError, SafetensorError, ValueError, KeyError) as error:
        raise BadWeights(f"{folder} cannot be read: {type(error).__name__}: {error}") from None
    return tensors
