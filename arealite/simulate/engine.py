"""Inference servers that compute nothing and take exactly the time they would take.

Continuous batching as a fluid: a step of a server with n samples running takes s + n * p seconds
and gives each of them one token. So with the server's *work* W(t), the steps done until t, a sample
that starts at work w ends at w + length, whatever comes and goes meanwhile: a heap of ends and one
timer replace a million steps.
"""

from __future__ import annotations

import asyncio
import bisect
import heapq
import itertools
import math
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field

from arealite.errors import EngineError
from arealite.simulate.speeds import Speeds
from arealite.types import ModelRequest, ModelResponse, WeightUpdate

NEAR_STEPS, NEAR_S = 1e-6, 1e-9
"""What is so near its end has ended: clock and work are floating point."""


@dataclass(slots=True)
class _Sample:
    length: int
    prefill: int
    ended: asyncio.Future[None]
    start: float = 0.0


@dataclass
class _Server:
    """One server; times are the event loop's, in seconds."""

    speeds: Speeds
    slots: int
    work: float = 0.0
    at: float = 0.0
    pause_left: float = 0.0  # decoding stands still: a prefill, or new weights
    waiting: deque[_Sample] = field(default_factory=deque)
    running: list[tuple[float, int, _Sample]] = field(default_factory=list)  # heap by end
    publishes: list[float] = field(default_factory=lambda: [0.0])  # the work at which ...
    versions: list[int] = field(default_factory=lambda: [0])  # ... each version came
    timer: asyncio.TimerHandle | None = None
    idle_s: float = 0.0
    tokens: float = 0.0  # sampled so far, also of samples that have not ended
    serial: itertools.count[int] = field(default_factory=itertools.count)

    @property
    def step_s(self) -> float:
        return self.speeds.step_s + len(self.running) * self.speeds.step_per_sample_s

    def catch_up(self, now: float) -> None:
        """Brings `work` to the present; call it before anything changes."""
        elapsed, self.at = now - self.at, now
        paused = min(elapsed, self.pause_left)
        self.pause_left -= paused
        if self.running:
            steps = (elapsed - paused) / self.step_s
            self.work += steps
            self.tokens += steps * len(self.running)
        else:
            self.idle_s += elapsed - paused

    def fill(self) -> None:
        while self.waiting and len(self.running) < self.slots:
            sample = self.waiting.popleft()
            if sample.ended.done():  # nobody waits for it any more
                continue
            self.pause_left += sample.prefill * self.speeds.prefill_per_token_s
            sample.start = self.work
            heapq.heappush(self.running, (self.work + sample.length, next(self.serial), sample))

    def arm(self) -> None:
        """One timer for the next end."""
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None
        if self.running:
            wait = self.pause_left + max(0.0, self.running[0][0] - self.work) * self.step_s
            self.timer = asyncio.get_running_loop().call_later(wait, self.turn)

    def turn(self) -> None:
        """Ends what has ended, starts what has waited."""
        now = asyncio.get_running_loop().time()
        self.catch_up(now)
        if self.running:  # steps so short that the clock cannot tell them apart are over, too
            near = self.work + NEAR_STEPS + (NEAR_S + 4 * math.ulp(now)) / self.step_s
        while self.running and self.running[0][0] <= near:
            sample = heapq.heappop(self.running)[2]
            if not sample.ended.done():
                sample.ended.set_result(None)
        self.fill()
        self.arm()

    def versions_of(self, sample: _Sample) -> list[int]:
        """Token i is sampled by the step that begins at work start + i."""
        first = bisect.bisect_right(self.publishes, sample.start)
        if first == len(self.publishes):
            return [self.versions[-1]] * sample.length
        starts = range(sample.length)
        return [
            self.versions[bisect.bisect_right(self.publishes, sample.start + i) - 1] for i in starts
        ]


class SimulatedEngine:
    """A `ManagedEngine` over simulated servers.

    A request says in its metadata how long its sample becomes (`length`), which prompt tokens it
    must compute (`prefill`), and whether it fails (`fails`). Every publication takes the speeds'
    publish_s.
    """

    def __init__(self, speeds: Speeds, n_servers: int = 1, slots: int = 64) -> None:
        self.speeds = speeds
        self._servers = [_Server(speeds, slots) for _ in range(n_servers)]
        self._group: tuple[str, _Server] | None = None

    async def agenerate(self, request: ModelRequest) -> ModelResponse:
        server = self._choose(request.rid)
        loop = asyncio.get_running_loop()
        length = int(request.metadata["length"])
        sample = _Sample(length, int(request.metadata["prefill"]), loop.create_future())
        server.catch_up(loop.time())
        server.waiting.append(sample)
        if len(server.running) < server.slots:
            server.fill()
            server.arm()
        await sample.ended
        if request.metadata.get("fails"):
            raise EngineError("this episode was drawn to fail")
        prompt = list(request.input_ids)
        zeros = [0.0] * length
        tokens = [0] * length
        return ModelResponse(prompt, tokens, zeros, server.versions_of(sample), "stop")

    def _choose(self, rid: str) -> _Server:
        """A group stays together; else the server that owes least."""
        if self._group is None or self._group[0] != rid:
            owes = min(self._servers, key=lambda s: len(s.running) + len(s.waiting))
            self._group = (rid, owes)
        return self._group[1]

    async def wait_ready(self, deadline_s: float) -> None:
        for server in self._servers:
            server.at = asyncio.get_running_loop().time()

    async def update_weights(self, update: WeightUpdate) -> float:
        """All servers stand still for publish_s; what runs goes on with the new version."""
        for server in self._servers:
            server.catch_up(asyncio.get_running_loop().time())
            server.pause_left += self.speeds.publish_s
            server.arm()
        await asyncio.sleep(self.speeds.publish_s)
        for server in self._servers:
            server.catch_up(asyncio.get_running_loop().time())
            server.publishes.append(server.work)
            server.versions.append(update.version)
        return 0.0

    async def redispatch(self) -> int:
        return 0

    async def server_metrics(self) -> Mapping[str, float]:
        """idle_s: summed over servers, without a sample to decode."""
        for server in self._servers:
            server.catch_up(asyncio.get_running_loop().time())
        return {
            "tokens_generated": sum(s.tokens for s in self._servers),
            "running": float(sum(len(s.running) for s in self._servers)),
            "waiting": float(sum(len(s.waiting) for s in self._servers)),
            "idle_s": sum(s.idle_s for s in self._servers),
        }

    async def aclose(self) -> None:
        for server in self._servers:
            if server.timer is not None:
                server.timer.cancel()
