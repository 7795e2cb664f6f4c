"""What an engine promises, of every kind: one set of tests over all of them.

The scripted engine has no model, so it is asked only for what needs none.
"""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from embedded_support import VOCAB, make_model
from engine_kinds import KINDS, PROBE_IDS, Bench, bench_of, end_processes, request, run

from arealite.engines.scripted import Sample, ScriptedEngine
from arealite.errors import EnginesExhausted
from arealite.protocols import ManagedEngine
from arealite.types import ModelResponse, Probe, WeightUpdate

EXACT = 1e-4
LONG = 60

kinds = pytest.mark.parametrize("name", KINDS)


@pytest.fixture(scope="module", autouse=True)
def _processes() -> Iterator[None]:
    yield
    end_processes()


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Mapping[int, Path]:
    root = tmp_path_factory.mktemp("weights")
    return {version: root / str(version) for version in range(3)}


@pytest.fixture(scope="module")
def trainers(folders: Mapping[int, Path]) -> Mapping[int, Any]:
    return {version: make_model(folders[version], "qwen2", version) for version in folders}


@pytest.fixture
def weights(folders: Mapping[int, Path], trainers: Mapping[int, Any]) -> tuple[Any, Any]:
    return folders, trainers


def bench(name: str, weights: tuple[Any, Any], **options: Any) -> Any:
    backend, kind = KINDS[name]
    return bench_of(backend, kind, *weights, **options)


async def checks_a_group(engine: ManagedEngine, **gconfig: Any) -> list[ModelResponse]:
    """Eight samples of one prompt, as any engine must give them."""
    shared = request(**gconfig)
    responses = await asyncio.gather(*[engine.agenerate(shared) for _ in range(8)])
    for response in responses:
        length = len(response.output_tokens)
        assert list(response.input_tokens) == [7, 8, 9]
        assert 1 <= length <= 12
        assert len(response.output_logprobs) == len(response.output_versions) == length
        assert all(0 <= token < VOCAB for token in response.output_tokens)
        assert all(logprob <= 1e-3 for logprob in response.output_logprobs)
        assert response.stop_reason == ("length" if length == 12 else "stop")
    assert len({tuple(response.output_tokens) for response in responses}) > 1
    return list(responses)


# --- the engine without a model


def test_the_scripted_engine_gives_groups_and_versions() -> None:
    async def test() -> None:
        engine = ScriptedEngine(lambda request, serial: Sample(length=40), vocabulary=VOCAB)
        await engine.wait_ready(1.0)
        await checks_a_group(engine)
        update = WeightUpdate(1, "/nowhere", Probe(PROBE_IDS, (0.0,) * 6, 1e-3))
        assert await engine.update_weights(update) == 0.0
        for response in await checks_a_group(engine):
            assert set(response.output_versions) == {1}
        engine.difference = 0.1
        with pytest.raises(EnginesExhausted):
            await engine.update_weights(update)
        await engine.aclose()

    run(test)


# --- engines with one


@kinds
def test_a_group_has_the_trainers_log_probabilities(name: str, weights: tuple[Any, Any]) -> None:
    async def test() -> None:
        async with bench(name, weights) as found:
            for response in await checks_a_group(found.engine, temperature=0.7):
                assert set(response.output_versions) == {0}
                assert found.worst(response, 0.7) < EXACT

    run(test)


@kinds
def test_a_seed_gives_each_sample_of_a_group_its_own_numbers_and_the_same_ones_again(
    name: str, weights: tuple[Any, Any]
) -> None:
    async def test() -> None:
        async with bench(name, weights) as found:
            first = await found.group(6, seed=11)
            again = await found.group(6, seed=11)
            other = await found.group(6, seed=17)
        texts = [[tuple(r.output_tokens) for r in group] for group in (first, again, other)]
        assert texts[0] == texts[1]
        assert len(set(texts[0])) == 6
        assert not set(texts[0]) & set(texts[2])

    run(test)


@kinds
def test_a_stop_token_ends_a_sample_and_the_likeliest_token_is_greedy(
    name: str, weights: tuple[Any, Any]
) -> None:
    async def test() -> None:
        async with bench(name, weights) as found:
            [whole] = await found.group(greedy=True)
            token = whole.output_tokens[4]
            end = whole.output_tokens.index(token) + 1
            [cut] = await found.group(greedy=True, stop_token_ids=(token,))
        assert (cut.output_tokens, cut.stop_reason) == (whole.output_tokens[:end], "stop")
        assert found.worst(whole, 1.0) < EXACT

    run(test)


