"""Work of unequal sizes in bins of bounded size: what goes into one micro-batch."""

from __future__ import annotations

import heapq
from collections.abc import Sequence


def fill_bins(sizes: Sequence[int], capacity: int, multiple: int = 1) -> list[list[int]]:
    """Indices of `sizes` in bins of at most `capacity`, as few as first-fit decreasing needs.

    The same number of bins is then filled evenly, largest first into the emptiest, where this keeps
    within the capacity: bins of one size take one time, on one device or on many. The number of
    bins is a multiple of `multiple` (bins may be empty). What alone exceeds the capacity has a bin
    of its own. The order of `sizes` decides nothing but ties; the fullest bin comes first.
    """
    order = sorted(range(len(sizes)), key=lambda index: -sizes[index])
    bins = _first_fit(order, sizes, capacity)
    bins += [[] for _ in range(-len(bins) % multiple)]
    even = _evenly(order, sizes, len(bins))
    if all(len(members) < 2 or sum(sizes[i] for i in members) <= capacity for members in even):
        bins = even
    return sorted(bins, key=lambda members: -sum(sizes[i] for i in members))


def _first_fit(order: Sequence[int], sizes: Sequence[int], capacity: int) -> list[list[int]]:
    bins: list[list[int]] = []
    room: list[int] = []
    for index in order:
        for number, left in enumerate(room):
            if sizes[index] <= left:
                bins[number].append(index)
                room[number] -= sizes[index]
                break
        else:
            bins.append([index])
            room.append(capacity - sizes[index])
    return bins


def _evenly(order: Sequence[int], sizes: Sequence[int], n: int) -> list[list[int]]:
    bins: list[list[int]] = [[] for _ in range(n)]
    emptiest = [(0, number) for number in range(n)]
    for index in order:
        filled, number = heapq.heappop(emptiest)
        bins[number].append(index)
        heapq.heappush(emptiest, (filled + sizes[index], number))
    return bins
