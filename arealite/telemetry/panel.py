"""The live panel, drawn from a View with rich. It reads well without colour and at 60 columns."""

from __future__ import annotations

from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from arealite.telemetry.metrics import series
from arealite.telemetry.pace import verdict
from arealite.telemetry.view import View, fixed, seconds, short, sparkline

_ASCII_MARKS = ".:-=+*#@"
_COUNTS = (
    ("in_flight", "in flight"),
    ("buffered", "buffered"),
    ("trained", "trained"),
    ("filtered", "filtered"),
    ("dropped_stale", "dropped"),
    ("failed", "failed"),
)


class LivePanel:
    """A rich renderable of one look at a run."""

    def __init__(self, view: View) -> None:
        self._view = view

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        view = self._view
        spark = max(8, min(32, options.max_width - 46))
        body = Table.grid(padding=(0, 2), expand=True)
        body.add_column(style="dim", no_wrap=True)
        body.add_column(ratio=1, overflow="fold")
        body.add_row("version", _progress(view))
        for label, value in _learning(view, spark, options.ascii_only):
            body.add_row(label, value)
        for label, value in _flow(view, options.max_width - 17):
            body.add_row(label, value)
        for label, value in _troubles(view):
            body.add_row(label, value)
        state = "bold red" if view.phase == "failed" else "bold"
        yield Panel(
            body,
            title=Text(view.title, style="bold", overflow="ellipsis"),
            title_align="left",
            subtitle=Text(view.phase, style=state),
            subtitle_align="right",
            border_style="red" if view.phase == "failed" else "blue",
        )


def _progress(view: View) -> RenderableType:
    version, total = view.version, view.total
    row = Table.grid(padding=(0, 2), expand=True)
    row.add_column(no_wrap=True)
    row.add_column(ratio=1)
    row.add_column(no_wrap=True)
    at = "-" if version is None else str(version)
    bar = ProgressBar(
        total=total or 1,
        completed=min(version or 0, total or 0),
        complete_style="blue",
        finished_style="green",
    )
    times = [seconds(view.elapsed_s)]
    if view.eta_s is not None:
        times.append(f"ETA {seconds(view.eta_s)}")
    row.add_row(f"{at}/{total}" if total else at, bar, ", ".join(times))
    return row


def _learning(view: View, spark: int, ascii_only: bool) -> list[tuple[str, Text]]:
    marks = {"marks": _ASCII_MARKS} if ascii_only else {}
    rewards = series(view.rows, "reward/mean")[1]
    line = Text.assemble((fixed(view.last("reward/mean"), 3), "bold"), "  ")
    line.append(sparkline(rewards, spark, **marks), style="green")
    lines = [("reward", line)]
    for evaluated in view.evaluations():
        if not evaluated.values:
            continue
        label = "held-out" if evaluated.name in ("test", "valid") else evaluated.name[:12]
        line = Text(fixed(evaluated.values[0], 3))
        if len(evaluated.values) > 1:
            line.append(" -> ")
            line.append(fixed(evaluated.values[-1], 3), style="bold")
            line.append("  ")
            line.append(sparkline(evaluated.values, spark, **marks), style="green")
        line.append(f"  at version {evaluated.versions[-1]}", style="dim")
        lines.append((label, line))
    return lines


def _pairs(pairs: list[tuple[str, str]], width: int) -> Text:
    """`name value   name value`, broken only between pairs."""
    line, used = Text(), 0
    for name, value in pairs:
        size = len(name) + 1 + len(value)
        if used and used + 3 + size > width:
            line.append("\n")
            used = 0
        elif used:
            line.append("   ")
            used += 3
        line.append(name + " ", style="dim")
        line.append(value)
        used += size
    return line


def _flow(view: View, width: int) -> list[tuple[str, Text]]:
    sample = [
        ("tokens", short(view.last("rollout/completion_length"))),
        ("entropy", fixed(view.last("loss/entropy"))),
    ]
    staleness = [
        ("mean", fixed(view.last("staleness/mean"), 1)),
        ("max", fixed(view.last("staleness/max"), 0)),
    ]
    speed = [
        ("engine", short(view.last("rollout/tokens_per_s"))),
        ("trainer", short(view.last("train/tokens_per_s"))),
    ]
    counts = [(label, view.count(name)) for name, label in _COUNTS]
    episodes = [(label, short(n)) for label, n in counts if n is not None]
    rows = [("samples", sample), ("staleness", staleness), ("tokens/s", speed)]
    if episodes:
        rows.append(("episodes", episodes))
    lines = [(label, _pairs(pairs, width)) for label, pairs in rows]
    if held_up := verdict(view.newest):
        lines.append(("bound by", Text(held_up)))
    return lines


def _troubles(view: View) -> list[tuple[str, Text]]:
    """What is waited for, and what went wrong; the waits of a finished run are of no interest."""
    lines: list[tuple[str, Text]] = []
    if view.silent_s is not None:
        process = f"is process {view.status.get('pid')} there?"
        text = f"no sign of life for {seconds(view.silent_s)}; {process}"
        lines.append(("silent", Text(text, style="bold red")))
    if not view.finished:
        waits = view.waits()
        lines += [("waiting for" if i == 0 else "", Text(w)) for i, w in enumerate(waits[:2])]
        if not waits:
            lines.append(("waiting for", Text("-")))
    if view.alarms():
        lines.append(("alarm", Text(view.alarms()[-1], style="yellow")))
    if view.error:
        lines.append(("error", Text(view.error, style="bold red")))
    return lines
