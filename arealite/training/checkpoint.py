"""Saved models: a Hugging Face folder with tokenizer, model card and a manifest of digests."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from arealite.checkpoints.export import exporting


def save_model(model: Any, tokenizer: Any, folder: Path, version: int, card: str = "") -> None:
    """An export of the model as it is. card: as in write_model. Raises as exporting does."""
    with exporting(folder, version) as target:
        write_model(model, tokenizer, target, card=card)


def write_model(
    model: Any,
    tokenizer: Any,
    folder: Path,
    weights: Mapping[str, Tensor] | None = None,
    card: str = "",
) -> None:
    """A Hugging Face folder. weights: in place of the model's own, which may change meanwhile.
    card: its README.md; empty: none."""
    model.save_pretrained(folder, safe_serialization=True, state_dict=weights)
    tokenizer.save_pretrained(folder)
    if card:
        (folder / "README.md").write_text(card, encoding="utf-8")
