"""Texts that must not earn a full score, made for a row and what is right there."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

_NO_ANSWER = "-987654321"


def hacks(truth: Any, prompt: str | None) -> Iterator[tuple[str, str]]:
    """(what it is, the text). None of them answers the row, so none may earn full marks."""
    yield "nothing at all", ""
    yield "empty tags", "<think></think><answer></answer>"
    yield "an empty box", "\\boxed{}"
    yield "the words of the instruction", "<think>...</think> <answer>(1 + 2) / 3</answer>"
    if prompt is not None:
        yield "the prompt again", prompt
        yield "the prompt as the answer", f"<answer>{prompt}</answer>"
    own = [str(truth)] if isinstance(truth, str | int | float) else []
    numbers = [_NO_ANSWER, *map(str, range(-10, 500)), *own, _NO_ANSWER]
    yield "many answers", "".join(f"<answer>{n}</answer>" for n in numbers)
    yield "many boxes", "".join(f"\\boxed{{{n}}}" for n in numbers)
    yield "many answers in one", f"<answer>{' '.join(numbers)}</answer>"
    if isinstance(truth, Mapping) and {"target", "numbers"} <= set(truth):
        target, given = truth["target"], truth["numbers"]
        if isinstance(given, list) and all(map(_is_small, [target, *given])):
            yield from _numbers_game(target, [str(n) for n in given])


def _is_small(number: Any) -> bool:
    return isinstance(number, int) and abs(number) < 10**9


def _numbers_game(target: int, numbers: list[str]) -> Iterator[tuple[str, str]]:
    """The target reached against the rules, as graders that evaluate text let it pass."""
    used = " + ".join(numbers)
    rest = f"{target} - ({used})"
    for what, expression in (
        ("the target itself", f"{target}"),
        ("numbers that are not given", f"{used} + {rest}"),
        ("a decimal point (the 3.5*2 family)", f"{target / 2} * 2"),
        ("the numbers in a comment", f"{target} # {used}"),
        ("the numbers multiplied away", f"0 * ({used}) + {target}"),
        ("a power of 0", f"({used}) ** 0 * {target}"),
        ("whole division", f"({used}) // ({used}) * {target}"),
        ("the numbers glued together", f"{''.join(numbers)} - {''.join(numbers)} + {target}"),
        ("an equation", f"{used} = {target}"),
        ("a list", f"[{', '.join(numbers)}, {target}][-1]"),
        ("a condition", f"({used}) and {target}"),
        ("a call", f"max({', '.join(numbers)}, {target})"),
        ("an assignment", f"(x := {target})"),
        ("a sign", f"-(-{target})"),
        ("text", json.dumps(str(target))),
    ):
        yield what, f"<answer>{expression}</answer>"
