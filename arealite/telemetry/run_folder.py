"""The run folder: where every file of a run lies, and the only ways in which they are written.

    {fileroot}/{experiment_name}/{trial_name}/
        config.yaml  status.json  metrics.jsonl  transcripts.jsonl  quarantine.jsonl  ledger.jsonl
        checkpoints/<version>/  nonfinite/  logs/  curves.png  trace.json  summary.txt

It is a contract: people's scripts read it. Files of lines are UTF-8, one JSON object per line,
strictly valid (no NaN, no lone surrogate); a reader may meet a half-written last line.
"""

from __future__ import annotations

import json
import logging
import math
import os
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from arealite.errors import ConfigError

log = logging.getLogger("arealite.telemetry")


@dataclass(frozen=True, slots=True)
class RunFolder:
    """The paths of one run; nothing is touched until create()."""

    path: Path

    def __post_init__(self) -> None:
        object.__setattr__(self, "path", Path(self.path))

    @classmethod
    def of(cls, fileroot: str | Path, experiment_name: str, trial_name: str) -> RunFolder:
        """{fileroot}/{experiment_name}/{trial_name}; ConfigError if a name is not one folder."""
        for key, name in (("experiment_name", experiment_name), ("trial_name", trial_name)):
            if not name or name in (".", "..") or re.search(r"[/\\\0]", name):
                raise ConfigError(f"{key} is {name!r}, it must be the name of one folder")
        return cls(Path(fileroot).expanduser() / experiment_name / trial_name)

    @classmethod
    def existing(cls, path: str | Path) -> RunFolder:
        """The folder of a run that was started. Raises ConfigError where there is none."""
        found = Path(path).expanduser()
        folder = cls(found.resolve() if ".." in found.parts else found)  # for the run's name
        if folder.status.exists() or folder.metrics.exists():
            return folder
        if not folder.path.is_dir():
            raise ConfigError(f"{path} is not a folder; give a run folder, as runs/NAME/trial0")
        trials = sorted(status.parent.name for status in folder.path.glob("*/status.json"))
        hint = (
            f"give one of those in it: {', '.join(trials[:5])}"
            if trials
            else ("give a run folder, as runs/NAME/trial0")
        )
        raise ConfigError(f"{path} holds no run, neither status.json nor metrics.jsonl; {hint}")

    @property
    def experiment(self) -> str:
        return self.path.absolute().parent.name

    @property
    def trial(self) -> str:
        return self.path.absolute().name

    @property
    def config(self) -> Path:
        return self.path / "config.yaml"

    @property
    def status(self) -> Path:
        return self.path / "status.json"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def stall_report(self) -> Path:
        return self.path / "stall.txt"

    @property
    def transcripts(self) -> Path:
        return self.path / "transcripts.jsonl"

    @property
    def quarantine(self) -> Path:
        return self.path / "quarantine.jsonl"

    @property
    def ledger(self) -> Path:
        return self.path / "ledger.jsonl"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def nonfinite(self) -> Path:
        """Batches whose update was left out; absent while there are none."""
        return self.path / "nonfinite"

    @property
    def logs(self) -> Path:
        return self.path / "logs"

    @property
    def curves(self) -> Path:
        return self.path / "curves.png"

    @property
    def trace(self) -> Path:
        """Only where stats_logger.trace asks for it."""
        return self.path / "trace.json"

    @property
    def summary(self) -> Path:
        return self.path / "summary.txt"

    def create(self) -> RunFolder:
        """Makes the folder with checkpoints/ and logs/ if absent; what is there is kept."""
        try:
            for folder in (self.checkpoints, self.logs):
                folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"the run folder {self.path} cannot be made: {error}") from error
        return self

    def move_aside(self) -> Path:
        """Renames the folder to a free name and returns that; nothing is overwritten."""
        stem = f"{self.path.name}.{time.strftime('%Y%m%d-%H%M%S')}"
        aside, number = self.path.with_name(stem), 1
        while aside.exists():
            number += 1
            aside = self.path.with_name(f"{stem}.{number}")
        return self.path.rename(aside)


def write_atomically(path: str | Path, text: str | bytes, fsync: bool = False) -> None:
    """A reader sees the old file or the whole new one, never a part.

    fsync: also survive a power cut, at the price of some milliseconds. Raises OSError; then the
    old file is untouched and no temporary file is left.
    """
    path = Path(path)
    data = text if isinstance(text, bytes) else text.encode("utf-8", "backslashreplace")
    # The same folder, since a rename is atomic only inside one file system.
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            if fsync:
                file.flush()
                os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    if fsync:
        sync(path.parent)  # the new name itself


