"""quarantine.jsonl: every sample that could not be scored, and why.

One line per sample:

    sample_id      the row, "epoch:index"; null outside an episode
    held_out       whether it was played for an evaluation
    reason         raised | timeout | killed | memory | junk | service
    error          the sentence
    tail           the end of the reward's own traceback, where there is one
    text           what could not be scored (of a long text its two ends)
    ground_truth   what the reward function got beside it
    time           unix seconds
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from arealite.errors import Unscorable
from arealite.telemetry.run_folder import JsonLines

SAMPLE_ID: ContextVar[str | None] = ContextVar("sample_id", default=None)
"""The row whose episode is being played; each episode is a task of its own."""

MOST_TEXT = 20_000
MUCH = 0.05
"""Share of unscorable samples above which an alarm says so."""
_FEW = 100
"""Samples before a share means anything."""


class Quarantine:
    """Counts samples scored and not scored; keeps the latter for people."""

    def __init__(self, path: Path, alarm: Callable[[str], None]) -> None:
        self._lines = JsonLines(path, alarm)
        self._alarm = alarm
        self._seen: Counter[bool] = Counter()
        self._failed: Counter[bool] = Counter()
        self._is_much = False

    def passed(self, held_out: bool) -> None:
        self._seen[held_out] += 1

    def add(self, error: Unscorable, text: str, ground_truth: Any, held_out: bool) -> None:
        """One sample that no baseline, loss or mean will know of."""
        self._seen[held_out] += 1
        self._failed[held_out] += 1
        if self._failed.total() == 1:
            self._alarm(f"a sample could not be scored and is left out (quarantine.jsonl): {error}")
        seen, failed = self._seen.total(), self._failed.total()
        if seen >= _FEW and failed > MUCH * seen and not self._is_much:
            self._is_much = True
            self._alarm(f"more than {MUCH:.0%} of the samples cannot be scored (quarantine.jsonl)")
        half = MOST_TEXT // 2
        self._lines.write(
            {
                "sample_id": SAMPLE_ID.get(),
                "held_out": held_out,
                "reason": error.reason,
                "error": str(error),
                "tail": error.tail,
                "text": text if len(text) <= MOST_TEXT else f"{text[:half]} ... {text[-half:]}",
                "ground_truth": ground_truth,
                "time": round(time.time(), 3),
            }
        )

    @property
    def counts(self) -> dict[str, float]:
        """Flat: samples left out so far, of training and of evaluations."""
        return {
            "counts/unscorable": float(self._failed[False]),
            "counts/unscorable_held_out": float(self._failed[True]),
        }

    def position(self) -> int:
        """Bytes of the file once all samples taken so far are in it."""
        return self._lines.position()

    def close(self) -> None:
        self._lines.close()
