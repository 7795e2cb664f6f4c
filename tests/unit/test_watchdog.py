"""A watched wait: how long it may be, when a rescue is tried, and what a hanging look says."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Callable, Hashable
from dataclasses import dataclass, field

import pytest

from arealite.errors import Stall
from arealite.rollout.watchdog import watched
from arealite.simulate.clock import run_virtually
from arealite.telemetry.waits import Waits

STALL_S = 100.0

Look = Callable[[float], Awaitable[Hashable]]
"""look(loop time) -> what progress shows."""


@dataclass
class Seen:
    """What became of a wait, and when: in seconds since it began."""

    rescues: list[float] = field(default_factory=list)
    reported: list[list[str]] = field(default_factory=list)
    ended: float = 0.0
    stall: str = ""


def _watch(look: Look, takes_s: float) -> Seen:
    """A wait of takes_s seconds (virtual ones), watched by this look."""
    seen = Seen()

    async def run() -> None:
        now = asyncio.get_running_loop().time

        async def rescue() -> str:
            seen.rescues.append(now())
            return f"rescue {len(seen.rescues)}"

        def report(sentence: str, tried: list[str]) -> str:
            seen.reported.append(list(tried))
            return "; reported"

        try:
            async with asyncio.timeout(20 * STALL_S):  # or a test would never end
                await watched(
                    asyncio.sleep(takes_s),
                    waits=Waits(),
                    owner="somebody",
                    what="something",
                    stall_s=STALL_S,
                    progress=lambda: look(now()),
                    rescue=rescue,
                    report=report,
                )
        except Stall as stall:
            seen.stall = str(stall)
        seen.ended = now()

    run_virtually(run())
    return seen


async def _nothing_moves(now: float) -> Hashable:
    return 7


async def _hangs(now: float) -> Hashable:
    await asyncio.sleep(1e9)
    return now


def _hangs_every_second_time() -> Look:
    turn = itertools.count()

    async def look(now: float) -> Hashable:
        return await (_hangs if next(turn) % 2 else _nothing_moves)(now)

    return look


@pytest.mark.parametrize("look", [_nothing_moves, _hangs, _hangs_every_second_time()])
def test_where_nothing_moves_one_rescue_is_tried_and_then_it_ends(look: Look) -> None:
    """A look that hangs shows nothing: neither is it movement, nor does it hold up the end."""
    seen = _watch(look, takes_s=1e6)
    assert seen.stall.startswith("somebody did not deliver something: nothing has moved for")
    assert seen.stall.endswith("; reported")
    assert STALL_S <= seen.ended <= 2 * STALL_S
    assert len(seen.rescues) == 1
    assert STALL_S / 2 <= seen.rescues[0] < seen.ended
    assert seen.reported == [["rescue 1"]]


def test_each_quiet_time_has_a_rescue_of_its_own() -> None:
    """Something moves every 90 seconds, then never again: each quiet time is rescued once."""

    async def look(now: float) -> Hashable:
        return min(now // 90.0, 3)

    seen = _watch(look, takes_s=1e6)
    assert seen.stall
    assert [int(at // 90.0) for at in seen.rescues] == [0, 1, 2, 3]
    assert seen.reported == [["rescue 4"]], "the report tells of this quiet time only"


def test_what_moves_is_neither_rescued_nor_ended() -> None:
    async def look(now: float) -> Hashable:
        return now

    seen = _watch(look, takes_s=10 * STALL_S)
    assert (seen.rescues, seen.stall, seen.ended) == ([], "", 10 * STALL_S)
