"""Checkpoints: complete or invisible; damage is found, and the newest good one is taken."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from arealite.checkpoints import manifest
from arealite.checkpoints.manifest import MANIFEST
from arealite.checkpoints.store import STATE_FILES, Store
from arealite.errors import CheckpointError

FILES = ("model.safetensors", "config.json", *STATE_FILES)


@pytest.fixture
def alarms() -> list[str]:
    return []


@pytest.fixture
def store(tmp_path: Path, alarms: list[str]) -> Store:
    return Store(tmp_path / "checkpoints", alarms.append)


def save(store: Store, version: int) -> Path:
    with store.writing(version, {"sequence": 10 * version}) as folder:
        for name in FILES:
            (folder / name).write_text(f"{name} of version {version}\n" * 20)
    return store.folder / str(version)


def names(store: Store) -> set[str]:
    return {path.name for path in store.folder.iterdir()}


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def empty(path: Path) -> None:
    os.truncate(path, 0)


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def delete(path: Path) -> None:
    path.unlink()


def swap(path: Path) -> None:
    """With the same file of the older checkpoint: whole, but of another version."""
    shutil.copy(path.parent.parent / "1" / path.name, path)


DAMAGES = [
    (name, damage)
    for name in (*FILES, MANIFEST)
    for damage in (truncate, empty, flip, delete, swap)
]


@pytest.mark.parametrize(
    ("name", "damage"), DAMAGES, ids=[f"{name}-{damage.__name__}" for name, damage in DAMAGES]
)
def test_whatever_is_damaged_the_older_checkpoint_is_taken(
    store: Store, alarms: list[str], name: str, damage: Callable[[Path], None]
) -> None:
    save(store, 1)
    damage(save(store, 2) / name)
    found = store.newest()
    assert found is not None
    assert (found.version, found.state) == (1, {"sequence": 10})
    assert len(alarms) == 1
    assert alarms[0].startswith("checkpoint 2 is damaged (")
    assert name in alarms[0]
    assert "2.damaged" in names(store)
    save(store, 2)  # its place is free
    assert store.newest() == manifest_of(store, 2)


def manifest_of(store: Store, version: int) -> object:
    from arealite.checkpoints.store import Checkpoint

    return Checkpoint(store.folder / str(version), version, {"sequence": 10 * version})


def test_where_all_are_damaged_nothing_is_touched(store: Store, alarms: list[str]) -> None:
    for version in (1, 2):
        flip(save(store, version) / "model.safetensors")
    before = {path: path.read_bytes() for path in store.folder.rglob("*") if path.is_file()}
    with pytest.raises(CheckpointError, match=r"no checkpoint .* recover.mode=off") as told:
        store.newest()
    assert told.value.exit_code == 4
    assert "2/model.safetensors does not have its digest" in str(told.value)
    assert "1/model.safetensors" in str(told.value)
    after = {path: path.read_bytes() for path in store.folder.rglob("*") if path.is_file()}
    assert (after, alarms) == (before, [])


def test_a_folder_of_another_name_or_a_stale_latest_deceives_nobody(store: Store) -> None:
    save(store, 1)
    save(store, 2).rename(store.folder / "7")
    (store.folder / "latest").unlink()
    (store.folder / "latest").symlink_to("7")
    found = store.newest()
    assert found is not None
    assert found.version == 1


def test_no_checkpoints_at_all_are_no_error(store: Store) -> None:
    assert store.newest() is None
    assert store.look() is None


def test_a_write_that_fails_leaves_nothing_and_the_older_one(store: Store) -> None:
    def half() -> None:
        with store.writing(2, {}) as folder:
            (folder / "model.safetensors").write_text("half")
            raise OSError("disk full")

    save(store, 1)
    with pytest.raises(OSError, match="disk full"):
        half()
    assert names(store) == {"1", "latest"}
    assert os.readlink(store.folder / "latest") == "1"


@pytest.mark.parametrize("call", ["fsync", "rename"])
@pytest.mark.parametrize("at", range(8))
def test_an_error_of_the_disk_at_any_call_costs_only_the_new_one(
    store: Store, monkeypatch: pytest.MonkeyPatch, call: str, at: int
) -> None:
    save(store, 1)
    real, count = getattr(os, call), iter(range(100))

    def failing(*args: object) -> object:
        if next(count) == at:
            raise OSError(28, "No space left on device")
        return real(*args)

    monkeypatch.setattr(os, call, failing)
    with suppress(OSError):  # there are fewer calls than that
        save(store, 2)
    monkeypatch.undo()
    found = store.newest()
    assert found is not None
    assert found.version == (2 if (store.folder / "2").exists() else 1)
    assert not [name for name in names(store) if name.startswith(".") and name.endswith(".tmp")]


def test_old_ones_go_and_chosen_models_stay(store: Store) -> None:
    for version in (1, 2, 3, 4, 5):
        save(store, version)
        store.retain(2, models={2})
    assert names(store) == {"2", "4", "5", "latest"}
    kept = manifest.verify(store.folder / "2")
    assert "state" not in kept
    assert set(kept["files"]) == {"model.safetensors", "config.json"}
    assert {path.name for path in (store.folder / "2").iterdir()} == {*kept["files"], MANIFEST}
    store.retain(2, models=())  # no longer the best
    assert names(store) == {"4", "5", "latest"}


def test_models_alone_are_nothing_to_go_on_from(store: Store) -> None:
    save(store, 1)
    save(store, 2)
    store.retain(1, models={1})
    shutil.rmtree(store.folder / "2")
    with pytest.raises(CheckpointError, match="only models"):
        store.newest()


def test_what_a_crash_has_left_half_made_is_swept(store: Store) -> None:
    save(store, 1)
    (store.folder / ".2.77.tmp").mkdir()
    (store.folder / ".0.old").mkdir()
    (store.folder / ".latest.77.tmp").symlink_to("2")
    assert store.newest() == manifest_of(store, 1)
    store.sweep()
    assert names(store) == {"1", "latest"}


def test_a_manifest_of_another_format_is_refused(store: Store) -> None:
    path = save(store, 1)
    fields = json.loads((path / MANIFEST).read_text())
    manifest.write(path, {**fields, "format": 99})
    with pytest.raises(CheckpointError, match="has format 99, not 1"):
        store.newest()
