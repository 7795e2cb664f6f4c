"""An event loop whose time jumps: waiting costs nothing, and the order of events is exact."""

from __future__ import annotations

import asyncio
import math
import selectors
from collections.abc import Coroutine
from typing import Any, TypeVar

from arealite.errors import Stall

T = TypeVar("T")

RESOLUTION_S = 1e-9
"""That of asyncio's clock; from 8e6 s on a float is coarser."""


class VirtualLoop(asyncio.SelectorEventLoop):
    """Its time() starts at 0 and moves only when nothing is ready: to the next timer.

    Raises Stall when neither a task nor a timer is left that could ever wake the others.
    """

    def __init__(self) -> None:
        self.now = 0.0
        super().__init__(_Jumps(self))

    def time(self) -> float:
        return self.now


class _Jumps(selectors.DefaultSelector):
    """Instead of waiting for `timeout` seconds it moves the loop's time by them."""

    def __init__(self, loop: VirtualLoop) -> None:
        super().__init__()
        self._loop = loop

    def select(self, timeout: float | None = None) -> list[Any]:
        if timeout is None:
            raise Stall("in the simulation everybody waits, and nothing can happen any more")
        later = self._loop.now + max(0.0, timeout)
        if timeout > 0 and later + RESOLUTION_S == later:  # a timer fires before now + resolution
            later = math.nextafter(later, math.inf)
        self._loop.now = later
        return []  # nothing outside this loop exists, so there is nothing to look for


def run_virtually(coroutine: Coroutine[Any, Any, T]) -> T:
    """Runs it to its end on a virtual clock; what it left behind is cancelled."""
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(coroutine)
