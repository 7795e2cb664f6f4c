"""Rewards for the form of a completion alone, for a model that does not keep to it yet.

The four that GRPO demonstrations use: the strict form, the soft form, a whole number as the answer,
and the tags one by one. Each gives 1 for the whole form, so that its weight is what it is worth:

    reward: {functions: [{path: "arealite.rewards.formats:strict_format", weight: 0.5}, ..]}

Each is bounded and linear in the text; the tags are `<thought>` (any name) and `<answer>`. The
ground truth is not looked at.
"""

from __future__ import annotations

import re
from typing import Any

from arealite.rewards.extract import extract

_INTEGER = re.compile(r"[-+]?\d{1,64}", re.ASCII)
PER_CHARACTER = 0.002
"""What each character behind the last tag costs of that tag's quarter."""


def strict_format(solution_str: str, ground_truth: Any = None, thought: str = "think") -> float:
    """The two tags, each once and on lines of their own, and nothing else."""
    inside = _parts(solution_str.removesuffix("\n"), thought, between="\n")
    is_kept = inside is not None and all(
        len(part) > 1 and part.startswith("\n") and part.endswith("\n") for part in inside
    )
    return float(is_kept)


def soft_format(solution_str: str, ground_truth: Any = None, thought: str = "think") -> float:
    """The two tags, each once and in order, with at most blanks around and between them."""
    return float(_parts(solution_str.strip(), thought, between=None) is not None)


def count_tags(solution_str: str, ground_truth: Any = None, thought: str = "think") -> float:
    """A quarter for each of the four tags that stands there exactly once.

    Text behind the last one costs its quarter bit by bit, and no more than that.
    """
    tags = [f"<{thought}>", f"</{thought}>", "<answer>", "</answer>"]
    score = sum(0.25 for tag in tags if solution_str.count(tag) == 1)
    if solution_str.count("</answer>") == 1:
        behind = len(solution_str.rpartition("</answer>")[2].strip())
        score -= min(0.25, PER_CHARACTER * behind)
    return score


def integer_answer(solution_str: str, ground_truth: Any = None) -> float:
    """The answer in its tag is a whole number in ASCII digits."""
    answer = extract(solution_str, "tag")
    return float(answer is not None and _INTEGER.fullmatch(answer) is not None)


def _parts(text: str, thought: str, between: str | None) -> tuple[str, str] | None:
    """What stands inside the two tags; None where the text is anything but these."""
    tags = [f"<{thought}>", f"</{thought}>", "<answer>", "</answer>"]
    if any(text.count(tag) != 1 for tag in tags):
        return None
    if not (text.startswith(tags[0]) and text.endswith(tags[3])):
        return None
    inside, _, rest = text.removeprefix(tags[0]).removesuffix(tags[3]).partition(tags[1])
    gap, found, answer = rest.partition(tags[2])
    is_apart = not gap.strip() if between is None else gap == between
    return (inside, answer) if found and is_apart else None
