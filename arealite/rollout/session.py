"""The episodes of one run, on the event loop: batches, versions, held-out sets, what is told.

door.Rollouts is its face for a trainer in another thread; the simulator drives it directly, under
a clock of its own. All times are the event loop's.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from arealite.crash import crash_point
from arealite.errors import ArealiteError, EpisodeError, ErrorBudgetSpent
from arealite.ledger import Ledger
from arealite.protocols import Closes, ManagedEngine, Workflow
from arealite.rollout.buffer import Buffer
from arealite.rollout.concurrency import Concurrency
from arealite.rollout.evaluate import evaluate
from arealite.rollout.failures import Failures
from arealite.rollout.limits import Limits
from arealite.rollout.runner import STARTS, Runner
from arealite.rollout.snapshot import Snapshot
from arealite.rollout.survivorship import survivorship
from arealite.rollout.watchdog import watched
from arealite.telemetry.run_folder import write_atomically
from arealite.telemetry.stall import describe
from arealite.telemetry.status import Status
from arealite.telemetry.transcripts import Transcripts
from arealite.telemetry.waits import Waits
from arealite.types import Episode, WeightUpdate

T = TypeVar("T")
Numbered = tuple[str, Mapping[str, Any]]

MOST_DROPPED = 20
"""So many times what staleness admits may be dropped for its age before the run ends."""
ADAPT_S = 1.0
"""How often the servers' queues are looked at, where concurrency is adaptive."""

ENGINE = (
    *("tokens_generated", "prompt_tokens", "steps", "decode_s", "busy_s", "idle_s"),
    *("running", "waiting", "aborted", "servers", "serving", "versions_stamped_by_client"),
)
"""What is recorded of the servers' own counters, summed over the servers, as engine/<name>."""


