"""Continuous batching: which sequence sits in which slot, and what happens between two steps.

One asyncio task runs `run`; everything else here is called from the same event loop, hence
between two decode steps, so there are no locks. A step blocks the loop for its few milliseconds.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from torch import Tensor

from arealite.engines.embedded.request import Job, RequestError, Sample
from arealite.engines.embedded.slots import BROKEN, RUNNING, SlotParams, SlotTable

PauseMode = Literal["abort", "retract", "in_place"]


class ModelRunner(Protocol):
    """What the scheduler needs of a runner (see runner.Runner)."""

    slots: int
    deterministic: bool

    def decode(self, tokens: Tensor, positions: Tensor, n: int, longest: int) -> Tensor: ...
    def prefill(self, sequences: Sequence[Sequence[int]], slots: Sequence[int]) -> None: ...
    def see(self, slots: Sequence[int], lengths: Sequence[int]) -> None: ...
    def score(self, tokens: Sequence[int]) -> list[float]: ...
    def copy(self, source: int, targets: Sequence[int], length: int) -> None: ...
    def move(self, source: int, target: int, length: int) -> None: ...
    def clear(self, slot: int) -> None: ...


@dataclass(slots=True)
class Counters:
    """Totals since the start; seconds by the monotonic clock."""

    requests: int = 0
    tokens_generated: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    aborted: int = 0
    steps: int = 0
    weight_updates: int = 0
    busy_s: float = 0.0
    decode_s: float = 0.0
    idle_s: float = 0.0


class Scheduler:
    """Admits, steps, and ends sequences.

    max_waiting: samples that may wait beyond the free slots. prefill_tokens: the padded tokens of
    prompt computed between two decode steps, so that arrivals do not starve who is generating.
    """

    def __init__(
        self,
        runner: ModelRunner,
        slots: SlotTable,
        max_waiting: int,
        prefill_tokens: int,
        version: str = "0",
    ) -> None:
        self.runner, self.slots = runner, slots
        self.max_waiting, self.prefill_tokens = max_waiting, prefill_tokens
        self.version = version
        self.paused: PauseMode | None = None
        self.counters = Counters()
        self._waiting: deque[Sample] = deque()
        self._scoring: deque[Sample] = deque()
        self._running: list[Sample | None] = []  # by slot; None is a hole, filled or closed soon
        self._watched: list[Sample] = []  # those of the running ones that have stop strings
        self._donors: dict[tuple[int, ...], Sample] = {}
        self._steps = 0
        self._swapped = False
        self._broken = False
        self._highest_offset = 0
        self._changed = False
        self._wake = asyncio.Event()

    # ---- called by the HTTP routes ----------------------------------------------------------

    @property
    def running(self) -> int:
        """Sequences that hold a slot."""
        return sum(s is not None for s in self._running)

    @property
    def waiting(self) -> int:
        """Samples without a slot yet."""
        return len(self._waiting) + len(self._scoring)

    def submit(self, job: Job) -> None:
        """Queues a job. Raises RequestError (429) when the queue is full."""
        count = len(job.samples)
        room = self.max_waiting + self.runner.slots - self.running - self.waiting
        if count > room:
            raise RequestError(f"the queue is full ({self.waiting} samples wait)", status=429)
        self.counters.requests += 1
        self.counters.prompt_tokens += sum(len(s.key) for s in job.samples)
        for sample in job.samples:
            probe = sample.wants_prompt_logprobs or sample.params.max_new_tokens == 0
            (self._scoring if probe else self._waiting).append(sample)
        self._wake.set()

    def abort(self, matches: Callable[[Sample], bool]) -> int:
        """Ends the samples that match with what they have; returns how many."""
        reason = {"type": "abort", "message": "aborted on request"}
        found = [s for s in self._running if s is not None and matches(s)]
        for sample in found:
            self._leave(sample, dict(reason))
        for queue in (self._waiting, self._scoring):
            for _ in range(len(queue)):
                sample = queue.popleft()
                if matches(sample):
                    self._end(sample, dict(reason))
                    found.append(sample)
                else:
                    queue.append(sample)
        self.counters.aborted += len(found)
        return len(found)

    def pause(self, mode: PauseMode) -> None:
        """Stops generating. abort: ends everything that runs or waits, too."""
        if self.paused is None:
            self._swapped = False
        self.paused = mode
        if mode == "abort":
            self.abort(lambda sample: True)

    def resume(self) -> None:
        """Goes on; after a retract with new weights, keys and values are computed anew."""
        if self.paused == "retract" and self._swapped:
            for sample in self._running:
                if sample is not None:
                    sample.stale = True
        self.paused = None
        self._wake.set()

    def stamp(self, version: str, swapped: bool = True) -> None:
        """The next token of every sequence is sampled by `version`."""
        self.version = version
        for sample in self._running:
            if sample is not None:
                sample.stamp(version, self._position(sample) - len(sample.key) + 1)
        if swapped:
            self._swapped = True
            self._donors.clear()  # their keys and values came from other weights
            self.counters.weight_updates += 1
            self._clean()

    def _clean(self) -> None:
        """Empties the free slots if the last weights filled some with what is not finite."""
        if self._broken:
            held = {s.slot for s in self._running if s is not None}
            for slot in set(range(self.runner.slots)) - held:
                self.runner.clear(slot)
        self._broken = False

    # ---- the loop ---------------------------------------------------------------------------

    async def run(self) -> None:
        """Serves until cancelled."""
        while True:
            if not self._has_work():
                began = time.monotonic()
                self._wake.clear()
                await self._wake.wait()
                self.counters.idle_s += time.monotonic() - began
            began = time.monotonic()
            self.turn()
            self.counters.busy_s += time.monotonic() - began
            # Two passes of the event loop: one reads a request, the next hands it to submit.
            await asyncio.sleep(0)
            if len(self._running) < self.runner.slots:
                await asyncio.sleep(0)

    def turn(self) -> None:
        """One bounded piece of work: a probe, some prefill, and a decode step."""
        if self._scoring:
            self._score(self._scoring.popleft())
        if self.paused is not None:
            return
        if not self._recompute():
            self._admit()
            self._close_holes()
            if self._running:
                self._step()

    def _has_work(self) -> bool:
        if self._scoring:
            return True
        return self.paused is None and bool(self._waiting or any(self._running))

    def _position(self, sample: Sample) -> int:
        """The position of the token that the next step feeds."""
        return sample.offset + self._steps

    def _score(self, sample: Sample) -> None:
        """Answers the teacher-forced part. It needs no slot, so it is served even while paused."""
        if sample.wants_prompt_logprobs:
            sample.prompt_logprobs = self.runner.score(sample.key)
        if sample.params.max_new_tokens == 0:
            self._end(sample, {"type": "length", "length": 0})
        else:
            self._waiting.append(sample)

    def _recompute(self) -> bool:
        """Recomputes some stale keys and values; False when there are none."""
        stale = [s for s in self._running if s is not None and s.stale]
        if not stale:
            return False
        fill: dict[int, Sequence[int]] = {}
        for sample in stale:
            length = self._position(sample)
            if length and not self._fits(fill, length):
                break
            if length:
                fill[sample.slot] = self.slots.read(sample.slot, 0, length)[0]
            sample.stale = False
        self._prefill(fill)
        return True

    def _fits(self, fill: Mapping[int, Sequence[int]], length: int) -> bool:
        """Whether one more sequence may join this prefill; the first always may.

        Bounds the padded size, so that decoding goes on soon, and the padding itself.
        """
        if not fill:
            return True
        lengths = [length, *map(len, fill.values())]
        padded = len(lengths) * max(lengths)
        return padded <= self.prefill_tokens and padded <= 2 * sum(lengths)

    def _prefill(self, fill: Mapping[int, Sequence[int]]) -> None:
        if self.runner.deterministic:  # alone, so that the shapes are the prompt's own
            for slot, tokens in fill.items():
                self.runner.prefill([tokens], [slot])
        elif fill:
            self.runner.prefill(list(fill.values()), list(fill))

    def _admit(self) -> None:
        """Gives free slots to the samples that wait; equal prompts are computed once."""
        if not self._waiting:
            return
        holes = [i for i, s in enumerate(self._running) if s is None]
        free = [*holes, *range(len(self._running), self.runner.slots)]
        joined: list[Sample] = []
        fill: dict[int, Sequence[int]] = {}
        copies: dict[int, list[int]] = {}
        while self._waiting and len(joined) < len(free):
            sample, slot = self._waiting[0], free[len(joined)]
            donor = self._donors.get(sample.key)
            if donor is not None:
                copies.setdefault(donor.slot, []).append(slot)
                sample.cached_tokens = len(sample.key) - 1
            elif len(sample.key) > 1:
                if not self._fits(fill, len(sample.key) - 1):
                    break
                fill[slot] = sample.key[:-1]
                self._donors[sample.key] = sample
            self._waiting.popleft()
            sample.slot = slot
            joined.append(sample)
        if not joined:
            return
        self._prefill(fill)
        for source, targets in copies.items():
            sharing = next(s for s in joined if s.slot == targets[0])
            self.runner.copy(source, targets, len(sharing.key) - 1)
        self._join(joined)

    def _join(self, joined: list[Sample]) -> None:
        where = [s.slot for s in joined]
        self.runner.see(where, [len(s.key) - 1 for s in joined])
        self.slots.join(where, [_slot_params(s) for s in joined])
        self._running += [None] * (max(where) + 1 - len(self._running))
        for sample in joined:
            self._running[sample.slot] = sample
            sample.offset = len(sample.key) - 1 - self._steps
            sample.stamp(self.version, 0)
            self.counters.cached_tokens += sample.cached_tokens
        self._changed = True

    def _close_holes(self) -> None:
        """Moves the last sequences into holes, so that the running ones are slots 0..n-1."""
        if not self._changed:
            return
        self._trim()
        for hole in [i for i, s in enumerate(self._running) if s is None]:
            if hole >= len(self._running):
                break
            mover = self._running.pop()
            assert mover is not None  # trimmed: the last one is never a hole
            self.runner.move(mover.slot, hole, self._position(mover))
            self.slots.move(mover.slot, hole)
            mover.slot, self._running[hole] = hole, mover
            self._trim()
        offsets = [s.offset for s in self._running if s is not None]
        self._highest_offset = max(offsets, default=0)
        self._watched = [s for s in self._running if s is not None and s.watch is not None]
        self._changed = False

    def _trim(self) -> None:
        while self._running and self._running[-1] is None:
            self._running.pop()

    def _step(self) -> None:
        n, began = len(self._running), time.monotonic()
        longest = self._highest_offset + self._steps + 1
        logits = self.runner.decode(self.slots.token, self.slots.position, n, longest)
        flags = self.slots.step(logits, n)
        self._steps += 1
        self.counters.steps += 1
        self.counters.tokens_generated += n
        if self._watched:
            self._look_for_stops(flags)
        if any(flags):
            for slot, flag in enumerate(flags):
                if flag != RUNNING:
                    self._stop(slot, flag)
        self.counters.decode_s += time.monotonic() - began

    def _look_for_stops(self, flags: list[int]) -> None:
        """Ends the samples whose last token completes a stop string, and clears their flags."""
        tokens = self.slots.token[: len(flags)].tolist()
        for sample in self._watched:
            slot = sample.slot
            if flags[slot] != BROKEN and sample.watch is not None:
                matched = sample.watch.push(tokens[slot])
                if matched is not None:
                    flags[slot] = RUNNING
                    self._leave(sample, {"type": "stop", "matched": matched})

    def _stop(self, slot: int, flag: int) -> None:
        sample = self._running[slot]
        assert sample is not None  # a step sees no holes
        if flag == BROKEN:
            self._broken = True
            self.runner.clear(slot)
            self._leave(sample, {"type": "error", "message": "the logits are not finite"})
            return
        self._leave(sample, None)

    def _leave(self, sample: Sample, reason: dict[str, Any] | None) -> None:
        """Takes a sequence out of its slot; without a reason, its last token tells."""
        end = self._position(sample) + 1
        sample.output_ids, sample.logprobs = self.slots.read(sample.slot, len(sample.key), end)
        if reason is None:
            last = sample.output_ids[-1]
            stopped = last in sample.params.stop_ids
            reason = (
                {"type": "stop", "matched": last}
                if stopped
                else {"type": "length", "length": len(sample.output_ids)}
            )
        self._running[sample.slot] = None
        self.slots.leave(sample.slot)
        if self._donors.get(sample.key) is sample:
            del self._donors[sample.key]
        self._changed = True
        self._end(sample, reason)

    def _end(self, sample: Sample, reason: dict[str, Any]) -> None:
        sample.finish_reason = reason
        sample.job.settle()


def _slot_params(sample: Sample) -> SlotParams:
    params, length = sample.params, len(sample.key)
    return SlotParams(
        tokens=sample.key,
        last=length + params.max_new_tokens - 1,
        barred=length + params.min_new_tokens,
        temperature=params.temperature,
        top_p=params.top_p,
        top_k=params.top_k,
        stop_ids=params.stop_ids,
        seed=sample.seed,
    )
