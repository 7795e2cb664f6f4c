"""`python -m arealite.export RUN [--version N] --out DIR`: a model of a run, to take away."""

from __future__ import annotations

import hashlib
import sys
from argparse import Namespace
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from arealite.checkpoints.export import exporting
from arealite.checkpoints.manifest import read
from arealite.checkpoints.store import STATE_FILES, Store
from arealite.config.cli import Parser
from arealite.errors import CheckpointError, ConfigError, boundary
from arealite.telemetry.output import show
from arealite.telemetry.run_folder import RunFolder

SETTING = "--out"
CHUNK = 1 << 22


def main(argv: Sequence[str] | None = None) -> None:
    """Writes the Hugging Face folder of one version; the run may go on meanwhile."""
    with boundary():
        options = _options(sys.argv[1:] if argv is None else argv)
        folder = RunFolder.existing(options.run)
        version = export(folder, options.out, options.version)
        show(f"version {version} of {folder.experiment}/{folder.trial} is in {options.out}")


def _options(argv: Sequence[str]) -> Namespace:
    command = Parser(
        prog="python -m arealite.export",
        description="Writes the model of a checkpoint as a Hugging Face folder.",
        usage_hint="RUN_FOLDER [--version N] --out FOLDER",
    )
    command.add_argument("run", metavar="RUN", help="the run folder")
    command.add_argument("--version", type=int, help="of the model; without it the newest")
    command.add_argument(
        SETTING, type=Path, required=True, help="a new or empty folder, or a former export"
    )
    return command.parse_args(argv)


def export(run: RunFolder, out: Path, version: int | None = None) -> int:
    """Writes the model of this version, or of the newest, and returns which it is.

    Raises ConfigError where there is no such version or `out` cannot be written, CheckpointError
    where there is none at all or its files do not have their digests; then nothing is written.
    """
    store = Store(run.checkpoints)
    version = _chosen(store, run, version)
    source = store.folder / str(version)
    out = out.expanduser()
    if out.resolve().is_relative_to(store.folder.resolve()):
        raise ConfigError(f"{SETTING}: {out} is among the run's own checkpoints; give another")
    try:
        manifest = read(source)
        with exporting(out, version, SETTING) as target:
            write_whole_model(source, manifest["files"], target)
    except CheckpointError as error:
        others = [v for v in store.versions() if v != version]
        rest = f"; of this run there is also version {_listed(others)}" if others else ""
        raise CheckpointError(f"{error}{rest}") from None
    except OSError as error:
        raise ConfigError(f"{SETTING}: {out} cannot be written: {error.strerror}") from None
    return version


def write_whole_model(source: Path, files: Mapping[str, Any], target: Path) -> None:
    """The one place where a checkpoint becomes a model that anything loads.

    A checkpoint holds that model, with LoRA merged and with the adapter's own files in a folder
    inside, and the trainer's state; the state is left out. files: as the manifest lists them.
    Raises CheckpointError for one without its digest.
    """
    for name, expected in files.items():
        (target / name).parent.mkdir(exist_ok=True)
        if name not in STATE_FILES and _copy(source / name, target / name) != expected["sha256"]:
            raise CheckpointError(f"{source / name} does not have its digest")


def _copy(source: Path, target: Path) -> str:
    """The digest of what was read, which is what is written. Raises OSError for the target."""
    digest = hashlib.sha256()
    try:
        file = source.open("rb")
    except OSError as error:
        raise CheckpointError(f"{source}: {error.strerror}") from None
    with file, target.open("xb") as copy:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
            copy.write(chunk)
    return digest.hexdigest()


def _chosen(store: Store, run: RunFolder, version: int | None) -> int:
    versions = store.versions()
    if not versions:
        raise CheckpointError(f"{run.path} has no checkpoint yet")
    if version is None:
        return versions[-1]
    if version not in versions:
        raise ConfigError(
            f"{run.path} has no checkpoint of version {version}; give --version {_listed(versions)}"
        )
    return version


def _listed(versions: Sequence[int]) -> str:
    """`2, 4 or 6`"""
    *first, last = map(str, versions)
    return f"{', '.join(first)} or {last}" if first else last


if __name__ == "__main__":
    main()
