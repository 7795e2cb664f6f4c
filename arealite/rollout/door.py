"""The one door between the synchronous training loop and the event loop of episodes.

The trainer's thread calls `next_batch`, `publish` and `evaluate`; everything else happens on one
event loop in one other thread.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import math
import sys
import threading
import time
import traceback
from collections.abc import Callable, Coroutine, Iterable
from contextlib import suppress
from typing import Any, TypeVar

from arealite import stopping
from arealite.errors import ErrorBudgetSpent, Preempted, Stall, place
from arealite.protocols import ManagedEngine, Workflow
from arealite.rollout.collector import rare_collections
from arealite.rollout.limits import Limits
from arealite.rollout.session import Numbered, Session
from arealite.rollout.snapshot import Snapshot
from arealite.types import Episode, WeightUpdate

T = TypeVar("T")
LOOK_S = 1.0
"""How often a waiting trainer looks whether the event loop still turns, in seconds."""
SILENT_S = 5.0
"""A loop that beats every second is not blocked before this, however short the deadline."""
SETTLE_S = 3.0
"""How long a deterministic run that is asked to stop waits for what began with older weights; less
than the launcher's grace, and than processes.GRACE_S."""
END_S = 15.0
"""How long the episodes may take to end, when the run does."""


class Evaluating:
    """A held-out set that is being played."""

    def __init__(
        self,
        future: concurrent.futures.Future[dict[str, float]],
        wait: Callable[[concurrent.futures.Future[dict[str, float]]], dict[str, float]],
    ) -> None:
        self._future, self._wait = future, wait

    def done(self) -> bool:
        return self._future.done()

    def result(self) -> dict[str, float]:
        """Waits for it. Raises what ended it, or ended or blocked the event loop."""
        return self._wait(self._future)


