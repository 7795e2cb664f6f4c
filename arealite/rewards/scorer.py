"""A user's reward function behind one async call; what it returns is checked, never trusted."""

from __future__ import annotations

import asyncio
import inspect
import math
import traceback
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any, Protocol

from arealite.errors import EpisodeError, Unscorable
from arealite.rewards.signature import Signature, signature_of
from arealite.telemetry.quarantine import Quarantine
from arealite.telemetry.waits import is_cancelled, together
from arealite.types import Completion

Score = float | dict[str, float]
Outcome = Score | Unscorable
"""What became of one sample; Unscorable is a value here, since its siblings go on."""

TAKEN = frozenset({"mean", "std"})
"""reward/<these> in metrics.jsonl are the run's own."""
MOST_TAIL = 2000
"""Characters of a traceback that are kept; its end says most."""
_MOST_SHOWN = 200
"""Characters of a foreign value that a sentence shows."""


class Scoring(Protocol):
    """What a workflow is handed as reward_fn."""

    async def __call__(self, solution_str: str, ground_truth: Any) -> Score:
        """The score of one sample, or its named components. Raises Unscorable."""
        ...

    async def group(self, completions: Sequence[Completion]) -> list[Outcome]:
        """All samples of one prompt at once, in order. Raises no Unscorable."""
        ...


async def score_group(
    reward_fn: Scoring | Callable[[str, Any], Awaitable[Any]], completions: Sequence[Completion]
) -> list[Outcome]:
    """The outcomes of one prompt's samples, in order, by whatever a workflow was handed.

    reward_fn: what the configuration's reward functions became; or any async function of
    (solution_str, ground_truth), as a script of one's own may hand over.
    """
    group = getattr(reward_fn, "group", None)
    if group is not None:
        outcomes: list[Outcome] = await group(completions)
        return outcomes
    return await together(_outcome(reward_fn(c.text, c.ground_truth)) for c in completions)


async def _outcome(score: Awaitable[Any]) -> Outcome:
    try:
        result: Score = await score
    except Unscorable as error:
        return error
    return result


class Scorer:
    """A reward function on the caller's thread: one that is `async`, or takes microseconds.

    timeout_s: for an `async def`, from its turn on (None: no limit). max_concurrent: its calls
    that are under way at once; the others wait for their turn. setting: names the time limit.
    A failure is never booked as a reward: what it raises, or returns that is no finite number,
    is Unscorable.
    """

    def __init__(
        self,
        function: Any,
        name: str,
        timeout_s: float | None = None,
        max_concurrent: int | None = None,
        setting: str = "reward.timeout_s",
    ) -> None:
        self.signature: Signature = signature_of(function, name)
        self._function, self._name, self._timeout_s = function, name, timeout_s
        self._setting = setting
        self._turn = nullcontext() if max_concurrent is None else asyncio.Semaphore(max_concurrent)

    async def __call__(self, solution_str: str, ground_truth: Any) -> Score:
        return alone(await self.group([Completion(solution_str, ground_truth)]))

    async def group(self, completions: Sequence[Completion]) -> list[Outcome]:
        if self.signature.is_group:
            return await self._asked(completions)
        if self.signature.is_async:
            asked = await together(self._asked([completion]) for completion in completions)
            return [outcome for [outcome] in asked]
        return [(await self._asked([completion]))[0] for completion in completions]

    async def _asked(self, completions: Sequence[Completion]) -> list[Outcome]:
        """One call."""
        args, kwargs = self.signature.arguments(completions, self._name)
        try:
            async with self._turn:
                said = self._function(*args, **kwargs)
                if inspect.isawaitable(said):
                    said = await self._in_time(said)
            return outcomes_of(said, self._name, self.signature.is_group, len(completions))
        except Unscorable as error:
            return [error] * len(completions)
        except EpisodeError:
            raise
        except asyncio.CancelledError as error:
            if is_cancelled():
                raise
            return [raised(error, self._name)] * len(completions)
        except (Exception, SystemExit) as error:  # user code may raise anything
            return [raised(error, self._name)] * len(completions)

    async def _in_time(self, score: Awaitable[Any]) -> Any:
        """A function that swallows its cancellation is left to itself: nobody waits for it."""
        task = asyncio.ensure_future(score)
        try:
            done, _ = await asyncio.wait([task], timeout=self._timeout_s)
            if not done:
                raise Unscorable(
                    f"{self._name} did not return within {self._setting} = {self._timeout_s:g} s",
                    "timeout",
                )
            return task.result()
        except Unscorable as error:
            if not task.done():
                raise
            raise Unscorable(f"{self._name}: {error}", error.reason, error.tail) from None
        finally:
            task.cancel()


