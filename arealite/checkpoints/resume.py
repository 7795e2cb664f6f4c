"""Whether a run goes on, from which checkpoint, and its files cut back to that moment."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from arealite.checkpoints.changes import Change, check_changes
from arealite.checkpoints.store import Checkpoint, Store
from arealite.config import Config
from arealite.crash import crash_point
from arealite.errors import CheckpointError
from arealite.telemetry.run_folder import RunFolder
from arealite.telemetry.status import read_status


def goes_on(config: Config, folder: RunFolder) -> bool:
    """Whether a run with this configuration goes on with what is in the folder; else that is
    moved aside. Where it does, there may still be nothing that can be used."""
    if config.recover.mode == "auto":
        has_ended = read_status(folder).get("phase") == "done"
        return not has_ended and bool(Store(folder.checkpoints).versions())
    return config.recover.mode == "required"


def preview(config: Config, folder: RunFolder) -> tuple[Checkpoint | None, list[Change]]:
    """Where the run will begin and what has changed since, by the manifests alone.

    Raises CheckpointError and ConfigError as recover does, but costs no time.
    """
    found = Store(folder.checkpoints).look() if goes_on(config, folder) else None
    return _checked(config, found)


def recover(
    config: Config, folder: RunFolder, alarm: Callable[[str], None]
) -> tuple[Checkpoint | None, list[Change]]:
    """The checkpoint from which the run goes on, None where it begins; its files are cut to it.

    Raises CheckpointError where recover.mode asks for one that is not there, or where all are
    damaged; ConfigError where the configuration has changed in a way that forbids it.
    """
    store = Store(folder.checkpoints, alarm)
    found, changed = _checked(config, store.newest())
    crash_point("recovery.verified")
    store.sweep()
    begun = (folder.metrics, folder.transcripts, folder.quarantine)  # by a start without checkpoint
    positions = {p.name: 0 for p in begun} if found is None else found.state["positions"]
    for name, position in positions.items():
        _cut(folder, str(name), int(position), alarm)
    crash_point("recovery.files_cut")
    return found, changed


def _checked(config: Config, found: Checkpoint | None) -> tuple[Checkpoint | None, list[Change]]:
    if found is not None:
        where = f"the checkpoint of version {found.version}"
        return found, check_changes(found.state["config"], config, where)
    if config.recover.mode == "required":
        raise CheckpointError(
            "recover.mode is required, but there is no checkpoint to go on from; to begin a new "
            "run give recover.mode=auto"
        )
    return None, []


def _cut(folder: RunFolder, name: str, position: int, alarm: Callable[[str], None]) -> None:
    """What was written after the checkpoint will be written again."""
    path = folder.path / name
    try:
        if path.stat().st_size > position:
            os.truncate(path, position)
    except FileNotFoundError:
        if position:
            alarm(f"{name} is not there any more; what it said before the checkpoint is lost")
    except OSError as error:
        alarm(f"{name} cannot be cut back to the checkpoint: {error.strerror}")


def state_of(config: dict[str, Any], sequence: int, positions: dict[str, int]) -> dict[str, Any]:
    """What a manifest keeps for recover. sequence: of the ledger; positions: bytes by file."""
    return {"config": config, "sequence": sequence, "positions": positions}
