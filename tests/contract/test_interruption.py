"""An interrupted sample is the sample that it would have been: seeds, lengths, stop strings.

A proxy before a real server ends every request after a few tokens, as engines do that abort; the
client sends the rest. Nothing that comes out may differ from what one request gives.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from client_support import FakeServer, Handler, client_of
from embedded_support import Caller, Server, add_tokenizer, make_model, text_of

from arealite.engines.client import RemoteEngine
from arealite.types import GenerationHyperparameters, ModelRequest, ModelResponse

pytest_plugins = ["embedded_fixtures"]

PROMPT = (7, 8, 9)


@pytest.fixture(scope="module")
def model(folders: dict[str, Path]) -> Any:
    made = make_model(folders["qwen2"], "qwen2", seed=1)
    add_tokenizer(folders["qwen2"])
    return made


def decode(tokens: Sequence[int]) -> str:
    return "".join(map(text_of, tokens))


def aborts_after(caller: Caller, tokens: int) -> Handler:
    """Hands the request on, but lets it sample only so many tokens at once."""

    async def answer(request: web.Request, body: Any) -> web.StreamResponse:
        params = dict(body["sampling_params"])
        wanted = params["max_new_tokens"]
        params["max_new_tokens"] = min(tokens, wanted)
        params["min_new_tokens"] = min(tokens, params["min_new_tokens"])
        status, reply = await caller.post("/generate", body | {"sampling_params": params})
        for one in reply if isinstance(reply, list) else [reply]:
            if one["meta_info"]["finish_reason"]["type"] == "length" and tokens < wanted:
                one["meta_info"]["finish_reason"] = {"type": "abort"}
        return web.json_response(reply, status=status)

    return answer


def with_client(
    server: Server,
    test: Callable[[Caller, FakeServer, RemoteEngine, RemoteEngine], Awaitable[None]],
) -> None:
    """test(caller, proxy, a client of the server, a client of the proxy before it)."""

    async def main() -> None:
        address = server.url.removeprefix("http://")
        timeout = aiohttp.ClientTimeout(60)
        async with aiohttp.ClientSession(timeout=timeout) as session, FakeServer() as proxy:
            async with (
                client_of(address, decode=decode) as whole,
                client_of(proxy, decode=decode) as parts,
            ):
                async with asyncio.timeout(120.0):
                    await test(Caller(session, server.url), proxy, whole, parts)

    asyncio.run(main())


async def group(engine: RemoteEngine, n: int = 1, **gconfig: Any) -> list[ModelResponse]:
    options = {"max_new_tokens": 40} | gconfig
    request = ModelRequest(PROMPT, GenerationHyperparameters(**options))
    return await asyncio.gather(*[engine.agenerate(request) for _ in range(n)])


def same(found: list[ModelResponse], wanted: list[ModelResponse]) -> None:
    assert [r.output_tokens for r in found] == [r.output_tokens for r in wanted]
    assert [r.stop_reason for r in found] == [r.stop_reason for r in wanted]
    for one, other in zip(found, wanted, strict=True):
        assert one.output_logprobs == pytest.approx(other.output_logprobs, abs=1e-4)
        assert one.output_versions == other.output_versions


@pytest.mark.parametrize("n", [1, 4])
@pytest.mark.parametrize("tokens", [1, 7, 39])
def test_a_seeded_sample_that_was_interrupted_is_the_same_sample(
    server: Server, n: int, tokens: int
) -> None:
    async def test(
        caller: Caller, proxy: FakeServer, whole: RemoteEngine, parts: RemoteEngine
    ) -> None:
        proxy.always["/generate"] = aborts_after(caller, tokens)
        for seed in (11, 2**63 - 2):  # the second wraps within the group
            wanted = await group(whole, n, seed=seed, temperature=0.9, top_k=50)
            assert len({tuple(r.output_tokens) for r in wanted}) == n
            proxy.asked.clear()
            same(await group(parts, n, seed=seed, temperature=0.9, top_k=50), wanted)
            assert len(proxy.bodies()) == 1 + n * (-(-40 // tokens) - 1)

    with_client(server, test)


def test_limits_count_across_interruptions(server: Server) -> None:
    async def test(
        caller: Caller, proxy: FakeServer, whole: RemoteEngine, parts: RemoteEngine
    ) -> None:
        options: dict[str, Any] = {"stop_token_ids": tuple(range(0, 199, 8)), "min_new_tokens": 12}
        proxy.always["/generate"] = aborts_after(caller, 5)
        ends = set()
        for seed in range(6):
            wanted = await group(whole, 3, seed=seed, **options)
            same(await group(parts, 3, seed=seed, **options), wanted)
            ends |= {r.stop_reason for r in wanted}
            assert all(12 < len(r.output_tokens) <= 40 for r in wanted)
        assert "stop" in ends

    with_client(server, test)


def test_a_server_that_aborts_in_earnest_changes_nothing(server: Server) -> None:
    async def test(
        caller: Caller, proxy: FakeServer, whole: RemoteEngine, parts: RemoteEngine
    ) -> None:
        options: dict[str, Any] = {"seed": 5, "max_new_tokens": 700}
        wanted = await group(whole, 3, **options)
        before = (await caller.info())["tokens_generated"]
        task = asyncio.create_task(group(whole, 3, **options))
        for _ in range(3):
            before += 150
            await caller.until(lambda info, before=before: info["tokens_generated"] > before)
            await caller.post("/pause_generation", {"mode": "abort"})
            await caller.post("/continue_generation", {})
        same(await task, wanted)
        assert (await caller.info())["aborted"] >= 9

    with_client(server, test)


# --- stop strings


def stops_in(tokens: Sequence[int], rng: random.Random) -> tuple[str, int]:
    """A string of the sample's text, and how many tokens it takes to say it for the first time."""
    text = decode(tokens)
    start = rng.randrange(8, len(text) - 8)
    stop = text[start : start + rng.randint(1, 5)]
    return stop, next(k for k in range(1, len(tokens) + 1) if stop in decode(tokens[:k]))


