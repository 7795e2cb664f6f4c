"""An engine without a model: every request follows a script, on the event loop, in this process.

For tests of workflows and rollouts, and for simulation: it costs no computation, so its only time
is the scripted one, and under a virtual clock that costs nothing either. The same seed and the
same order of requests give the same tokens.

    engine = ScriptedEngine(lambda request, serial: Sample(length=8, token_s=0.001))
    response = await engine.agenerate(ModelRequest(input_ids=[1, 2, 3]))
"""

from __future__ import annotations

import asyncio
import bisect
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from arealite.errors import EngineError, EnginesExhausted
from arealite.types import ModelRequest, ModelResponse, WeightUpdate


@dataclass(frozen=True, slots=True)
class Sample:
    """What becomes of one request.

    length: tokens until it stops by itself; max_new_tokens still cuts it. first_s, token_s:
    seconds before its first token and for each token. outcome: it is answered; it raises
    EngineError when its time is over; or it never ends. abort_at: the server aborts it before
    this token, and the rest is sampled resume_s seconds later; as with every engine, whoever
    waits for the sample sees nothing of it but the versions.
    """

    length: int = 8
    first_s: float = 0.0
    token_s: float = 0.0
    outcome: Literal["answer", "fail", "hang"] = "answer"
    abort_at: int | None = None
    resume_s: float = 0.0

    def token_at_s(self, index: int) -> float:
        """Seconds from the request until token `index` (from 0) is sampled."""
        aborted = self.abort_at is not None and index >= self.abort_at
        return self.first_s + (index + 1) * self.token_s + (self.resume_s if aborted else 0.0)


Script = Callable[[ModelRequest, int], Sample]
"""script(request, serial) -> its sample; serial counts the engine's requests from 0."""


class ScriptedEngine:
    """A `ManagedEngine` that does as it is told.

    update_s: how long new weights take. difference: what the probe then shows, in nats; above the
    update's tolerance the weights are refused, as by a real client. ready: False makes wait_ready
    fail at its deadline. All attributes may be changed and read while it runs.
    """

    def __init__(
        self,
        script: Script | None = None,
        *,
        seed: int = 0,
        vocabulary: int = 100,
        update_s: float = 0.0,
        difference: float = 0.0,
        ready: bool = True,
    ) -> None:
        self.script = script or (lambda request, serial: Sample())
        self.seed, self.vocabulary = seed, vocabulary
        self.update_s, self.difference, self.ready = update_s, difference, ready
        self.version = 0
        self.requests = 0
        self.running = 0
        self.tokens_generated = 0
        self.closed = False
        self._hanging: set[asyncio.Future[None]] = set()
        self._published: list[tuple[float, int]] = []  # (loop time, version), oldest first

    async def agenerate(self, request: ModelRequest) -> ModelResponse:
        """One sample. Its tokens depend on the seed and on how many requests came before it."""
        self.running += 1
        try:
            serial, sample = self._next(request)
            while sample.outcome == "hang":
                self._hanging.add(sent_again := asyncio.get_running_loop().create_future())
                await sent_again
                serial, sample = self._next(request)
            length = max(1, min(sample.length, request.gconfig.max_new_tokens))
            started, before = asyncio.get_running_loop().time(), self.version
            await asyncio.sleep(sample.token_at_s(length - 1))
            if sample.outcome == "fail":
                raise EngineError(f"the script lets request {serial} fail")
        finally:
            self.running -= 1
        self.tokens_generated += length
        chance = random.Random(f"{self.seed}:{serial}")
        return ModelResponse(
            input_tokens=list(request.input_ids),
            output_tokens=[chance.randrange(self.vocabulary) for _ in range(length)],
            output_logprobs=[-chance.expovariate(1.0) for _ in range(length)],
            output_versions=self._versions(sample, length, started, before),
            stop_reason="stop" if sample.length <= request.gconfig.max_new_tokens else "length",
        )

    def _next(self, request: ModelRequest) -> tuple[int, Sample]:
        serial, self.requests = self.requests, self.requests + 1
        return serial, self.script(request, serial)

    async def redispatch(self) -> int:
        """Requests that hang are sent again: the script is asked for another sample."""
        hanging, self._hanging = self._hanging, set()
        for request in hanging:
            if not request.done():
                request.set_result(None)
        return len(hanging)

    def _versions(self, sample: Sample, length: int, started: float, before: int) -> list[int]:
        """The version that was current when each token's time came."""
        if self.version == before:
            return [before] * length
        first = bisect.bisect_right(self._published, (started, before))
        changes = self._published[first:]
        versions = []
        for index in range(length):
            at = started + sample.token_at_s(index)
            newer = [version for when, version in changes if when < at]
            versions.append(newer[-1] if newer else before)
        return versions

    async def wait_ready(self, deadline_s: float) -> None:
        if not self.ready:
            await asyncio.sleep(deadline_s)
            raise EnginesExhausted(f"the scripted engine was not ready in {deadline_s:g} s")

    async def update_weights(self, update: WeightUpdate) -> float:
        """Requests in flight go on; their later tokens are of the new version."""
        await asyncio.sleep(self.update_s)
        if self.difference > update.probe.tolerance:
            raise EnginesExhausted(f"the scripted engine differs by {self.difference:g}")
        self.version = update.version
        self._published.append((asyncio.get_running_loop().time(), update.version))
        return self.difference

    async def server_metrics(self) -> Mapping[str, float]:
        return {
            "tokens_generated": float(self.tokens_generated),
            "running": float(self.running),
        }

    async def aclose(self) -> None:
        self.closed = True
