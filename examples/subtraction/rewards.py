"""Two rewards for the form and for the number, of TRL's signature: all samples of a prompt at once.

A configuration names both (reward.functions); `difference` is the rows' column of that name.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from arealite.rewards.extract import extract
from arealite.rewards.numbers import number

Completions = Sequence[Sequence[Mapping[str, str]]]
"""Of each sample its messages, of which there is one."""


def format_reward(completions: Completions, **columns: Any) -> list[float]:
    """1 for thoughts and answer in their tags, on one line each and with nothing around them."""
    return [float(_is_in_form(messages[0]["content"])) for messages in completions]


def accuracy_reward(
    completions: Completions, difference: Sequence[int], **columns: Any
) -> list[float]:
    """1 where the first answer in its tag is the difference; no answer, or no number, earns 0."""
    return [
        float(_answer(messages[0]["content"]) == right)
        for messages, right in zip(completions, difference, strict=True)
    ]


def _answer(text: str) -> object:
    told = extract(text, "tag", "first")
    return None if told is None else number(told)


def _is_in_form(text: str) -> bool:
    inside = text.removeprefix("<think>").removesuffix("</answer>")
    if len(text) - len(inside) != len("<think>") + len("</answer>") or "\n" in text:
        return False
    return "</think><answer>" in inside
