"""What a report says about a run, read from its folder."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from arealite.ledger.reading import Reading, read_ledger
from arealite.telemetry.curves import PARTS
from arealite.telemetry.metrics import is_trained, series
from arealite.telemetry.run_folder import RunFolder
from arealite.telemetry.samples import Name, Sample, judged, most_gained, read_samples
from arealite.telemetry.view import View, Watcher, clean, number

PAIRS = 4
"""Held-out rows that are shown as they were answered before and after."""


@dataclass(frozen=True, slots=True)
class RunFacts:
    """One run. settings: dotted keys of config.yaml, {} if it is absent or unreadable.

    lags: lag in versions -> sampled tokens of all trained episodes. answers: the held-out rows to
    show, as (before, after); after is None where there was one evaluation only. ledger: what
    ledger.jsonl says; None where there is none.
    """

    name: str
    folder: RunFolder
    view: View
    config: str
    settings: Mapping[str, str]
    lags: Mapping[int, int]
    answers: Sequence[tuple[Sample, Sample | None]]
    ledger: Reading | None

    @property
    def bound(self) -> float | None:
        """eta; None where it does not hold, as with rollout.late: keep."""
        if self.settings.get("rollout.late") == "keep":
            return None
        try:
            return number(float(self.settings.get("rollout.max_head_offpolicyness", "")))
        except ValueError:
            return None

    def time_split(self) -> dict[str, float]:
        """Part of the trainer's time -> seconds, from the first recorded version to the last."""
        rows = [row for row in self.view.rows if is_trained(row)]
        times = series(rows, "time")[1]
        parts = {label: sum(series(rows[1:], f"time/{key}_s")[1]) for key, label, _ in PARTS}
        rest = (times[-1] - times[0] if times else 0.0) - sum(parts.values())
        return {**parts, "else": max(0.0, rest)}


def facts_of(folders: Sequence[RunFolder]) -> list[RunFacts]:
    """Of each run; where two have one name, the path tells them apart."""
    names = [clean(f"{folder.experiment} / {folder.trial}") for folder in folders]
    count = Counter(names)
    return [
        _facts(folder, name if count[name] == 1 else clean(folder.path))
        for folder, name in zip(folders, names, strict=True)
    ]


def _facts(folder: RunFolder, name: str) -> RunFacts:
    text = _read(folder)
    return RunFacts(
        name, folder, Watcher(folder).look(), text, settings_of(text), _lags(folder),
        _answers(*judged(folder)), _ledger(folder),
    )  # fmt: skip


def _read(folder: RunFolder) -> str:
    try:
        return folder.config.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _ledger(folder: RunFolder) -> Reading | None:
    try:
        return read_ledger(folder.ledger)
    except OSError:
        return None


def settings_of(text: str) -> dict[str, str]:
    """The leaves of a YAML text under their dotted keys; {} where it is no mapping."""
    try:
        tree = yaml.safe_load(text)
    except yaml.YAMLError:
        return {}
    found: dict[str, str] = {}

    def walk(prefix: str, node: Any) -> None:
        if isinstance(node, Mapping) and node:
            for key, value in node.items():
                walk(f"{prefix}.{key}" if prefix else str(key), value)
        else:
            found[prefix] = "null" if node is None else str(node)

    if isinstance(tree, Mapping):
        walk("", tree)
    return found


def _lags(folder: RunFolder) -> Counter[int]:
    lags: Counter[int] = Counter()
    for sample in read_samples(folder, "trained"):
        for lag, count in sample.lags:
            lags[lag] += count
    return lags


def _answers(
    first: Mapping[Name, Sample], last: Mapping[Name, Sample]
) -> list[tuple[Sample, Sample | None]]:
    if not last:
        return [(first[name], None) for name in sorted(first)[:PAIRS]]
    return [(first[name], last[name]) for name in most_gained(first, last, PAIRS)]
