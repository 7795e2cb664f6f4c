"""Saved models: a Hugging Face folder with tokenizer and a manifest of sizes and digests."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from arealite.checkpoints.manifest import MANIFEST, seal
from arealite.errors import ConfigError
from arealite.telemetry.run_folder import sync


def check_export(folder: Path) -> None:
    """Raises ConfigError where a saved model would replace anything but a former one.

    Harmless are a folder that is absent or empty, and one whose manifest lists all that is in it.
    """
    if not folder.exists():
        return
    remedy = "; a saved model replaces its folder: give saver.export a new one, or move this away"
    if not folder.is_dir():
        raise ConfigError(f"saver.export: {folder} is a file{remedy}")
    names = {path.name for path in folder.iterdir()}
    if names and MANIFEST not in names:
        raise ConfigError(f"saver.export: {folder} was not written by arealite{remedy}")
    foreign = sorted(names - _manifested(folder))
    if foreign:
        raise ConfigError(f"saver.export: {folder} also holds {', '.join(foreign[:3])}{remedy}")


def _manifested(folder: Path) -> set[str]:
    """Names of the files that a former save wrote; none where the manifest is not ours."""
    try:
        return {MANIFEST, *json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["files"]}
    except (OSError, ValueError, KeyError, TypeError):
        return set()


def save_model(model: Any, tokenizer: Any, folder: Path, version: int) -> Path:
    """Complete or invisible: written beside, synced, then renamed.

    Replaces a former save. Raises ConfigError where the folder holds anything else.
    """
    check_export(folder)
    folder = folder.resolve()  # a link is followed, never replaced
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    write_model(model, tokenizer, temporary)
    seal(temporary, version)
    if folder.exists():
        shutil.rmtree(folder)
    os.replace(temporary, folder)
    sync(folder.parent)
    return folder


def write_model(
    model: Any, tokenizer: Any, folder: Path, weights: Mapping[str, Tensor] | None = None
) -> None:
    """A Hugging Face folder. weights: in place of the model's own, which may change meanwhile."""
    model.save_pretrained(folder, safe_serialization=True, state_dict=weights)
    tokenizer.save_pretrained(folder)
