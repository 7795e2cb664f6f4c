"""What came out of the trials, read from their run folders: one table, as text and as CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from arealite.sweep.grid import Trial
from arealite.telemetry.metrics import evaluation_keys, load_metrics, series
from arealite.telemetry.run_folder import RunFolder
from arealite.telemetry.status import read_status
from arealite.telemetry.view import number


@dataclass(frozen=True)
class Outcome:
    """One trial and what is in its folder now. state: done, failed, not begun, ..."""

    trial: Trial
    folder: RunFolder
    state: str
    rows: Sequence[Mapping[str, Any]]
    minutes: float | None

    def values(self, metric: str) -> tuple[list[int], list[float]]:
        return series(self.rows, metric)


def outcome_of(trial: Trial, folder: RunFolder) -> Outcome:
    status = read_status(folder)
    began, ended = number(status.get("started")), number(status.get("time"))
    minutes = None if began is None or ended is None else (ended - began) / 60
    state = str(status.get("phase", "not begun"))
    return Outcome(trial, folder, state, load_metrics(folder.metrics), minutes)


def metric_of(outcomes: Sequence[Outcome], asked: str = "") -> str:
    """The one that is asked for; else the held-out set's, its loss, or the batch's reward."""
    if asked:
        return asked
    rows = [row for outcome in outcomes for row in outcome.rows]
    found = next(iter(evaluation_keys(rows).values()), "")
    if found:
        return found
    has_loss = any("eval/valid/loss" in row for row in rows)
    return "eval/valid/loss" if has_loss else "reward/mean"


def by_label(outcomes: Sequence[Outcome]) -> dict[str, list[Outcome]]:
    """The trials of each setting, which differ in their seeds alone."""
    groups: dict[str, list[Outcome]] = {}
    for outcome in outcomes:
        groups.setdefault(outcome.trial.label, []).append(outcome)
    return groups


def as_text(outcomes: Sequence[Outcome], metric: str) -> str:
    """A line per setting: the metric at first and at last, means over its seeds, with the lowest
    and the highest last."""
    head = ["setting", "seeds", "first", "last", "lowest", "highest", "minutes", "state"]
    lines = [head]
    for label, group in by_label(outcomes).items():
        found = [values for o in group if (values := o.values(metric)[1])]
        first, last = [v[0] for v in found], [v[-1] for v in found]
        states = dict.fromkeys(o.state for o in group)
        lines.append([
            label or "as written",
            str(len(group)),
            _mean(first),
            _mean(last),
            _shown(min(last, default=None)),
            _shown(max(last, default=None)),
            _shown(sum(o.minutes or 0.0 for o in group), 1),
            ", ".join(f"{sum(o.state == s for o in group)} {s}" for s in states),
        ])  # fmt: skip
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
    text = [
        "  ".join(cell.ljust(w) if i in (0, 7) else cell.rjust(w)
                  for i, (cell, w) in enumerate(zip(line, widths, strict=True))).rstrip()
        for line in lines
    ]  # fmt: skip
    return "\n".join([metric, *text]) + "\n"


def as_csv(outcomes: Sequence[Outcome], metric: str) -> str:
    """A line per trial."""
    keys = [key for key, _ in outcomes[0].trial.settings] if outcomes else []
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    more = ["trial", "state", "version", f"{metric} first", f"{metric} last", "minutes"]
    writer.writerow([*keys, "seed", *more])
    for outcome in outcomes:
        versions, values = outcome.values(metric)
        ends = [versions[-1], values[0], values[-1]] if values else ["", "", ""]
        minutes = "" if outcome.minutes is None else round(outcome.minutes, 2)
        settings = [value for _, value in outcome.trial.settings]
        trial = outcome.trial
        writer.writerow([*settings, trial.seed or "", trial.name, outcome.state, *ends, minutes])
    return out.getvalue()


def _mean(values: Sequence[float]) -> str:
    return _shown(sum(values) / len(values) if values else None)


def _shown(value: float | None, digits: int = 3) -> str:
    return "-" if value is None else f"{value:.{digits}f}"
