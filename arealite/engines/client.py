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
import math
import uuid
from asyncio import sleep
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

from arealite.engines import sglang
from arealite.engines.http import Server, Transport, pause_s
from arealite.engines.sglang import Part
from arealite.engines.stops import Decode, first_end
from arealite.errors import EngineError, EnginesExhausted
from arealite.telemetry.waits import Waits, waited
from arealite.types import (
    GenerationHyperparameters,
    ModelRequest,
    ModelResponse,
    Probe,
    WeightUpdate,
)

T = TypeVar("T")

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


class RemoteEngine:
    """A `ManagedEngine` over servers that speak SGLang's protocol.

    decode: the tokenizer's, needed only to find stop strings across an interruption. alarm: is
    told, once, when versions have to be stamped here.
    """

    def __init__(
        self,
        addresses: Sequence[str],
        waits: Waits,
        request_timeout_s: float = 600.0,
        request_retries: int = 3,
        update_mode: str = "retract",
        decode: Decode | None = None,
        alarm: Callable[[str], None] = lambda sentence: None,
    ) -> None:
        if not addresses:
            raise EnginesExhausted("there is no inference server; give at least one address")
        self.servers = [Server(address) for address in addresses]
        self._waits = waits
        self._transport = Transport(waits, request_timeout_s, request_retries)
        self._update_mode = update_mode
        self._decode, self._alarm = decode, alarm
        self._stamped = 0
        self._vocabulary: int | None = None
        self._groups: dict[Any, _Group] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._mark, self._serial = f"{uuid.uuid4().hex[:8]}-", itertools.count()

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
            body = sglang.generate_body(prompt, request.gconfig, request.rid, 1, done, index)
            [part] = await self._generate(body)
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
        request = group.request
        body = sglang.generate_body(
            request.input_ids, request.gconfig, request.rid, len(group.futures)
        )
        try:
            parts = await self._generate(body)
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

    async def _generate(self, body: Mapping[str, Any]) -> list[Part]:
        n = body["sampling_params"]["n"]
        return await self._transport.exchange(self.servers, n, partial(self._attempt, body))

    async def _attempt(self, body: Mapping[str, Any], server: Server) -> list[Part]:
        """One POST /generate, and its reply checked against what this server can answer."""
        sent = {**body, "rid": self._name(body["rid"])}
        floor, is_managed = server.floor, server.ceiling is not None
        reply = await self._transport.post(server, "/generate", sent)
        try:
            parts = sglang.parse_generate(reply, sent, self._mark, floor if is_managed else None)
            for part in parts:
                server.check(part.versions, floor)
                self._check_vocabulary(part.tokens)
        except EngineError as error:
            raise EngineError(f"server {server.address}: {error}") from None
        self._count_stamped(server, parts)
        return parts

    def _check_vocabulary(self, tokens: Sequence[int]) -> None:
        highest = max(tokens, default=0)
        if self._vocabulary is not None and highest >= self._vocabulary:
            raise EngineError(
                f"it sampled the token id {highest}, but the trainer's model has the ids 0 to "
                f"{self._vocabulary - 1}: it serves another model"
            )

    def _name(self, rid: str) -> str:
        """Never used twice: the first request of a name may still run somewhere."""
        return f"{self._mark}{rid}-{next(self._serial)}"

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
        """Returns when every server answers. Raises EnginesExhausted."""
        await _together(self._ready(server, deadline_s) for server in self.servers)

    async def _ready(self, server: Server, deadline_s: float) -> None:
        last = ""

        async def answered() -> None:
            nonlocal last
            while True:
                try:
                    await self._transport.get(server, "/get_model_info", 5.0)
                    return
                except EngineError as error:
                    last = f"; the last try: {error}"
                    await sleep(0.1)

        try:
            await waited(
                answered(),
                waits=self._waits,
                owner=f"server {server.address}",
                what="start-up",
                deadline_s=deadline_s,
                error=EnginesExhausted,
            )
        except EnginesExhausted as error:
            raise EnginesExhausted(f"{error}{last}") from None

    async def update_weights(self, update: WeightUpdate) -> float:
        """Pause, load, resume and verify on every server; nothing is drained.

        Returns the worst difference on the probe, in nats. Raises EnginesExhausted naming the
        server: a run must not go on with weights that are not the trainer's.
        """
        self._vocabulary = update.vocabulary
        return max(await _together(self._update(s, update) for s in self.servers))

    async def _update(self, server: Server, update: WeightUpdate) -> float:
        post = self._transport.post
        load = {
            "model_path": update.path,
            "weight_version": str(update.version),
            "abort_all_requests": False,
            "flush_cache": self._update_mode == "retract",
        }
        try:
            await post(server, "/pause_generation", {"mode": self._update_mode})
            server.loading(update.version)
            reply = await post(server, "/update_weights_from_disk", load)
            told = reply if isinstance(reply, Mapping) else {}
            if not told.get("success"):
                raise EngineError(str(told.get("message", "it gave no reason")))
            await post(server, "/continue_generation", {})
            ask = partial(self._probe, update)
            answered = await self._transport.exchange([server], 1, ask)
            worst = _verify(server, update, answered)
        except EngineError as error:
            raise EnginesExhausted(
                f"server {server.address} did not take weights version {update.version}: {error}"
            ) from None
        server.verified(update.version)
        return worst

    async def _probe(self, update: WeightUpdate, server: Server) -> list[float]:
        body = sglang.probe_body(update.probe.input_ids, self._name("probe"))
        reply = await self._transport.post(server, "/generate", body)
        return sglang.parse_probe(reply, body, self._mark, update.version)

    async def redispatch(self) -> int:
        """Every request under way is sent once more, to another server where there is one."""
        return self._transport.take_back()

    async def server_metrics(self) -> Mapping[str, float]:
        """The servers' counters, summed; a server that has none counts for nothing.

        servers: how many answered. refused: how often one was busy (429).
        versions_stamped_by_client: tokens whose version no server told, if there were any.
        """
        total: dict[str, float] = {"refused": float(self._transport.refused), "servers": 0.0}
        for server in self.servers:
            try:
                info = await self._transport.get(server, "/get_server_info", 10.0)
            except EngineError:
                continue
            total["servers"] += 1.0
            for key, value in info.items() if isinstance(info, Mapping) else ():
                if isinstance(value, int | float) and not isinstance(value, bool):
                    total[key] = total.get(key, 0.0) + value
        if self._stamped:
            total["versions_stamped_by_client"] = float(self._stamped)
        return total

    async def aclose(self) -> None:
        self._transport.closed = True
        for group in self._groups.values():
            for future in group.futures:
                future.cancel()
        self._groups.clear()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._transport.aclose()


def _verify(server: Server, update: WeightUpdate, answered: Sequence[float]) -> float:
    worst = _difference(update.probe, answered)
    if not worst <= update.probe.tolerance:  # also when it is NaN
        raise EnginesExhausted(
            f"server {server.address} computes other log-probabilities than the trainer after "
            f"weights version {update.version}: they differ by {worst:.3g}, at most "
            f"{update.probe.tolerance:.3g} is allowed"
        )
    return worst


async def _together(coroutines: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    """All results; the first error ends the others too, so that none goes on unseen."""
    tasks = [asyncio.ensure_future(coroutine) for coroutine in coroutines]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _difference(probe: Probe, answered: Sequence[float]) -> float:
    if len(answered) != len(probe.logprobs):
        return math.inf
    differences = [abs(a - b) for a, b in zip(answered, probe.logprobs, strict=True)]
    return math.nan if any(map(math.isnan, differences)) else max(differences)