def test_a_stop_string_ends_a_sample_at_the_token_that_completes_it(server: Server) -> None:
    rng = random.Random(1)

    async def test(
        caller: Caller, proxy: FakeServer, whole: RemoteEngine, parts: RemoteEngine
    ) -> None:
        for seed in range(12):
            params: dict[str, Any] = {"max_new_tokens": 40, "sampling_seed": seed}
            free = (await caller.generate(list(PROMPT), **params))["output_ids"]
            stop, end = stops_in(free, rng)
            noise = caller.generate(list(PROMPT), **params)
            ended, undisturbed = await asyncio.gather(
                caller.generate(list(PROMPT), stop=[chr(1), stop], **params), noise
            )
            assert ended["output_ids"] == free[:end]
            assert ended["meta_info"]["finish_reason"] == {"type": "stop", "matched": stop}
            assert undisturbed["output_ids"] == free
            plain = await caller.generate(list(PROMPT), stop=stop, **params)
            assert plain["output_ids"] == free[:end]
        at_the_end = decode(free)[-3:]
        last = await caller.generate(list(PROMPT), stop=at_the_end, **params)
        assert last["output_ids"] == free
        assert last["meta_info"]["finish_reason"]["type"] == "stop"

    with_client(server, test)


@pytest.mark.parametrize("tokens", [1, 2, 3, 6])
def test_a_stop_string_is_found_across_an_interruption(server: Server, tokens: int) -> None:
    rng = random.Random(tokens)

    async def test(
        caller: Caller, proxy: FakeServer, whole: RemoteEngine, parts: RemoteEngine
    ) -> None:
        proxy.always["/generate"] = aborts_after(caller, tokens)
        spread = 0
        for seed in range(8):
            [free] = await group(whole, seed=seed)
            stop, end = stops_in(free.output_tokens, rng)
            wanted = await group(whole, 3, seed=seed, stop=(stop,))
            assert wanted[0].output_tokens == free.output_tokens[:end]
            assert wanted[0].stop_reason == "stop"
            same(await group(parts, 3, seed=seed, stop=(stop,)), wanted)
            spread += (end - 1) % tokens < (len(stop) + 1) // 2  # its last token follows a seam
        assert spread

    with_client(server, test)


# --- nobody waits any more


def test_a_request_that_nobody_waits_for_is_taken_back(server: Server) -> None:
    async def test(
        caller: Caller, proxy: FakeServer, whole: RemoteEngine, parts: RemoteEngine
    ) -> None:
        gconfig = GenerationHyperparameters(max_new_tokens=2000)
        shared = ModelRequest(PROMPT, gconfig)
        alone = [ModelRequest(PROMPT, gconfig) for _ in range(2)]
        tasks = [asyncio.create_task(whole.agenerate(r)) for r in [shared] * 3 + alone]
        await caller.until(lambda info: info["running"] == 5)
        for task in (tasks[0], tasks[1], tasks[3]):
            task.cancel()
        # One of the group still waits, so that the group goes on; of the two alone one is left.
        await caller.until(lambda info: info["running"] == 4)
        assert not tasks[2].done()
        tasks[2].cancel()
        await caller.until(lambda info: info["running"] == 1)
        tasks[4].cancel()
        await caller.until(lambda info: info["running"] == 0)

    with_client(server, test)


def test_the_rest_of_a_group_is_answered_when_some_have_left(server: Server) -> None:
    async def test(
        caller: Caller, proxy: FakeServer, whole: RemoteEngine, parts: RemoteEngine
    ) -> None:
        wanted = await group(whole, 3, seed=3, max_new_tokens=1000)
        request = ModelRequest(PROMPT, GenerationHyperparameters(seed=3, max_new_tokens=1000))
        tasks = [asyncio.create_task(whole.agenerate(request)) for _ in range(3)]
        await caller.until(lambda info: info["running"] == 3)
        tasks[1].cancel()
        same([await tasks[0], await tasks[2]], [wanted[0], wanted[2]])
        assert tasks[1].cancelled()

    with_client(server, test)


def test_a_sample_that_goes_on_after_an_abort_can_be_taken_back_too(server: Server) -> None:
    async def test(
        caller: Caller, proxy: FakeServer, whole: RemoteEngine, parts: RemoteEngine
    ) -> None:
        request = ModelRequest(PROMPT, GenerationHyperparameters(max_new_tokens=2000))
        before = await caller.info()
        task = asyncio.create_task(whole.agenerate(request))
        await caller.until(lambda i: i["tokens_generated"] > before["tokens_generated"] + 20)
        await caller.post("/pause_generation", {"mode": "abort"})
        await caller.post("/continue_generation", {})
        await caller.until(
            lambda i: i["requests_total"] == before["requests_total"] + 2 and i["running"] == 1
        )
        task.cancel()
        await caller.until(lambda info: info["running"] == 0)

    with_client(server, test)
