"""A user's reward function behind one async call; what it returns is checked, never trusted."""

from __future__ import annotations

import asyncio
import inspect
import math
import traceback
from collections.abc import Mapping
from typing import Any

from arealite.errors import EpisodeError, Unscorable


class Scorer:
    """`await scorer(solution_str, ground_truth)` -> the score, or named components.

    The function runs inline, on the caller's thread: right for scores that take microseconds.
    Raises Unscorable when it raises or returns something that is not a finite number; a failure
    is never booked as a reward.
    """

    def __init__(self, function: Any, name: str) -> None:
        self._function, self._name = function, name

    async def __call__(self, solution_str: str, ground_truth: Any) -> float | dict[str, float]:
        try:
            score = self._function(solution_str, ground_truth)
            if inspect.isawaitable(score):
                score = await score
        except (EpisodeError, asyncio.CancelledError):
            raise
        except Exception as error:  # user code may raise anything
            line = traceback.extract_tb(error.__traceback__)[-1].lineno
            raise Unscorable(
                f"{self._name} raised {type(error).__name__}: {error} (line {line})"
            ) from error
        if isinstance(score, Mapping) and score:
            return {str(name): self._number(value) for name, value in score.items()}
        return self._number(score)

    def _number(self, value: Any) -> float:
        try:
            number = math.nan if isinstance(value, str | bytes) else float(value)
        except (TypeError, ValueError, OverflowError):
            number = math.nan
        if not math.isfinite(number):
            raise Unscorable(f"{self._name} returned {value!r}; it must return a finite number")
        return number
