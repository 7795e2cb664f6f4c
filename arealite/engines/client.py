"""The engine as a workflow sees it: one object in front of all inference servers.

- Requests for the same prompt that are made in the same turn of the event loop travel as one
  (`n` samples): a group costs one HTTP exchange, and its prompt is prefilled once.
- An aborted sample is sent again with the tokens it already has; workflows never see an abort.
- A failed request is retried, on another server where there is one, with a pause that doubles.
- A busy server (429) is no failure: the request waits for it, or goes to one that is free.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

import aiohttp

from arealite.engines import sglang
from arealite.engines.sglang import Part
from arealite.errors import EngineError, EnginesExhausted
from arealite.telemetry.waits import Waits, waited
from arealite.types import ModelRequest, ModelResponse, Probe, WeightUpdate

T = TypeVar("T")

MAX_ABORTS = 64
"""A sample that is aborted more often than this is given up: weights change far less often."""

FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.1, 10.0


class _Refused(EngineError):
    """A server answered 4xx: the request itself is wrong, and would be so everywhere."""


class _Busy(EngineError):
    """A server answered 429. retry_after_s: how long it asks to be left alone, if it says so."""

    retry_after_s: float | None = None


@dataclass
class Server:
    """One inference server and how many samples it owes us."""

    address: str
    running: int = 0

    @property
    def url(self) -> str:
        return f"http://{self.address}"


@dataclass
class _Pending:
    """Requests of one prompt that wait for the end of this turn of the loop."""

    request: ModelRequest
    futures: list[asyncio.Future[Part]] = field(default_factory=list)


class RemoteEngine:
    """A `ManagedEngine` over servers that speak SGLang's protocol."""

    def __init__(
        self,
        addresses: Sequence[str],
        waits: Waits,
        request_timeout_s: float = 600.0,
        request_retries: int = 3,
        update_mode: str = "retract",
    ) -> None:
        if not addresses:
            raise EnginesExhausted("there is no inference server; give at least one address")
        self.servers = [Server(address) for address in addresses]
        self._waits = waits
        self._timeout_s, self._retries = request_timeout_s, request_retries
        self._update_mode = update_mode
        self._pending: dict[Any, _Pending] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._serial = itertools.count()
        self._session: aiohttp.ClientSession | None = None
        self._closed = False

    # --- what workflows call

    async def agenerate(self, request: ModelRequest) -> ModelResponse:
        """One sample for the prompt, however often servers abort it. Raises EngineError."""
        if request.gconfig.n_samples != 1:
            raise EngineError(
                "agenerate returns one sample: call it n times (asyncio.gather) with "
                "gconfig.new(n_samples=1)"
            )
        prompt = list(request.input_ids)
        part = await self._join(request)
        tokens, logprobs, versions = part.tokens, part.logprobs, part.versions
        aborts = itertools.count(1)
        while part.finish == "abort" and len(tokens) < request.gconfig.max_new_tokens:
            if (count := next(aborts)) > MAX_ABORTS:
                raise EngineError(f"a sample was aborted {MAX_ABORTS} times")
            if not part.tokens:  # nothing gained: do not ask again in a hot loop
                await asyncio.sleep(_pause(count))
            body = sglang.generate_body(
                prompt + tokens, request.gconfig, request.rid, 1, done=len(tokens)
            )
            part = (await self._generate(body, 1))[0]
            tokens, logprobs = tokens + part.tokens, logprobs + part.logprobs
            versions = versions + part.versions
        if not tokens:
            raise EngineError("the server answered an empty sample")
        stop = "stop" if part.finish == "stop" else "length"
        return ModelResponse(prompt, tokens, logprobs, versions, stop)  # type: ignore[arg-type]

    async def _join(self, request: ModelRequest) -> Part:
        loop = asyncio.get_running_loop()
        key = (tuple(request.input_ids), request.gconfig)
        pending = self._pending.get(key)
        if pending is None:
            pending = self._pending[key] = _Pending(request)
            loop.call_soon(self._flush, key)
        future: asyncio.Future[Part] = loop.create_future()
        pending.futures.append(future)
        return await future

    def _flush(self, key: Any) -> None:
        pending = self._pending.pop(key, None)
        if pending is None:  # closed in the same turn
            return
        task = asyncio.get_running_loop().create_task(self._send(pending))
        self._tasks.add(task)  # the loop itself keeps only weak references
        task.add_done_callback(self._tasks.discard)

    async def _send(self, pending: _Pending) -> None:
        n = len(pending.futures)
        request = pending.request
        body = sglang.generate_body(request.input_ids, request.gconfig, request.rid, n)
        try:
            parts = await self._generate(body, n)
        except asyncio.CancelledError:  # the engine is closed: nobody may wait for ever
            for future in pending.futures:
                future.cancel()
            raise
        except Exception as error:  # handed to those who wait, whatever it is
            for future in pending.futures:
                if not future.done():
                    future.set_exception(error)
            return
        for future, part in zip(pending.futures, parts, strict=True):
            if not future.done():
                future.set_result(part)

    async def _generate(self, body: dict[str, Any], n: int) -> list[Part]:
        return await self._exchange(self.servers, body, n, partial(sglang.parse_generate, n=n))

    async def _exchange(
        self,
        servers: Sequence[Server],
        body: Mapping[str, Any],
        n: int,
        parse: Callable[[Any], T],
    ) -> T:
        """One good answer to POST /generate, from the server that failed least and owes least.

        Raises EngineError after `request_retries` failures beyond the first, or when servers were
        busy until request_timeout_s had passed in all.
        """
        now = asyncio.get_running_loop().time
        deadline = now() + self._timeout_s
        failures: Counter[str] = Counter()
        busy: Counter[str] = Counter()
        not_before: defaultdict[str, float] = defaultdict(float)  # loop time, per busy server
        rest = 0.0
        while True:
            wait = {s.address: max(0.0, not_before[s.address] - now()) for s in servers}
            server = min(servers, key=partial(_burden, failures=failures, wait=wait))
            await asyncio.sleep(max(rest, wait[server.address]))
            # A rid is never used twice: the first request of this name may still run somewhere.
            sent = {**body, "rid": f"{body.get('rid', 'probe')}-{next(self._serial)}"}
            server.running += n
            try:
                reply = await self._post(server, "/generate", sent, self._timeout_s)
                try:
                    return parse(reply)
                except EngineError as error:
                    raise EngineError(f"server {server.address}: {error}") from None
            except _Busy as error:
                rest = 0.0
                busy[server.address] += 1
                asked = error.retry_after_s
                pause = _pause(busy[server.address] - 1) if asked is None else asked
                not_before[server.address] = now() + pause
                if not_before[server.address] >= deadline:
                    raise EngineError(
                        f"no server was free within {self._timeout_s:g} s: {error}"
                    ) from None
            except EngineError as error:
                failures[server.address] += 1
                if isinstance(error, _Refused) or failures.total() > self._retries:
                    raise
                rest = _pause(failures.total() - 1)
            finally:
                server.running -= n

    # --- what the door calls

    async def wait_ready(self, deadline_s: float) -> None:
        """Returns when every server answers. Raises EnginesExhausted."""

        async def ready(server: Server) -> None:
            while True:
                try:
                    await self._request("GET", server, "/get_model_info", None, 5.0)
                    return
                except EngineError:
                    await asyncio.sleep(0.1)

        await _together(
            waited(
                ready(server),
                waits=self._waits,
                owner=f"server {server.address}",
                what="start-up",
                deadline_s=deadline_s,
                error=EnginesExhausted,
            )
            for server in self.servers
        )

    async def update_weights(self, update: WeightUpdate) -> float:
        """Pause, load, resume and verify on every server; nothing is drained.

        Returns the worst difference on the probe, in nats. Raises EnginesExhausted naming the
        server: a run must not go on with weights that are not the trainer's.
        """
        return max(await _together(self._update(s, update) for s in self.servers))

    async def _update(self, server: Server, update: WeightUpdate) -> float:
        load = {
            "model_path": update.path,
            "weight_version": str(update.version),
            "abort_all_requests": False,
            "flush_cache": self._update_mode == "retract",
        }
        try:
            await self._post(server, "/pause_generation", {"mode": self._update_mode})
            reply = await self._post(server, "/update_weights_from_disk", load)
            told = reply if isinstance(reply, Mapping) else {}
            if not told.get("success"):
                raise EngineError(str(told.get("message", "it gave no reason")))
            await self._post(server, "/continue_generation", {})
            probe = sglang.probe_body(update.probe.input_ids)
            answered = await self._exchange([server], probe, 1, sglang.parse_probe)
            return self._verify(server, update, answered)
        except EngineError as error:
            raise EnginesExhausted(
                f"server {server.address} did not take weights version {update.version}: {error}"
            ) from None

    def _verify(self, server: Server, update: WeightUpdate, answered: list[float]) -> float:
        worst = _difference(update.probe, answered)
        if not worst <= update.probe.tolerance:  # also when it is NaN
            raise EnginesExhausted(
                f"server {server.address} computes other log-probabilities than the trainer after "
                f"weights version {update.version}: they differ by {worst:.3g}, at most "
                f"{update.probe.tolerance:.3g} is allowed"
            )
        return worst

    async def server_metrics(self) -> Mapping[str, float]:
        """The servers' counters, summed; empty for a server that has none."""
        total: dict[str, float] = {}
        for server in self.servers:
            try:
                info = await self._request("GET", server, "/get_server_info", None, 10.0)
            except EngineError:
                continue
            for key, value in info.items() if isinstance(info, Mapping) else ():
                if isinstance(value, int | float) and not isinstance(value, bool):
                    total[key] = total.get(key, 0.0) + value
        return total

    async def aclose(self) -> None:
        self._closed = True
        for pending in self._pending.values():
            for future in pending.futures:
                future.cancel()
        self._pending.clear()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._session is not None:
            await self._session.close()
            self._session = None

    # --- the wire

    async def _post(
        self, server: Server, path: str, body: Mapping[str, Any], deadline_s: float | None = None
    ) -> Any:
        return await self._request("POST", server, path, body, deadline_s or self._timeout_s)

    async def _request(
        self, method: str, server: Server, path: str, body: Any, deadline_s: float
    ) -> Any:
        if self._closed:
            raise EngineError("the client is closed")
        if self._session is None:  # made here: a session belongs to the running loop
            self._session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0))
        timeout = aiohttp.ClientTimeout(total=deadline_s)
        what = f"{method} {path}"
        try:
            with self._waits.on(f"server {server.address}", what, deadline_s):
                async with self._session.request(
                    method, server.url + path, json=body, timeout=timeout
                ) as reply:
                    if reply.status != 200:
                        raise await _refusal(server, what, reply)
                    return _json(await reply.text())
        except TimeoutError:
            raise EngineError(
                f"server {server.address} did not answer {what} within {deadline_s:g} s"
            ) from None
        except (aiohttp.ClientError, ValueError, OSError) as error:
            raise EngineError(f"server {server.address}: {what}: {error!r}") from None