@kinds
def test_tokens_of_a_sample_in_flight_are_split_at_the_publication(
    name: str, weights: tuple[Any, Any]
) -> None:
    """Each token has the log-probability of the version that it says it is of."""

    async def test() -> None:
        async with bench(name, weights) as found:
            assert await found.engine.update_weights(found.update(1)) < EXACT
            for model in found.models:
                model.token_s = 0.002
            length = 120 if found.models else 800  # stand-ins are slow
            running = asyncio.create_task(found.group(2, max_new_tokens=length))
            await has_begun(found)
            assert await found.engine.update_weights(found.update(2)) < EXACT
            responses = await running
            [after] = await found.group()
        assert set(after.output_versions) == {2}
        for response in responses:
            assert sorted(response.output_versions) == response.output_versions
            assert set(response.output_versions) == {1, 2}
            assert response.versions_from == "server"
            assert found.worst(response, 1.0) < EXACT

    run(test)


async def has_begun(found: Bench, tokens: int = 20) -> None:
    """The servers have sampled so much since this was called."""
    before = (await found.engine.server_metrics()).get("tokens_generated")
    if before is None:  # SGLang tells no such number
        while not (await found.engine.server_metrics())["running"]:
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.2)
        return
    while (await found.engine.server_metrics())["tokens_generated"] < before + tokens:
        await asyncio.sleep(0.01)


@kinds
def test_weights_that_are_not_the_trainers_serve_nothing(
    name: str, weights: tuple[Any, Any]
) -> None:
    async def test() -> None:
        async with bench(name, weights, count=1) as found:
            await found.engine.update_weights(found.update(1))
            wrong = found.update(2, folder=found.folders[0])
            with pytest.raises(EnginesExhausted, match=r"version 2: .*differ by"):
                await found.engine.update_weights(wrong)
            assert [server.state for server in found.engine.servers] == ["quarantined"]
            assert await found.engine.update_weights(found.update(2)) < EXACT
            [response] = await found.group()
            assert set(response.output_versions) == {2}

    run(test)


@kinds
def test_a_folder_without_weights_is_refused_and_the_next_publication_is_taken(
    name: str, weights: tuple[Any, Any], tmp_path: Path
) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    shutil.copy(weights[0][0] / "config.json", empty)

    async def test() -> None:
        async with bench(name, weights) as found:
            with pytest.raises(EnginesExhausted, match=r"version 1: "):
                await found.engine.update_weights(found.update(1, folder=empty))
            assert await found.engine.update_weights(found.update(2)) < EXACT
            [response] = await found.group()
            assert set(response.output_versions) == {2}

    run(test)


@kinds
def test_what_nobody_waits_for_any_more_is_not_sampled(name: str, weights: tuple[Any, Any]) -> None:
    async def test() -> None:
        async with bench(name, weights) as found:
            for model in found.models:
                model.token_s = 0.002
            running = asyncio.create_task(found.group(3, max_new_tokens=1500))
            await has_begun(found)
            running.cancel()
            with suppress(asyncio.CancelledError):
                await running
            while (await found.engine.server_metrics())["running"]:
                await asyncio.sleep(0.01)

    run(test)


@kinds
def test_a_group_is_of_one_server_as_a_whole(name: str, weights: tuple[Any, Any]) -> None:
    async def test() -> None:
        async with bench(name, weights, count=2) as found:
            await found.group(6, seed=3)
            counts = [served.generated for served in found.models]
        assert sorted(bool(count) for count in counts) in ([], [False, True]), counts

    run(test)


@kinds
def test_what_a_server_can_do_is_told(name: str, weights: tuple[Any, Any]) -> None:
    words = {
        "embedded": "the embedded server, log-probabilities temperature, weights by folder",
        "fake-sglang": "SGLang 0.5.23, log-probabilities barred, weights by folder, samples with "
        "a seed are asked for one by one",
        "fake-vllm": "vLLM 0.32.0, log-probabilities processed, weights by file transfer, at most "
        "4 samples a request",
        "fake-vllm-reload": "vLLM 0.32.0, log-probabilities processed, weights by reload_weights, "
        "at most 4 samples a request",
    }

    async def test() -> None:
        async with bench(name, weights) as found:
            [server] = found.engine.servers
            assert found.said == [f"server {server.address}: {words[name]}"]

    run(test)
