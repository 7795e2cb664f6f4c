"""A user's reward function behind one async call; what it returns is checked, never trusted."""

from __future__ import annotations

import asyncio
import inspect
import math
import traceback
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from arealite.errors import EpisodeError, Unscorable
from arealite.telemetry.quarantine import Quarantine

Score = Callable[[str, Any], Awaitable[float | dict[str, float]]]
"""`await score(solution_str, ground_truth)`; raises Unscorable."""

MOST_TAIL = 2000
"""Characters of a traceback that are kept; its end says most."""
_MOST_SHOWN = 200
"""Characters of a foreign value that a sentence shows."""


class Scorer:
    """`await scorer(solution_str, ground_truth)` -> the score, or named components.

    The function runs inline, on the caller's thread: right for scores that take microseconds, and
    for an `async def`, which has timeout_s seconds (None: no limit).
    Raises Unscorable when it raises or returns something that is not a finite number; a failure
    is never booked as a reward.
    """

    def __init__(self, function: Any, name: str, timeout_s: float | None = None) -> None:
        self._function, self._name, self._timeout_s = function, name, timeout_s

    async def __call__(self, solution_str: str, ground_truth: Any) -> float | dict[str, float]:
        try:
            score = self._function(solution_str, ground_truth)
            if inspect.isawaitable(score):
                score = await self._in_time(score)
        except (EpisodeError, asyncio.CancelledError):
            raise
        except (Exception, SystemExit) as error:  # user code may raise anything
            raise raised(error, self._name) from error
        return checked(score, self._name)

    async def _in_time(self, score: Awaitable[Any]) -> Any:
        limit = asyncio.timeout(self._timeout_s)
        try:
            async with limit:
                return await score
        except TimeoutError:
            if not limit.expired():  # one of its own
                raise
            raise Unscorable(
                f"{self._name} did not return within reward.timeout_s = {self._timeout_s:g} s",
                "timeout",
            ) from None


class Kept:
    """A scorer whose failures are counted and kept for people before the workflow hears of them."""

    def __init__(self, score: Score, quarantine: Quarantine, held_out: bool) -> None:
        self._score, self._quarantine, self._held_out = score, quarantine, held_out

    async def __call__(self, solution_str: str, ground_truth: Any) -> float | dict[str, float]:
        try:
            score = await self._score(solution_str, ground_truth)
        except Unscorable as error:
            self._quarantine.add(error, solution_str, ground_truth, self._held_out)
            raise
        self._quarantine.passed(self._held_out)
        return score


def raised(error: BaseException, name: str) -> Unscorable:
    """What the function called `name` raised, as one sentence, with the end of its traceback."""
    frames = traceback.extract_tb(error.__traceback__)
    where = f" (line {frames[-1].lineno})" if frames else ""
    return Unscorable(
        f"{name} raised {type(error).__name__}: {shown(error, str)}{where}",
        "memory" if isinstance(error, MemoryError) else "raised",
        "".join(traceback.format_exception(error))[-MOST_TAIL:],
    )


def checked(score: Any, name: str) -> float | dict[str, float]:
    """A finite number, or named ones. Raises Unscorable for anything else."""
    if isinstance(score, Mapping) and score:
        return {str(part): _number(value, name) for part, value in score.items()}
    return _number(score, name)


def _number(value: Any, name: str) -> float:
    try:
        number = math.nan if isinstance(value, str | bytes) else float(value)
    except Exception:  # a foreign __float__ may raise anything
        number = math.nan
    if not math.isfinite(number):
        raise Unscorable(
            f"{name} returned {shown(value, repr)}; it must return a finite number", "junk"
        )
    return number


def shown(value: Any, write: Any) -> str:
    """A foreign value as a short text; its own __repr__ or __str__ may raise anything."""
    try:
        text = str(write(value))
    except Exception:
        return f"<{type(value).__name__}>"
    return text if len(text) <= _MOST_SHOWN else f"{text[:_MOST_SHOWN]}..."