class Kept:
    """A scorer whose failures are counted and kept for people before the workflow hears of them."""

    def __init__(self, score: Scoring, quarantine: Quarantine, held_out: bool) -> None:
        self._score, self._quarantine, self._held_out = score, quarantine, held_out

    async def __call__(self, solution_str: str, ground_truth: Any) -> Score:
        return alone(await self.group([Completion(solution_str, ground_truth)]))

    async def group(self, completions: Sequence[Completion]) -> list[Outcome]:
        outcomes = await self._score.group(completions)
        for completion, outcome in zip(completions, outcomes, strict=True):
            if isinstance(outcome, Unscorable):
                self._quarantine.add(
                    outcome, completion.text, completion.ground_truth, self._held_out
                )
            else:
                self._quarantine.passed(self._held_out)
        return outcomes

    def check_row(self, row: Mapping[str, Any]) -> None:
        """Raises ValueError where a reward function takes a column that the row does not have."""
        check = getattr(self._score, "check_row", None)
        if check is not None:
            check(row)


def alone(outcomes: Sequence[Outcome]) -> Score:
    """The only score. Raises Unscorable."""
    [outcome] = outcomes
    if isinstance(outcome, Unscorable):
        raise outcome
    return outcome


def raised(error: BaseException, name: str) -> Unscorable:
    """What the function called `name` raised, as one sentence, with the end of its traceback."""
    frames = traceback.extract_tb(error.__traceback__)
    where = f" (line {frames[-1].lineno})" if frames else ""
    return Unscorable(
        f"{name} raised {type(error).__name__}: {shown(error, str)}{where}",
        "memory" if isinstance(error, MemoryError) else "raised",
        "".join(traceback.format_exception(error))[-MOST_TAIL:],
    )


def outcomes_of(said: Any, name: str, is_group: bool, n: int) -> list[Outcome]:
    """What one call said of its n samples. Raises Unscorable where it says nothing of any."""
    if not is_group:
        return [checked(said, name)]
    is_list = hasattr(said, "__len__") and not isinstance(said, str | bytes | Mapping)
    if not is_list or len(said) != n:
        got = f"{len(said)} scores" if is_list else shown(said, repr)
        raise Unscorable(
            f"{name} returned {got}; it must return a list of {n}, one per sample", "junk"
        )
    return [_outcome_of(score, name) for score in said]


def _outcome_of(score: Any, name: str) -> Outcome:
    """Of a list one item; an async function may put there what a sample died of."""
    if isinstance(score, Unscorable):
        return Unscorable(f"{name}: {score}", score.reason, score.tail)
    if isinstance(score, Exception):
        return raised(score, name)
    try:
        return checked(score, name)
    except Unscorable as error:
        return error


def checked(score: Any, name: str) -> Score:
    """A finite number, or named ones. Raises Unscorable for anything else."""
    if not isinstance(score, Mapping) or not score:
        return _number(score, name)
    parts = {str(part): _number(value, name) for part, value in score.items()}
    if len(parts) < len(score):
        raise Unscorable(f"{name} returned two parts of one name: {shown(score, repr)}", "junk")
    if taken := TAKEN & parts.keys():
        raise Unscorable(
            f"{name} returned a part named {min(taken)}, as a metric of the whole reward is; give "
            "it another name",
            "junk",
        )
    if not math.isfinite(sum(parts.values())):
        raise Unscorable(f"{name} returned parts whose sum is not finite", "junk")
    return parts


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
