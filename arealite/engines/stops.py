"""Stop strings over tokens: a sample ends with the token that completes the first of them.

The rule, for every engine: the sample is the fewest tokens whose text holds a stop string. These
tokens are kept whole, as SGLang keeps them, so the text may go on a little beyond the string.
"""

from __future__ import annotations

import bisect
from collections import deque
from collections.abc import Callable, Sequence

Decode = Callable[[Sequence[int]], str]
"""The text of some tokens, special ones included: a tokenizer's decode."""

SLACK = 8
"""Tokens looked at beyond those that can spell the string: some have no text of their own, and
some tokenizers drop the space before the first one."""


def first_end(tokens: Sequence[int], strings: Sequence[str], decode: Decode) -> int | None:
    """How many of the tokens it takes until their text holds one of the strings."""

    def holds(count: int) -> bool:
        return found_in(decode(tokens[:count]), strings) is not None

    if not holds(len(tokens)):
        return None
    return bisect.bisect_left(range(len(tokens)), True, key=holds)


def found_in(text: str, strings: Sequence[str]) -> str | None:
    """The first of the strings that the text holds."""
    return next((string for string in strings if string in text), None)


class StopWatch:
    """Watches one sample grow, token by token, in time that does not depend on its length."""

    def __init__(self, strings: Sequence[str], decode: Decode) -> None:
        self._strings, self._decode = strings, decode
        # A token that says anything is at least one byte of it.
        longest = max(len(string.encode(errors="surrogatepass")) for string in strings)
        self._tail: deque[int] = deque(maxlen=longest + SLACK)

    def push(self, token: int) -> str | None:
        """The stop string that this token completes, if it does."""
        self._tail.append(token)
        return found_in(self._decode(list(self._tail)), self._strings)
