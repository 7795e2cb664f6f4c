"""checkpoints/: a folder per version, `latest` beside them, and nothing half-made in sight.

What begins with a dot is on its way in or out and never read; `<version>.damaged` is kept for
people.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from arealite.checkpoints.manifest import MANIFEST, read, seal, verify, write
from arealite.crash import crash_point
from arealite.errors import CheckpointError
from arealite.telemetry.run_folder import sync

LATEST = "latest"
STATE_FILES = ("trainer.safetensors", "rollouts.jsonl", "ledger.json")
"""What a checkpoint has beside the model, so that a run can go on from it."""


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint from which a run can go on. state: as it was given when written."""

    path: Path
    version: int
    state: Mapping[str, Any]


class Store:
    """The checkpoints of one run; only the owner of the run folder may write."""

    def __init__(self, folder: Path, alarm: Callable[[str], None] = lambda sentence: None) -> None:
        self.folder, self._alarm = folder, alarm

    def versions(self) -> list[int]:
        """Of all checkpoints and saved models in sight, oldest first."""
        if not self.folder.is_dir():
            return []
        return sorted(int(path.name) for path in self.folder.iterdir() if path.name.isdigit())

    def newest(self) -> Checkpoint | None:
        """The newest one that is whole; None where there are no checkpoints at all.

        Damaged ones that are newer are moved aside, with an alarm. Raises CheckpointError, and
        touches nothing, where there are some and none of them can be used.
        """
        found, damaged = self._first_good(verify)
        for version, reason in damaged.items():
            aside = self._free(f"{version}.damaged")
            (self.folder / str(version)).rename(aside)
            self._alarm(
                f"checkpoint {version} is damaged ({reason}); it is kept as {aside.name}, and the "
                "run goes on from an older one"
            )
        return found

    def look(self) -> Checkpoint | None:
        """As newest, but nothing except the manifests is read, and nothing is touched."""
        return self._first_good(read)[0]

    def _first_good(
        self, check: Callable[[Path], dict[str, Any]]
    ) -> tuple[Checkpoint | None, dict[int, str]]:
        damaged: dict[int, str] = {}
        versions = self.versions()
        for version in reversed(versions):
            path = self.folder / str(version)
            try:
                manifest = check(path)
            except CheckpointError as error:
                damaged[version] = str(error)
                continue
            if "state" in manifest:
                return Checkpoint(path, version, manifest["state"]), damaged
        if versions:
            reasons = "; ".join(damaged.values()) or "only models without the trainer's state"
            raise CheckpointError(
                f"{self.folder} has no checkpoint from which the run could go on ({reasons}); "
                "restore one, or start anew with recover.mode=off, which moves this run aside"
            )
        return None, damaged

    @contextmanager
    def writing(self, version: int, state: Mapping[str, Any]) -> Iterator[Path]:
        """A folder to write into; at the end of the block it is the checkpoint of this version.

        Raises OSError; then nothing of it is left.
        """
        temporary = self.folder / f".{version}.{os.getpid()}.tmp"
        shutil.rmtree(temporary, ignore_errors=True)
        try:
            temporary.mkdir(parents=True)
            crash_point("checkpoint.begun")
            yield temporary
            seal(temporary, version, state)
            os.rename(temporary, self.folder / str(version))
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        crash_point("checkpoint.renamed")
        sync(self.folder)
        crash_point("checkpoint.folder_synced")
        self._point_latest(version)
        crash_point("checkpoint.latest_moved")

    def _point_latest(self, version: int) -> None:
        """For people and scripts; a recovery looks at all checkpoints."""
        link = self.folder / f".{LATEST}.{os.getpid()}.tmp"
        link.unlink(missing_ok=True)
        link.symlink_to(str(version))
        os.replace(link, self.folder / LATEST)

    def retain(self, keep: int, models: Collection[int]) -> None:
        """Keeps the newest `keep` whole and of others the models of these versions. Never raises
        for the disk: what cannot be removed is told."""
        try:
            older = self.versions()[:-keep]
            for version in older:
                if version in models:
                    self._strip(self.folder / str(version))
                else:
                    self._remove(self.folder / str(version))
                crash_point("checkpoint.old_deleted")
        except (OSError, CheckpointError) as error:
            self._alarm(f"an old checkpoint cannot be removed: {error}")

    def _strip(self, path: Path) -> None:
        """Leaves the model. The manifest goes first: it never lists what is not there."""
        manifest = read(path)
        if "state" not in manifest:
            return
        del manifest["state"]
        for name in STATE_FILES:
            manifest["files"].pop(name, None)
        write(path, manifest)
        for name in STATE_FILES:
            (path / name).unlink(missing_ok=True)

    def _remove(self, path: Path) -> None:
        """Out of sight first: what is half-removed must not look like a damaged one."""
        hidden = self._free(f".{path.name}.old")
        path.rename(hidden)
        shutil.rmtree(hidden)

    def sweep(self) -> None:
        """Removes what a crash has left half-made or half-removed."""
        for path in self.folder.glob(".*"):
            if path.name.endswith((".tmp", ".old")):
                if path.is_symlink() or path.is_file():
                    path.unlink(missing_ok=True)
                else:
                    shutil.rmtree(path, ignore_errors=True)

    def _free(self, name: str) -> Path:
        path, number = self.folder / name, 1
        while path.exists():
            number += 1
            path = self.folder / f"{name}.{number}"
        return path


__all__ = ["LATEST", "MANIFEST", "STATE_FILES", "Checkpoint", "Store"]
