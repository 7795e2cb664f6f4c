"""What a run folder says about its run, read again and again: the model behind every live view.

Only files are read, so the same view serves the launcher, another terminal and a finished run.
Anything may be absent or half-written; then it is None and the view says less.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from arealite.telemetry.metrics import Merged, evaluation_keys, is_trained, series
from arealite.telemetry.run_folder import RunFolder, Tail
from arealite.telemetry.status import FINAL_PHASES, read_status

_SILENT_S = 15.0
_ETA_VERSIONS = 20

Row = Mapping[str, Any]


def number(value: object) -> float | None:
    """The value if it is a finite number."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return float(value) if math.isfinite(value) else None
    except OverflowError:
        return None


def clean(text: object) -> str:
    """Text that came from anywhere, on one line and without what would steer a terminal."""
    return " ".join("".join(c if c.isprintable() else " " for c in str(text)).split())


def harmless(text: str) -> str:
    """The same text with its lines, where all else that would steer a terminal is spelled out."""
    lines = text.replace("\r\n", "\n").replace("\t", "    ").split("\n")
    return "\n".join("".join(c if c.isprintable() else _spelled(c) for c in x) for x in lines)


def _spelled(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")


@dataclass(frozen=True, slots=True)
class Evaluated:
    """One held-out set: the metric's key, the versions judged and the value of each."""

    name: str
    key: str
    versions: Sequence[int]
    values: Sequence[float]


@dataclass(frozen=True, slots=True)
class View:
    """One look at a run. rows: metrics merged by version. now: unix seconds."""

    title: str
    status: Mapping[str, Any]
    rows: Sequence[Row]
    now: float

    @property
    def phase(self) -> str:
        return clean(self.status.get("phase") or "no status yet")

    @property
    def finished(self) -> bool:
        return self.phase in FINAL_PHASES

    @property
    def version(self) -> int | None:
        """The newest published version."""
        told = number(self.status.get("version"))
        if told is not None:
            return int(told)
        return self.newest.get("version")

    @property
    def newest(self) -> Row:
        """The metrics of the newest trained version."""
        return next((row for row in reversed(self.rows) if is_trained(row)), {})

    @property
    def total(self) -> int | None:
        told = number(self.status.get("total_versions"))
        return int(told) if told and told > 0 else None

    @property
    def elapsed_s(self) -> float | None:
        started, written = number(self.status.get("started")), number(self.status.get("time"))
        if started is None:
            return None
        end = written if self.finished and written is not None else self.now
        return max(0.0, end - started)

    @property
    def eta_s(self) -> float | None:
        """Seconds to the end: as the run says, else from the pace of the last versions."""
        if self.finished:
            return None
        told = number(self.status.get("eta_s"))
        if told is not None:
            return max(0.0, told)
        versions, times = series([row for row in self.rows if is_trained(row)], "time")
        if self.total is None or self.version is None or len(versions) < 2:
            return None
        back = max(0, len(versions) - 1 - _ETA_VERSIONS)
        done = versions[-1] - versions[back]
        pace = (times[-1] - times[back]) / done if done else 0.0
        left = (self.total - self.version) * pace
        return max(0.0, left - max(0.0, self.now - times[-1])) if pace > 0 else None

    @property
    def age_s(self) -> float | None:
        """Seconds since the last heartbeat."""
        written = number(self.status.get("time"))
        return None if written is None else self.now - written

    @property
    def is_silent(self) -> bool:
        """Without a heartbeat for long enough to mean a dead run, or one that still prepares."""
        return not self.finished and (self.age_s is None or self.age_s >= _SILENT_S)

    @property
    def silent_s(self) -> float | None:
        """Seconds without a heartbeat, once that is long enough to mean a dead run."""
        return self.age_s if self.is_silent and self.phase != "preparing" else None

    def last(self, key: str) -> float | None:
        """The newest value of a metric."""
        for row in reversed(self.rows):
            value = number(row.get(key))
            if value is not None:
                return value
        metrics = self.status.get("metrics")
        return number(metrics.get(key)) if isinstance(metrics, Mapping) else None

    def count(self, name: str) -> int | None:
        """A count: from the heartbeat, else from the metrics."""
        counts = self.status.get("counts")
        found = number(counts.get(name)) if isinstance(counts, Mapping) else None
        found = self.last(f"counts/{name}") if found is None else found
        return None if found is None else int(found)

    def evaluations(self) -> list[Evaluated]:
        keys = evaluation_keys(self.rows)
        return [Evaluated(name, key, *series(self.rows, key)) for name, key in keys.items()]

    def waits(self) -> list[str]:
        """`engine :41233, a reply, 0.3 s (64 times)`, in the order of status.json."""
        told = self.status.get("waiting_for")
        lines = []
        for wait in told if isinstance(told, list) else []:
            if isinstance(wait, Mapping):
                count = number(wait.get("count")) or 1
                times = f" ({count:.0f} times)" if count > 1 else ""
                age = seconds(number(wait.get("seconds")))
                lines.append(clean(f"{wait.get('owner')}, {wait.get('what')}, {age}{times}"))
        return lines

    def alarms(self) -> list[str]:
        told = self.status.get("alarms")
        found = [a for a in told if isinstance(a, Mapping)] if isinstance(told, list) else []
        return [clean(alarm.get("text")) for alarm in found]

    @property
    def error(self) -> str:
        """The sentence that ended the run, or nothing."""
        return clean(self.status.get("error") or "")


class Watcher:
    """Looks at a run folder; cheap enough for several times a second."""

    def __init__(self, run_folder: RunFolder) -> None:
        self._folder = run_folder
        self._tail = Tail(run_folder.metrics)
        self._merged = Merged()
        self._rows: list[dict[str, Any]] = []
        self._generation = self._tail.generation

    def look(self) -> View:
        lines = self._tail.new()
        if self._tail.generation != self._generation:  # another file now: the old rows are void
            self._generation, self._merged, self._rows = self._tail.generation, Merged(), []
        if lines:
            self._merged.add(lines)
            self._rows = self._merged.rows()
        title = clean(f"{self._folder.experiment} / {self._folder.trial}")
        return View(title, read_status(self._folder), self._rows, time.time())


def seconds(value: float | None) -> str:
    """0.3 s, 42 s, 4 min, 2.1 h."""
    if value is None:
        return "-"
    for limit, unit, form in (
        (9.95, 1, "{:.1f} s"),
        (99.5, 1, "{:.0f} s"),
        (5970, 60, "{:.0f} min"),
    ):
        if value < limit:
            return form.format(value / unit)
    return f"{value / 3600:.1f} h"


def short(value: float | None) -> str:
    """980, 6.1k, 2.3M."""
    if value is None:
        return "-"
    for limit, unit, letter in ((999.5, 1, ""), (999.5e3, 1e3, "k"), (999.5e6, 1e6, "M")):
        if abs(value) < limit:
            scaled = value / unit
            return (
                f"{scaled:.1f}{letter}"
                if letter and abs(scaled) < 99.5
                else f"{scaled:.0f}{letter}"
            )
    return f"{value:.2g}"


def fixed(value: float | None, digits: int = 2) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def sparkline(values: Sequence[float], width: int, marks: str = "▁▂▃▄▅▆▇█") -> str:
    """The whole course in at most `width` characters, each the mean of its stretch."""
    if not values or width < 1:
        return ""
    n = min(width, len(values))
    cuts = [round(i * len(values) / n) for i in range(n + 1)]
    means = [sum(values[a:b]) / (b - a) for a, b in pairwise(cuts)]
    low, high = min(means), max(means)
    scale = (len(marks) - 1) / (high - low) if high > low else 0.0
    return "".join(marks[round((mean - low) * scale)] for mean in means)
