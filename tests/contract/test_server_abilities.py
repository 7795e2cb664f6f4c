"""What a server cannot do is said at its start; keys; updates that somebody else broke off."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from client_support import UPDATE, FakeServer, client_of
from client_support import run as run_with_fakes
from embedded_support import Server, make_model
from engine_kinds import bench_of, embedded, end_processes, run, standing_in
from served_model import VllmFlags

from arealite.errors import ConfigError
from arealite.processes import KEY

Weights = tuple[Mapping[int, Path], Mapping[int, Any]]


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Weights:
    root = tmp_path_factory.mktemp("weights")
    folders = {version: root / str(version) for version in range(2)}
    return folders, {v: make_model(folder, "qwen2", v) for v, folder in folders.items()}


def vllm(weights: Weights, flags: VllmFlags, **options: Any) -> Any:
    return bench_of("vllm", standing_in("vllm", "processed", flags), *weights, **options)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (VllmFlags(dev_mode=False), "weights cannot be changed: start it with VLLM_SERVER_DEV"),
        (VllmFlags(scale_out=False), "token ids: start it with --enable-scale-out"),
        (VllmFlags(key="k"), "wants an API key: give it as AREALITE_SERVER_KEY"),
    ],
)
def test_a_server_that_was_started_wrongly_ends_the_run_with_the_remedy(
    flags: VllmFlags, words: str, weights: Weights
) -> None:
    async def test() -> None:
        with pytest.raises(ConfigError, match=rf"server 127\.0\.0\.1:\d+ \(vLLM 0.*{words}"):
            async with vllm(weights, flags):
                raise AssertionError("it must not come up")

    run(test)


def test_a_server_with_a_key_is_used_with_it(weights: Weights) -> None:
    async def test() -> None:
        async with vllm(weights, VllmFlags(key="k"), key="k") as found:
            await found.engine.update_weights(found.update(1))
            [sample] = await found.group()
            assert set(sample.output_versions) == {1}

    run(test)


def test_the_embedded_server_asks_for_its_key_on_every_route(
    weights: Weights, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(KEY, "of-this-run")
    folder = weights[0][0]
    server = Server(folder)

    async def statuses(**headers: str) -> list[int]:
        async with aiohttp.ClientSession(headers=headers) as session:
            found = []
            for method, path in (("POST", "/generate"), ("POST", "/update_weights_from_disk"),
                                 ("POST", "/pause_generation"), ("GET", "/health")):  # fmt: skip
                async with session.request(method, server.url + path) as reply:
                    found.append(reply.status)
            return found

    async def test() -> None:
        assert await statuses() == [401] * 4
        assert await statuses(Authorization="Bearer of-another") == [401] * 4
        told = await statuses(Authorization="Bearer of-this-run")
        assert 401 not in told
        assert told[-1] == 200

    run(test)
    assert server.ended()[0] == 0


def test_a_client_of_the_embedded_server_has_its_key(
    weights: Weights, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(KEY, "of-this-run")

    async def test() -> None:
        async with bench_of("embedded", embedded, *weights, key="of-this-run") as found:
            assert len(await found.group(2)) == 2
        with pytest.raises(ConfigError, match="wants an API key: give it as AREALITE_SERVER_KEY"):
            async with bench_of("embedded", embedded, *weights):
                raise AssertionError("it must not come up")

    try:
        run(test)
    finally:
        end_processes()


def test_a_session_that_another_run_left_open_is_ended(weights: Weights) -> None:
    """A run was killed between the start and the end of an update."""

    async def test() -> None:
        alarms: list[str] = []
        async with vllm(weights, VllmFlags(), alarm=alarms.append) as found:
            [server] = found.engine.servers
            async with aiohttp.ClientSession() as session:
                async with session.post(f"{server.url}/start_weight_update", json={}) as reply:
                    assert reply.status == 200
            assert await found.engine.update_weights(found.update(1)) < 1e-4
            [alarm] = alarms
            assert "called while one is active" in alarm
            assert await found.engine.update_weights(found.update(0)) < 1e-4
            assert len(alarms) == 1

    run(test)


def test_a_group_larger_than_a_server_takes_at_once_is_asked_in_parts(weights: Weights) -> None:
    async def test() -> None:
        async with vllm(weights, VllmFlags(most_seqs=4)) as found:
            samples = await found.group(10, seed=100)
        sent = [body["sampling_params"] for _, body in found.asked]
        parts = sorted((p["n"], p["seed"]) for p in sent)
        assert parts == [(2, 108), (4, 100), (4, 104)]
        assert len({tuple(sample.output_tokens) for sample in samples}) == 10

    run(test)


def test_each_step_of_an_update_has_a_connection_of_its_own() -> None:
    """vLLM closes one that is kept after each error; the next step must not fail by that."""
    ports: list[int] = []

    async def test(server: FakeServer, _: FakeServer) -> None:
        async def note(request: web.Request, asked: Any) -> web.StreamResponse:
            assert request.transport is not None
            ports.append(request.transport.get_extra_info("peername")[1])
            return web.json_response({"success": True})

        for path in ("/pause_generation", "/update_weights_from_disk", "/continue_generation"):
            server.always[path] = note
        async with client_of(server) as engine:
            await engine.update_weights(UPDATE)
        assert len(set(ports)) == len(ports) == 3

    run_with_fakes(test)
