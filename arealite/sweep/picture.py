"""One picture of a sweep: the metric's course for each setting, and where it ended."""

from __future__ import annotations

import io
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from arealite.sweep.table import Outcome, by_label
from arealite.telemetry.curves import DASHES, RUNS, new_figure, plain, style, titled


def picture(outcomes: Sequence[Outcome], metric: str) -> bytes:
    """A PNG. Left thin lines are seeds and thick ones their mean; right a dot is a seed."""
    groups = by_label(outcomes)
    figure = new_figure(13, 4.6 + 0.12 * len(groups))
    course, ends = figure.subplots(1, 2)
    style(course)
    style(ends)
    n = max(len(group) for group in groups.values())
    titled(course, plain(metric), "mean over the seeds" if n > 1 else "by version")
    titled(ends, "At the end", "a dot is a seed, the line their mean" if n > 1 else "")
    for i, (label, group) in enumerate(groups.items()):
        look = {
            "color": RUNS[i % len(RUNS)],
            "linestyle": DASHES[i // len(RUNS) % len(DASHES)],
        }
        _course(course, group, metric, plain(label or "as written"), look)
        _ends(ends, i, group, metric, look["color"])
    course.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
    ends.set_xlabel("")
    ends.set_xticks(range(len(groups)), [plain(label or "as written") for label in groups])
    if len(groups) > 3:
        for tick in ends.get_xticklabels():
            tick.set(rotation=30, ha="right", rotation_mode="anchor")
    ends.set_xlim(-0.6, len(groups) - 0.4)
    if course.get_legend_handles_labels()[0]:
        figure.legend(
            *course.get_legend_handles_labels(), loc="outside lower center", frameon=False,
            ncols=min(4, len(groups)), fontsize=9,
        )  # fmt: skip
    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=110)
    return out.getvalue()


def _course(axes: Any, group: Sequence[Outcome], metric: str, label: str, look: Any) -> None:
    at: defaultdict[int, list[float]] = defaultdict(list)
    for outcome in group:
        versions, values = outcome.values(metric)
        for version, value in zip(versions, values, strict=True):
            at[version].append(value)
        if len(group) > 1:
            axes.plot(versions, values, linewidth=0.8, alpha=0.4, **look)
    if at:
        versions = sorted(at)
        means = [sum(at[version]) / len(at[version]) for version in versions]
        single = "o" if len(versions) == 1 else None
        axes.plot(versions, means, linewidth=2, label=label, marker=single, **look)


def _ends(axes: Any, place: int, group: Sequence[Outcome], metric: str, colour: str) -> None:
    last = [values[-1] for outcome in group if (values := outcome.values(metric)[1])]
    if last:
        axes.plot([place] * len(last), last, "o", color=colour, alpha=0.7)
        axes.hlines(sum(last) / len(last), place - 0.25, place + 0.25, color=colour, linewidth=2)
