"""Rewards for the form of a completion alone, for a model that does not keep to it yet.

The four that GRPO demonstrations use, with their customary weights: half a point each for the
strict form, the soft form and a whole number as the answer, an eighth for each tag. Each is bounded
and linear in the text; the tags are `<thought>` (any name) and `<answer>`.
"""

from __future__ import annotations

import re

from arealite.rewards.extract import extract

_INTEGER = re.compile(r"[-+]?\d{1,64}", re.ASCII)
PER_CHARACTER = 0.001
"""What each character behind the last tag costs of that tag's eighth."""


def strict_format(text: str, thought: str = "think", weight: float = 0.5) -> float:
    """The two tags, each once and on lines of their own, and nothing else."""
    inside = _parts(text.removesuffix("\n"), thought, between="\n")
    is_kept = inside is not None and all(
        len(part) > 1 and part.startswith("\n") and part.endswith("\n") for part in inside
    )
    return weight if is_kept else 0.0


def soft_format(text: str, thought: str = "think", weight: float = 0.5) -> float:
    """The two tags, each once and in order, with at most blanks around and between them."""
    return weight if _parts(text.strip(), thought, between=None) is not None else 0.0


def count_tags(text: str, thought: str = "think", weight: float = 0.125) -> float:
    """`weight` for each of the four tags that stands there exactly once.

    Text behind the last one costs its weight bit by bit, and no more than that.
    """
    tags = [f"<{thought}>", f"</{thought}>", "<answer>", "</answer>"]
    score = sum(weight for tag in tags if text.count(tag) == 1)
    if text.count("</answer>") == 1:
        behind = len(text.rpartition("</answer>")[2].strip())
        score -= min(weight, PER_CHARACTER * behind)
    return score


def integer_answer(text: str, weight: float = 0.5) -> float:
    """The answer in its tag is a whole number in ASCII digits."""
    answer = extract(text, "tag")
    return weight if answer is not None and _INTEGER.fullmatch(answer) else 0.0


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