def _burden(
    server: Server, failures: Mapping[str, int], wait: Mapping[str, float]
) -> tuple[int, float, int]:
    """What speaks against a server: the request goes to the one with least."""
    return failures[server.address], wait[server.address], server.running


def _pause(count: int) -> float:
    """Seconds before the next try: doubling from the first pause to the longest."""
    return min(FIRST_PAUSE_S * 2.0 ** min(count, 32), LONGEST_PAUSE_S)


async def _together(coroutines: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    """All results; the first error ends the others too, so that none goes on unseen."""
    tasks = [asyncio.ensure_future(coroutine) for coroutine in coroutines]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise ValueError(f"{error}; it answered {text[:100]!r}") from None


async def _refusal(server: Server, what: str, reply: aiohttp.ClientResponse) -> EngineError:
    """The error for an answer other than 200."""
    wrong = 400 <= reply.status < 500 and reply.status not in (404, 408)
    kind = _Busy if reply.status == 429 else _Refused if wrong else EngineError
    error = kind(
        f"server {server.address} answered {reply.status} to {what}: {await _message(reply)}"
    )
    if isinstance(error, _Busy):
        try:  # seconds; the other form that HTTP allows, a date, is ignored
            seconds = float(reply.headers.get("Retry-After", ""))
            error.retry_after_s = seconds if seconds >= 0 else None
        except ValueError:
            pass
    return error


async def _message(reply: aiohttp.ClientResponse) -> str:
    """The server's own words, from the shapes that servers use."""
    text = (await reply.text(errors="replace"))[:500]
    try:
        body = await reply.json(content_type=None)
    except ValueError:
        return text
    if isinstance(body, dict):
        error = body.get("error", body)
        if isinstance(error, dict):
            return str(error.get("message", text))
    return text


def _difference(probe: Probe, answered: Sequence[float]) -> float:
    if len(answered) != len(probe.logprobs):
        return math.inf
    differences = [abs(a - b) for a, b in zip(answered, probe.logprobs, strict=True)]
    return math.nan if any(map(math.isnan, differences)) else max(differences)
