"""trace.json: what ran when, for https://ui.perfetto.dev and chrome://tracing.

Spans in the JSON array form of Chrome's Trace Event Format, in microseconds of unix time. Each
start of the run has processes of its own in the picture:

    trainer      a span per version, and inside it what the trainer did: a batch waited for, update,
                 export, publishing, copying a checkpoint, waiting for an evaluation
    episodes, held-out episodes, rewards, evaluations, checkpoints
    server ...   requests, those that publish weights among them
    queue        requests that wait for a server that serves

They are told by the waits (telemetry/waits) and, for work that is no wait, by span(). What overlaps
stands in lanes beside each other, so that the spans of a lane nest. `args` say the version that was
published when a span began, and the row. The file is strict JSON after every write, also when the
run is killed; at MOST_BYTES it is full, and only the trainer's own spans go on.
"""

from __future__ import annotations

import os
import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

from arealite.telemetry.pace import bound_by
from arealite.telemetry.quarantine import SAMPLE_ID
from arealite.telemetry.run_folder import to_line
from arealite.telemetry.view import number
from arealite.telemetry.waits import Wait

MOST_BYTES = 64 << 20
"""Some 400,000 spans; the trainer's own may take a quarter more."""
MOST_LANES = 256
"""Spans of one process side by side; what overlaps more of them is left out."""
FLUSH_S, FLUSH_BYTES = 1.0, 1 << 16

TRAINER = "trainer"
_END = b"\n]\n"
_NOTHING = nullcontext()
_SHOWN = ("share/", "reward/mean", "staleness/", "rollout/tokens_per_s")
_COUNTERS = {
    "episodes": ("counts/in_flight", "counts/buffered"),
    "server requests": ("engine/running", "engine/waiting"),
}

_current: Trace | None = None


def span(name: str, process: str = TRAINER) -> AbstractContextManager[None]:
    """`with span("update"): ...`: of the run's trace, where it has one. Costs nothing without."""
    return _NOTHING if _current is None else _current.span(name, process)


