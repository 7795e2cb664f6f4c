"""The closing words of a run: did it learn, how fast, where everything is, and what it says now."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from typing import Any

from arealite.telemetry.metrics import load_metrics, series
from arealite.telemetry.run_folder import RunFolder, read_lines
from arealite.telemetry.status import read_status
from arealite.telemetry.view import View, clean, number, seconds, short

_WIDTH = 100
_TEXT = 600
_SAMPLES = 2

Row = Mapping[str, Any]


def summarise(run_folder: RunFolder) -> str:
    """Plain text of at most 100 columns (paths aside), from the files of the run alone."""
    rows = load_metrics(run_folder.metrics)
    status = read_status(run_folder)
    title = clean(f"{run_folder.experiment} / {run_folder.trial}")
    view = View(title, status, rows, number(status.get("time")) or 0.0)
    lines = [f"{view.title}: {view.phase}"]
    if view.error:
        lines += _entry("error", view.error)
    lines += _accuracies(view) + _figures(view)
    if view.alarms():
        lines += _entry("last alarm", view.alarms()[-1])
    lines.append(f"  {'run folder':<18}{run_folder.path}")
    if run_folder.curves.exists():
        lines.append(f"  {'curves':<18}{run_folder.curves}")
    lines += _samples(run_folder)
    return "\n".join(line.rstrip() for line in lines) + "\n"


def _entry(name: str, text: str) -> list[str]:
    first, rest = f"  {name:<18}", " " * 20
    return textwrap.wrap(text, _WIDTH, initial_indent=first, subsequent_indent=rest) or [first]


def _accuracies(view: View) -> list[str]:
    """Before and after per held-out set: eval/<set>/accuracy, /mean and /loss, as there are."""
    keys = {
        key
        for row in view.rows
        for key in row
        if key.startswith("eval/") and key.endswith(("/mean", "/accuracy", "/loss"))
    }
    lines = []
    for key in sorted(keys):
        versions, values = series(view.rows, key)
        if len(values) == 1:
            lines.append(f"  {key:<26}  {values[0]:.3f} at version {versions[0]}, not judged again")
        elif values:
            gain = values[-1] - values[0]
            times = f", {values[-1] / values[0]:.1f} times" if values[0] > 0 else ""
            lines.append(
                f"  {key:<26}  {values[0]:.3f} (version {versions[0]}) -> "
                f"{values[-1]:.3f} (version {versions[-1]}),  {gain:+.3f}{times}"
            )
    return lines or ["  no held-out evaluation"]


def _figures(view: View) -> list[str]:
    at = "-" if view.version is None else str(view.version)
    lines = _entry("versions", f"{at} of {view.total}" if view.total else at)
    lines += _entry("wall time", seconds(view.elapsed_s))
    samples = series(view.rows, "train/samples")[1]
    trained = [f"{sum(samples):.0f} samples"] if samples else []
    episodes = view.count("trained")
    if episodes is not None:
        trained.append(f"{episodes} episodes")
    lines += _entry("trained", ", ".join(trained) or "-")
    speeds = [
        f"{side} {short(sum(values) / len(values))}"
        for side, key in (("engine", "rollout"), ("trainer", "train"))
        if (values := series(view.rows, f"{key}/tokens_per_s")[1])
    ]
    lines += _entry("tokens/s, mean", ", ".join(speeds) or "-")
    worst = series(view.rows, "staleness/max")[1]
    return lines + _entry("worst staleness", f"{max(worst):.0f} versions" if worst else "-")


def _samples(run_folder: RunFolder) -> list[str]:
    """Two held-out rows, as they were answered at the first and the last evaluation."""
    first, last = _judged(run_folder)
    if not first:
        return []
    if not last:
        rows = sorted(first.items())[:_SAMPLES]
        return [line for name, row in rows for line in ["", f"row {name[1]}", *_answer(row)]]

    def gain(name: tuple[str, str]) -> tuple[float, int, tuple[str, str]]:
        """Most gained first; of those the shortest, since it will be read."""
        before, after = _first_sample(first[name]), _first_sample(last[name])
        length = len(str(before.get("text"))) + len(str(after.get("text")))
        return _reward(before) - _reward(after), length, name

    lines = []
    for name in sorted(first.keys() & last.keys(), key=gain)[:_SAMPLES]:
        lines += ["", clean(f"held-out row {name[1]}")[:_WIDTH]]
        prompt = last[name].get("prompt")
        if prompt:
            lines += _text("asked", str(prompt))
        lines += _answer(first[name]) + _answer(last[name])
    return lines


def _judged(run_folder: RunFolder) -> tuple[dict[tuple[str, str], Row], ...]:
    """(set, sample id) -> the line, at the first and at the last evaluated version.

    One pass that holds two versions at most, since the file may be long.
    """
    first: dict[tuple[str, str], Row] = {}
    last: dict[tuple[str, str], Row] = {}
    low = high = None
    for line in read_lines(run_folder.transcripts, containing=b'"fate":"evaluated"'):
        version = line.get("version")
        if line.get("fate") != "evaluated" or type(version) is not int or not _first_sample(line):
            continue
        name = (str(line.get("dataset", "")), str(line.get("sample_id")))
        if low is None or version < low:
            low, first = version, {}
        if high is None or version > high:
            high, last = version, {}
        if version == low:
            first[name] = line
        if version == high:
            last[name] = line
    return first, last if high != low else {}


def _first_sample(line: Row) -> Row:
    """The first trajectory: of several samples of a row none is picked for its reward."""
    found = line.get("trajectories")
    usable = isinstance(found, list) and found and isinstance(found[0], Mapping)
    return found[0] if usable else {}  # type: ignore[index]


def _reward(trajectory: Row) -> float:
    return number(trajectory.get("reward")) or 0.0


def _answer(line: Row) -> list[str]:
    trajectory = _first_sample(line)
    label = f"version {line['version']}, reward {_reward(trajectory):.2f}"
    return _text(label, str(trajectory.get("text") or "(no text)"))


def _text(label: str, text: str) -> list[str]:
    shown = clean(text)
    if len(shown) > _TEXT:
        # The answer stands at the end.
        shown = f"{shown[: _TEXT // 3]} [...] {shown[-2 * _TEXT // 3 :]}"
    return textwrap.wrap(
        shown, _WIDTH, initial_indent=f"  {label}: ", subsequent_indent="    "
    ) or [f"  {label}:"]