class Session:
    """See door.Rollouts for what its methods promise."""

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
        stall_report: Path | None = None,
        more_counts: Callable[[], Mapping[str, float]] = dict,
        version: int = 0,
        ledger: Ledger | None = None,
        snapshot: Snapshot | None = None,
    ) -> None:
        """more_counts: flat `counts/...` of others. snapshot: goes on from there, at `version`."""
        self.engine, self.limits = engine, limits
        self.waits = waits or Waits()
        self.buffer = Buffer(
            limits.batch_size,
            limits.eta,
            "wait" if limits.in_order else limits.late,
            limits.max_running,
            version,
            self._on_dropped,
            ledger,
            snapshot,
        )
        self._runner = Runner(
            self.buffer, engine, workflow, iter(rows), keep, self._tell, limits, self.waits
        )
        self._workflows = {id(one): one for one in (workflow, eval_workflow or workflow)}
        self._eval_workflow, self._eval_rows = eval_workflow or workflow, eval_rows
        self._status, self._transcripts = status, transcripts
        self._stall_report, self._more_counts = stall_report, more_counts
        self._failures, self._timed = Failures(), dict[str, float]()
        self._batch, self._batch_version = list[Episode](), version
        self._spent: list[Episode] = []
        self._dropped: list[tuple[int, Episode]] = []
        self._dropped_in_a_row = self._told = 0
        self._waits_seen_at, self._overlong = time.monotonic(), set[tuple[str, str]]()
        self._stats_tokens = self._stats_at = self._moved = 0.0
        self._running: asyncio.Task[None] | None = None
        self._background = set[asyncio.Task[None]]()  # the loop itself keeps only weak references
        self._evaluations: set[asyncio.Task[Any]] = set()

    async def wait_ready(self) -> None:
        self._stats_at = asyncio.get_running_loop().time()
        await self.engine.wait_ready(self.limits.setup_timeout_s)

    async def next_batch(self) -> list[Episode]:
        with self._timing("wait_batch"):
            batch = await self._take()
            self._dropped_in_a_row = 0
        self._spent += self._batch
        self._batch, self._batch_version = batch, self.buffer.version
        return list(batch)

    async def _take(self) -> list[Episode]:
        if self.buffer.is_complete():
            return await self.buffer.take()
        what = f"a batch of {self.limits.batch_size} episodes"
        return await self._watched(self.buffer.take(), "rollouts", what)

    async def publish(self, update: WeightUpdate) -> float:
        with self._timing("publish"):
            what = f"weights version {update.version}"
            difference = await self._watched(self._update(update), "engines", what)
        self.buffer.advance(update.version)
        if self._running is None:
            self._running = asyncio.create_task(self._runner.run(), name="runner")
            if self.limits.adaptive:
                self._background.add(asyncio.create_task(self._adapt(), name="concurrency"))
        self._timed["weights/canary_max_diff"] = difference
        letting_go = asyncio.create_task(self._let_go(), name="memory")
        self._background.add(letting_go)
        letting_go.add_done_callback(self._background.discard)
        return difference

    async def _let_go(self) -> None:
        """Of the batches before this one, a few episodes at a time: no thread runs while Python
        frees the numbers of all at once, a tenth of a second for a million of them."""
        while self._spent:
            del self._spent[-STARTS:]
            await asyncio.sleep(0)

    async def _update(self, update: WeightUpdate) -> float:
        if self.limits.in_order and self._running is not None:
            await self.buffer.idle()
            await asyncio.gather(*self._evaluations, return_exceptions=True)
        self.buffer.newest = max(self.buffer.newest, update.version)
        self._runner.vocabulary = update.vocabulary
        crash_point("before_update")
        difference = await self.engine.update_weights(update)
        crash_point("weights_verified")
        return difference

    async def settles(self, seconds: float) -> bool:
        """Whether what runs may be played again with newer weights; else waits for its end."""
        if not self.limits.in_order or self._running is None:
            return True
        try:
            async with asyncio.timeout(seconds):
                await self.buffer.idle()
        except (TimeoutError, ArealiteError):
            return False
        return True

    async def _watched(self, coroutine: Coroutine[Any, Any, T], owner: str, what: str) -> T:
        return await watched(
            coroutine,
            waits=self.waits,
            owner=owner,
            what=what,
            stall_s=self.limits.stall_timeout_s,
            progress=self._progress,
            rescue=self._rescue,
            report=self.report,
        )

    async def evaluate(self, version: int) -> dict[str, float]:
        task = asyncio.create_task(self._evaluate(version), name=f"evaluation {version}")
        self._evaluations.add(task)
        task.add_done_callback(self._evaluations.discard)
        return await task

    async def snapshot(self, version: int, also: Callable[[], T]) -> tuple[Snapshot, T]:
        """The rollouts for weights of this version, and what `also` finds at the same moment."""
        return self.buffer.snapshot(version), also()

    @property
    def counts(self) -> dict[str, float]:
        counts = self.buffer.counts
        names = ("admitted", "trained", "filtered", "failed", "dropped_stale")
        return {
            **{f"counts/{name}": float(counts[name]) for name in names},
            **self._failures.counts,
            **self._more_counts(),
            "counts/in_flight": float(self.buffer.running),
            "counts/buffered": float(len(self.buffer)),
        }

    async def stats(self) -> dict[str, float]:
        dropped, self._dropped = self._dropped, []
        stats = self.counts | self._timed
        stats |= survivorship(self._batch, dropped, self._batch_version)
        if self.buffer.max_running is not None:
            stats["rollout/max_running"] = float(self.buffer.max_running)
        metrics = await self.engine.server_metrics()
        stats |= {f"engine/{key}": metrics[key] for key in ENGINE if key in metrics}
        tokens = metrics.get("tokens_generated")
        now = asyncio.get_running_loop().time()
        if tokens is not None:
            seconds = max(now - self._stats_at, 1e-9)
            # A server that was lost takes its count with it.
            stats["rollout/tokens_per_s"] = max(0.0, tokens - self._stats_tokens) / seconds
            self._stats_tokens, self._stats_at = tokens, now
        return stats

    def tell_counts(self) -> None:
        """The heartbeat of status.json."""
        self._watch_waits()
        if self._status is not None:
            counts = {key.partition("/")[2]: value for key, value in self.counts.items()}
            self._status.beat(counts)

    def _watch_waits(self) -> None:
        """A wait that is no stall, since all else moves, must not go on unseen."""
        limit, now = self.limits.stall_timeout_s, time.monotonic()
        if now - self._waits_seen_at < limit / 4:
            return
        self._waits_seen_at = now
        found: dict[tuple[str, str], list[float]] = {}
        for wait in self.waits.older(limit, whole=1):
            found.setdefault((wait.owner, wait.what), []).append(wait.age(now))
        for (owner, what), ages in found.items():
            if (owner, what) not in self._overlong and self._status is not None:
                oldest = next(iter(self.buffer.running_ids), "none")
                self._status.alarm(
                    f"{owner} has owed {what} for {ages[0]:.0f} s ({len(ages)} time(s)), and all "
                    f"else goes on; the oldest row under way is {oldest}; "
                    "rollout.episode_timeout_s ends an episode that takes too long"
                )
        self._overlong = set(found)

    def report(self, sentence: str, tried: Sequence[str] = ()) -> str:
        """Writes stall.txt; returns the end of the sentence that says where it is."""
        oldest = self.waits.oldest()
        owes = f"; {oldest.owner} owes {oldest.what}" if oldest else ""
        if self._stall_report is None:
            return owes
        try:
            tasks = asyncio.all_tasks()
        except RuntimeError:  # called from another thread, because the loop does not turn
            tasks = set()
        text = describe(sentence, self.waits, self.counts, self.buffer.running_ids, tried, tasks)
        try:
            write_atomically(self._stall_report, text)
        except OSError as error:
            return f"{owes} (the report could not be written: {error})"
        return f"{owes}; the report is {self._stall_report}"

    async def aclose(self) -> None:
        self.tell_counts()
        try:
            for workflow in self._workflows.values():
                if isinstance(workflow, Closes):
                    await workflow.aclose()
        finally:
            await self.engine.aclose()

    async def _adapt(self) -> None:
        """As many episodes as the servers can use, found once a second."""
        most = self.limits.max_running
        flow = Concurrency(min(self.limits.batch_size, most or self.limits.batch_size), most)
        try:
            while True:
                self.buffer.limit(flow.limit)
                await asyncio.sleep(ADAPT_S)
                servers = await self.engine.server_metrics()
                running, waiting, refused = (
                    servers.get(key, 0.0) for key in ("running", "waiting", "refused")
                )
                flow.look(self.buffer.running, running, waiting, refused)
        except Exception as error:  # nobody awaits this task: whoever waits for a batch is told
            self.buffer.fail(error)

    async def _evaluate(self, version: int) -> dict[str, float]:
        playing = evaluate(
            self._eval_workflow,
            self.engine,
            self._eval_rows,
            version,
            partial(self._tell, dataset="valid"),
            self.limits,
            self.waits,
        )
        metrics = await self._watched(playing, "workflow", f"the held-out set at version {version}")
        if not metrics["eval/valid/samples"] and self._status is not None:
            self._status.alarm(f"no held-out row gave a sample at version {version}")
        failed = int(metrics["eval/valid/failed"])
        if failed and self._status is not None:
            self._status.alarm(
                f"held-out rows failed and are in no mean: {failed} of {len(self._eval_rows)} "
                f"at version {version} (transcripts.jsonl has each)"
            )
        return metrics

    async def _progress(self) -> Hashable:
        """Changes whenever an episode ends or a token is sampled.

        A server that does not answer the question hides its tokens, but no episode's end; and one
        that is silent at times shows no progress by coming back.
        """
        with suppress(TimeoutError):
            async with asyncio.timeout(self.limits.stall_timeout_s / 8):
                metrics = await self.engine.server_metrics()
                tokens = metrics.get("tokens_generated", 0.0)
                self._moved = max(self._moved, metrics.get("moved", tokens))
        ended = self.buffer.counts["admitted"] - self.buffer.running
        return ended, self._told, self._moved

    async def _rescue(self) -> str:
        count = await self.engine.redispatch()
        return f"{count} request(s) under way were sent again, to another server where there is one"

    def _tell(
        self,
        episode: Episode,
        fate: Any,
        error: ArealiteError | None = None,
        dataset: str | None = None,
    ) -> None:
        self._told += 1
        if isinstance(error, EpisodeError):
            self._failures.add(episode.sample_id, error, is_held_out=dataset is not None)
            if self._status is not None:
                self._status.set(errors=deepcopy(self._failures.by_kind))
        if self._transcripts is not None:
            self._transcripts.write(
                episode.sample_id,
                episode.version,
                fate,
                episode.trajectories,
                query=dict(episode.row),
                dataset=dataset,
                error=error,
            )

    def _on_dropped(self, episode: Episode) -> None:
        self._dropped.append((self.buffer.version, episode))
        self._tell(episode, "dropped_stale")
        self._dropped_in_a_row += 1
        if self._dropped_in_a_row >= MOST_DROPPED * self.limits.batch_size * (self.limits.eta + 1):
            words = (
                f"no batch can be made: the last {self._dropped_in_a_row} finished episodes were "
                f"too old to train at version {self.buffer.version}; either the workflow returns "
                "versions that are not those of its responses, or an episode lasts longer than "
                "rollout.max_head_offpolicyness versions"
            )
            self.buffer.fail(ErrorBudgetSpent(words))

    @contextmanager
    def _timing(self, name: str) -> Iterator[None]:
        now = asyncio.get_running_loop().time
        started = now()
        yield
        self._timed[f"time/{name}_s"] = now() - started
