"""Saved models: a Hugging Face folder with tokenizer and a manifest of sizes and digests."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

MANIFEST = "MANIFEST.json"


def save_model(model: Any, tokenizer: Any, folder: Path, version: int) -> Path:
    """Complete or invisible: written beside, synced, then renamed."""
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
