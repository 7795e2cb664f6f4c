"""A small server that speaks SGLang's protocol and misbehaves as it is told."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

from aiohttp import web

from arealite.engines.client import RemoteEngine
from arealite.telemetry.waits import Waits
from arealite.types import Probe

Fault = Callable[["FakeServer", web.Request, Any], Awaitable[web.StreamResponse | None]]

PROBE = Probe((3, 4, 5), (-0.5, -1.5), 1e-3)


def sample(
    tokens: list[int], finish: str = "stop", version: int | str = 0, logprob: float | None = -1.0
) -> dict[str, Any]:
    """One sample of a reply."""
    return {
        "output_ids": tokens,
        "meta_info": {
            "output_token_logprobs": [[logprob, token, None] for token in tokens],
            "finish_reason": {"type": finish},
            "weight_version": str(version),
        },
    }


class FakeServer:
    """Answers every prompt with the tokens 11, 12, ... unless a fault or a reply is queued.

    faults: taken one per /generate, in order, before `replies`; a fault returns the response or
    None to go on. replies: bodies for /generate, one each. seen: the bodies of /generate.
    """

    def __init__(self) -> None:
        self.address = ""
        self.faults: list[Fault] = []
        self.always: Fault | None = None
        self.replies: list[Any] = []
        self.seen: list[Any] = []
        self.calls: Counter[str] = Counter()
        self.updates: list[Any] = []
        self.update_reply: Any = {"success": True, "message": "ok"}
        self.update_status = 200
        self.probe: list[Any] = [None, -0.5, -1.5]
        self.version = 0

    async def handle(self, request: web.Request) -> web.StreamResponse:
        self.calls[request.path] += 1
        body = await request.json() if request.method == "POST" else None
        if request.path == "/generate":
            return await self._generate(request, body)
        if request.path == "/update_weights_from_disk":
            self.updates.append(body)
            self.version = int(body["weight_version"])
            return web.json_response(self.update_reply, status=self.update_status)
        if request.path == "/get_server_info":
            return web.json_response({"tokens_generated": 7, "name": "x", "paused": False})
        return web.json_response({})

    async def _generate(self, request: web.Request, body: Any) -> web.StreamResponse:
        params = body["sampling_params"]
        if params["max_new_tokens"] == 0:
            entries = [[p, t, None] for p, t in zip(self.probe, body["input_ids"], strict=False)]
            return web.json_response({"meta_info": {"input_token_logprobs": entries}})
        self.seen.append(body)
        fault = self.faults.pop(0) if self.faults else self.always
        if fault is not None:
            response = await fault(self, request, body)
            if response is not None:
                return response
        if self.replies:
            return web.json_response(self.replies.pop(0))
        n = params["n"]
        samples = [sample([11, 12, 13 + i], version=self.version) for i in range(n)]
        return web.json_response(samples if n > 1 else samples[0])


@asynccontextmanager
async def serving(count: int = 1) -> AsyncIterator[list[FakeServer]]:
    """Servers on free loopback ports; they end without waiting for requests that hang."""
    fakes, runners = [], []
    for _ in range(count):
        fake = FakeServer()
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", fake.handle)
        runner = web.AppRunner(app, shutdown_timeout=0.01)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        fake.address = "{}:{}".format(*runner.addresses[0])
        fakes.append(fake)
        runners.append(runner)
    try:
        yield fakes
    finally:
        for runner in runners:
            await runner.cleanup()


@asynccontextmanager
async def client(*fakes: FakeServer | str, **options: Any) -> AsyncIterator[RemoteEngine]:
    """A client of these servers; on leaving it no task and no wait of its own may be left."""
    before = asyncio.all_tasks()
    addresses = [f if isinstance(f, str) else f.address for f in fakes]
    waits = Waits()
    engine = RemoteEngine(addresses, waits, **options)
    try:
        yield engine
    finally:
        await engine.aclose()
        await asyncio.sleep(0.02)
        mine = [
            t for t in asyncio.all_tasks() - before if "aiohttp/web" not in str(t.get_coro())
            and "RequestHandler" not in str(t.get_coro())
        ]  # fmt: skip
        assert not mine, mine
        assert waits.count() == 0


# --- faults


def answers(status: int, text: str) -> Fault:
    async def fault(fake: FakeServer, request: web.Request, body: Any) -> web.StreamResponse:
        return web.Response(status=status, text=text)

    return fault


def says(reply: Any) -> Fault:
    """200 with this JSON (NaN included)."""
    return answers(200, json.dumps(reply))


async def resets(fake: FakeServer, request: web.Request, body: Any) -> web.StreamResponse:
    """The connection ends in the middle of the reply."""
    response = web.StreamResponse(headers={"Content-Length": "1000"})
    await response.prepare(request)
    await response.write(b'{"output_ids": [1')
    assert request.transport is not None
    request.transport.abort()
    return response


async def hangs(fake: FakeServer, request: web.Request, body: Any) -> web.StreamResponse:
    await asyncio.sleep(3600)
    raise AssertionError("unreachable")
