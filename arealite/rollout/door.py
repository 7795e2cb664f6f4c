"""The one door between the synchronous training loop and the event loop of episodes.

The trainer's thread calls `next_batch`, `publish` and `evaluate`; everything else happens on one
event loop in one other thread.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import sys
import threading
import time
import traceback
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

from arealite.errors import ArealiteError, ErrorBudgetSpent, Stall
from arealite.protocols import ManagedEngine, Workflow
from arealite.rollout.buffer import Buffer
from arealite.rollout.evaluate import evaluate
from arealite.rollout.runner import Runner
from arealite.rollout.staleness import Late
from arealite.rollout.survivorship import survivorship
from arealite.telemetry.status import Status
from arealite.telemetry.transcripts import Transcripts
from arealite.telemetry.waits import Waits, waited
from arealite.types import Episode, WeightUpdate

T = TypeVar("T")
LOOK_S = 1.0
"""How often a waiting trainer looks whether the event loop still turns, in seconds."""
SILENT_S = 5.0
"""A loop that beats every second is not blocked before this, however short the deadline."""
Numbered = tuple[str, Mapping[str, Any]]


@dataclass(frozen=True)
class Limits:
    """The numbers that rule the rollouts; see the configuration for their meaning."""

    batch_size: int
    eta: int
    late: Late = "mask"
    max_running: int | None = None
    setup_timeout_s: float = 300.0
    stall_timeout_s: float = 600.0
    eval_concurrency: int = 64
    eval_success: float = 1.0


class Rollouts:
    """Use it as a context: the loop runs inside, and everything it started ends with it."""

    def __init__(
        self,
        engine: ManagedEngine,
        workflow: Workflow,
        rows: Iterable[Numbered],
        limits: Limits,
        *,
        keep: Callable[[Episode], bool] = lambda episode: True,
        eval_workflow: Workflow | None = None,
        eval_rows: Sequence[Numbered] = (),
        status: Status | None = None,
        transcripts: Transcripts | None = None,
        waits: Waits | None = None,
        version: int = 0,
    ) -> None:
        self._engine, self._workflow, self._rows = engine, workflow, iter(rows)
        self._limits, self._keep = limits, keep
        self._eval_workflow, self._eval_rows = eval_workflow or workflow, eval_rows
        self._status, self._transcripts = status, transcripts
        self._waits = waits or Waits()
        self._version = version
        self._seen_tokens, self._seen_at = 0.0, time.monotonic()
        self._timed: dict[str, float] = {}
        self._batch: list[Episode] = []
        self._dropped: list[tuple[int, Episode]] = []
        self._batch_version = version
        self._death: BaseException | None = None
        self._turned, self._is_blocked = time.monotonic(), False
        self._running: asyncio.Task[None] | None = None
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop
        self._buffer: Buffer

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
            self._call(self._engine.wait_ready(self._limits.setup_timeout_s))
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
            self._thread.join()
        self._thread = None

    def next_batch(self) -> list[Episode]:
        """The next batch_size episodes under the staleness rule; waits for them.

        Raises Stall at the deadline, or whatever ended the episodes (ErrorBudgetSpent, ...).
        """
        with self._timing("wait_batch"):
            self._batch = self._call(
                waited(
                    self._buffer.take(),
                    waits=self._waits,
                    owner="rollouts",
                    what=f"a batch of {self._limits.batch_size} episodes",
                    deadline_s=self._limits.stall_timeout_s,
                )
            )
        self._batch_version = self._buffer.version
        return self._batch

    def publish(self, update: WeightUpdate) -> float:
        """Brings every engine to this version and verifies it; then the version counts.

        Episodes in flight go on with the new weights. The first call starts the episodes.
        Returns the worst difference on the probe, in nats.
        """
        with self._timing("publish"):
            difference = self._call(self._publish(update))
        self._timed["weights/canary_max_diff"] = difference
        return difference

    def evaluate(self, version: int) -> concurrent.futures.Future[dict[str, float]]:
        """Plays the held-out set beside training; the future holds the flat metrics."""
        return asyncio.run_coroutine_threadsafe(self._evaluate(version), self._loop)

    @property
    def counts(self) -> dict[str, float]:
        """Flat `counts/...` metrics: what became of every admitted episode so far."""
        counts = self._buffer.counts
        names = ("admitted", "trained", "filtered", "failed", "dropped_stale")
        return {f"counts/{name}": float(counts[name]) for name in names} | {
            "counts/in_flight": float(self._buffer.running),
            "counts/buffered": float(len(self._buffer)),
        }

    def stats(self) -> dict[str, float]:
        """Flat metrics since the last call: counts, waits, what was dropped, speed, canary."""
        dropped, self._dropped = self._dropped, []
        stats = self.counts | self._timed
        stats |= survivorship(self._batch, dropped, self._batch_version)
        tokens = self._call(self._engine.server_metrics()).get("tokens_generated")
        now = time.monotonic()
        if tokens is not None:
            seconds = max(now - self._seen_at, 1e-9)
            stats["rollout/tokens_per_s"] = (tokens - self._seen_tokens) / seconds
            self._seen_tokens, self._seen_at = tokens, now
        return stats

    # --- the event loop's side

    def _serve(self, started: concurrent.futures.Future[None]) -> None:
        try:
            with asyncio.Runner(loop_factory=_loop_factory()) as runner:
                runner.run(self._main(started))
        except BaseException as error:
            if started.done():
                self._death = error  # _call tells it to the trainer's thread
            else:
                started.set_exception(error)  # whoever waits for the start must learn of it

    async def _main(self, started: concurrent.futures.Future[None]) -> None:
        limits = self._limits
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        self._buffer = Buffer(
            limits.batch_size,
            limits.eta,
            limits.late,
            limits.max_running,
            self._version,
            on_dropped=self._on_dropped,
        )
        self._turned = time.monotonic()
        beat = asyncio.create_task(self._beat())
        started.set_result(None)
        await self._stop.wait()
        tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(beat, *tasks, return_exceptions=True)
        self._tell_counts()
        await self._engine.aclose()

    async def _publish(self, update: WeightUpdate) -> float:
        difference = await self._engine.update_weights(update)
        self._buffer.advance(update.version)
        if self._running is None:
            runner = Runner(
                self._buffer, self._engine, self._workflow, self._rows, self._keep, self._tell
            )
            self._running = asyncio.create_task(runner.run(), name="runner")
        return difference

    async def _evaluate(self, version: int) -> dict[str, float]:
        metrics = await evaluate(
            self._eval_workflow,
            self._engine,
            self._eval_rows,
            version,
            self._tell,
            success=self._limits.eval_success,
            concurrency=self._limits.eval_concurrency,
            waits=self._waits,
            deadline_s=self._limits.stall_timeout_s,
        )
        failed = int(metrics["eval/valid/failed"])
        if failed and self._status is not None:
            self._status.alarm(
                f"held-out rows failed and are in no mean: {failed} of {len(self._eval_rows)} "
                f"at version {version} (transcripts.jsonl has each)"
            )
        return metrics

    async def _beat(self) -> None:
        """Once a second the status file says who waits for whom."""
        while True:
            self._turned = time.monotonic()
            self._tell_counts()
            await asyncio.sleep(1.0)

    def _tell_counts(self) -> None:
        if self._status is not None:
            counts = {key.partition("/")[2]: value for key, value in self.counts.items()}
            self._status.beat(counts)

    def _tell(
        self,
        episode: Episode,
        fate: Any,
        error: ArealiteError | None = None,
    ) -> None:
        if self._transcripts is not None:
            self._transcripts.write(
                episode.sample_id,
                episode.version,
                fate,
                episode.trajectories,
                query=dict(episode.row),
                dataset="valid" if fate == "evaluated" else None,
                error=error,
            )

    def _on_dropped(self, episode: Episode) -> None:
        self._dropped.append((self._buffer.version, episode))
        self._tell(episode, "dropped_stale")

    @contextmanager
    def _timing(self, name: str) -> Iterator[None]:
        started = time.monotonic()
        yield
        self._timed[f"time/{name}_s"] = time.monotonic() - started

    def _call(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Runs on the event loop and waits; a signal in between cancels it."""
        self._look_at_loop()
        future = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        try:
            while True:
                try:
                    return future.result(LOOK_S)
                except (TimeoutError, concurrent.futures.CancelledError) as error:
                    if self._thread and not isinstance(error, TimeoutError):
                        self._thread.join(LOOK_S)  # only a dying loop cancels; it tells why last
                    self._look_at_loop()
                    if future.done():  # the coroutine's own error
                        raise
        except BaseException:
            future.cancel()
            raise

    def _look_at_loop(self) -> None:
        """Raises if user code ended the event loop, or has kept it from turning for too long."""
        if self._death is not None:
            last = traceback.extract_tb(self._death.__traceback__)[-1]
            raise ErrorBudgetSpent(
                f"a workflow or reward function ended the event loop with {self._death!r} "
                f"({last.filename}, line {last.lineno})"
            )
        silent = time.monotonic() - self._turned
        if silent > max(self._limits.stall_timeout_s, SILENT_S):
            self._is_blocked = True
            frame = sys._current_frames().get(self._thread.ident or 0) if self._thread else None
            last = traceback.extract_stack(frame)[-1]
            raise Stall(
                f"the episodes stand still for {silent:.0f} s because {last.name} "
                f"({last.filename}, line {last.lineno}) does not return; a workflow or reward "
                "function must await what takes long"
            )


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop]:
    if sys.platform == "win32":  # uvloop does not exist there
        return asyncio.new_event_loop
    import uvloop

    return uvloop.new_event_loop  # type: ignore[no-any-return]
