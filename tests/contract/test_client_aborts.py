"""Interrupted samples and what their tokens' versions are: the client against scripted servers."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from client_support import UPDATE, FakeServer, ask, client_of, hangs, run, sample, says

from arealite.engines import client
from arealite.errors import EngineError
from arealite.types import ModelResponse


def test_an_aborted_sample_goes_on_from_its_tokens() -> None:
    async def test(server: FakeServer, _: FakeServer) -> None:
        spans = [{"version": "0", "start": 0, "end": 1}, {"version": "1", "start": 1, "end": 3}]
        server.next["/generate"] += [
            says(sample([4, 5, 6], "abort", weight_versions=spans)),
            says(sample([7], "abort", version=1)),
            says(sample([8, 9], "stop", version=2)),
        ]
        async with client_of(server) as engine:
            response = await engine.agenerate(ask(1, 2, max_new_tokens=8, min_new_tokens=4))
        first, second, third = server.bodies()
        assert second["input_ids"] == [1, 2, 4, 5, 6]
        assert third["input_ids"] == [1, 2, 4, 5, 6, 7]
        limits = [
            (b["sampling_params"]["max_new_tokens"], b["sampling_params"]["min_new_tokens"])
            for b in (first, second, third)
        ]
        assert limits == [(8, 4), (5, 1), (4, 0)]
        assert response.input_tokens == [1, 2]
        assert response.output_tokens == [4, 5, 6, 7, 8, 9]
        assert response.output_logprobs == pytest.approx([-0.4, -0.5, -0.6, -0.7, -0.8, -0.9])
        assert response.output_versions == [0, 1, 1, 1, 2, 2]
        assert response.stop_reason == "stop"

    run(test)


def test_the_samples_of_an_aborted_group_go_on_alone_and_under_names_of_their_own() -> None:
    async def test(server: FakeServer, _: FakeServer) -> None:
        server.next["/generate"].append(says([sample([t], "abort") for t in (4, 5, 6)]))
        shared = ask(1)
        async with client_of(server) as engine:
            responses = await asyncio.gather(*[engine.agenerate(shared) for _ in range(3)])
        assert sorted(b["input_ids"] for b in server.bodies()[1:]) == [[1, 4], [1, 5], [1, 6]]
        assert [r.output_tokens for r in responses] == [[4, 10], [5, 10], [6, 10]]
        rids = [body["rid"] for body in server.bodies()]
        assert len(set(rids)) == 4

    run(test)


def test_a_sample_aborted_at_its_last_token_is_complete() -> None:
    async def test(server: FakeServer, _: FakeServer) -> None:
        server.next["/generate"].append(says(sample([4, 5], "abort")))
        async with client_of(server) as engine:
            response = await engine.agenerate(ask(max_new_tokens=2))
        assert (response.output_tokens, response.stop_reason) == ([4, 5], "length")
        assert len(server.bodies()) == 1

    run(test)


def test_empty_aborts_take_the_documented_pauses_and_end(monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)

    monkeypatch.setattr(client, "sleep", sleep)

    async def test(server: FakeServer, _: FakeServer) -> None:
        server.always["/generate"] = says(sample([], "abort"))
        async with client_of(server) as engine:
            with pytest.raises(EngineError, match="aborted 64 times"):
                await engine.agenerate(ask())
        assert len(server.bodies()) == 1 + 64
        assert slept[:8] == pytest.approx([0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 10.0, 10.0])
        assert slept[8:] == [10.0] * 56

    run(test)


# --- stop strings: token t says chr(96 + t)


def decode(tokens: Sequence[int]) -> str:
    return "".join(chr(96 + token) for token in tokens)


@pytest.mark.parametrize(
    ("parts", "stop", "found", "reason"),
    [
        ([[1, 2], [3, 4, 5]], "bc", [1, 2, 3], "stop"),
        ([[1, 2], [3, 4, 5]], "abcd", [1, 2, 3, 4], "stop"),
        ([[1], [2], [3], [4, 5]], "abcd", [1, 2, 3, 4], "stop"),
        ([[1, 2], [3], [4, 5]], "bc", [1, 2, 3], "stop"),  # the next abort is not asked on
        ([[1, 2], [3, 4, 5]], "de", [1, 2, 3, 4, 5], "stop"),
        ([[1, 2], [3, 4, 5]], "ca", [1, 2, 3, 4, 5], "length"),
        ([[1, 2], [], [3, 4, 5]], "bc", [1, 2, 3], "stop"),
    ],
)
def test_a_stop_string_across_a_seam_ends_the_sample_there(
    parts: list[list[int]], stop: str, found: list[int], reason: str
) -> None:
    async def test(server: FakeServer, _: FakeServer) -> None:
        ends = ["abort"] * (len(parts) - 1) + ["length"]
        server.next["/generate"] += [
            says(sample(tokens, end, version=version))
            for version, (tokens, end) in enumerate(zip(parts, ends, strict=True))
        ]
        async with client_of(server, decode=decode) as engine:
            response = await engine.agenerate(ask(stop=(stop,)))
        assert (response.output_tokens, response.stop_reason) == (found, reason)
        assert response.output_logprobs == [-token / 10 for token in found]
        versions = [version for version, tokens in enumerate(parts) for _ in tokens]
        assert response.output_versions == versions[: len(found)]

    run(test)


def test_a_stop_string_across_a_seam_needs_a_tokenizer() -> None:
    async def test(server: FakeServer, _: FakeServer) -> None:
        async with client_of(server) as engine:
            await engine.agenerate(ask(stop=("bc",)))  # without an abort there is no seam
            server.next["/generate"] += [says(sample([], "abort")), says(sample([1], "stop"))]
            await engine.agenerate(ask(stop=("bc",)))  # nor before the first token
            server.next["/generate"].append(says(sample([1, 2], "abort")))
            with pytest.raises(EngineError, match=r"give RemoteEngine decode=tokenizer\.decode"):
                await engine.agenerate(ask(stop=("bc",)))

    run(test)


# --- requests that nobody waits for


def test_a_request_that_nobody_waits_for_ends_and_any_other_goes_on() -> None:
    async def test(server: FakeServer, _: FakeServer) -> None:
        server.next["/generate"] += [hangs, hangs]
        async with client_of(server) as engine:
            shared, alone = ask(1), ask(2)
            tasks = [asyncio.create_task(engine.agenerate(r)) for r in (shared, shared, alone)]
            while server.open < 2:
                await asyncio.sleep(0.001)
            tasks[0].cancel()
            tasks[2].cancel()
            while server.open > 1:
                await asyncio.sleep(0.001)
            assert not tasks[1].done()
            tasks[1].cancel()
            while server.open:
                await asyncio.sleep(0.001)
            assert [s.running for s in engine.servers] == [0]

    run(test)


def test_a_request_that_is_left_before_it_is_sent_is_never_sent() -> None:
    async def test(server: FakeServer, _: FakeServer) -> None:
        async with client_of(server) as engine:
            task = asyncio.create_task(engine.agenerate(ask(1)))
            await asyncio.sleep(0)
            task.cancel()
            await engine.agenerate(ask(2))
        assert [body["input_ids"] for body in server.bodies()] == [[2]]

    run(test)


# --- versions


async def versions_of(server: FakeServer, alarms: list[str], *parts: Any) -> ModelResponse:
    """A sample of these parts, on a server whose version 3 was verified before."""
    async with client_of(server, alarm=alarms.append) as engine:
        await engine.update_weights(UPDATE)
        server.next["/generate"] += [says(part) for part in parts]
        response = await engine.agenerate(ask())
        stamped = (await engine.server_metrics()).get("versions_stamped_by_client", 0)
        assert stamped == (len(response.output_tokens) if alarms else 0)
        return response


def untold(*tokens: int, finish: str = "stop") -> Any:
    reply = sample(tokens, finish)
    del reply["meta_info"]["weight_version"]
    return reply


def test_what_a_server_does_not_tell_counts_as_the_version_at_dispatch() -> None:
    async def test(server: FakeServer, _: FakeServer) -> None:
        alarms: list[str] = []
        response = await versions_of(server, alarms, untold(4, finish="abort"), untold(5, 6))
        assert (response.output_versions, response.versions_from) == ([3, 3, 3], "client")
        [alarm] = alarms
        assert alarm.startswith(f"server {server.address} does not say which version")

    run(test)


def test_a_server_that_tells_its_last_version_alone_is_believed_while_it_cannot_have_changed() -> (
    None
):
    async def test(server: FakeServer, _: FakeServer) -> None:
        alarms: list[str] = []
        response = await versions_of(server, alarms, sample([4, 5], version=3))
        assert (response.output_versions, response.versions_from) == ([3, 3], "server")
        assert alarms == []

    run(test)


def test_tokens_before_an_update_do_not_count_as_after_it() -> None:
    async def test(server: FakeServer, _: FakeServer) -> None:
        async with client_of(server) as engine:
            await engine.update_weights(UPDATE)
            release = asyncio.Event()

            async def late(request: Any, body: Any) -> Any:
                await release.wait()
                return await says(sample([4, 5], version=4))(request, body)

            server.next["/generate"].append(late)
            task = asyncio.create_task(engine.agenerate(ask()))
            while not server.open:
                await asyncio.sleep(0.001)
            await engine.update_weights(replace(UPDATE, version=4))
            release.set()
            response = await task  # somewhere between its tokens 3 became 4
        assert (response.output_versions, response.versions_from) == ([3, 3], "client")

    run(test)
