"""Reward of the Countdown game: 1 for a right answer, a little for an answer tag, else 0.

The file's contract is the signature of `compute_score`; a configuration names it by path.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Literal, TypedDict

from arealite.rewards.arithmetic import Expression, ExpressionError, parse
from arealite.rewards.extract import last_answer


class GroundTruth(TypedDict):
    """One problem: reach ``target`` with ``numbers``."""

    target: int
    numbers: Sequence[int]


def compute_score(
    solution_str: str,
    ground_truth: GroundTruth | Mapping[str, object],
    method: Literal["strict", "flexible"] = "strict",
    format_score: float = 0.1,
    score: float = 1.0,
) -> float:
    """``score`` if the last answer reaches the target, ``format_score`` if it does not, 0 without.

    'strict' asks for every given number exactly once, 'flexible' for at most once. A malformed
    ``ground_truth`` raises: it is an error of the data, not of the answer.
    """
    if method not in ("strict", "flexible"):
        raise ValueError(f"method must be 'strict' or 'flexible', not {method!r}")
    target, given = _problem(ground_truth)
    answer = last_answer(solution_str)
    if answer is None:
        return 0.0
    try:
        expression = parse(answer)
    except ExpressionError:
        return format_score
    right = expression.value == target and _obeys_rules(expression, given, method)
    return score if right else format_score


def _problem(ground_truth: GroundTruth | Mapping[str, object]) -> tuple[int, "Counter[int]"]:
    """Target and multiset of given numbers; ValueError if the row does not hold them."""
    target, numbers = ground_truth.get("target"), ground_truth.get("numbers")
    if type(target) is not int or not isinstance(numbers, Sequence):
        raise ValueError("ground_truth must be a mapping {'target': int, 'numbers': [int, ...]}")
    if not all(type(number) is int for number in numbers):
        raise ValueError("ground_truth['numbers'] must be a list of integers")
    return target, Counter(numbers)


def _obeys_rules(expression: Expression, given: "Counter[int]", method: str) -> bool:
    """Whether the expression draws on the given numbers as ``method`` allows."""
    used = Counter(expression.numbers)
    return used == given if method == "strict" else used <= given
