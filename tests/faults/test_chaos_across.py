"""Faults that one reply alone does not show: answers to others, and versions that cannot be."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from aiohttp import web
from chaos import names, raw, writes
from client_support import (
    UPDATE,
    FakeServer,
    Handler,
    ask,
    client_of,
    hangs,
    probed,
    run,
    sample,
    says,
)

from arealite.errors import EngineError, EnginesExhausted

pytest_plugins = ["client_fixtures"]
pytestmark = pytest.mark.usefixtures("short_pauses")


def echo(body: Any, named: bool = True) -> Any:
    """The right reply: its tokens tell the prompt's last one."""
    n, last = body["sampling_params"]["n"], body["input_ids"][-1]
    samples = [sample([last, 50 + i]) for i in range(n)]
    for i, one in enumerate(samples if named else []):
        one["meta_info"]["id"] = body["rid"] if n == 1 else f"{body['rid']}-{i}"
        one["meta_info"]["prompt_tokens"] = len(body["input_ids"])
    return samples[0] if n == 1 else samples


async def echoes(request: web.Request, body: Any) -> web.StreamResponse:
    return web.json_response(echo(body))


# --- replies that come twice, or to somebody who has left


def test_a_reply_that_comes_twice_at_once() -> None:
    async def test(server: FakeServer, _: FakeServer) -> None:
        async def twice(request: web.Request, body: Any) -> web.StreamResponse:
            return await writes(raw(echo(body)) * 2, "hang")(request, body)

        server.always["/generate"] = twice
        async with client_of(server, request_retries=0) as engine:
            for prompt in (4, 5, 6):
                response = await engine.agenerate(ask(prompt))
                assert response.output_tokens == [prompt, 50]

    run(test)


@pytest.mark.parametrize("named", [True, False])
def test_the_second_copy_of_a_reply_answers_nobody(named: bool) -> None:
    async def test(server: FakeServer, _: FakeServer) -> None:
        read, sent = asyncio.Event(), asyncio.Event()

        async def twice(request: web.Request, body: Any) -> web.StreamResponse:
            assert request.transport is not None
            request.transport.write(raw(echo(body, named)))
            await read.wait()  # the client has its answer, and its connection is free again
            request.transport.write(raw(echo(body, named)))
            sent.set()
            return await hangs(request, body)

        server.next["/generate"].append(twice)
        server.always["/generate"] = echoes
        async with client_of(server, request_retries=0) as engine:
            assert (await engine.agenerate(ask(4))).output_tokens == [4, 50]
            read.set()
            await sent.wait()
            await asyncio.sleep(0.05)  # loopback: it has been there since the write
            assert (await engine.agenerate(ask(5))).output_tokens == [5, 50]
        assert len(server.bodies()) == 2

    run(test)


def test_a_reply_to_a_request_that_was_taken_back_answers_nobody() -> None:
    async def test(server: FakeServer, _: FakeServer) -> None:
        left = asyncio.Event()

        async def late(request: web.Request, body: Any) -> web.StreamResponse:
            try:
                return await hangs(request, body)
            finally:  # the client is gone; the server answers all the same
                if request.transport is not None:
                    request.transport.write(raw(echo(body)))
                left.set()

        server.next["/generate"].append(late)
        server.always["/generate"] = echoes
        async with client_of(server, request_retries=0) as engine:
            task = asyncio.create_task(engine.agenerate(ask(4)))
            while not server.open:
                await asyncio.sleep(0.001)
            task.cancel()
            await left.wait()
            assert (await engine.agenerate(ask(5))).output_tokens == [5, 50]
            assert task.cancelled()

    run(test)


# --- swapped replies


def exchanges(change: Callable[[Any], Any] = lambda reply: reply) -> Handler:
    """Of two requests each gets the other's answer."""
    waiting: list[tuple[Any, asyncio.Future[Any]]] = []

    async def answer(request: web.Request, body: Any) -> web.StreamResponse:
        if not waiting:
            future = asyncio.get_running_loop().create_future()
            waiting.append((body, future))
            return web.json_response(change(echo(await future)))
        other, future = waiting.pop()
        future.set_result(body)
        return web.json_response(change(echo(other)))

    return answer


def without_names(reply: Any) -> Any:
    for one in reply if isinstance(reply, list) else [reply]:
        del one["meta_info"]["id"]
    return reply


