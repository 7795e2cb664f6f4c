"""Saved models: a Hugging Face folder with its tokenizer."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from arealite.checkpoints.export import exporting


def save_model(model: Any, tokenizer: Any, folder: Path, version: int) -> None:
    """An export of the model as it is. Raises as exporting does."""
    with exporting(folder, version) as target:
        write_model(model, tokenizer, target)


def write_model(
    model: Any, tokenizer: Any, folder: Path, weights: Mapping[str, Tensor] | None = None
) -> None:
    """A Hugging Face folder. weights: in place of the model's own, which may change meanwhile."""
    model.save_pretrained(folder, safe_serialization=True, state_dict=weights)
    tokenizer.save_pretrained(folder)
