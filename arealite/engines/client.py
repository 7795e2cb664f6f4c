"""The engine as a workflow sees it: one object in front of all inference servers.

- A request that is made n times in one turn of the event loop travels as one with n samples: a
  group costs one HTTP exchange, and its prompt is prefilled once. Requests with names (`rid`) of
  their own stay apart: each is answered as soon as it is done, and may be cancelled alone.
- An aborted sample is sent again with the tokens it already has; workflows never see an abort.
- Nobody waits any more: the request is taken back, and the server stops working on it.
- A failed or refused attempt: see http.
"""

from __future__ import annotations

import asyncio
import itertools
from asyncio import sleep
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from arealite.engines import sglang, vllm
from arealite.engines.dialect import Dialect, Part
from arealite.engines.fleet import Server
from arealite.engines.stops import Decode, first_end
from arealite.engines.upkeep import Names, Refusal, Report, Upkeep
from arealite.errors import EngineError, EnginesExhausted
from arealite.replies import pause_s
from arealite.telemetry.waits import Waits, together
from arealite.types import (
    GenerationHyperparameters,
    ModelRequest,
    ModelResponse,
    WeightUpdate,
)

DIALECTS: Mapping[str, Dialect] = {"embedded": sglang, "sglang": sglang, "vllm": vllm}
"""By rollout.backend."""

MAX_ABORTS = 64
"""A sample that is aborted more often than this is given up: weights change far less often."""


@dataclass(eq=False)
class _Group:
    """One request and all who wait for a sample of it, in the order in which they came."""

    request: ModelRequest
    futures: list[asyncio.Future[Part]] = field(default_factory=list)
    task: asyncio.Task[None] | None = None

    def look(self, _: object) -> None:
        """One of them has an end: when all have left, the exchange ends too, begun or not."""
        if self.task is not None and all(future.cancelled() for future in self.futures):
            self.task.cancel()


@dataclass(frozen=True, slots=True)
class _Ask:
    """n samples that are asked for at once: what is left of them, behind the tokens they have."""

    input_ids: Sequence[int]
    request: ModelRequest
    n: int = 1
    done: int = 0
    index: int = 0