@pytest.mark.parametrize(
    ("n", "prompts", "change", "words"),
    [
        (1, ((1, 4), (1, 5)), lambda reply: reply, "answered the request .*, asked was "),
        (3, ((1, 4), (1, 5)), lambda reply: reply, "answered the request .*, asked was "),
        (1, ((1, 4), (1, 2, 5)), without_names, "a prompt of [23] tokens, sent were [23]"),
        (3, ((1, 4), (1, 2, 5)), without_names, "a prompt of [23] tokens, sent were [23]"),
    ],
)
def test_swapped_replies_are_seen(
    n: int, prompts: tuple[Any, Any], change: Callable[[Any], Any], words: str
) -> None:
    async def test(bad: FakeServer, good: FakeServer) -> None:
        bad.always["/generate"] = exchanges(change)
        good.always["/generate"] = echoes
        first, second = ask(*prompts[0]), ask(*prompts[1])
        asked = [first] * n + [second] * n
        async with client_of(bad, request_retries=1) as engine:
            calls = [engine.agenerate(request) for request in asked]
            for error in await asyncio.gather(*calls, return_exceptions=True):
                with pytest.raises(EngineError, match=names(bad.address, words)):
                    raise error  # type: ignore[misc]
        # Both go to the bad server first: the good one looks busier.
        async with client_of(bad, good) as engine:
            engine.servers[1].running += 100
            responses = await asyncio.gather(*[engine.agenerate(request) for request in asked])
            engine.servers[1].running -= 100
        assert len(good.bodies()) == 2
        wanted = [[request.input_ids[-1], 50 + i % n] for i, request in enumerate(asked)]
        assert [r.output_tokens for r in responses] == wanted

    run(test)


def test_the_samples_of_a_group_may_have_names_that_are_not_ours() -> None:
    async def test(server: FakeServer, _: FakeServer) -> None:
        server.next["/generate"].append(says([sample([4], id="a1b2"), sample([5], id="c3d4")]))
        shared = ask()
        async with client_of(server, request_retries=0) as engine:  # so does SGLang
            responses = await asyncio.gather(*[engine.agenerate(shared) for _ in range(2)])
        assert [r.output_tokens for r in responses] == [[4], [5]]

    run(test)


def swapped_probe(request_tokens: list[int], **meta: Any) -> Any:
    reply = probed(-0.5, -1.5)
    for entry, token in zip(
        reply["meta_info"]["input_token_logprobs"], request_tokens, strict=True
    ):
        entry[1] = token
    reply["meta_info"] |= meta
    return reply


@pytest.mark.parametrize(
    ("reply", "words"),
    [
        (swapped_probe([1, 2, 4]), "about other tokens than were sent"),
        (swapped_probe([1, 2, 3], id="somebody-7"), "answered the request somebody-7"),
        (swapped_probe([1, 2, 3], prompt_tokens=5), "a prompt of 5 tokens, sent were 3"),
        (swapped_probe([1, 2, 3], weight_version="2"), "answers the probe as version 2"),
        (swapped_probe([1, 2, 3], weight_version="default"), "answers the probe as version 0"),
    ],
)
def test_a_probe_is_answered_by_its_own_reply_alone(reply: Any, words: str) -> None:
    async def test(server: FakeServer, _: FakeServer) -> None:
        server.always["/generate"] = says(reply)
        async with client_of(server, request_retries=1) as engine:
            with pytest.raises(EnginesExhausted, match=names(server.address, words)):
                await engine.update_weights(UPDATE)
        assert len(server.bodies()) == 2 * 2, "asked twice, after each of two loads"

    run(test)


# --- versions


SPANS = [{"version": "2", "start": 0, "end": 1}, {"version": "3", "start": 1, "end": 2}]
LIES = {
    "stale": (sample([4], version=2), "sampled with version 2 after it had served version 3"),
    "its first weights again": (sample([4], version="default"), "version 0 after .* version 3"),
    "stale at first": (sample([4, 5], weight_versions=SPANS), "version 2 after .* version 3"),
    "from the future": (
        sample([4], weight_versions=[{"version": "9", "start": 0, "end": 1}]),
        "version 9, but the newest that it was given is 3",
    ),
}


@pytest.mark.parametrize("name", LIES)
def test_a_version_that_cannot_be_is_a_fault(name: str) -> None:
    reply, words = LIES[name]

    async def test(bad: FakeServer, good: FakeServer) -> None:
        good.always["/generate"] = bad.always["/generate"] = says(probed(-0.5, -1.5))
        async with client_of(bad, good) as both, client_of(bad, request_retries=0) as alone:
            await both.update_weights(UPDATE)
            await alone.update_weights(UPDATE)
            bad.always["/generate"] = says(reply)
            good.always["/generate"] = says(sample([10], version=3))
            response = await both.agenerate(ask())
            assert (response.output_tokens, response.output_versions) == ([10], [3])
            with pytest.raises(EngineError, match=names(bad.address, words)):
                await alone.agenerate(ask())

    run(test)


def test_a_server_that_has_lost_its_weights_is_given_them_again_and_verified() -> None:
    async def test(server: FakeServer, _: FakeServer) -> None:
        alarms: list[str] = []
        async with client_of(server, alarm=alarms.append) as engine:
            await engine.update_weights(UPDATE)
            server.version = "default"  # as after a restart

            async def probe(request: web.Request, body: Any) -> web.StreamResponse:
                reply = probed(-0.5, -1.5)
                reply["meta_info"]["weight_version"] = server.version
                return web.json_response(reply)

            # The sample, then the probe with its three retries; after the load all is well.
            server.next["/generate"] += [says(sample([4], version="default")), *[probe] * 4]
            response = await engine.agenerate(ask())
        assert (response.output_tokens, response.output_versions) == ([10], [3])
        assert len(server.bodies("/update_weights_from_disk")) == 2
        (alarm,) = alarms
        assert "answers the probe as version 0; it is given the current weights again" in alarm

    run(test)


