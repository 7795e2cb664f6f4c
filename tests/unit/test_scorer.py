"""A reward function's answer is checked: a failure never becomes a number."""

from __future__ import annotations

import asyncio
import math
from typing import Any

import pytest
import torch

from arealite.errors import EngineError, Unscorable
from arealite.rewards.scorer import Scorer


def _score(function: Any, *arguments: Any) -> Any:
    return asyncio.run(Scorer(function, "reward.py:score")(*(arguments or ("text", 1))))


def test_numbers_of_every_make() -> None:
    for value in (0, 1, 0.25, True, torch.tensor(0.5), -3.0):
        score = _score(lambda solution, truth, value=value: value)
        assert type(score) is float
        assert score == float(value)


def test_it_is_called_with_solution_and_truth() -> None:
    assert _score(lambda solution, truth: len(solution) + truth, "abc", 4) == 7.0


def test_named_components_are_checked_one_by_one() -> None:
    assert _score(lambda s, t: {"format": 0.1, "right": 1}) == {"format": 0.1, "right": 1.0}
    with pytest.raises(Unscorable, match=r"reward.py:score returned nan"):
        _score(lambda s, t: {"format": 0.1, "right": math.nan})


def test_an_async_function_is_awaited() -> None:
    async def later(solution: str, truth: Any) -> float:
        await asyncio.sleep(0)
        return 0.5

    assert _score(later) == 0.5


@pytest.mark.parametrize("value", [None, math.nan, math.inf, -math.inf, "good", [], object(), [1]])
def test_what_is_not_a_finite_number_is_refused(value: Any) -> None:
    with pytest.raises(Unscorable, match="must return a finite number"):
        _score(lambda solution, truth: value)


@pytest.mark.parametrize(
    "error", [ValueError("bad"), ZeroDivisionError(), RecursionError(), KeyError(1)]
)
def test_what_it_raises_is_told_with_the_line(error: Exception) -> None:
    def broken(solution: str, truth: Any) -> float:
        raise error

    with pytest.raises(
        Unscorable, match=rf"reward.py:score raised {type(error).__name__}.*line \d"
    ):
        _score(broken)


def test_a_timeout_of_its_own_is_its_failure() -> None:
    async def slow(solution: str, truth: Any) -> float:
        async with asyncio.timeout(0.001):
            await asyncio.sleep(60)
        return 1.0

    with pytest.raises(Unscorable, match="TimeoutError"):
        _score(slow)


def test_episode_errors_pass_unchanged() -> None:
    async def judge(solution: str, truth: Any) -> float:
        raise EngineError("the judge is gone")

    with pytest.raises(EngineError, match="the judge is gone"):
        _score(judge)


@pytest.mark.parametrize("value", ["1.0", {}, 10**400], ids=["text", "empty", "overflow"])
def test_text_emptiness_and_overflow_are_no_numbers_either(value: Any) -> None:
    with pytest.raises(Unscorable):
        _score(lambda solution, truth: value)


def test_an_async_function_has_a_time_limit() -> None:
    async def slow(solution: str, truth: Any) -> float:
        await asyncio.sleep(60)
        return 1.0

    with pytest.raises(
        Unscorable, match=r"did not return within reward.timeout_s = 0.01 s"
    ) as told:
        asyncio.run(Scorer(slow, "reward.py:score", timeout_s=0.01)("", 0))
    assert told.value.reason == "timeout"


def test_a_failure_has_its_reason_and_the_end_of_its_traceback() -> None:
    def broken(solution: str, truth: Any) -> float:
        raise SystemExit("no")

    with pytest.raises(Unscorable, match="raised SystemExit: no") as told:
        _score(broken)
    assert told.value.reason == "raised"
    assert 'raise SystemExit("no")' in told.value.tail
    with pytest.raises(Unscorable) as told:
        _score(lambda s, t: "x" * 10_000)
    assert (told.value.reason, len(str(told.value)) < 400) == ("junk", True)


def test_foreign_values_that_fight_back() -> None:
    class Hostile(Exception):
        def __str__(self) -> str:
            raise ValueError

        __repr__ = __str__

        def __float__(self) -> float:
            raise Hostile

    def raising(solution: str, truth: Any) -> float:
        raise Hostile

    for function in (raising, lambda s, t: Hostile()):
        with pytest.raises(Unscorable, match="<Hostile>"):
            _score(function)
