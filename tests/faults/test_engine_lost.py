"""Promises 7 and 8: an engine that dies or hangs in mid-generation costs time and nothing else."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from client_support import client_of
from embedded_support import Caller, Server

from arealite.engines.client import RemoteEngine
from arealite.types import GenerationHyperparameters, ModelRequest

pytest_plugins = ["embedded_fixtures"]


@pytest.fixture
def lost(folders: dict[str, Path], model: Any) -> Iterator[Server]:
    """A server that a test may kill or stop."""
    server = Server(folders["qwen2"], "--max-running", "8", "--context-length", "2048")
    yield server
    server.process.kill()
    server.process.wait(timeout=30)
    assert server.process.stderr is not None
    server.process.stderr.close()


async def group(engine: RemoteEngine, **gconfig: Any) -> list[list[int]]:
    options = {"max_new_tokens": 1500, "seed": 5} | gconfig
    request = ModelRequest((7, 8, 9), GenerationHyperparameters(**options))
    responses = await asyncio.gather(*[engine.agenerate(request) for _ in range(3)])
    return [list(response.output_tokens) for response in responses]


@pytest.mark.parametrize(("how", "greedy"), [("killed", True), ("stopped", False)])
def test_what_a_lost_server_owed_is_made_elsewhere_and_is_the_same(
    server: Server, lost: Server, how: str, greedy: bool
) -> None:
    async def main() -> None:
        addresses = [s.url.removeprefix("http://") for s in (lost, server)]
        async with AsyncExitStack() as stack:
            session = await stack.enter_async_context(aiohttp.ClientSession())
            engine = await stack.enter_async_context(
                client_of(*addresses, request_timeout_s=20.0 if how == "killed" else 10.0)
            )
            good = await stack.enter_async_context(client_of(addresses[1]))
            await engine.wait_ready(60.0)
            wanted = await group(good, greedy=greedy)
            task = asyncio.create_task(group(engine, greedy=greedy))
            await Caller(session, lost.url).until(lambda info: info["running"] == 3)
            if how == "killed":
                lost.process.kill()
            else:
                lost.process.send_signal(signal.SIGSTOP)
                others = await group(engine, max_new_tokens=5)  # nobody else waits for it
                assert [len(tokens) for tokens in others] == [5, 5, 5]
                assert not task.done()
                assert await engine.redispatch() == 1  # as a stall does; else at the deadline
            assert await task == wanted

    async def watched() -> None:
        async with asyncio.timeout(100.0):
            await main()

    asyncio.run(watched())
