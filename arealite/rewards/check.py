"""`check`: a reward file is played over its rows and over hostile text; what is wrong is told.

    python -m arealite.rewards check reward.py:compute_score --rows data.jsonl

It says in sentences where the function raises, hangs, crashes, takes memory, returns what is no
finite number, gives two scores to one text, or pays for what is no answer. A function of TRL's form
gets each text twice at once, as a group of two; an async one runs in this process. Exit code 0:
nothing of this; 1: something; 2: the file or the rows cannot be used.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from arealite.config.schema import RewardFunctionConfig
from arealite.errors import ConfigError, Unscorable
from arealite.rewards import hostile
from arealite.rewards.compose import Component
from arealite.rewards.opening import in_pool
from arealite.rewards.probes import hacks
from arealite.rewards.template import Limits
from arealite.types import Completion

LOAD_S = 30.0
"""The file must be loaded by then."""
_MOST_HANGS = 5
_SHOWN = 60


@dataclass
class Found:
    """What came of all the calls."""

    took: list[float] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    failures: dict[str, list[str]] = field(default_factory=dict)
    unequal: list[str] = field(default_factory=list)
    paid: list[str] = field(default_factory=list)

    async def score(self, function: Component, asked: Completion) -> float | None:
        """The score, once it is the same a second time; None where there is none."""
        group = [asked] * (2 if function.signature.is_group else 1)
        totals: list[float] = []
        for _ in range(2):
            started = time.perf_counter()
            for outcome in await function.group(group):
                if isinstance(outcome, Unscorable):
                    example = f"{_short(asked.text)}: {outcome}"
                    self.failures.setdefault(outcome.reason, []).append(example)
                    return None
                totals.append(sum(outcome.values()) if isinstance(outcome, dict) else outcome)
            self.took.append(time.perf_counter() - started)
        self.scores.append(totals[0])
        for other in totals:
            if other != totals[0]:
                text = _short(asked.text)
                self.unequal.append(f"{text} earned {totals[0]:g} and then {other:g}")
                break
        return totals[0]

    @property
    def is_hanging(self) -> bool:
        """Whether enough is known: each such call takes the whole time limit."""
        return len(self.failures.get("timeout", ())) >= _MOST_HANGS

    def sentences(self) -> Iterator[str]:
        """What is wrong, each with its first example."""
        words = {
            "raised": "raises",
            "timeout": "does not return in time",
            "killed": "ends its process",
            "memory": "takes too much memory",
            "junk": "returns what is no finite number",
            "service": "is not answered by its service",
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
    check.add_argument("--kwargs", default="{}", help="its kwargs of reward.functions, as JSON")
    options = command.parse_args(arguments)
    if not (options.timeout > 0 and options.max_rows > 0):
        raise ConfigError("--timeout and --max-rows must be above 0")
    reference = options.reward
    if reference.endswith(".py"):
        reference += ":compute_score"
    asked = _asked(options)
    function = RewardFunctionConfig(path=reference, kwargs=_kwargs(options.kwargs))
    # One worker: what it keeps from call to call shows where a text is scored again.
    limits = Limits(1, options.timeout, load_timeout_s=max(LOAD_S, options.timeout))
    with in_pool([function], limits) as ([component], isolation, _):
        _check_row(component, asked[0].row or {})
        found = asyncio.run(_played(component, asked, options.full))
        return _told(reference, asked, found, isolation)


def _kwargs(text: str) -> dict[str, Any]:
    try:
        kwargs = json.loads(text)
    except ValueError as error:
        raise ConfigError(f"--kwargs {text!r} is no JSON: {error}") from None
    if not isinstance(kwargs, dict):
        raise ConfigError(f'--kwargs {text!r} is no JSON object, like {{"which": "first"}}')
    return kwargs


def _asked(options: argparse.Namespace) -> list[Completion]:
    """The rows that are played, each as a completion without a text."""
    if options.rows is None:
        return [_of_row(None, None, None)]
    asked: list[Completion] = []
    for row in _rows(options.rows):
        if options.answer_key not in row:
            raise ConfigError(
                f"--rows {options.rows}, row {len(asked)}: there is no column "
                f"{options.answer_key!r}; its columns are {', '.join(row)}: give --answer-key"
            )
        asked.append(_of_row(row[options.answer_key], row.get(options.prompt_key), row))
        if len(asked) >= options.max_rows:
            break
    if not asked:
        raise ConfigError(f"--rows {options.rows} holds no row")
    return asked


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    try:
        with path.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                row = json.loads(line) if line.strip() else None
                if isinstance(row, dict):
                    yield row
                elif row is not None:
                    raise ValueError(f"line {number} is a {type(row).__name__}, not an object")
    except FileNotFoundError:
        raise ConfigError(f"--rows {path}: there is no such file") from None
    except OSError as error:
        raise ConfigError(f"--rows {path} cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        where = f"line {number + 1 if isinstance(error, UnicodeDecodeError) else number}"
        raise ConfigError(f"--rows {path}, {where}, is no JSON object: {error}") from None


def _of_row(truth: Any, prompt: Any, row: Mapping[str, Any] | None) -> Completion:
    text = prompt if isinstance(prompt, str) else json.dumps(prompt or "")
    return Completion("", truth, prompt or "", text, _ids(text), (), row)


def _ids(text: str) -> list[int]:
    """Bytes stand for tokens: there is no tokenizer here."""
    return list(text.encode(errors="surrogatepass"))


def _check_row(function: Component, row: Mapping[str, Any]) -> None:
    lacking = function.signature.lacking(row)
    try:
        if lacking:
            raise ValueError(f"{function.label} {lacking}")
        if function.check is not None:
            function.check(row)
    except ValueError as error:
        raise ConfigError(f"{error}; give --rows data.jsonl with it") from None


async def _played(function: Component, asked: list[Completion], full: float) -> Found:
    found = Found()
    for text in hostile.texts():
        if found.is_hanging:
            return found
        await found.score(function, _with(asked[0], text))
    for row in asked:
        prompt = row.prompt if isinstance(row.prompt, str) and row.row is not None else None
        for what, text in hacks(row.ground_truth, prompt):
            if found.is_hanging:
                return found
            score = await found.score(function, _with(row, text))
            if score is not None and score >= full:
                found.paid.append(f"{score:g} for {what}, {_short(text)}")
    return found


def _with(asked: Completion, text: str) -> Completion:
    return replace(asked, text=text, completion_ids=_ids(text))


def _told(reference: str, asked: list[Completion], found: Found, isolation: str) -> int:
    calls = len(found.took) + sum(map(len, found.failures.values()))
    has_rows = asked[0].row is not None
    played = f"{len(asked)} row(s)" if has_rows else "no rows"
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
        print("wrong: " + "".join(c if c.isprintable() else " " for c in sentence))
    if not found.took and not has_rows:
        print("nothing was scored: the function needs a ground truth; give --rows data.jsonl")
    if not wrong:
        print("nothing is wrong with it, as far as these texts can tell")
    return 1 if wrong else 0


def _short(text: str) -> str:
    shown = repr(text[:_SHOWN])
    return shown if len(text) <= _SHOWN else f"{shown}... ({len(text)} characters)"