def test_a_server_that_was_started_again_between_two_requests_is_seen_without_one() -> None:
    """It listens at once, so that no look at it fails; only its version tells."""

    async def test(server: FakeServer, _: FakeServer) -> None:
        alarms: list[str] = []
        async with client_of(server, server_timeout_s=0.4, alarm=alarms.append) as engine:
            await engine.update_weights(UPDATE)
            lost = probed(-0.5, -1.5)
            lost["meta_info"]["weight_version"] = server.version = "default"
            server.next["/generate"] += [says(lost)] * 4  # the probe and its three retries
            while not alarms or engine.servers[0].state != "serving":
                await asyncio.sleep(0.01)
        assert len(server.bodies("/update_weights_from_disk")) == 2
        assert len(server.bodies()) == 1 + 4 + 1, "probes alone"
        (alarm,) = alarms
        assert "answers the probe as version 0; it is given the current weights again" in alarm

    run(test)


def test_tokens_that_the_trainers_model_does_not_have_come_from_another_model() -> None:
    async def test(bad: FakeServer, good: FakeServer) -> None:
        async with client_of(bad, good) as both, client_of(bad, request_retries=0) as alone:
            for engine in (both, alone):
                await engine.update_weights(replace(UPDATE, vocabulary=64))
            bad.always["/generate"] = says(sample([4, 64], version=3))
            good.always["/generate"] = says(sample([4, 63], version=3))
            assert (await both.agenerate(ask())).output_tokens == [4, 63]
            words = "sampled the token id 64, but the trainer's model has the ids 0 to 63"
            with pytest.raises(EngineError, match=names(bad.address, words)):
                await alone.agenerate(ask())

    run(test)


def test_a_version_that_goes_backwards_from_reply_to_reply_is_a_fault() -> None:
    async def test(server: FakeServer, _: FakeServer) -> None:
        server.next["/generate"] += [says(sample([4], version=v)) for v in (2, 2, 3, 2)]
        async with client_of(server, request_retries=0) as engine:
            for version in (2, 2, 3):
                assert (await engine.agenerate(ask())).output_versions == [version]
            with pytest.raises(EngineError, match="version 2 after it had served version 3"):
                await engine.agenerate(ask())

    run(test)


def test_an_older_version_of_a_request_that_was_sent_before_is_no_fault() -> None:
    async def test(server: FakeServer, _: FakeServer) -> None:
        release = asyncio.Event()

        async def late(request: web.Request, body: Any) -> web.StreamResponse:
            await release.wait()
            return await says(sample([4, 5, 6], weight_versions=spans))(request, body)

        spans = [{"version": "0", "start": 0, "end": 2}, {"version": "3", "start": 2, "end": 3}]
        server.next["/generate"].append(late)
        async with client_of(server, request_retries=0) as engine:
            task = asyncio.create_task(engine.agenerate(ask()))
            while not server.open:
                await asyncio.sleep(0.001)
            await engine.update_weights(UPDATE)
            release.set()
            response = await task
        assert (response.output_versions, response.versions_from) == ([0, 0, 3], "server")

    run(test)


def test_going_back_to_an_older_version_on_purpose_is_no_fault() -> None:
    async def test(server: FakeServer, _: FakeServer) -> None:
        async with client_of(server, request_retries=0) as engine:

            async def sampled(version: int) -> None:
                spans = [{"version": str(version), "start": 0, "end": 1}]
                server.next["/generate"].append(says(sample([4], weight_versions=spans)))
                assert (await engine.agenerate(ask())).output_versions == [version]

            for version in (5, 3):
                release = asyncio.Event()

                async def late(
                    request: web.Request,
                    body: Any,
                    version: int = version,
                    release: asyncio.Event = release,
                ) -> web.StreamResponse:
                    await release.wait()
                    spans = [{"version": str(version), "start": 0, "end": 1}]
                    return await says(sample([4], weight_versions=spans))(request, body)

                async def loads(
                    request: web.Request, body: Any, release: asyncio.Event = release
                ) -> web.StreamResponse:
                    release.set()  # what runs goes on with these weights before they are verified
                    return web.json_response({"success": True})

                server.next["/generate"].append(late)
                server.always["/update_weights_from_disk"] = loads
                running = asyncio.create_task(engine.agenerate(ask()))
                while not server.open:
                    await asyncio.sleep(0.001)
                await engine.update_weights(replace(UPDATE, version=version))
                assert (await running).output_versions == [version]
                await sampled(version)

    run(test)


# --- start


def test_a_server_that_is_something_else_is_named_with_what_it_said() -> None:
    async def test(server: FakeServer, _: FakeServer) -> None:
        server.always["/get_model_info"] = says("<html>a printer</html>")
        async with client_of(server) as engine:
            words = names(server.address, "did not deliver start-up .*the last try: .*a printer")
            with pytest.raises(EnginesExhausted, match=words):
                await engine.wait_ready(0.3)

    run(test)
