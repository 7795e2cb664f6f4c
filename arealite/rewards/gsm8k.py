"""Grade-school mathematics: the answer is one number.

    rollout: {reward_fn: "arealite.rewards.gsm8k:compute_score"}

Ground truth is the row's `answer` as the data set has it, a solution that ends in `#### 72`.
"""

from __future__ import annotations

from fractions import Fraction

from arealite.rewards.extract import Form, Which, extract
from arealite.rewards.numbers import number

FORMS: tuple[Form, ...] = ("hash", "boxed", "tag")


def compute_score(
    solution_str: str,
    ground_truth: str,
    which: Which = "last",
    format_score: float = 0.0,
    score: float = 1.0,
) -> float:
    """`score` if the number behind ####, in \\boxed or in <answer> is the right one.

    Where it is another number, `format_score`; where there is none, 0. A text that gives several
    of these forms is judged by the first of them, so that not two answers can be tried.
    """
    right = gold(ground_truth)
    answer = next(
        (found for form in FORMS if (found := extract(solution_str, form, which)) is not None), None
    )
    value = None if answer is None else number(answer)
    if value is None:
        return 0.0
    return score if value == right else format_score


def gold(answer: str) -> Fraction:
    """The number behind the last ####. Raises ValueError: that is an error of the data."""
    told = extract(answer, "hash")
    value = None if told is None else number(told)
    if value is None:
        raise ValueError(f"the ground truth ends in no `#### number`: {answer[-60:]!r}")
    return value
