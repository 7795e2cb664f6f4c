"""curves.png: a run in six pictures, each title saying what is good.

matplotlib's object interface with the Agg canvas: no display, no global state, any thread.
Colours are Okabe and Ito's, which stay apart for colour-blind eyes; lines differ in dashes too.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from arealite.telemetry.metrics import evaluation_keys, load_metrics, series
from arealite.telemetry.run_folder import RunFolder
from arealite.telemetry.view import clean

BLUE, ORANGE, GREEN, RED, PURPLE, SKY, GREY = (
    "#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#777777",
)  # fmt: skip
RUNS = (BLUE, ORANGE, GREEN, RED, PURPLE, SKY, GREY)
"""What is compared, one after another; then again in the next of DASHES."""
DASHES = ("-", "--", "-.", ":")
_SETS = (RED, GREEN, PURPLE, ORANGE)
PARTS = (
    ("wait_batch", "waiting for samples", SKY),
    ("annotate", "annotating", ORANGE),
    ("update", "updating", BLUE),
    ("publish", "publishing", GREEN),
)

Rows = Sequence[Mapping[str, Any]]
Drawer = Callable[[Any, Rows], bool]
"""Draws one panel; False when its keys are absent."""


def draw_curves(run_folder: RunFolder, staleness_bound: float | None = None) -> Path | None:
    """Draws curves.png atomically and returns its path; None when there is nothing to draw.

    staleness_bound: eta, in versions, drawn as a line. Costs one to two seconds of one core.
    Raises OSError when the picture cannot be written.
    """
    rows = load_metrics(run_folder.metrics)
    if not rows:
        return None
    figure = curves_figure(f"{run_folder.experiment} / {run_folder.trial}", rows, staleness_bound)
    temporary = run_folder.curves.with_name(f".curves.{os.getpid()}.png")
    try:
        figure.savefig(temporary, dpi=110)
        os.replace(temporary, run_folder.curves)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
    return run_folder.curves


def curves_figure(title: str, rows: Rows, staleness_bound: float | None = None) -> Any:
    """The six pictures of one run as a matplotlib Figure. staleness_bound: as in draw_curves."""
    figure = new_figure(15, 8.8)
    figure.suptitle(plain(title), fontweight="bold", fontsize=14)
    drawers: tuple[Drawer, ...] = (
        _learning,
        partial(_staleness, bound=staleness_bound),
        _lengths,
        _entropy,
        _speeds,
        _times,
    )
    for axes, draw in zip(figure.subplots(2, 3).flat, drawers, strict=True):
        style(axes)
        _finish(axes, draw(axes, rows))
    return figure


def new_figure(width: float, height: float) -> Any:
    """A matplotlib Figure of that many inches, without a display or global state."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height))
    figure.set_layout_engine("constrained", w_pad=0.12, h_pad=0.1)
    FigureCanvasAgg(figure)
    return figure


def plain(text: str) -> str:
    """A name from outside as matplotlib shows it unchanged: a pair of $ would be a formula."""
    return clean(text).replace("$", r"\$")


def style(axes: Any) -> None:
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    axes.grid(True, axis="y", color="#dddddd", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.set_xlabel("version", fontsize=9, labelpad=1)


def _finish(axes: Any, found: bool) -> None:
    if not found:
        axes.text(0.5, 0.5, "no data", transform=axes.transAxes, ha="center", va="center",
                  color=GREY, fontsize=13)  # fmt: skip
        axes.set_xticks([])
        axes.set_yticks([])
        return
    axes.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
    lines = axes.get_legend_handles_labels()[0]
    if len(lines) > 1:
        # Under the axes, where it can cover nothing.
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.13), ncols=min(4, len(lines)),
                    frameon=False, fontsize=9, columnspacing=1.4)  # fmt: skip


def titled(axes: Any, what: str, good: str) -> None:
    axes.set_title(what, loc="left", fontweight="bold", fontsize=11, pad=20)
    axes.text(0, 1.02, good, transform=axes.transAxes, color=GREY, fontsize=9, va="bottom")


def _line(axes: Any, rows: Rows, key: str, label: str, **style: Any) -> bool:
    versions, values = series(rows, key)
    if values:
        # A single point is invisible as a line.
        axes.plot(versions, values, label=label, marker="o" if len(values) == 1 else None, **style)
    return bool(values)


