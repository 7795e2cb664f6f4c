"""The report's pictures as SVG, drawn with the means of curves.png."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

from arealite.report.facts import RunFacts
from arealite.telemetry.curves import (
    BLUE,
    DASHES,
    GREEN,
    PARTS,
    RUNS,
    curves_figure,
    new_figure,
    plain,
    smooth,
    style,
    titled,
)
from arealite.telemetry.metrics import series

LEAST_SHARE = 0.04
"""A narrower stretch of a bar has no room for its number."""

COMPARED = (
    ("reward/mean", "Reward of the batch, smoothed", "up is good"),
    ("", "Held-out", "up is good"),
    ("staleness/mean", "Mean staleness, in versions", "low is good"),
    ("rollout/completion_length", "Completion length, in tokens", "steady is good"),
    ("loss/entropy", "Entropy per token, in nats", "a slow decline is good"),
    ("rollout/tokens_per_s", "Engine's tokens per second", "up is good"),
)

FROM_ZERO = [key for key, _, _ in COMPARED[2:]]
"""Where a small change is to look small."""


def svg(figure: Any) -> bytes:
    """Letters are drawn as paths, so that the page looks the same on every machine."""
    out = io.BytesIO()
    figure.savefig(out, format="svg", metadata={"Date": None})
    return out.getvalue()


def curves(run: RunFacts) -> bytes:
    """The six pictures of curves.png."""
    return svg(curves_figure(run.name, run.view.rows, run.bound))


def compared(runs: Sequence[RunFacts]) -> bytes:
    """The same metrics of all runs in one set of axes each."""
    figure = new_figure(15, 8.4)
    lines: dict[str, Any] = {}
    for axes, (key, what, good) in zip(figure.subplots(2, 3).flat, COMPARED, strict=True):
        style(axes)
        titled(axes, what, good)
        for i, run in enumerate(runs):
            versions, values = _values(run, key)
            if values:
                (lines[run.name],) = axes.plot(
                    versions, smooth(values) if key else values, color=RUNS[i % len(RUNS)],
                    linestyle=DASHES[i // len(RUNS) % len(DASHES)], linewidth=2,
                    marker="o" if not key or len(values) == 1 else None,
                )  # fmt: skip
        axes.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
        if key in FROM_ZERO:
            axes.set_ylim(bottom=0)
    if lines:
        figure.legend(lines.values(), map(plain, lines), loc="outside lower center", frameon=False,
                      ncols=min(4, len(lines)), fontsize=10)  # fmt: skip
    return svg(figure)


def _values(run: RunFacts, key: str) -> tuple[Sequence[int], Sequence[float]]:
    if key:
        return series(run.view.rows, key)
    found = run.view.evaluations()
    return (found[0].versions, found[0].values) if found else ([], [])


def staleness(runs: Sequence[RunFacts]) -> bytes:
    """Shares of the sampled tokens by lag, one bar per run."""
    with_lags = [run for run in runs if run.lags]
    lags = sorted({lag for run in with_lags for lag in run.lags})
    figure = new_figure(min(15, 4 + 0.7 * len(lags) * len(with_lags)), 3.6)
    axes = figure.subplots()
    style(axes)
    axes.set_xlabel("lag, in versions", fontsize=9)
    axes.set_ylabel("share of tokens", fontsize=9)
    width = 0.8 / len(with_lags)
    for i, run in enumerate(with_lags):
        total = sum(run.lags.values())
        shares = [run.lags.get(lag, 0) / total for lag in lags]
        at = [n + (i - (len(with_lags) - 1) / 2) * width for n in range(len(lags))]
        bars = axes.bar(at, shares, width * 0.94, color=RUNS[runs.index(run) % len(RUNS)],
                        label=plain(run.name))  # fmt: skip
        if len(lags) * len(with_lags) <= 30:
            axes.bar_label(bars, [f"{share:.1%}" if share else "" for share in shares], fontsize=8)
    step = 1 + len(lags) // 30
    axes.set_xticks(range(0, len(lags), step), [str(lag) for lag in lags[::step]])
    axes.margins(y=0.12)
    if len(with_lags) > 1:
        figure.legend(loc="outside lower center", frameon=False, ncols=min(4, len(with_lags)),
                      fontsize=9)  # fmt: skip
    return svg(figure)


def time_split(runs: Sequence[RunFacts]) -> bytes:
    """What the trainer's time went into, as shares of one bar per run."""
    figure = new_figure(11, 1.3 + 0.5 * len(runs))
    axes = figure.subplots()
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    colours = {label: colour for _, label, colour in PARTS} | {"else": "#cccccc"}
    names = [plain(run.name) for run in runs]
    left = [0.0] * len(runs)
    splits = [run.time_split() for run in runs]
    for label, colour in colours.items():
        shares = [s[label] / (sum(s.values()) or 1.0) for s in splits]
        if any(shares):
            bars = axes.barh(range(len(runs)), shares, left=left, color=colour, label=label,
                             height=0.6)  # fmt: skip
            told = [f"{share:.0%}" if share >= LEAST_SHARE else "" for share in shares]
            dark = colour in (BLUE, GREEN)
            axes.bar_label(bars, told, label_type="center", fontsize=9,
                           color="white" if dark else "black")  # fmt: skip
            left = [a + b for a, b in zip(left, shares, strict=True)]
    axes.set_yticks(range(len(runs)), names)
    axes.invert_yaxis()
    axes.set_xlim(0, 1)
    axes.xaxis.set_major_formatter("{x:.0%}")
    figure.legend(loc="outside lower center", frameon=False, ncols=5, fontsize=9)
    return svg(figure)