class Rollouts:
    """Use it as a context: the loop runs inside, and everything it started ends with it."""

    def __init__(
        self,
        engine: ManagedEngine,
        workflow: Workflow,
        rows: Iterable[Numbered],
        limits: Limits,
        **options: Any,
    ) -> None:
        """options: those of session.Session."""
        self._session = Session(engine, workflow, rows, limits, **options)
        self._limits = limits
        self.is_whole = True
        """False where a deterministic run was asked to stop while episodes ran that belong to
        older weights than the trainer's: a snapshot would have them played with newer ones."""
        self._death: BaseException | None = None
        self._turned, self._is_blocked = time.monotonic(), False
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop

    # --- the trainer's side

    def __enter__(self) -> Rollouts:
        started: concurrent.futures.Future[None] = concurrent.futures.Future()
        # A daemon: user code that never returns must not outlive the run that it ended.
        self._thread = threading.Thread(
            target=self._serve, args=(started,), name="rollouts", daemon=True
        )
        self._thread.start()
        try:
            started.result()
        except BaseException:
            self._thread.join()
            raise
        try:
            self._call(self._session.wait_ready())
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        if self._thread is None:
            return
        if self._death is None:
            self._loop.call_soon_threadsafe(self._stop.set)
        if not self._is_blocked:
            self._thread.join(END_S)  # user code may swallow every cancel; the thread is a daemon
        self._thread = None

    def next_batch(self) -> list[Episode]:
        """The next batch_size episodes under the staleness rule; waits for them.

        Raises Stall at the deadline, or whatever ended the episodes (ErrorBudgetSpent, ...).
        """
        return self._call(self._session.next_batch())

    def publish(self, update: WeightUpdate) -> float:
        """Brings every engine to this version and verifies it; then the version counts.

        Episodes in flight go on with the new weights. The first call starts the episodes.
        Returns the worst difference on the probe, in nats; NaN where the run was asked to stop
        meanwhile, since then nobody needs it any more (see is_whole).
        """
        try:
            return self._call(self._session.publish(update))
        except Preempted:
            if stopping.is_urgent():
                raise
            self.is_whole = self._call(self._session.settles(SETTLE_S), may_stop=False)
            return math.nan

    def evaluate(self, version: int) -> Evaluating:
        """Plays the held-out set beside training; its result() is the flat metrics."""
        coroutine = self._session.evaluate(version)
        return Evaluating(asyncio.run_coroutine_threadsafe(coroutine, self._loop), self._wait)

    def snapshot(self, version: int, also: Callable[[], T]) -> tuple[Snapshot, T]:
        """What is finished and what runs, for weights of this version; also(), called at the same
        moment, which finds positions of files and counts as they are then."""
        return self._call(self._session.snapshot(version, also), may_stop=False)

    @property
    def counts(self) -> dict[str, float]:
        """Flat `counts/...` metrics: what became of every admitted episode so far."""
        return self._session.counts

    def stats(self) -> dict[str, float]:
        """Flat metrics since the last call: counts, waits, what was dropped, speed, canary."""
        return self._call(self._session.stats(), may_stop=False)

    # --- the event loop's side

    def _serve(self, started: concurrent.futures.Future[None]) -> None:
        try:
            with rare_collections(), asyncio.Runner(loop_factory=_loop_factory()) as runner:
                try:
                    runner.run(self._main(started))
                except BaseException as error:
                    if started.done():  # before the loop is closed: nobody may hand it anything
                        self._death = error
                    raise
                finally:
                    _end_tasks(runner.get_loop())
        except BaseException as error:
            if started.done():
                self._death = self._death or error  # _call tells it to the trainer's thread
            else:
                started.set_exception(error)  # whoever waits for the start must learn of it

    async def _main(self, started: concurrent.futures.Future[None]) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        self._turned = time.monotonic()
        beat = asyncio.create_task(self._beat())
        started.set_result(None)
        await self._stop.wait()
        tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(beat, *tasks, return_exceptions=True)
        await self._session.aclose()

    async def _beat(self) -> None:
        """Once a second the status file says who waits for whom."""
        while True:
            self._turned = time.monotonic()
            self._session.tell_counts()
            await asyncio.sleep(1.0)

    def _call(self, coroutine: Coroutine[Any, Any, T], may_stop: bool = True) -> T:
        """Runs on the event loop and waits; being asked to stop ends the wait, where it may."""
        try:
            self._look_at_loop()
            future = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        except BaseException:
            coroutine.close()
            raise
        return self._wait(future, may_stop)

    def _wait(self, future: concurrent.futures.Future[T], may_stop: bool = True) -> T:
        """Never waits for a loop that does not turn, or has ended."""
        try:
            while True:
                try:
                    return future.result(LOOK_S)
                except (TimeoutError, concurrent.futures.CancelledError) as error:
                    if self._thread and not isinstance(error, TimeoutError):
                        self._thread.join(LOOK_S)  # only a dying loop cancels; it tells why last
                    self._look_at_loop()
                    if may_stop:
                        stopping.check()
                    if future.done():  # the coroutine's own error
                        raise
        except BaseException:
            future.cancel()
            raise

    def _look_at_loop(self) -> None:
        """Raises if user code ended the event loop, or has kept it from turning for too long."""
        if self._death is not None:
            at = place(traceback.extract_tb(self._death.__traceback__))
            raise ErrorBudgetSpent(
                f"a workflow or reward function ended the event loop with {self._death!r} {at}"
            )
        silent = time.monotonic() - self._turned
        if silent > max(self._limits.stall_timeout_s, SILENT_S):
            self._is_blocked = True
            frame = sys._current_frames().get(self._thread.ident or 0) if self._thread else None
            frames = traceback.extract_stack(frame)
            sentence = (
                f"the episodes stand still for {silent:.0f} s because {frames[-1].name} "
                f"{place(frames)} does not return; a workflow or reward function must await what "
                "takes long"
            )
            raise Stall(sentence + self._session.report(sentence))


def _end_tasks(loop: asyncio.AbstractEventLoop) -> None:
    """Ends every task; SystemExit of user code leaves the loop once per task that awaits it.

    The runner's own close would end with the second one, and leave tasks that are told to people
    much later, when they are collected.
    """
    while True:
        with suppress(SystemExit, KeyboardInterrupt):
            loop.run_until_complete(asyncio.sleep(0))  # what was handed over becomes a task
        tasks = asyncio.all_tasks(loop)
        if not tasks:
            return
        for task in tasks:
            task.cancel()
        with suppress(SystemExit, KeyboardInterrupt):
            loop.run_until_complete(asyncio.wait(tasks))


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop]:
    if sys.platform == "win32":  # uvloop does not exist there
        return asyncio.new_event_loop
    import uvloop

    return uvloop.new_event_loop  # type: ignore[no-any-return]