def sync(path: Path) -> None:
    """Brings a file, or the names in a folder, to the disk itself."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


# In a file of lines these three would look like line ends to str.splitlines(), and a lone
# surrogate has no UTF-8 form.
_UNSAFE = re.compile("[\x85\u2028\u2029\ud800-\udfff]")
_ESCAPED = {"\x85": "\\u0085", "\u2028": "\\u2028", "\u2029": "\\u2029"}
_MAX_DEPTH = 32
_encode = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode


def to_line(mapping: Mapping[str, Any]) -> bytes:
    """One line of strict JSON with its line end; it never raises.

    NaN and infinities become null, a lone surrogate becomes U+FFFD, a scalar of a numeric library
    its number, anything else that JSON lacks its str().
    """
    try:
        text = _encode(mapping)
    except (TypeError, ValueError, RecursionError):
        text = _encode(_plain(mapping))
    if not text.isascii():
        text = _UNSAFE.sub(lambda m: _ESCAPED.get(m[0], "\ufffd"), text)
    return text.encode() + b"\n"


def _plain(value: Any, depth: int = 0) -> Any:
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if depth < _MAX_DEPTH:
        if isinstance(value, Mapping):
            return {str(k): _plain(v, depth + 1) for k, v in value.items()}
        if isinstance(value, list | tuple | set | frozenset):
            return [_plain(v, depth + 1) for v in value]
        if getattr(value, "ndim", None) == 0:
            return _plain(value.item(), depth + 1)
    try:
        return str(value)[:1000]
    except Exception:  # a foreign __str__ may raise anything, and a report must not end a run
        return f"<{type(value).__name__}>"


def read_lines(path: str | Path, containing: bytes | None = None) -> Iterator[dict[str, Any]]:
    """The objects of a file of lines, in order; nothing if the file is absent.

    A line that is not a JSON object, such as the half-written one at the end, is skipped.
    containing: only lines with these bytes are parsed, which is many times faster on a long file.
    """
    try:
        file = open(path, "rb")  # noqa: SIM115  (closed below; absent is not an error)
    except FileNotFoundError:
        return
    with file:
        for line in file:
            if containing is None or containing in line:
                value = _parsed(line)
                if value is not None:
                    yield value


def _parsed(line: bytes) -> dict[str, Any] | None:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


class Tail:
    """Follows a growing file of lines: each call of new() gives what came since the last one."""

    def __init__(self, path: str | Path) -> None:
        self._path, self._offset, self._inode = Path(path), 0, -1
        self.generation = 0
        """Counts up whenever the file was replaced or cut, so that new() began at its start."""

    def new(self) -> list[dict[str, Any]]:
        """Whole new lines; a last line without its end waits for the next call."""
        try:
            with open(self._path, "rb") as file:
                found = os.fstat(file.fileno())
                if found.st_ino != self._inode or found.st_size < self._offset:
                    self._inode, self._offset = found.st_ino, 0
                    self.generation += 1
                file.seek(self._offset)
                data = file.read()
        except OSError:
            return []
        whole = data[: data.rfind(b"\n") + 1]
        self._offset += len(whole)
        return [v for line in whole.split(b"\n") if line and (v := _parsed(line)) is not None]


class JsonLines:
    """Appends one JSON line per mapping; thread-safe; a full disk never ends the caller.

    Lines are buffered for at most `flush_s` seconds (counted at the next write) or `flush_bytes`.
    When the disk refuses, `alarm` hears one sentence, `failures` counts, the lines wait in memory
    up to `keep_bytes` and are tried again with every later flush; beyond that the newest are given
    up and counted in `lost`. A line is never torn by a retry: it goes on at the byte where it
    stopped.
    """

    def __init__(
        self,
        path: str | Path,
        alarm: Callable[[str], None] | None = None,
        *,
        flush_s: float = 1.0,
        flush_bytes: int = 1 << 16,
        keep_bytes: int = 1 << 24,
    ) -> None:
        self.path = Path(path)
        self.failures = 0
        self.lost = 0
        self._alarm = alarm or log.warning
        self._flush_s, self._flush_bytes, self._keep_bytes = flush_s, flush_bytes, keep_bytes
        self._pending = bytearray()
        self._file: int | None = None
        self._was_open = False
        self._flushed_at = time.monotonic()
        self._lock = threading.Lock()

    def write(self, mapping: Mapping[str, Any]) -> None:
        """Takes one line; never raises for what the disk or the values do."""
        self.append(to_line(mapping))

    def append(self, line: bytes) -> None:
        """Takes one line that is made already, with its line end; never raises for the disk."""
        with self._lock:
            full = self._pending and len(self._pending) + len(line) > self._keep_bytes
            if full:
                self.lost += 1
            else:
                self._pending += line
            trouble = self._flush_if_due()
        self._report(trouble)

    def flush(self) -> None:
        """Hands all lines to the operating system."""
        with self._lock:
            trouble = self._flush()
        self._report(trouble)

    def position(self) -> int:
        """Bytes of the file once all lines taken so far are in it."""
        self.flush()
        with self._lock:
            try:
                size = os.stat(self.path).st_size
            except OSError:
                size = 0
            return size + len(self._pending)

    def replaced(self) -> None:
        """Another file has taken the place of this one, and says all that was to be written."""
        with self._lock:
            self._pending.clear()
            self._shut()

    def close(self) -> None:
        """Flushes and closes; a later write opens the file again."""
        with self._lock:
            trouble = self._flush()
            self._shut()
        self._report(trouble)

    def _shut(self) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def _flush_if_due(self) -> OSError | None:
        late = time.monotonic() - self._flushed_at >= self._flush_s
        if late or (len(self._pending) >= self._flush_bytes and not self.failures):
            return self._flush()
        return None

    def _flush(self) -> OSError | None:
        self._flushed_at = time.monotonic()
        try:
            if self._pending and self._file is None:
                self._file = self._opened()
            while self._pending and self._file is not None:
                del self._pending[: os.write(self._file, self._pending)]
        except OSError as error:
            self.failures += 1
            return error
        return None

    def _opened(self) -> int:
        """The file at its end; a half line left there by a crash is ended first."""
        again, self._was_open = self._was_open, True
        file = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
        size = os.fstat(file).st_size
        if not again and size and os.pread(file, 1, size - 1) != b"\n":
            self._pending[:0] = b"\n"
        return file

    def _report(self, trouble: OSError | None) -> None:
        # Outside the lock: the alarm may itself write to a file of this class.
        if trouble is not None and self.failures == 1:
            self._alarm(
                f"{self.path.name} cannot be written ({trouble.strerror or trouble}); "
                "the run goes on and the lines are tried again"
            )
