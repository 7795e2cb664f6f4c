"""metrics.jsonl: one flat JSON line per version, and copies of it for trackers.

    {"version": 12, "time": 1700000000.123, "reward/mean": 0.41, ...}

`time` is in unix seconds. Numbers that come later for the same version, such as an evaluation
that ends two versions on, are a further line with that version; load_metrics() merges them. A
number that is not finite is written as null, and the line names it in `nonfinite`, a text such as
"loss/policy=nan loss/kl=inf". A run that resumes from version v writes a line with `resumed: 1`;
what an earlier life wrote beyond v then no longer counts.

`counts/*` are totals since the start of the run, but for in_flight and buffered, which are the
state at that moment.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from arealite.telemetry.run_folder import JsonLines, RunFolder, read_lines
from arealite.telemetry.trackers import Sink, tensorboard_sink, wandb_sink

__all__ = [
    "Merged",
    "Recorder",
    "Sink",
    "evaluation_keys",
    "is_trained",
    "load_metrics",
    "series",
    "tensorboard_sink",
    "wandb_sink",
]

_OF_NO_STEP = ("version", "time", "nonfinite")

log = logging.getLogger("arealite.telemetry")


class Recorder:
    """Writes metrics.jsonl always, and each sink as well as it goes; never raises for either."""

    def __init__(
        self,
        run_folder: RunFolder,
        sinks: Iterable[Sink] = (),
        *,
        alarm: Callable[[str], None] | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._alarm = alarm or log.warning
        self._lines = JsonLines(run_folder.metrics, self._alarm)
        self._sinks = tuple(sinks)
        self._clock = clock
        self._told: set[str] = set()

    def record(self, version: int, metrics: Mapping[str, Any]) -> None:
        """Takes the numbers of one version (a scalar tensor counts as its number)."""
        numbers, odd = self._numbers(metrics)
        line: dict[str, Any] = {"version": int(version), "time": round(self._clock(), 3)}
        line.update(numbers)
        if odd:
            line.update(dict.fromkeys(odd))
            line["nonfinite"] = " ".join(f"{key}={value}" for key, value in odd.items())
        self._lines.write(line)
        self._lines.flush()
        for sink in self._sinks:
            try:
                sink.log(int(version), numbers)
            except Exception as error:  # a tracker is foreign code and must not end training
                self._tell_once(f"{type(sink).__name__} failed: {error}; metrics.jsonl is complete")

    def position(self) -> int:
        """Bytes of metrics.jsonl once all lines taken so far are in it."""
        return self._lines.position()

    def resumed(self, version: int) -> None:
        """Says that the run goes on from `version`: later lines of an earlier life are void."""
        self.record(version, {"resumed": 1})

    def close(self) -> None:
        self._lines.close()
        for sink in self._sinks:
            try:
                sink.close()
            except Exception as error:  # as above
                self._tell_once(f"{type(sink).__name__} failed to close: {error}")

    def __enter__(self) -> Recorder:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _numbers(self, metrics: Mapping[str, Any]) -> tuple[dict[str, float], dict[str, float]]:
        """The finite numbers, and the others."""
        finite: dict[str, float] = {}
        odd: dict[str, float] = {}
        for key, value in metrics.items():
            if key in _OF_NO_STEP:
                continue
            try:
                number = value if type(value) is int else float(value)
            except (TypeError, ValueError, RuntimeError, OverflowError):
                self._tell_once(f"the metric {key} is not a number ({type(value).__name__})")
                continue
            # A Python int may exceed every float; it is finite all the same.
            target = finite if type(number) is int or math.isfinite(number) else odd
            target[str(key)] = number
        return finite, odd

    def _tell_once(self, sentence: str) -> None:
        if sentence not in self._told:
            self._told.add(sentence)
            self._alarm(sentence)


def is_trained(row: Mapping[str, Any]) -> bool:
    """False for a version of which only evaluations are known."""
    return any(key not in _OF_NO_STEP and not key.startswith("eval/") for key in row)


class Merged:
    """Merges lines by version as they come: add() lines, read rows(). Unknown keys are kept."""

    def __init__(self) -> None:
        self._rows: dict[int, dict[str, Any]] = {}

    def add(self, lines: Iterable[Mapping[str, Any]]) -> None:
        for line in lines:
            version = line.get("version")
            if type(version) is not int:
                continue
            if line.get("resumed"):
                self._rows = {v: row for v, row in self._rows.items() if v <= version}
                self._rows.setdefault(version, {"version": version})
                continue
            row = self._rows.setdefault(version, {"version": version})
            # The time of a version is when it was trained, not when its evaluation ended.
            at = row["time"] if "time" in row and not is_trained(line) else line.get("time")
            row.update(line)
            row["time"] = at

    def rows(self) -> list[dict[str, Any]]:
        return [self._rows[version] for version in sorted(self._rows)]


def load_metrics(path: str | Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl merged by version, in order of version; [] if absent."""
    merged = Merged()
    merged.add(read_lines(path))
    return merged.rows()


def series(rows: Sequence[Mapping[str, Any]], key: str) -> tuple[list[int], list[float]]:
    """(versions, values) of one key where it is a finite number."""
    points = [
        (row["version"], float(row[key]))
        for row in rows
        if isinstance(row.get(key), int | float) and math.isfinite(row[key])
    ]
    return [v for v, _ in points], [x for _, x in points]


def evaluation_keys(rows: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    """Held-out set -> the key that says how good it is: eval/<set>/accuracy, else .../mean."""
    found: dict[str, str] = {}
    for row in rows:
        for key in row:
            parts = key.split("/")
            if len(parts) >= 3 and parts[0] == "eval":
                name = "/".join(parts[1:-1])
                if parts[-1] == "accuracy" or (parts[-1] == "mean" and name not in found):
                    found[name] = key
    return found