class Trace:
    """One start of a run. Thread-safe; a disk that refuses costs one alarm and the rest of it.

    clock: monotonic seconds, that of the waits.
    """

    def __init__(
        self,
        path: Path,
        alarm: Callable[[str], None],
        version: int = 0,
        *,
        clock: Callable[[], float] = time.monotonic,
        most_bytes: int = MOST_BYTES,
    ) -> None:
        self._path, self._clock, self._alarm, self._most_bytes = path, clock, alarm, most_bytes
        self._offset = time.time() - clock()
        self._versions = deque([(0.0, version)], maxlen=1024)
        self._began = clock()
        self._is_first = True
        self._lanes: defaultdict[str, list[float]] = defaultdict(list)  # the end of each
        self._processes: dict[str, int] = {}
        self._labelled: set[tuple[str, int]] = set()
        self._pending: list[bytes] = []
        self._pending_bytes, self._flushed = 0, clock()
        self._is_full = False
        self.left_out = 0
        """Spans for which there was no room."""
        self._lock = threading.Lock()
        self._file: _Events | None = None
        self._is_closed = False

    def install(self) -> None:
        """From now on span() tells this one."""
        global _current
        _current = self

    def waited(self, wait: Wait) -> None:
        """A wait has ended: see waits.Waits."""
        told = _span_of(wait.owner, wait.what)
        if told is not None:
            self._add(*told, wait.since, self._clock())

    @contextmanager
    def span(self, name: str, process: str = TRAINER) -> Iterator[None]:
        """What the block does is a span; it is one also where the block raises."""
        began = self._clock()
        try:
            yield
        finally:
            self._add(process, name, began, self._clock())

    def told(self, version: int, metrics: Mapping[str, Any]) -> None:
        """This version is made, with these metrics; its span began with the version before."""
        now = self._clock()
        name = f"start, version {version}" if self._is_first else f"version {version}"
        args = {key: value for key, value in metrics.items() if key.startswith(_SHOWN)}
        args |= {"version": version, "bound by": bound_by(metrics)}
        with self._lock:
            pid = self._process(TRAINER)
            self._label(TRAINER, 1)
            self._write(self._event(name, "version", self._began, now, pid, 1, args), True)
            for counter, keys in _COUNTERS.items():
                found = {k.partition("/")[2]: number(metrics.get(k)) for k in keys}
                values = {key: value for key, value in found.items() if value is not None}
                if values:
                    event = {"name": counter, "ph": "C", "ts": self._at(now), "pid": pid}
                    self._write({**event, "args": values}, True)
            self._began, self._is_first = now, False
            self._versions.append((now, version))
            self._flush()

    def close(self) -> None:
        global _current
        if _current is self:
            _current = None
        with self._lock:
            self._flush()
            self._end()

    def _add(self, process: str, name: str, began: float, ended: float) -> None:
        with self._lock:
            if self._is_closed:
                return
            lane = self._lane(process, began, ended)
            version = next((v for at, v in reversed(self._versions) if at <= began), None)
            row = None if process == TRAINER else SAMPLE_ID.get()
            args = {"version": version, "row": row}
            if lane is None or (self._is_full and process != TRAINER):
                self.left_out += 1
                return
            pid = self._process(process)
            self._label(process, lane)
            told = {key: value for key, value in args.items() if value is not None}
            event = self._event(name, process, began, ended, pid, lane, told)
            self._write(event, process == TRAINER)
            late = self._clock() - self._flushed >= FLUSH_S
            if late or self._pending_bytes >= FLUSH_BYTES:
                self._flush()

    def _lane(self, process: str, began: float, ended: float) -> int | None:
        """The first lane, counted from 1, whose spans have all ended; None: there are too many."""
        lanes = self._lanes[process]
        for index, end in enumerate(lanes):
            if end <= began:
                lanes[index] = ended
                return index + 1
        if len(lanes) >= MOST_LANES:
            return None
        lanes.append(ended)
        return len(lanes)

    def _process(self, name: str) -> int:
        """Its number in the file, which no other start of the run has."""
        pid = self._processes.get(name)
        if pid is None:
            index = len(self._processes)
            pid = self._processes[name] = os.getpid() * 256 + index
            self._write(_named("process_name", name, pid), True)
            sort = {"name": "process_sort_index", "ph": "M", "pid": pid}
            self._write({**sort, "args": {"sort_index": index}}, True)
        return pid

    def _label(self, process: str, lane: int) -> None:
        if (process, lane) not in self._labelled:
            self._labelled.add((process, lane))
            label = process if lane == 1 else f"{process} {lane}"
            self._write(_named("thread_name", label, self._process(process), lane), True)

    def _event(
        self,
        name: str,
        category: str,
        began: float,
        ended: float,
        pid: int,
        tid: int,
        args: Mapping[str, Any],
    ) -> dict[str, Any]:
        at, end = self._at(began), self._at(ended)
        return {
            "name": name, "cat": category, "ph": "X", "ts": at, "dur": max(0, end - at),
            "pid": pid, "tid": tid, "args": args,
        }  # fmt: skip

    def _at(self, moment: float) -> int:
        return round((moment + self._offset) * 1e6)

    def _write(self, event: Mapping[str, Any], is_trainers: bool) -> None:
        if self._is_closed:
            return
        line = to_line(event)[:-1]
        written = 0 if self._file is None else self._file.size
        size = written + self._pending_bytes + len(line)
        if size > (self._most_bytes * 5 // 4 if is_trainers else self._most_bytes):
            self.left_out += 1
            if not self._is_full:
                self._is_full = True
                self._alarm(
                    f"trace.json is full ({self._most_bytes >> 20} MB): from here on it has the "
                    "trainer's spans alone"
                )
            return
        self._pending.append(line)
        self._pending_bytes += len(line) + 2

    def _flush(self) -> None:
        self._flushed = self._clock()
        if self._is_closed or not self._pending:
            return
        try:
            self._file = self._file or _Events(self._path)
            self._file.append(self._pending)
        except OSError as error:
            self._end()
            self._alarm(f"trace.json cannot be written ({error.strerror or error}); it ends here")
        self._pending, self._pending_bytes = [], 0

    def _end(self) -> None:
        self._is_closed = True
        if self._file is not None:
            self._file.close()
        self._file = None


class _Events:
    """The file: an array that is closed after every write."""

    def __init__(self, path: Path) -> None:
        """Goes on behind the last whole event of what is there. Raises OSError."""
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        there = os.fstat(self._file).st_size
        tail_at = max(0, there - 2 * FLUSH_BYTES)
        tail = os.pread(self._file, there - tail_at, tail_at)
        if tail.endswith(_END):
            self.size = there - len(_END)
        else:  # a crash of the machine: what was being written is cut off
            self.size = tail_at + max(tail.rfind(b",\n"), 0)
        if self.size <= 1:
            self.size = 1
            os.ftruncate(self._file, 0)
            os.pwrite(self._file, b"[" + _END, 0)

    def append(self, events: list[bytes]) -> None:
        """Raises OSError; what was there before is then still whole, but for its end."""
        text = (b"\n" if self.size == 1 else b",\n") + b",\n".join(events)
        os.pwrite(self._file, text + _END, self.size)  # one call: a kill does not fall inside
        self.size += len(text)
        os.ftruncate(self._file, self.size + len(_END))

    def close(self) -> None:
        os.close(self._file)


def _span_of(owner: str, what: str) -> tuple[str, str] | None:
    """(process, name) of a wait; None where it is not drawn."""
    kind = owner.partition(" ")[0]
    if kind == "server":  # signs of life and counters are asked all the time
        return None if what.startswith("GET ") else (owner, what)
    if kind == "reward":
        return "rewards", owner.removeprefix("reward function ")
    if owner == "workflow":
        names = {"an episode": "episodes", "a held-out episode": "held-out episodes"}
        return names.get(what, "evaluations"), what
    if owner == "the servers":
        return "queue", what
    trainers = {"rollouts": "wait for", "engines": "publish", "disk": "wait for"}
    return (TRAINER, f"{trainers[owner]} {what}") if owner in trainers else None


def _named(kind: str, name: str, pid: int, tid: int | None = None) -> dict[str, Any]:
    lane = {} if tid is None else {"tid": tid}
    return {"name": kind, "ph": "M", "pid": pid, **lane, "args": {"name": name}}
