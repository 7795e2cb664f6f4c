"""stall.txt: when nothing moves any more, who waits for whom, and where every task stands."""

from __future__ import annotations

import asyncio
import sys
import threading
import time
import traceback
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from types import FrameType
from typing import Any

from arealite.telemetry.waits import Waits

MOST_STACKS, MOST_ROWS = 40, 50


def describe(
    sentence: str,
    waits: Waits,
    counts: Mapping[str, float],
    running: Sequence[str],
    tried: Sequence[str],
    tasks: set[asyncio.Task[Any]],
) -> str:
    """The report for people. running: ids of the rows whose episodes have not ended."""
    rows = ", ".join(running[:MOST_ROWS]) + (" ..." if len(running) > MOST_ROWS else "")
    lines = [
        f"{time.strftime('%Y-%m-%d %H:%M:%S')}  {sentence}",
        "",
        "Who owes what (oldest first; what is made of others last)",
        *map(_debt, waits.summary()),
        "",
        "What was tried",
        *(f"  {what}" for what in tried or ["nothing"]),
        "",
        "Episodes: " + ", ".join(f"{key} {value:g}" for key, value in counts.items()),
        f"Rows under way (oldest first): {rows or 'none'}",
        "",
        *task_stacks(tasks),
        *thread_stacks(),
    ]
    return "\n".join(lines) + "\n"


def _debt(wait: Mapping[str, Any]) -> str:
    limit, seconds, count = wait["deadline_s"], wait["seconds"], wait["count"]
    deadline = "no deadline of its own" if limit is None else f"deadline {limit:g} s"
    return f"  {wait['owner']} owes {wait['what']} for {seconds:.1f} s, {count} time(s); {deadline}"


def task_stacks(tasks: set[asyncio.Task[Any]]) -> Iterator[str]:
    """Equal stacks are shown once, with how many tasks stand there; the most frequent first."""
    places = Counter("\n".join(_frames_of(task)) for task in tasks if not task.done())
    for place, count in places.most_common(MOST_STACKS):
        yield f"{count} task(s) wait at"
        yield place
        yield ""
    if len(places) > MOST_STACKS:
        yield f"({len(places) - MOST_STACKS} more places)"


def thread_stacks() -> Iterator[str]:
    """Where every thread of this process is."""
    frames = sys._current_frames()
    for thread in threading.enumerate():
        frame = frames.get(thread.ident or 0)
        if frame is not None:
            yield f"thread {thread.name} is at"
            yield "".join(traceback.format_stack(frame)[-8:]).rstrip()
            yield ""


def _frames_of(task: asyncio.Task[Any]) -> list[str]:
    """The whole await chain: asyncio's own get_stack shows only its outermost frame."""
    lines = []
    awaited: Any = task.get_coro()
    while awaited is not None:
        frame: FrameType | None = _first(awaited, "cr_frame", "gi_frame", "ag_frame")
        if frame is not None:
            code = frame.f_code
            lines.append(f"  {code.co_filename}:{frame.f_lineno} in {code.co_qualname}")
        awaited = _first(awaited, "cr_await", "gi_yieldfrom", "ag_await")
    return lines or [f"  {task!r}"]


def _first(value: Any, *names: str) -> Any:
    return next(
        (found for name in names if (found := getattr(value, name, None)) is not None), None
    )