def smooth(values: Sequence[float]) -> list[float]:
    """A running mean over about a twentieth of the run, centred, so that the trend shows."""
    half = max(1, len(values) // 40)
    cuts = [values[max(0, i - half) : i + half + 1] for i in range(len(values))]
    return [sum(cut) / len(cut) for cut in cuts]


def _learning(axes: Any, rows: Rows) -> bool:
    titled(axes, "Reward and held-out accuracy", "up is good")
    versions, values = series(rows, "reward/mean")
    if values:
        axes.plot(versions, values, color=SKY, linewidth=1, alpha=0.6)
        axes.plot(versions, smooth(values), color=BLUE, linewidth=2, label="reward of the batch",
                  marker="o" if len(values) == 1 else None)  # fmt: skip
    found = bool(values)
    for (name, key), colour in zip(evaluation_keys(rows).items(), _SETS, strict=False):
        versions, values = series(rows, key)
        if values:
            found = True
            axes.plot(versions, values, "o--", color=colour, linewidth=1.6, markersize=5,
                      label=f"held-out: {plain(name)}")  # fmt: skip
            for at in {0, len(values) - 1}:
                _note(axes, versions[at], values[at], colour)
    axes.margins(x=0.08, y=0.14)
    return found


def _note(axes: Any, x: float, y: float, colour: str) -> None:
    axes.annotate(
        f"{y:.3f}", (x, y), xytext=(0, 9), textcoords="offset points", ha="center",
        color=colour, fontweight="bold", fontsize=10,
        bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.75, "pad": 0.8},
    )  # fmt: skip


def _staleness(axes: Any, rows: Rows, bound: float | None) -> bool:
    titled(axes, "Staleness of trained tokens, in versions", "low is good; never above the bound")
    if bound is None:
        bounds = series(rows, "staleness/bound")[1]
        bound = bounds[-1] if bounds else None
    worst = _line(axes, rows, "staleness/max", "worst token", color=RED, drawstyle="steps-mid")
    mean = _line(axes, rows, "staleness/mean", "mean", color=BLUE, linewidth=2)
    if bound is not None and (worst or mean):
        axes.axhline(bound, color="black", linestyle=":", linewidth=1.6, label="bound")
    if worst or mean:
        axes.yaxis.get_major_locator().set_params(integer=True)
        highest = max([bound or 0, 1, *series(rows, "staleness/max")[1]])
        axes.set_ylim(0, highest * 1.2)
    return worst or mean


def _lengths(axes: Any, rows: Rows) -> bool:
    titled(axes, "Completion length, in tokens", "steady is good; a sudden jump is not")
    found = _line(axes, rows, "rollout/completion_length", "mean", color=BLUE, linewidth=2)
    versions, shares = series(rows, "rollout/truncated")
    if shares and found:
        axes.set_ylim(bottom=0)
        other = axes.twinx()
        other.spines["top"].set_visible(False)
        other.plot(versions, shares, color=ORANGE, linestyle="--", linewidth=1.4)
        other.set_ylim(0, max(0.05, *shares) * 1.15)
        other.set_ylabel("cut off by the limit, share of samples")
        axes.plot([], [], color=ORANGE, linestyle="--", label="cut off (right)")
    return found


def _entropy(axes: Any, rows: Rows) -> bool:
    titled(axes, "Entropy per token, in nats", "a slow decline is good; near 0 learning ends")
    found = _line(axes, rows, "loss/entropy", "entropy", color=BLUE, linewidth=2)
    if found:
        axes.set_ylim(bottom=0)
    return found


def _speeds(axes: Any, rows: Rows) -> bool:
    titled(axes, "Tokens per second", "up is good; equal heights mean that neither side waits")
    engine = _line(axes, rows, "rollout/tokens_per_s", "engine", color=BLUE, linewidth=2)
    trainer = _line(axes, rows, "train/tokens_per_s", "trainer", color=ORANGE, linestyle="--",
                    linewidth=2)  # fmt: skip
    if engine or trainer:
        axes.set_ylim(bottom=0)
    return engine or trainer


def _times(axes: Any, rows: Rows) -> bool:
    titled(axes, "Trainer's time per version, in seconds", "low is good, with little waiting")
    timed = [row for row in rows if any(f"time/{p}_s" in row for p, _, _ in PARTS)]
    if not timed:
        return False
    versions = [row["version"] for row in timed]
    parts = [[_seconds(row.get(f"time/{part}_s")) for row in timed] for part, _, _ in PARTS]
    if len(timed) == 1:
        bottom = 0.0
        for (_, label, colour), values in zip(PARTS, parts, strict=True):
            axes.bar(versions, values, bottom=bottom, color=colour, label=label)
            bottom += values[0]
    else:
        labels, colours = [part[1] for part in PARTS], [part[2] for part in PARTS]
        axes.stackplot(versions, *map(smooth, parts), labels=labels, colors=colours)
    axes.set_ylim(bottom=0)
    axes.margins(x=0)
    return True


def _seconds(value: object) -> float:
    return float(value) if isinstance(value, int | float) else 0.0
