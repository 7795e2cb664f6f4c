"""Folders of one run: in memory where possible, and never left behind for good."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
import time
from pathlib import Path

PREFIX = "arealite-weights-"
YOUNG_S = 60.0
"""A folder this young is never swept: its launcher may be about to lock it, its trainer ending."""


class WeightsFolder:
    """Locked for as long as this process lives, so that others can tell whether it is in use."""

    def __init__(self, root: Path | None = None) -> None:
        shm = Path("/dev/shm")
        root = root or (shm if shm.is_dir() else Path(tempfile.gettempdir()))
        root.mkdir(parents=True, exist_ok=True)
        sweep(root)
        self.path = Path(tempfile.mkdtemp(prefix=PREFIX, dir=root))
        self._descriptor = os.open(self.path, os.O_RDONLY)  # children do not inherit it
        fcntl.flock(self._descriptor, fcntl.LOCK_EX)

    def remove(self) -> None:
        shutil.rmtree(self.path, ignore_errors=True)
        os.close(self._descriptor)


class Scratch:
    """The folder of published weights, and what servers of other projects are given to read."""

    def __init__(self, weights: Path | None = None) -> None:
        self._weights = WeightsFolder(weights)
        self._private: WeightsFolder | None = None

    @property
    def weights(self) -> Path:
        return self._weights.path

    def key_file(self, key: str) -> Path:
        """The key in SGLang's format; on a command line every user of the machine could read it."""
        path = self._own() / "sglang.yaml"
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
            file.write(f"api-key: {key}\n")
        return path

    def python_path(self) -> str:
        """A folder with this package alone, behind which comes what is set already.

        The folder in which the package lies may hold everything else that is installed with it.
        """
        link = self._own() / "arealite"
        if not link.is_symlink():
            link.symlink_to(Path(__file__).resolve().parents[1])
        return os.pathsep.join(filter(None, [str(link.parent), os.environ.get("PYTHONPATH")]))

    def remove(self) -> None:
        self._weights.remove()
        if self._private is not None:
            self._private.remove()

    def _own(self) -> Path:
        if self._private is None:
            self._private = WeightsFolder()  # which no other user may read
        return self._private.path


def sweep(root: Path) -> None:
    """Removes what launchers that were killed have left."""
    for folder in root.glob(f"{PREFIX}*"):
        try:
            if time.time() - folder.stat().st_mtime < YOUNG_S:
                continue
            descriptor = os.open(folder, os.O_RDONLY)
        except OSError:  # another user's, or swept by another launcher at this moment
            continue
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder, ignore_errors=True)
        except OSError:  # in use
            continue
        finally:
            os.close(descriptor)
