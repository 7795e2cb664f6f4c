"""A wait that may be long as long as anything moves, and that never ends in silence."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Hashable
from typing import Any, TypeVar

from arealite.errors import Stall
from arealite.telemetry.waits import Waits

T = TypeVar("T")


async def watched(
    coroutine: Coroutine[Any, Any, T],
    *,
    waits: Waits,
    owner: str,
    what: str,
    stall_s: float,
    progress: Callable[[], Awaitable[Hashable]],
    rescue: Callable[[], Awaitable[str]],
    report: Callable[[str, list[str]], str],
) -> T:
    """Awaits the coroutine. Raises Stall when `progress` shows the same for stall_s seconds.

    It looks four times in stall_s, first after a quarter. After half of the time `rescue` is
    called, once until something moves again; it returns what it did. report(sentence, tried) tells
    people and returns where.
    """
    now = asyncio.get_running_loop().time
    task = asyncio.ensure_future(coroutine)
    tried: list[str] = []
    seen: Hashable = None
    since = now()
    try:
        with waits.on(owner, what, stall_s, whole=2):
            while not (await asyncio.wait({task}, timeout=stall_s / 4))[0]:
                found = await _looked(progress, stall_s)
                if found is not None and found != seen:
                    seen, since, tried = found, now(), []
                quiet = now() - since
                if quiet >= stall_s:
                    sentence = (
                        f"{owner} did not deliver {what}: nothing has moved for {quiet:.1f} s "
                        f"(rollout.stall_timeout_s is {stall_s:g})"
                    )
                    raise Stall(f"{sentence}{report(sentence, tried)}")
                if quiet >= stall_s / 2 and not tried:
                    tried.append(await rescue())
        return task.result()
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def _looked(progress: Callable[[], Awaitable[Hashable]], stall_s: float) -> Hashable:
    """What progress shows; None when the look itself takes long: a hanging server shows nothing."""
    try:
        async with asyncio.timeout(stall_s / 4):
            return await progress()
    except TimeoutError:
        return None
