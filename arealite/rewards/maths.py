"""Mathematical equality: the answer in its box is worth what the gold expression is.

    rollout: {reward_fn: "arealite.rewards.maths:compute_score"}

By math-verify, which is not installed by default: pip install 'arealite[maths]'. Its own time-outs
are alarms that a loop in C never sees, and count as a wrong answer; they are switched off, and
reward.mode: pool ends what takes too long, as a sample without a score.
"""

from __future__ import annotations

import logging
from typing import Any

from arealite.rewards.extract import Form, Which, extract

try:
    from math_verify import parse, verify
except ImportError as error:
    raise ImportError(f"{error}; install it by: pip install 'arealite[maths]'") from None

for _name in ("math_verify.parser", "math_verify.grader"):
    logging.getLogger(_name).setLevel(logging.ERROR)  # they tell that the time-outs are off


def compute_score(
    solution_str: str,
    ground_truth: str,
    form: Form = "boxed",
    which: Which = "last",
    format_score: float = 0.0,
    score: float = 1.0,
) -> float:
    """`score` if the answer equals the ground truth, `format_score` if not, 0 without an answer.

    ground_truth: LaTeX or plain text of an expression, number, set or interval; as a whole text
    with \\boxed in it, what that holds. One that cannot be read raises ValueError: it is an error
    of the data.
    """
    gold = _parsed(extract(ground_truth, "boxed") or ground_truth)
    if not gold:
        raise ValueError(f"the ground truth is no mathematical expression: {ground_truth[-60:]!r}")
    answer = extract(solution_str, form, which)
    if answer is None:
        return 0.0
    told = _parsed(answer)
    is_right = bool(told) and verify(gold, told, timeout_seconds=None, raise_on_error=True)
    return score if is_right else format_score


def _parsed(expression: str) -> list[Any]:
    """The expression's readings; none for what cannot be read."""
    readings: list[Any] = parse(f"\\boxed{{{expression}}}", parsing_timeout=None)
    return readings
