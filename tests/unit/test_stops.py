"""Stop strings over tokens: the watch that sees a sample grow and the look back agree."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from arealite.engines.stops import StopWatch, first_end

# Pieces of text that are cut anywhere, also within a character; one says nothing.
PIECES = [b"a", b"b", b"ab", b"ba", b"aab", b"\xc3", b"\xa9", b"\xe2\x82", b"\xac", b"", b" a"]


def decode(tokens: Sequence[int]) -> str:
    return b"".join(PIECES[token] for token in tokens).decode(errors="replace")


@pytest.mark.parametrize(
    ("tokens", "strings", "end"),
    [
        ([0, 1, 0], ["ba"], 3),
        ([4, 1, 0], ["a"], 1),
        ([0, 1, 2, 1], ["zz", "bab", "abab"], 3),
        ([5, 6, 0], ["é"], 2),
        ([0, 7, 8, 1], ["€b"], 4),
        ([0, 1], ["c"], None),
        ([], ["a"], None),
        ([0, 9, 9, 1], ["ab"], 4),
    ],
)
def test_the_first_token_that_completes_one(
    tokens: list[int], strings: list[str], end: int | None
) -> None:
    assert first_end(tokens, strings, decode) == end


@given(
    tokens=st.lists(st.integers(0, len(PIECES) - 1), max_size=60),
    strings=st.lists(st.text("abé€ ", min_size=1, max_size=6), min_size=1, max_size=3),
)
def test_watching_is_looking_back(tokens: list[int], strings: list[str]) -> None:
    # More tokens without text than the slack, one after another, are not in the promise.
    tokens = [t for i, t in enumerate(tokens) if t != 9 or i % 8 == 0]
    watch, seen = StopWatch(strings, decode), None
    for count, token in enumerate(tokens, 1):
        if watch.push(token) is not None:
            seen = count
            break
    assert seen == first_end(tokens, strings, decode)


def test_a_watch_looks_at_no_more_the_longer_the_sample_is() -> None:
    widths = []

    def measure(tokens: Sequence[int]) -> str:
        widths.append(len(tokens))
        return decode(tokens)

    watch = StopWatch(["é"], measure)
    for _ in range(1000):
        watch.push(0)
    assert max(widths) == 10
