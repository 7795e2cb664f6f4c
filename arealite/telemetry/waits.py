"""Who waits for whom: the one registry through which every wait of a run goes.

A stall must never be silent, so each wait names who owes what (`owner`, `what`) and how long it
may take. A wait that passes its deadline ends in an error that says the same.

Waits are told oldest first, but a wait for something *whole*, which is itself made of waits (an
episode of requests, a batch of episodes), after all others: which server does not answer says more
than that an episode has not ended. Where nothing else is open, the whole is the cause itself: a
workflow that does not return.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from types import TracebackType
from typing import Any, TypeVar

from arealite.errors import ArealiteError, Stall

T = TypeVar("T")


class Wait:
    """One open wait, used as `with`. since: time.monotonic() seconds at which it began. whole:
    see Waits.on."""

    __slots__ = ("_ended", "_open", "deadline_s", "owner", "since", "what", "whole")

    def __init__(
        self,
        opened: dict[Wait, None],
        owner: str,
        what: str,
        deadline_s: float | None,
        whole: int,
        ended: Callable[[Wait], None] | None = None,
    ) -> None:
        self._open, self._ended = opened, ended
        self.owner = owner
        self.what = what
        self.deadline_s = deadline_s
        self.whole = whole
        self.since = 0.0

    def __enter__(self) -> Wait:
        self.since = time.monotonic()
        self._open[self] = None
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._open.pop(self, None)
        if self._ended is not None:
            self._ended(self)

    def age(self, now: float) -> float:
        """Seconds since it began."""
        return max(0.0, now - self.since)

    def __repr__(self) -> str:
        return f"Wait({self.owner!r}, {self.what!r}, deadline_s={self.deadline_s})"


class Waits:
    """All open waits of a process, from any thread or task; about one microsecond each.

    No lock: one dict operation is atomic in CPython, and a snapshot is one list() of the dict.
    """

    def __init__(self, ended: Callable[[Wait], None] | None = None) -> None:
        """ended: is told of every wait that has ended, in whatever way, where it ended."""
        self._open: dict[Wait, None] = {}
        self._ended = ended

    def on(self, owner: str, what: str, deadline_s: float | None = None, *, whole: int = 0) -> Wait:
        """`with waits.on("engine :4123", "a reply", 60.0): ...`, around an await or in a thread.

        whole: 1 for what is itself made of waits that are on record (an episode, of requests), 2
        for what is made of those (a batch, of episodes); it is told after them. It only records;
        the deadline is applied by waited(), or by whoever reads overdue().
        """
        return Wait(self._open, owner, what, deadline_s, whole, self._ended)

    def count(self) -> int:
        """How many waits are open. (No __len__: an empty registry must not be false.)"""
        return len(self._open)

    def oldest(self, now: float | None = None) -> Wait | None:
        """The first to tell of those begun before `now` (monotonic seconds): see above."""
        begun = [w for w in list(self._open) if now is None or w.since <= now]
        return min(begun, key=_order, default=None)

    def overdue(self, now: float | None = None) -> list[Wait]:
        """The waits past their deadline at `now` (monotonic seconds), oldest first."""
        at = time.monotonic() if now is None else now
        limited = [w for w in list(self._open) if w.deadline_s is not None]
        late = [w for w in limited if w.age(at) > (w.deadline_s or 0.0)]
        return sorted(late, key=lambda wait: wait.since)

    def older(self, seconds: float, whole: int) -> list[Wait]:
        """Open for so long, and at most so much of a whole; oldest first."""
        now = time.monotonic()
        found = [w for w in list(self._open) if w.whole <= whole and w.age(now) > seconds]
        return sorted(found, key=lambda wait: wait.since)

    def summary(self, now: float | None = None) -> list[dict[str, Any]]:
        """One mapping per (owner, what), in the order of telling (see above): owner, what, count,
        seconds, deadline_s.

        seconds: the age of the oldest wait of the group, whose deadline_s is given with it.
        """
        at = time.monotonic() if now is None else now
        groups: dict[tuple[str, str], list[Wait]] = {}
        for wait in list(self._open):  # thousands, every second, on the event loop: no sorting
            groups.setdefault((wait.owner, wait.what), []).append(wait)
        firsts = [(min(group, key=_order), len(group)) for group in groups.values()]
        return [
            {
                "owner": wait.owner,
                "what": wait.what,
                "count": count,
                "seconds": round(wait.age(at), 3),
                "deadline_s": wait.deadline_s,
            }
            for wait, count in sorted(firsts, key=lambda first: _order(first[0]))
        ]


def _order(wait: Wait) -> tuple[int, float]:
    return wait.whole, wait.since


async def waited(
    awaitable: Awaitable[T],
    *,
    waits: Waits,
    owner: str,
    what: str,
    deadline_s: float | None,
    error: type[ArealiteError] = Stall,
    whole: int = 0,
) -> T:
    """Awaits, under a name and a deadline (seconds, None for no limit). whole: see Waits.on.

    Raises `error` naming owner, what and seconds when the deadline passes; the awaitable is then
    cancelled. A TimeoutError of the awaitable itself is passed on as it is.
    """
    with waits.on(owner, what, deadline_s, whole=whole) as wait:
        limit = asyncio.timeout(deadline_s)
        try:
            async with limit:
                return await awaitable
        except TimeoutError:
            if not limit.expired():
                raise
            seconds = wait.age(time.monotonic())
            raise error(
                f"{owner} did not deliver {what} in {seconds:.1f} s (deadline {deadline_s:g} s)"
            ) from None


def is_cancelled() -> bool:
    """Whether this task is being cancelled from outside, and not by what it awaits."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


async def together(coroutines: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    """The results, in order. The first error ends the others too, so that none goes on unseen."""
    coroutines = list(coroutines)
    if len(coroutines) == 1:
        return [await coroutines[0]]  # without a task: the reward of most samples comes here
    tasks = [asyncio.ensure_future(coroutine) for coroutine in coroutines]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
