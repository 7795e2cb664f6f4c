"""Saved models: a Hugging Face folder with tokenizer and a manifest of sizes and digests."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

from arealite.errors import ConfigError

MANIFEST = "MANIFEST.json"


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
    model.save_pretrained(temporary, safe_serialization=True)
    tokenizer.save_pretrained(temporary)
    files = {
        path.name: {"bytes": path.stat().st_size, "sha256": _digest(path)}
        for path in sorted(temporary.iterdir())
    }
    manifest = {"version": version, "files": files}
    (temporary / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n")
    for path in temporary.iterdir():
        _sync(path)
    if folder.exists():
        shutil.rmtree(folder)
    os.replace(temporary, folder)
    _sync(folder.parent)
    return folder


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
