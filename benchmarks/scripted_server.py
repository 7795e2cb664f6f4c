"""The second process of rollout_scale.py: SGLang's protocol, answers made before they are asked.

It computes nothing, so that it takes little of the cores it shares: a request is answered after a
time of the script's with the next of a few replies that exist already as bytes.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import multiprocessing
import random
import resource
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import uvloop
from aiohttp import web

from arealite.types import Probe

PROBE = Probe((1, 2, 3), (-0.5, -1.5), tolerance=0.01)
VERSION = '"weight_version": "'
"""What stands before the version in a reply; the replies are cut there."""


@dataclass(frozen=True)
class Script:
    """group: samples per request. tokens: of one sample. seconds: until a request is answered."""

    group: int = 8
    tokens: tuple[int, int] = (64, 256)
    seconds: tuple[float, float] = (20.0, 80.0)
    replies: int = 64

    def texts(self) -> list[str]:
        """Different replies to /generate, each with `group` samples of version 0."""
        rng = random.Random(0)
        return [
            json.dumps([_sample(rng, self.tokens) for _ in range(self.group)])
            for _ in range(self.replies)
        ]

    def waits(self) -> Iterator[float]:
        """The same endless sequence of seconds for everyone who asks."""
        rng = random.Random(1)
        return (rng.uniform(*self.seconds) for _ in itertools.count())


def _sample(rng: random.Random, lengths: tuple[int, int]) -> Any:
    ids = [rng.randrange(150_000) for _ in range(rng.randint(*lengths))]
    # Servers send float32, which Python writes with 17 digits or so.
    logprobs = struct.unpack(f"{len(ids)}f", struct.pack(f"{len(ids)}f", *map(_logprob, ids)))
    return {
        "output_ids": ids,
        "meta_info": {
            "id": f"{rng.getrandbits(128):032x}",
            "finish_reason": {"type": "stop", "matched": 0},
            "prompt_tokens": 64,
            "completion_tokens": len(ids),
            "cached_tokens": 63,
            "weight_version": "0",
            "output_token_logprobs": [
                [logprob, token, None] for logprob, token in zip(logprobs, ids, strict=True)
            ],
        },
    }


def _logprob(token: int) -> float:
    return -(token % 997 + 1) / 331


def raise_descriptor_limit() -> None:
    """As many descriptors as this user may have: one per request in flight."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


class _Server:
    def __init__(self, script: Script) -> None:
        self._replies = itertools.cycle([self._cut(text) for text in script.texts()])
        self._waits = script.waits()
        self._group = b'"n": %d' % script.group
        self._version = b"0"
        self._tokens, self._running, self._most = 0, 0, 0

    @staticmethod
    def _cut(text: str) -> tuple[list[bytes], int]:
        """The reply without its versions, and how many tokens it holds."""
        tokens = sum(len(sample["output_ids"]) for sample in json.loads(text))
        return text.replace(f'{VERSION}0"', f'{VERSION}\0"').encode().split(b"\0"), tokens

    def app(self) -> web.Application:
        app = web.Application()
        app.router.add_post("/generate", self._generate)
        app.router.add_post("/update_weights_from_disk", self._update)
        app.router.add_post("/pause_generation", self._yes)
        app.router.add_post("/continue_generation", self._yes)
        app.router.add_get("/get_model_info", self._yes)
        app.router.add_get("/get_server_info", self._info)
        return app

    async def _generate(self, request: web.Request) -> web.Response:
        body = await request.read()
        if b'"logprob_start_len"' in body:
            told = zip([None, *PROBE.logprobs], PROBE.input_ids, strict=True)
            entries = [[value, token, None] for value, token in told]
            return web.json_response({"meta_info": {"input_token_logprobs": entries}})
        if self._group not in body:
            return web.json_response({"error": "not the group of the script"}, status=400)
        self._running += 1
        self._most = max(self._most, self._running)
        try:
            await asyncio.sleep(next(self._waits))
        finally:
            self._running -= 1
        pieces, tokens = next(self._replies)
        self._tokens += tokens
        return web.Response(body=self._version.join(pieces), content_type="application/json")

    async def _update(self, request: web.Request) -> web.Response:
        self._version = (await request.json())["weight_version"].encode()
        return await self._yes(request)

    async def _yes(self, request: web.Request) -> web.Response:
        return web.json_response({"success": True, "message": ""})

    async def _info(self, request: web.Request) -> web.Response:
        told = {"tokens_generated": self._tokens, "most_running": self._most}
        return web.json_response(told)


def _serve(door: socket.socket, script: Script) -> None:
    raise_descriptor_limit()
    app = _Server(script).app()
    web.run_app(
        app,
        sock=door,
        backlog=4096,
        print=None,
        handler_cancellation=True,
        shutdown_timeout=0.1,
        loop=uvloop.new_event_loop(),
    )


@contextmanager
def scripted_server(script: Script) -> Iterator[str]:
    """A server in a second process, for as long as the context is open; its host:port."""
    with socket.create_server(("127.0.0.1", 0), backlog=4096) as door:
        context = multiprocessing.get_context("spawn")
        process = context.Process(target=_serve, args=(door, script))
        process.start()
        try:
            yield f"127.0.0.1:{door.getsockname()[1]}"
        finally:
            process.terminate()
            process.join()
