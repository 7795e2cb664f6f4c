"""A small server that speaks SGLang's protocol, and does what a test tells it to."""

from __future__ import annotations

import asyncio
import json
import socket
from collections import defaultdict, deque
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from typing import Any

from aiohttp import web

from arealite.engines.client import RemoteEngine
from arealite.telemetry.waits import Waits
from arealite.types import GenerationHyperparameters, ModelRequest, Probe, WeightUpdate

Handler = Callable[[web.Request, Any], Awaitable[web.StreamResponse]]

PROBE = Probe((1, 2, 3), (-0.5, -1.5), tolerance=0.01)
UPDATE = WeightUpdate(3, "/weights/v3", PROBE)


def sample(tokens: Sequence[int], finish: str = "stop", version: Any = 0, **meta: Any) -> Any:
    """One sample of a reply to /generate; token t has the log-probability -t / 10."""
    return {
        "output_ids": list(tokens),
        "meta_info": {
            "finish_reason": {"type": finish},
            "output_token_logprobs": [[-t / 10, t, None] for t in tokens],
            "weight_version": str(version),
        }
        | meta,
    }


def probed(*logprobs: Any) -> Any:
    """A reply to a probe of the tokens 1, 2, 3, ..."""
    entries = [[value, token, None] for token, value in enumerate([None, *logprobs], 1)]
    return {"meta_info": {"input_token_logprobs": entries}}


def says(body: Any, status: int = 200, **headers: str) -> Handler:
    """Answers with JSON, or with text as it is."""
    text = body if isinstance(body, str) else json.dumps(body)

    async def answer(request: web.Request, asked: Any) -> web.Response:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return web.Response(text=text, status=status, headers=named)

    return answer


async def hangs(request: web.Request, asked: Any) -> web.StreamResponse:
    await asyncio.Event().wait()
    raise AssertionError("unreachable")


class FakeServer:
    """`async with FakeServer() as server`. Handlers in `next[path]` are used up in order; then
    `always[path]`, if set; else a good answer, of the version last loaded. `asked`
    is every request: (path, body)."""

    def __init__(self) -> None:
        self.next: defaultdict[str, deque[Handler]] = defaultdict(deque)
        self.always: dict[str, Handler] = {}
        self.asked: list[tuple[str, Any]] = []
        self.open = 0
        self.version = "0"
        self.address = ""

    def bodies(self, path: str = "/generate") -> list[Any]:
        return [body for asked, body in self.asked if asked == path]

    async def __aenter__(self) -> FakeServer:
        app = web.Application()
        app.router.add_route("*", "/{path}", self._handle)
        self._runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        self.address = f"127.0.0.1:{self._runner.addresses[0][1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._runner.cleanup()

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        text = await request.text()
        body = json.loads(text) if text else None
        self.asked.append((request.path, body))
        self.open += 1
        try:
            queue = self.next[request.path]
            handler = queue.popleft() if queue else self.always.get(request.path, self._good)
            return await handler(request, body)
        finally:
            self.open -= 1

    async def _good(self, request: web.Request, body: Any) -> web.StreamResponse:
        if request.path == "/generate" and "logprob_start_len" in body:
            return web.json_response(probed(*PROBE.logprobs))
        if request.path == "/generate":
            n, told = body["sampling_params"]["n"], {"prompt_tokens": len(body["input_ids"])}
            names = [body["rid"]] if n == 1 else [f"{body['rid']}-{index}" for index in range(n)]
            samples = [
                sample([10 + i], version=self.version, id=name, **told)
                for i, name in enumerate(names)
            ]
            return web.json_response(samples if n > 1 else samples[0])
        if request.path == "/update_weights_from_disk":
            self.version = body["weight_version"]
        return web.json_response({"success": True, "message": "", "weight_version": self.version})


@asynccontextmanager
async def client_of(*servers: FakeServer | str, **options: Any) -> AsyncIterator[RemoteEngine]:
    """A client of these servers (or addresses); when it is closed nothing of it may be left."""
    addresses = [s if isinstance(s, str) else s.address for s in servers]
    waits = Waits()
    defaults = {"request_timeout_s": 20.0, "setup_timeout_s": 20.0}
    engine = RemoteEngine(addresses, waits, **(defaults | options))
    try:
        yield engine
    finally:
        await engine.aclose()
    assert waits.count() == 0
    assert [server.running for server in engine.servers] == [0] * len(addresses)


def run(test: Callable[[FakeServer, FakeServer], Coroutine[Any, Any, None]]) -> None:
    """Runs the test with two servers on a fresh loop, and looks for tasks that it left behind.

    A watchdog ends it: no fault may become a silent wait.
    """

    async def main() -> None:
        async with FakeServer() as first, FakeServer() as second:
            async with asyncio.timeout(60.0):
                await test(first, second)
            before = asyncio.current_task()
            ours = [t for t in asyncio.all_tasks() if t is not before and "arealite" in repr(t)]
            assert not ours, ours

    asyncio.run(main())


@asynccontextmanager
async def refusing() -> AsyncIterator[str]:
    """An address that refuses connections for as long as the context is open."""
    with socket.socket() as bound:  # bound, but it never listens
        bound.bind(("127.0.0.1", 0))
        yield f"127.0.0.1:{bound.getsockname()[1]}"


def ask(*tokens: int, **gconfig: Any) -> ModelRequest:
    options = {"max_new_tokens": 10} | gconfig
    return ModelRequest(tokens or (1, 2), GenerationHyperparameters(**options))
