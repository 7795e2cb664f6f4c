"""Live progress in the terminal, drawn only from the run folder.

On a terminal a panel that renews itself; otherwise (CI logs, a file, a pipe) plain single lines:
one per version at most every few seconds, and always for evaluations, phases and alarms.
"""

from __future__ import annotations

import contextlib
import io
import os
import time
from collections.abc import Callable

from rich.console import Console
from rich.live import Live

from arealite.telemetry.pace import verdict
from arealite.telemetry.panel import LivePanel
from arealite.telemetry.run_folder import RunFolder
from arealite.telemetry.view import View, Watcher, fixed, seconds, short

_LINE_EVERY_S = 5.0
_QUIET_S = 30.0


def follow(
    run_folder: RunFolder,
    done: Callable[[], bool],
    console: Console | None = None,
    *,
    poll_s: float = 0.3,
) -> None:
    """Shows the run until done(), then once more; may be called from any thread.

    A terminal that goes away ends the showing, never the run: it then only waits for done().
    """
    console = console or Console()
    console.on_broken_pipe = _pass_on  # type: ignore[method-assign]
    if isinstance(console.file, io.TextIOWrapper):
        console.file.reconfigure(errors="replace")  # a terminal without UTF-8 shows "?"
    watcher = Watcher(run_folder)
    try:
        if console.is_terminal and not console.is_dumb_terminal:
            _follow_live(watcher, done, console, poll_s)
        else:
            _follow_plainly(watcher, done, console, poll_s)
    except OSError:  # a closed pipe or a lost ssh connection
        _turn_away(console)
        while not done():
            time.sleep(poll_s)


def _pass_on() -> None:
    """Called by rich while it handles the BrokenPipeError, where it would end the process."""
    raise


def _turn_away(console: Console) -> None:
    """Sends what is still printed to nowhere, since a flush at exit would fail as well."""
    console.quiet = True
    with contextlib.suppress(OSError, ValueError):  # not every stream has a file behind it
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, console.file.fileno())
        os.close(nowhere)


def _follow_live(
    watcher: Watcher, done: Callable[[], bool], console: Console, poll_s: float
) -> None:
    with Live(console=console, auto_refresh=False) as live:
        while not done():
            live.update(LivePanel(watcher.look()), refresh=True)
            time.sleep(poll_s)
        live.update(LivePanel(watcher.look()), refresh=True)


def _follow_plainly(
    watcher: Watcher, done: Callable[[], bool], console: Console, poll_s: float
) -> None:
    lines = PlainLines()
    while True:
        last = done()
        for line in lines.new(watcher.look(), last=last):
            # soft_wrap: one line stays one line, however narrow the log claims to be.
            console.print(line, markup=False, highlight=False, soft_wrap=True)
        if last:
            return
        time.sleep(poll_s)


class PlainLines:
    """Turns looks at a run into the lines that are news. Times in seconds."""

    def __init__(self, every_s: float = _LINE_EVERY_S, quiet_s: float = _QUIET_S) -> None:
        self._every_s, self._quiet_s = every_s, quiet_s
        self._phase = ""
        self._version: int | None = None
        self._judged: set[tuple[str, int]] = set()
        self._alarms: set[str] = set()
        self._version_at = self._line_at = float("-inf")

    def new(self, view: View, last: bool = False) -> list[str]:
        """The news since the last call; last: the run is over, so nothing may be held back."""
        lines = self._evaluations(view)
        lines += [f"alarm: {text}" for text in view.alarms() if text not in self._alarms]
        self._alarms.update(view.alarms())
        phase_changed = bool(view.status) and view.phase != self._phase
        overdue = view.now - self._version_at >= self._every_s
        fresh = view.version is not None and view.version != self._version
        if fresh and (overdue or last or phase_changed):
            self._version, self._version_at = view.version, view.now
            lines.append(version_line(view))
        if phase_changed:
            self._phase = view.phase
            lines.append(_phase_line(view))
        if not lines and view.status and view.now - self._line_at >= self._quiet_s:
            lines.append(f"{view.phase}  {_waiting(view)}")
        if lines:
            self._line_at = view.now
        return lines

    def _evaluations(self, view: View) -> list[str]:
        lines = []
        for found in view.evaluations():
            for version, value in zip(found.versions, found.values, strict=True):
                if (found.name, version) not in self._judged:
                    self._judged.add((found.name, version))
                    first = (
                        f"  (first {fixed(found.values[0], 3)})" if len(self._judged) > 1 else ""
                    )
                    lines.append(
                        f"evaluation  version {version}  {found.key} {fixed(value, 3)}{first}"
                    )
        return lines


def _phase_line(view: View) -> str:
    after = "" if view.elapsed_s is None else f"  after {seconds(view.elapsed_s)}"
    return f"phase {view.phase}{after}" + (f"  error: {view.error}" if view.error else "")


def _waiting(view: View) -> str:
    if view.silent_s is not None:
        return f"no sign of life for {seconds(view.silent_s)}"
    waits = view.waits()
    return f"waiting for: {waits[0]}" if waits else "waiting for: -"


def version_line(view: View) -> str:
    """`version 12/80  reward 0.41  held-out 0.37  staleness 1.2/2  engine 6.1k tok/s  ...`"""
    total = f"/{view.total}" if view.total else ""
    parts = [f"version {view.version}{total}", f"reward {fixed(view.last('reward/mean'))}"]
    parts += [f"held-out {fixed(e.values[-1])}" for e in view.evaluations()[:1] if e.values]
    mean, worst = view.last("staleness/mean"), view.last("staleness/max")
    if mean is not None:
        parts.append(f"staleness {fixed(mean, 1)}/{fixed(worst, 0)}")
    for label, key in (("engine", "rollout"), ("trainer", "train")):
        speed = view.last(f"{key}/tokens_per_s")
        if speed is not None:
            parts.append(f"{label} {short(speed)} tok/s")
    if held_up := verdict(view.newest):
        parts.append(f"bound by {held_up}")
    if not view.finished:
        parts.append(_waiting(view))
    if view.eta_s is not None:
        parts.append(f"ETA {seconds(view.eta_s)}")
    return "  ".join(parts)
