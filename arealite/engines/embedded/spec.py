"""What the runner must know of a model: its sizes and its rotary table, read from config.json.

Supported: the decoder family with RMSNorm, rotary positions, grouped-query attention and SwiGLU,
as Qwen2, Qwen3 and Llama checkpoints define it. Everything else is refused with one sentence.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, GenerationConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from arealite.errors import ConfigError

SUPPORTED = ("qwen2", "qwen3", "llama")

# Types whose frequencies do not depend on the length of the sequence at hand: those would change
# the keys that are already cached.
_STATIC_ROPE = ("linear", "llama3", "yarn")


@dataclass(frozen=True)
class ModelSpec:
    """Sizes of one model. `context` is the longest sequence it was made for, in tokens."""

    model_type: str
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocab: int
    norm_eps: float
    tied: bool
    qkv_bias: bool
    qk_norm: bool
    context: int
    eos_ids: tuple[int, ...]
    inverse_frequencies: tuple[float, ...]
    rope_scale: float

    @property
    def rotated(self) -> int:
        """How many heads carry a position: the queries' and the keys'."""
        return self.heads + self.kv_heads

    @property
    def qkv_heads(self) -> int:
        """Queries', keys' and values' heads together."""
        return self.heads + 2 * self.kv_heads

    def rope_table(self, length: int) -> tuple[Tensor, Tensor]:
        """cos and sin for positions 0..length-1, each [length, head_dim / 2] float32."""
        frequencies = torch.tensor(self.inverse_frequencies, dtype=torch.float32)
        angles = torch.arange(length, dtype=torch.float32)[:, None] * frequencies
        return angles.cos() * self.rope_scale, angles.sin() * self.rope_scale


def read_spec(folder: Path) -> ModelSpec:
    """Reads `config.json`. Raises ConfigError when the model is not one that we can run."""
    if not (folder / "config.json").is_file():
        raise ConfigError(f"{folder} is not a model folder: it has no config.json")
    try:
        _refuse_type(folder, json.loads((folder / "config.json").read_text()).get("model_type"))
        config: Any = AutoConfig.from_pretrained(folder, local_files_only=True)
    except (ValueError, OSError, KeyError, AttributeError, TypeError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"{folder}/config.json cannot be read: {reason}") from None
    _refuse_unsupported(folder, config)
    heads = config.num_attention_heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
    frequencies, scale = _rope(config, head_dim)
    return ModelSpec(
        model_type=config.model_type,
        layers=config.num_hidden_layers,
        hidden=config.hidden_size,
        heads=heads,
        kv_heads=config.num_key_value_heads,
        head_dim=head_dim,
        intermediate=config.intermediate_size,
        vocab=config.vocab_size,
        norm_eps=config.rms_norm_eps,
        tied=bool(config.tie_word_embeddings),
        qkv_bias=config.model_type == "qwen2",
        qk_norm=config.model_type == "qwen3",
        context=config.max_position_embeddings,
        eos_ids=_eos_ids(folder, config),
        inverse_frequencies=tuple(frequencies.tolist()),
        rope_scale=scale,
    )


def _refuse_type(folder: Path, model_type: Any) -> None:
    if model_type not in SUPPORTED:
        raise ConfigError(
            f"{folder} is a {model_type!r} model; the embedded server runs "
            f"{', '.join(SUPPORTED)}: serve it with SGLang or vLLM"
        )


def _refuse_unsupported(folder: Path, config: Any) -> None:
    window = bool(getattr(config, "use_sliding_window", False)) or any(
        kind != "full_attention" for kind in getattr(config, "layer_types", None) or ()
    )
    for found, what in (
        (window, "sliding-window attention"),
        (getattr(config, "attention_bias", False), "attention_bias"),
        (getattr(config, "mlp_bias", False), "mlp_bias"),
        (config.hidden_act != "silu", f"the activation {config.hidden_act!r}"),
    ):
        if found:
            raise ConfigError(f"{folder} uses {what}, which the embedded server does not run")


def _rope(config: Any, head_dim: int) -> tuple[Tensor, float]:
    """Inverse frequencies [head_dim / 2] float32 and the factor on cos and sin."""
    parameters = config.rope_parameters
    kind = parameters.get("rope_type", "default")
    if kind == "default":
        exponents = torch.arange(0, head_dim, 2, dtype=torch.int64).float() / head_dim
        return 1.0 / (parameters["rope_theta"] ** exponents), 1.0
    if kind not in _STATIC_ROPE:
        known = ", ".join(("default", *_STATIC_ROPE))
        raise ConfigError(f"the rope type {kind!r} is not supported; supported are {known}")
    frequencies, scale = ROPE_INIT_FUNCTIONS[kind](config, torch.device("cpu"))
    return frequencies, float(scale)


def _eos_ids(folder: Path, config: Any) -> tuple[int, ...]:
    """The ids at which generation ends by itself: those of the config and generation config."""
    found: list[Any] = [config.eos_token_id]
    if (folder / "generation_config.json").is_file():
        generation: Any = GenerationConfig.from_pretrained(folder, local_files_only=True)
        found.append(generation.eos_token_id)
    flat = [i for x in found for i in (x if isinstance(x, list | tuple) else [x])]
    return tuple(sorted({i for i in flat if i is not None}))