class RemoteEngine:
    """A `ManagedEngine` over servers that speak one dialect, SGLang's by default.

    server_timeout_s: a server that answers nothing for so long is lost. setup_timeout_s: none may
    serve for so long. decode: the tokenizer's, needed only to find stop strings across an
    interruption. key: the servers' API key. refusal: why servers of some abilities cannot be used.
    alarm: is told of lost and quarantined servers, and, once, when versions have to be stamped
    here. tell: the state of all servers, whenever one changes. say: what each server can do.
    """

    def __init__(
        self,
        addresses: Sequence[str],
        waits: Waits,
        dialect: Dialect = sglang,
        request_timeout_s: float = 600.0,
        request_retries: int = 3,
        server_timeout_s: float = 30.0,
        setup_timeout_s: float = 300.0,
        update_mode: str = "retract",
        decode: Decode | None = None,
        key: str = "",
        refusal: Refusal = lambda abilities: "",
        alarm: Callable[[str], None] = lambda sentence: None,
        tell: Report = lambda servers: None,
        say: Callable[[str], None] = lambda sentence: None,
    ) -> None:
        if not addresses:
            raise EnginesExhausted("there is no inference server; give at least one address")
        self._names, self._dialect = Names(), dialect
        self._upkeep = Upkeep(
            addresses,
            waits,
            self._names,
            dialect,
            request_timeout_s=request_timeout_s,
            request_retries=request_retries,
            server_timeout_s=server_timeout_s,
            patience_s=setup_timeout_s,
            update_mode=update_mode,
            key=key,
            refusal=refusal,
            alarm=alarm,
            tell=tell,
            say=say,
        )
        self._transport = self._upkeep.transport
        self._decode, self._alarm = decode, alarm
        self._stamped = 0
        self._moved, self._told = 0.0, dict[str, float]()
        self._vocabulary: int | None = None
        self._groups: dict[Any, _Group] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def servers(self) -> Sequence[Server]:
        return self._upkeep.fleet.servers

    # --- what workflows call

    async def agenerate(self, request: ModelRequest) -> ModelResponse:
        """One sample for the prompt, however often servers abort it. Raises EngineError."""
        if request.gconfig.n_samples != 1:
            raise EngineError(
                "agenerate returns one sample: call it n times (asyncio.gather) with "
                "gconfig.new(n_samples=1)"
            )
        index, part = await self._join(request)
        sample = part
        for count in itertools.count(1):
            done = len(sample.tokens)
            if sample.finish != "abort" or done >= request.gconfig.max_new_tokens:
                break
            if count > MAX_ABORTS:
                raise EngineError(f"a sample was aborted {MAX_ABORTS} times")
            if not part.tokens:  # nothing gained: do not ask again in a hot loop
                await sleep(pause_s(count))
            prompt = [*request.input_ids, *sample.tokens]
            [part] = await self._generate(_Ask(prompt, request, 1, done, index))
            sample = self._joined(sample, part, request.gconfig)
        if not sample.tokens:
            raise EngineError("the server answered an empty sample")
        return ModelResponse(
            list(request.input_ids),
            sample.tokens,
            sample.logprobs,
            sample.versions,
            "stop" if sample.finish == "stop" else "length",
            sample.versions_from,
        )

    def _joined(self, before: Part, after: Part, gconfig: GenerationHyperparameters) -> Part:
        """Both parts of an interrupted sample; a stop string across the seam ends it there.

        The server that went on has seen no text before its own.
        """
        sample = before.then(after)
        if not (gconfig.stop and before.tokens and after.tokens):
            return sample
        if self._decode is None:
            raise EngineError(
                "a sample with stop strings was interrupted, and without a tokenizer nobody can "
                "tell where it ends: give RemoteEngine decode=tokenizer.decode, or use "
                "gconfig.stop_token_ids"
            )
        end = first_end(sample.tokens, gconfig.stop, self._decode)
        return sample if end is None else sample.cut(end)

    async def _join(self, request: ModelRequest) -> tuple[int, Part]:
        """Which sample of its group this one is, and its first part."""
        loop = asyncio.get_running_loop()
        key = (request.rid, tuple(request.input_ids), request.gconfig)
        group = self._groups.get(key)
        if group is None:
            group = self._groups[key] = _Group(request)
            loop.call_soon(self._flush, key)
        future: asyncio.Future[Part] = loop.create_future()
        future.add_done_callback(group.look)
        index = len(group.futures)
        group.futures.append(future)
        return index, await future

    def _flush(self, key: Any) -> None:
        group = self._groups.pop(key, None)
        if group is None:  # closed in the same turn
            return
        group.task = asyncio.get_running_loop().create_task(self._send(group))
        self._tasks.add(group.task)  # the loop itself keeps only weak references
        group.task.add_done_callback(self._tasks.discard)

    async def _send(self, group: _Group) -> None:
        ask = _Ask(group.request.input_ids, group.request, len(group.futures))
        try:
            parts = await self._generate(ask)
        except asyncio.CancelledError:  # the engine is closed: nobody may wait for ever
            for future in group.futures:
                future.cancel()
            raise
        except Exception as error:  # handed to those who wait, whatever it is
            for future in group.futures:
                if not future.done():
                    future.set_exception(error)
            return
        for future, part in zip(group.futures, parts, strict=True):
            if not future.done():
                future.set_result(part)

    async def _generate(self, ask: _Ask) -> list[Part]:
        attempt = partial(self._attempt, ask)
        return await self._transport.exchange(self._upkeep.some, ask.n, attempt)

    async def _attempt(self, ask: _Ask, server: Server) -> list[Part]:
        """All of them from this server: in one request, or where that cannot be in several."""
        is_seeded = ask.request.gconfig.seed is not None
        size = server.abilities.samples_of(ask.n, is_seeded)
        parts = await together(
            self._exchange(replace(ask, n=min(size, ask.n - i), index=ask.index + i), server)
            for i in range(0, ask.n, size)
        )
        # Tokens may be of weights that are being verified: if they fail, this is taken back.
        await self._upkeep.fleet.settled(server)
        samples = [part for some in parts for part in some]
        self._moved += sum(len(part.tokens) for part in samples)
        self._count_stamped(server, samples)
        return samples

    async def _exchange(self, ask: _Ask, server: Server) -> list[Part]:
        """One request, and its reply checked against what this server can answer."""
        dialect, request = self._dialect, ask.request
        body = dialect.generate_body(
            ask.input_ids, request.gconfig, self._names.new(request.rid), ask.n, ask.done, ask.index
        )
        floor, is_managed = server.floor, server.ceiling is not None
        reply = await self._transport.post(server, dialect.GENERATE, body)
        try:
            parts = dialect.parse_generate(
                reply, body, self._names.mark, floor if is_managed else None
            )
            for part in parts:
                server.check(part.versions, floor)
                self._check_vocabulary(part.tokens)
        except EngineError as error:
            raise EngineError(f"server {server.address}: {error}") from None
        return parts

    def _check_vocabulary(self, tokens: Sequence[int]) -> None:
        highest = max(tokens, default=0)
        if self._vocabulary is not None and highest >= self._vocabulary:
            raise EngineError(
                f"it sampled the token id {highest}, but the trainer's model has the ids 0 to "
                f"{self._vocabulary - 1}: it serves another model"
            )

    def _count_stamped(self, server: Server, parts: Iterable[Part]) -> None:
        tokens = sum(len(part.tokens) for part in parts if part.versions_from == "client")
        if tokens and not self._stamped:
            self._alarm(
                f"server {server.address} does not say which version sampled each token: they "
                "count as of the version verified before their request, the oldest possible"
            )
        self._stamped += tokens

    # --- what the door calls

    async def wait_ready(self, deadline_s: float) -> None:
        """As Upkeep.wait_ready."""
        await self._upkeep.wait_ready(deadline_s)

    async def update_weights(self, update: WeightUpdate) -> float:
        """Pause, load, resume and verify on every server; nothing is drained.

        Returns the worst difference on the probe, in nats. A server that is not verified serves
        nothing. Raises EnginesExhausted when none is left: a run must not go on with weights that
        are not the trainer's.
        """
        self._vocabulary = update.vocabulary
        return await self._upkeep.publish(update)

    async def redispatch(self) -> int:
        """Every request under way is sent once more, to another server where there is one."""
        return self._transport.take_back()

    async def server_metrics(self) -> Mapping[str, float]:
        """The servers' counters, summed; a server that has none counts for nothing.

        servers: how many answered. serving: how many serve. refused: how often one was busy (429).
        moved: grows, and never falls, when a reply came or a server's own count is another than in
        its last answer; one that is silent or back from a restart shows nothing by that.
        versions_stamped_by_client: tokens whose version no server told, if there were any.
        """
        total: dict[str, float] = {"refused": float(self._transport.refused), "servers": 0.0}
        total["serving"] = float(len(self._upkeep.fleet.serving))
        there = [server for server in self.servers if server.state != "dead"]
        answers = await asyncio.gather(*map(self._counters, there))
        for server, counters in zip(there, answers, strict=True):
            total["servers"] += counters is not None
            self._look(server.address, counters or {})
            for key, value in (counters or {}).items():
                total[key] = total.get(key, 0.0) + value
        total["moved"] = self._moved
        if self._stamped:
            total["versions_stamped_by_client"] = float(self._stamped)
        return total

    def _look(self, address: str, counters: Mapping[str, float]) -> None:
        now = counters.get("tokens_generated", counters.get("used_tokens"))
        if now is not None:
            self._moved += abs(now - self._told.get(address, now))
            self._told[address] = now

    async def _counters(self, server: Server) -> Mapping[str, float] | None:
        path = server.abilities.counters or self._dialect.COUNTERS
        try:
            answer = await self._transport.ask(server, path, None, 10.0)
        except EngineError:
            return None
        return self._dialect.parse_counters(answer.value) if answer.status == 200 else None

    async def aclose(self) -> None:
        self._transport.closed = True  # what is cancelled below must not be tried again
        for group in self._groups.values():
            for future in group.futures:
                future.cancel()
        self._groups.clear()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._upkeep.aclose()
