"""One run per run folder: the kernel frees it with its owner, also after kill -9.

The owner is the launcher, or a script of a user's own that opens the run without one.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from arealite.errors import ConfigError
from arealite.telemetry.run_folder import RunFolder

NAME = "run.lock"


@contextmanager
def claimed(
    folder: RunFolder, goes_on: Callable[[], bool] = lambda: False
) -> Iterator[Path | None]:
    """Holds the run folder; gives the name under which an older run is now kept.

    goes_on: whether the run that is in it goes on; else the folder is new and empty.

    Raises ConfigError when another run holds it.
    """
    with ExitStack() as held:
        held.callback(os.close, _lock(folder))
        aside = None
        if (folder.status.exists() or folder.metrics.exists()) and not goes_on():
            aside = folder.move_aside()
            held.callback(os.close, _lock(folder))
        yield aside


def is_claimed(folder: RunFolder) -> bool:
    """Whether a run holds the folder now; also True where the file system cannot tell.

    Asking takes the lock for an instant, in which a run that starts would be refused: ask only
    where nothing else shows that the owner lives.
    """
    try:
        descriptor = os.open(folder.path / NAME, os.O_RDONLY)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:  # held, or a file system without locks
        return True
    finally:
        os.close(descriptor)
    return False


def _lock(folder: RunFolder) -> int:
    folder.create()
    path = folder.path / NAME
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)  # children do not inherit it
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {error.strerror}") from None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not _is_at(path, descriptor):  # moved aside by another run at this moment
            raise BlockingIOError
    except BlockingIOError:
        owner = _owner(path)
        os.close(descriptor)
        raise ConfigError(
            f"run folder {folder.path} is in use by pid {owner}; give another trial_name or stop it"
        ) from None
    except OSError:  # a file system without locks: as good as it gets
        pass
    os.ftruncate(descriptor, 0)
    os.write(descriptor, str(os.getpid()).encode())
    return descriptor


def _is_at(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(os.stat(path), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _owner(path: Path) -> str:
    try:
        return path.read_text() or "unknown"
    except OSError:
        return "unknown"
