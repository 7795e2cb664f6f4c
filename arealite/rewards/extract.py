"""What a completion gives as its answer: string search in linear time, whatever the text.

Forms: `tag` <answer>...</answer>, `boxed` \\boxed{...} with balanced braces, `hash` what follows
#### on its line, `number` a number in running text. Policies: the `first`, the `last`, or the
`only` one, which refuses a text that gives several. An answer that is never closed (an output cut
off by its length limit) is none; digits are ASCII.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import islice
from typing import Literal

OPENING = "<answer>"
CLOSING = "</answer>"

Form = Literal["tag", "boxed", "hash", "number"]
Which = Literal["first", "last", "only"]

MOST_ANSWER = 4096
"""Characters of an answer in a box, a line or a number; what is longer is none."""
MOST_TRIED = 16
"""Marks without an answer that are passed over before the text counts as one without any."""

_BOX = "\\boxed"
_BRACE = re.compile(r"\\.|[{}]", re.DOTALL)
_NUMBER = re.compile(r"[-+]?(?:\d[\d,]*(?:\.\d+)?|\.\d+)", re.ASCII)


def extract(text: str, form: Form = "tag", which: Which = "last") -> str | None:
    """The answer as written, without blanks around it; None if the text gives none."""
    found = islice(_FORMS[form](text, which != "last"), 2)
    answer = next(found, None)
    if which == "only" and next(found, None) is not None:
        return None
    return None if answer is None else answer.strip()


def last_answer(text: str) -> str | None:
    """Text of the last complete ``<answer>...</answer>``, as written; None if there is none.

    Of nested tags the innermost pair counts. An opening tag that is never closed (an output cut
    off by its length limit) gives no answer of its own.
    """
    return next(_tags(text, forward=False), None)


def _tags(text: str, forward: bool) -> Iterator[str]:
    """Complete pairs of tags, from the first or from the last; of nested ones the innermost."""
    at = 0 if forward else len(text)
    for _ in range(MOST_TRIED):
        if forward:
            closing = text.find(CLOSING, at)
            opening = text.rfind(OPENING, at, max(closing, at))
        else:
            closing = text.rfind(CLOSING, 0, at)
            opening = text.rfind(OPENING, 0, max(closing, 0))
            if opening >= 0:  # more than one closing tag may follow the opening one
                closing = text.find(CLOSING, opening)
        if closing < 0 or (opening < 0 and not forward):
            return
        if opening >= 0:
            yield text[opening + len(OPENING) : closing]
        at = closing + len(CLOSING) if forward else opening


def _boxes(text: str, forward: bool) -> Iterator[str]:
    at = 0 if forward else len(text)
    for _ in range(MOST_TRIED):
        box = text.find(_BOX, at) if forward else text.rfind(_BOX, 0, at)
        if box < 0:
            return
        content = _braced(text, box + len(_BOX))
        if content is not None:
            yield content
        at = box if not forward else box + len(_BOX) + len(content or "")


def _braced(text: str, start: int) -> str | None:
    """What stands between the brace at `start` and the one that closes it."""
    if not text.startswith("{", start):
        return None
    depth = 0
    for brace in _BRACE.finditer(text, start, start + MOST_ANSWER):
        depth += {"{": 1, "}": -1}.get(brace[0], 0)
        if depth == 0:
            return text[start + 1 : brace.start()]
    return None


def _hashes(text: str, forward: bool) -> Iterator[str]:
    at = 0 if forward else len(text)
    for _ in range(MOST_TRIED):
        mark = text.find("####", at) if forward else text.rfind("####", 0, at)
        if mark < 0:
            return
        line = text[mark + 4 : mark + 4 + MOST_ANSWER].partition("\n")[0]
        if line.strip(" #"):
            yield line
        at = mark + 4 if forward else mark


def _numbers(text: str, forward: bool) -> Iterator[str]:
    if forward:
        yield from (number[0] for number in _NUMBER.finditer(text))
    else:
        yield from reversed(_NUMBER.findall(text[-MOST_ANSWER:]))


_FORMS = {"tag": _tags, "boxed": _boxes, "hash": _hashes, "number": _numbers}
