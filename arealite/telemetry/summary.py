"""The closing words of a run: did it learn, how fast, where everything is, and what it says now."""

from __future__ import annotations

import textwrap

from arealite.telemetry.metrics import load_metrics, series
from arealite.telemetry.run_folder import RunFolder
from arealite.telemetry.samples import Sample, judged, most_gained
from arealite.telemetry.status import read_status
from arealite.telemetry.view import View, clean, number, seconds, short

_WIDTH = 100
_TEXT = 600
_SAMPLES = 2


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
    first, last = judged(run_folder)
    if not last:
        rows = sorted(first.items())[:_SAMPLES]
        return [line for name, row in rows for line in ["", f"row {name[1]}", *_answer(row)]]
    lines = []
    for name in most_gained(first, last, _SAMPLES):
        lines += ["", clean(f"held-out row {name[1]}")[:_WIDTH]]
        prompt = last[name].episode.get("prompt")
        if prompt:
            lines += _text("asked", str(prompt))
        lines += _answer(first[name]) + _answer(last[name])
    return lines


def _answer(sample: Sample) -> list[str]:
    label = f"version {sample.version}, reward {sample.reward or 0.0:.2f}"
    return _text(label, sample.text or "(no text)")


def _text(label: str, text: str) -> list[str]:
    shown = clean(text)
    if len(shown) > _TEXT:
        # The answer stands at the end.
        shown = f"{shown[: _TEXT // 3]} [...] {shown[-2 * _TEXT // 3 :]}"
    return textwrap.wrap(
        shown, _WIDTH, initial_indent=f"  {label}: ", subsequent_indent="    "
    ) or [f"  {label}:"]
