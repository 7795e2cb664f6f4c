"""The folder of published weights: in memory where possible, and never left behind for good."""

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
        sweep(root)
        self.path = Path(tempfile.mkdtemp(prefix=PREFIX, dir=root))
        self._descriptor = os.open(self.path, os.O_RDONLY)  # children do not inherit it
        fcntl.flock(self._descriptor, fcntl.LOCK_EX)

    def remove(self) -> None:
        shutil.rmtree(self.path, ignore_errors=True)
        os.close(self._descriptor)


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
