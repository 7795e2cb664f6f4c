"""Models for people to take away: complete or invisible, and never in place of somebody's files."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from arealite.checkpoints.manifest import MANIFEST, seal
from arealite.errors import ConfigError
from arealite.telemetry.run_folder import sync


def check_export(folder: Path, setting: str = "saver.export") -> None:
    """Raises ConfigError where an exported model would replace anything but a former one.

    Harmless are a folder that is absent or empty, and one whose manifest lists all that is in it,
    unless a run goes on from it. setting: what names the folder.
    """
    if not folder.exists():
        return
    remedy = f"; an exported model replaces its folder: give {setting} a new one, or move this away"
    if not folder.is_dir():
        raise ConfigError(f"{setting}: {folder} is a file{remedy}")
    names = {path.name for path in folder.iterdir()}
    if names and MANIFEST not in names:
        raise ConfigError(f"{setting}: {folder} was not written by arealite{remedy}")
    listed, is_checkpoint = _manifested(folder)
    folders = {name.partition("/")[0] for name in listed if "/" in name}
    within = {f"{name}/{path.name}" for name in folders for path in (folder / name).glob("*")}
    foreign = sorted((names - folders | within) - listed)
    if foreign:
        raise ConfigError(f"{setting}: {folder} also holds {', '.join(foreign[:3])}{remedy}")
    if is_checkpoint:
        raise ConfigError(f"{setting}: {folder} is a checkpoint, from which a run goes on{remedy}")


def _manifested(folder: Path) -> tuple[set[str], bool]:
    """Names of the files that a former export wrote, none where the manifest is not ours; and
    whether it is no export but a checkpoint."""
    try:
        manifest: Any = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        return {MANIFEST, *manifest["files"]}, "state" in manifest
    except (OSError, ValueError, KeyError, TypeError):
        return set(), False


@contextmanager
def exporting(folder: Path, version: int, setting: str = "saver.export") -> Iterator[Path]:
    """A folder to write a model into; at the end of the block it is `folder`, with a manifest.

    Written beside, synced, then renamed; a former export is replaced. Raises ConfigError where the
    folder holds anything else, OSError where the disk refuses; then nothing is left of it.
    """
    check_export(folder, setting)
    folder = folder.resolve()  # a link is followed, never replaced
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir()
        yield temporary
        seal(temporary, version)
        if folder.exists():
            shutil.rmtree(folder)
        os.replace(temporary, folder)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    sync(folder.parent)
