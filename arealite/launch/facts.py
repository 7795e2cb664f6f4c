"""What a plan has to know of the machine and of files, gathered before anything starts."""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from arealite.config import Config, DatasetConfig
from arealite.launch.inputs import Missing, hub_ids, missing
from arealite.processes import ADDRESSES


@dataclass(frozen=True)
class Facts:
    """None stands for "not known yet": a file that is still to be made, a model on the hub."""

    cores: int
    train_rows: int | None
    valid_rows: int | None
    parameters: int | None
    kv_bytes_per_token: int | None
    max_positions: int | None
    missing: tuple[Missing, ...] = ()
    hub_ids: tuple[Missing, ...] = ()
    servers: tuple[str, ...] = ()
    """Addresses that the environment names."""


def gather(config: Config) -> Facts:
    model = _model_config(config.actor.path)
    return Facts(
        cores=len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count() or 1,
        train_rows=_rows(config.train_dataset),
        valid_rows=_rows(config.valid_dataset),
        parameters=_parameters(model) if model else _by_name(config.actor.path),
        kv_bytes_per_token=_kv_bytes(model, config.actor.dtype) if model else None,
        max_positions=model.get("max_position_embeddings") if model else None,
        missing=missing(config),
        hub_ids=hub_ids(config),
        servers=tuple(a.strip() for a in os.environ.get(ADDRESSES, "").split(",") if a.strip()),
    )


def _rows(dataset: DatasetConfig) -> int | None:
    path = Path(dataset.path)
    if not dataset.path or not path.is_file() or path.suffix != ".jsonl":
        return None
    with path.open("rb") as file:
        rows = sum(1 for line in file if line.strip())
    return rows if dataset.max_rows is None else min(rows, dataset.max_rows)


def _model_config(path: str) -> dict[str, Any] | None:
    try:
        model = json.loads((Path(path) / "config.json").read_text())
    except (OSError, ValueError):
        return None
    return model if isinstance(model, dict) and "hidden_size" in model else None


def _parameters(model: dict[str, Any]) -> int:
    """Counted for the Llama family: embeddings, attention with grouped heads, gated MLP."""
    hidden, layers = model["hidden_size"], model["num_hidden_layers"]
    heads = model["num_attention_heads"]
    head = model.get("head_dim") or hidden // heads
    kv = model.get("num_key_value_heads") or heads
    attention = hidden * head * (2 * heads + 2 * kv)
    mlp = 3 * hidden * model["intermediate_size"]
    embeddings = model["vocab_size"] * hidden * (1 if model.get("tie_word_embeddings") else 2)
    return int(layers * (attention + mlp) + embeddings)


def _kv_bytes(model: dict[str, Any], dtype: str) -> int:
    heads = model["num_attention_heads"]
    head = model.get("head_dim") or model["hidden_size"] // heads
    kv = model.get("num_key_value_heads") or heads
    return int(2 * model["num_hidden_layers"] * kv * head * (2 if dtype == "bfloat16" else 4))


def _by_name(path: str) -> int | None:
    """Qwen2.5-3B -> 3e9: a hub id's own word for it."""
    found = re.search(r"(\d+(?:\.\d+)?)([BM])(?![A-Za-z])", Path(path).name)
    if not found:
        return None
    return int(float(found[1]) * (1e9 if found[2] == "B" else 1e6))
