"""MANIFEST.json: what a folder holds, by name, size and digest. It is written last.

    format     1
    version    the policy's version
    files      {name: {bytes, sha256}}
    digest     sha256 of all the rest

and, where a run can go on from it, `state`: what resume.py reads.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from arealite.crash import crash_point
from arealite.errors import CheckpointError
from arealite.telemetry.run_folder import sync, write_atomically

MANIFEST = "MANIFEST.json"
FORMAT = 1


def seal(folder: Path, version: int, state: Mapping[str, Any] | None = None) -> None:
    """Writes the manifest of a folder's files, and syncs them all. Raises OSError."""
    files = {}
    for path in sorted(folder.rglob("*")):
        if path.is_dir():
            sync(path)
            continue
        crash_point("checkpoint.file_written")
        name = path.relative_to(folder).as_posix()
        files[name] = {"bytes": path.stat().st_size, "sha256": digest(path)}
        sync(path)
        crash_point("checkpoint.file_synced")
    manifest: dict[str, Any] = {"format": FORMAT, "version": version, "files": files}
    if state is not None:
        manifest["state"] = dict(state)
    write(folder, manifest)
    crash_point("checkpoint.manifest_synced")
    sync(folder)


def write(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Puts the manifest there, or in place of another, with a digest of its own."""
    fields = {key: value for key, value in manifest.items() if key != "digest"}
    fields["digest"] = _own_digest(fields)
    crash_point("checkpoint.before_manifest")
    write_atomically(folder / MANIFEST, json.dumps(fields, indent=1) + "\n", fsync=True)


def read(folder: Path) -> dict[str, Any]:
    """The manifest, where it is whole; the files are not looked at. Raises CheckpointError."""
    path = folder / MANIFEST
    try:
        manifest = json.loads(path.read_bytes())
        if manifest["digest"] != _own_digest(manifest):
            raise CheckpointError(f"{path} does not have its digest")
        if manifest["format"] != FORMAT:
            raise CheckpointError(f"{path} has format {manifest['format']!r}, not {FORMAT}")
        if folder.name.isdigit() and int(folder.name) != manifest["version"]:
            raise CheckpointError(f"{path} is of version {manifest['version']}")
    except OSError as error:
        raise CheckpointError(f"{path}: {error.strerror}") from None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise CheckpointError(f"{path} is not a whole manifest") from None
    return dict(manifest)


def verify(folder: Path) -> dict[str, Any]:
    """The manifest, once every file has its size and digest. Raises CheckpointError."""
    manifest = read(folder)
    for name, expected in manifest["files"].items():
        path = folder / name
        try:
            size = path.stat().st_size
            if size != expected["bytes"]:
                raise CheckpointError(f"{path} has {size} bytes, not {expected['bytes']}")
            if digest(path) != expected["sha256"]:
                raise CheckpointError(f"{path} does not have its digest")
        except OSError as error:
            raise CheckpointError(f"{path}: {error.strerror}") from None
    return manifest


def digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _own_digest(manifest: Mapping[str, Any]) -> str:
    fields = {key: value for key, value in manifest.items() if key != "digest"}
    return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()
