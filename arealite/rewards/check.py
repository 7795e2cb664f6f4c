"""`check`: a reward file is played over its rows and over hostile text; what is wrong is told.

    python -m arealite.rewards check reward.py:compute_score --rows data.jsonl

It says in sentences where the function raises, hangs, crashes, takes memory, returns what is no
finite number, gives two scores to one text, or pays for what is no answer. Exit code 0: nothing of
this; 1: something; 2: the file or the rows cannot be used.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from arealite.errors import ConfigError, Unscorable
from arealite.rewards import hostile
from arealite.rewards.pool import Limits, Pool
from arealite.rewards.probes import hacks
from arealite.telemetry.run_folder import read_lines

_SHOWN = 60


@dataclass
class Found:
    """What came of all the calls."""

    took: list[float] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    failures: dict[str, list[str]] = field(default_factory=dict)
    unequal: list[str] = field(default_factory=list)
    paid: list[str] = field(default_factory=list)

    async def score(self, pool: Pool, text: str, truth: Any) -> float | None:
        """The score, once it is the same a second time; None where there is none."""
        totals: list[float] = []
        for _ in range(2):
            started = time.perf_counter()
            try:
                score = await pool(text, truth)
            except Unscorable as error:
                self.failures.setdefault(error.reason, []).append(f"{_short(text)}: {error}")
                return None
            self.took.append(time.perf_counter() - started)
            totals.append(sum(score.values()) if isinstance(score, dict) else score)
        self.scores.append(totals[0])
        if totals[0] != totals[1]:
            self.unequal.append(f"{_short(text)} earned {totals[0]:g} and then {totals[1]:g}")
        return totals[0]

    def sentences(self) -> Iterator[str]:
        """What is wrong, each with its first example."""
        words = {
            "raised": "raises",
            "timeout": "does not return in time",
            "killed": "ends its process",
            "memory": "takes too much memory",
            "junk": "returns what is no finite number",
        }
        for reason, examples in self.failures.items():
            yield f"it {words[reason]}, on {len(examples)} text(s), as on {examples[0]}"
        if self.unequal:
            yield f"it is not deterministic, on {len(self.unequal)} text(s): {self.unequal[0]}"
        if self.paid:
            yield f"it pays for what is no answer, {len(self.paid)} time(s): {self.paid[0]}"


def main(arguments: Sequence[str] | None = None) -> int:
    command = argparse.ArgumentParser(
        prog="python -m arealite.rewards",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = command.add_subparsers(dest="command", required=True)
    check = commands.add_parser("check", help="play a reward file over rows and hostile text")
    check.add_argument("reward", help="file.py:function; without a name: compute_score")
    check.add_argument("--rows", type=Path, help="a .jsonl file")
    check.add_argument("--answer-key", default="answer", help="the column of the ground truth")
    check.add_argument("--prompt-key", default="query", help="the column of the prompt")
    check.add_argument("--max-rows", type=int, default=20, help="rows that are played")
    check.add_argument("--full", type=float, default=1.0, help="what a right answer earns")
    check.add_argument("--timeout", type=float, default=2.0, help="seconds that a call may take")
    options = command.parse_args(arguments)
    reference = options.reward
    if reference.endswith(".py"):
        reference += ":compute_score"
    rows = _rows(options)
    pool = Pool(reference, Limits(workers=2, timeout_s=options.timeout))
    try:
        found = asyncio.run(_played(pool, rows, options.full))
        return _told(reference, rows, found, pool.isolation)
    finally:
        pool.close()


def _rows(options: argparse.Namespace) -> list[tuple[Any, str | None]]:
    """(ground truth, prompt) of each row that is played."""
    if options.rows is None:
        return [(None, None)]
    if not options.rows.is_file():
        raise ConfigError(f"--rows {options.rows}: there is no such file")
    rows: list[tuple[Any, str | None]] = []
    for row in read_lines(options.rows):
        if options.answer_key not in row:
            raise ConfigError(
                f"--rows {options.rows}, row {len(rows)}: there is no column "
                f"{options.answer_key!r}; its columns are {', '.join(row)}: give --answer-key"
            )
        prompt = row.get(options.prompt_key)
        rows.append((row[options.answer_key], prompt if isinstance(prompt, str) else None))
        if len(rows) >= options.max_rows:
            break
    if not rows:
        raise ConfigError(f"--rows {options.rows} holds no row")
    return rows


async def _played(pool: Pool, rows: list[tuple[Any, str | None]], full: float) -> Found:
    found = Found()
    for text in hostile.texts():
        await found.score(pool, text, rows[0][0])
    for truth, prompt in rows:
        for what, text in hacks(truth, prompt):
            score = await found.score(pool, text, truth)
            if score is not None and score >= full:
                found.paid.append(f"{score:g} for {what}, {_short(text)}")
    return found


def _told(reference: str, rows: list[tuple[Any, str | None]], found: Found, isolation: str) -> int:
    calls = len(found.took) + sum(map(len, found.failures.values()))
    played = "no rows" if rows == [(None, None)] else f"{len(rows)} row(s)"
    print(f"{reference}: {calls} calls on hostile text and {played}; {isolation}")
    if len(found.took) > 1:
        cuts = statistics.quantiles(found.took, n=100)
        print(
            f"a call took {cuts[49] * 1000:.2f} ms at the median, {cuts[98] * 1000:.2f} ms at the "
            f"99th percentile, {max(found.took) * 1000:.2f} ms at most, the way to the worker "
            f"included; scores from {min(found.scores):g} to {max(found.scores):g}"
        )
    wrong = list(found.sentences())
    for sentence in wrong:
        print(f"wrong: {sentence}")
    if not found.took and rows == [(None, None)]:
        print("nothing was scored: the function needs a ground truth; give --rows data.jsonl")
    if not wrong:
        print("nothing is wrong with it, as far as these texts can tell")
    return 1 if wrong else 0


def _short(text: str) -> str:
    shown = repr(text[:_SHOWN])
    return shown if len(text) <= _SHOWN else f"{shown}... ({len(text)} characters)"
