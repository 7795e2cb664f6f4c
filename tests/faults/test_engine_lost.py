"""Promises 7 and 8: an engine that dies or hangs in mid-generation costs time and nothing else."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Coroutine, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from client_support import ask, client_of
from embedded_support import VOCAB, Caller, Server

from arealite.engines.client import RemoteEngine
from arealite.errors import EnginesExhausted
from arealite.training.weights import make_probe
from arealite.types import GenerationHyperparameters, ModelRequest, WeightUpdate

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
                client_of(*addresses, request_timeout_s=100.0, server_timeout_s=2.0)
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
            assert await task == wanted  # without a stall, and long before the request's deadline
            while engine.servers[0].state != "dead":
                await asyncio.sleep(0.01)

    asyncio.run(watched(main()))


def test_a_server_that_was_stopped_serves_again_only_with_verified_weights(
    server: Server, lost: Server, folders: dict[str, Path], model: Any, new_model: Any
) -> None:
    seen: list[str] = []

    def tell(servers: Sequence[Mapping[str, Any]]) -> None:
        if seen[-1:] != [servers[0]["state"]]:
            seen.append(servers[0]["state"])

    async def until(engine: RemoteEngine, state: str) -> None:
        while engine.servers[0].state != state:
            await asyncio.sleep(0.01)

    async def main() -> None:
        addresses = [s.url.removeprefix("http://") for s in (lost, server)]
        async with AsyncExitStack() as stack:
            session = await stack.enter_async_context(aiohttp.ClientSession())
            engine = await stack.enter_async_context(
                client_of(*addresses, server_timeout_s=2.0, tell=tell)
            )
            await engine.wait_ready(60.0)
            first = WeightUpdate(1, str(folders["qwen2"]), make_probe(model, VOCAB))
            await engine.update_weights(first)
            lost.process.send_signal(signal.SIGSTOP)
            await until(engine, "dead")
            second = WeightUpdate(2, str(folders["new"]), make_probe(new_model, VOCAB))
            assert await engine.update_weights(second) <= 1e-3  # the other one goes on alone
            responses = await asyncio.gather(*[engine.agenerate(ask(i)) for i in range(4)])
            assert {v for r in responses for v in r.output_versions} == {2}
            assert engine.servers[0].state == "dead"
            lost.process.send_signal(signal.SIGCONT)
            await until(engine, "serving")
            before = await Caller(session, lost.url).info()
            assert before["weight_version"] == "2"
            responses = await asyncio.gather(*[engine.agenerate(ask(i)) for i in range(4)])
            assert {v for r in responses for v in r.output_versions} == {2}
            assert (await Caller(session, lost.url).info())["requests_total"] >= (
                before["requests_total"] + 2
            )

    asyncio.run(watched(main()))
    assert seen[-4:] == ["dead", "stale", "updating", "serving"]


def test_a_server_that_loads_other_weights_is_quarantined_and_without_another_the_run_ends(
    server: Server, lost: Server, folders: dict[str, Path], model: Any, new_model: Any
) -> None:
    """The update is skipped: the server has the old weights under the new version's name."""
    alarms: list[str] = []

    async def main() -> None:
        addresses = [s.url.removeprefix("http://") for s in (lost, server)]
        async with client_of(*addresses, alarm=alarms.append) as engine:
            await engine.wait_ready(60.0)
            post, wrong = engine._transport.post, {addresses[0]}

            async def injected(to: Any, path: str, body: Mapping[str, Any], **how: Any) -> Any:
                if path == "/update_weights_from_disk" and to.address in wrong:
                    body = {**body, "model_path": str(folders["qwen2"])}
                return await post(to, path, body, **how)

            engine._transport.post = injected  # type: ignore[method-assign]
            update = WeightUpdate(1, str(folders["new"]), make_probe(new_model, VOCAB))
            assert await engine.update_weights(update) <= 1e-3
            assert [server.state for server in engine.servers] == ["quarantined", "serving"]
            assert len(alarms) == 2, "it was told to load once more"
            assert all("they differ by" in alarm for alarm in alarms)
            response = await engine.agenerate(ask(7, 8, greedy=True))
            assert response.output_versions == [1] * response.output_len
            wrong.add(addresses[1])
            with pytest.raises(EnginesExhausted, match="they differ by") as error:
                await engine.update_weights(replace(update, version=2))
            assert all(f"server {a} did not take" in str(error.value) for a in addresses)

    asyncio.run(watched(main()))


async def watched(test: Coroutine[Any, Any, None]) -> None:
    async with asyncio.timeout(100.0):
        await test
