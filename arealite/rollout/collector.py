"""Python's cyclic garbage collector in a process that holds thousands of episodes."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

YOUNG = 500_000
"""Containers that may come into being before the youngest are searched; Python's own is 700. Each
search looks at every number of the trajectories among them."""
OLD = 100
"""Searches of the middle-aged before one of the whole heap, which takes a second or two where
thousands of episodes are in flight; Python's own is 10."""


@contextmanager
def rare_collections() -> Iterator[None]:
    """Keeps the collector from standing in the way of the event loop.

    One parsed reply is a thousand small lists, more than Python's threshold, so every reply sets a
    collection off; and of what is in flight so much ends and begins within seconds that the whole
    heap is searched again and again, for a second each time. Almost nothing of it is in cycles:
    reference counts have freed it. What is (failed episodes, user code) is still found, later.
    """
    before = gc.get_threshold()
    young = max(before[0], YOUNG) if before[0] else 0
    gc.set_threshold(young, before[1], max(before[2], OLD))
    try:
        yield
    finally:
        gc.set_threshold(*before)
