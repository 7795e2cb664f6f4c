"""Bins: everything once, never too full, few, and of one size."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from arealite.data.bins import fill_bins

SIZES = st.lists(st.integers(1, 60), max_size=40)


@settings(max_examples=200, deadline=None)
@given(sizes=SIZES, capacity=st.integers(1, 100), multiple=st.integers(1, 4))
def test_everything_once_and_never_too_full(sizes: list[int], capacity: int, multiple: int) -> None:
    bins = fill_bins(sizes, capacity, multiple)
    assert sorted(i for members in bins for i in members) == list(range(len(sizes)))
    assert len(bins) % multiple == 0
    for members in bins:
        assert sum(sizes[i] for i in members) <= capacity or len(members) == 1
    filled = [sum(sizes[i] for i in members) for members in bins]
    assert filled == sorted(filled, reverse=True)
    # first-fit decreasing leaves at most one bin half empty
    assert len(bins) < 2 * sum(sizes) / capacity + 1 + multiple


@settings(max_examples=100, deadline=None)
@given(sizes=SIZES, capacity=st.integers(1, 100), seed=st.integers(0, 99))
def test_the_order_of_what_is_packed_decides_nothing(
    sizes: list[int], capacity: int, seed: int
) -> None:
    other = sizes.copy()
    random.Random(seed).shuffle(other)

    def contents(sizes: list[int]) -> list[list[int]]:
        return sorted(sorted(sizes[i] for i in m) for m in fill_bins(sizes, capacity))

    assert contents(sizes) == contents(other)


@pytest.mark.parametrize(
    ("sizes", "capacity", "multiple", "expected"),
    [
        ([], 10, 1, []),
        ([], 10, 3, []),
        ([3], 10, 2, [[0], []]),
        ([25, 3], 10, 1, [[0], [1]]),  # too big for any bin: alone
        ([6, 5, 4, 3, 2], 10, 1, [[0, 2], [1, 3, 4]]),  # largest to emptiest would be 9 and 11
        ([4, 4, 4], 8, 1, [[0, 2], [1]]),
        ([6, 2, 2, 2], 8, 1, [[0], [1, 2, 3]]),  # even, where first fit gives 8 and 4
    ],
)
def test_by_hand(sizes: list[int], capacity: int, multiple: int, expected: list[list[int]]) -> None:
    assert fill_bins(sizes, capacity, multiple) == expected
