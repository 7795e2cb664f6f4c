"""What arealite promises of an engine, kept by real servers behind its own client."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from server_kinds import TIMEOUT_S
from server_support import EXACT, PROMPT, Served, ask

from arealite.engines.client import RemoteEngine
from arealite.engines.stops import first_end
from arealite.errors import EngineError
from arealite.types import ModelResponse

pytestmark = pytest.mark.timeout(TIMEOUT_S)

LONG = 1500
"""Tokens: seconds of work, so that it is under way when something happens to it."""


def sample(served: Served, **gconfig: Any) -> ModelResponse:
    response: ModelResponse = served.run(lambda engine: engine.agenerate(ask(**gconfig)))
    return response


@pytest.mark.parametrize("temperature", [1.0, 0.6, 1.4])
def test_its_logprobs_are_the_trainers_own(served: Served, temperature: float) -> None:
    response = sample(served, temperature=temperature)
    assert (response.output_len, response.stop_reason) == (48, "length")
    assert (response.versions_from, len(set(response.output_versions))) == ("server", 1)
    assert served.worst(response, temperature) <= EXACT


@pytest.mark.parametrize("cut", [{"top_p": 0.5}, {"top_k": 3}], ids=str)
def test_a_cut_leaves_the_logprobs_as_they_are(served: Served, cut: dict[str, Any]) -> None:
    if not served.kind.is_uncut:
        pytest.skip("this server's log-probabilities are after the cut: it is not used with one")
    response = sample(served, temperature=0.8, **cut)
    assert served.worst(response, 0.8) <= EXACT


def test_greedy_tokens_are_the_trainers_likeliest(served: Served) -> None:
    prompts = [[5, 6, 7], [150, 2, 9, 31], [1]]

    async def work(engine: RemoteEngine) -> Any:
        asked = [engine.agenerate(ask(*p, greedy=True, max_new_tokens=100)) for p in prompts]
        return await asyncio.gather(*asked)

    for response in served.run(work):
        assert list(response.output_tokens) == served.likeliest(response)
        assert served.worst(response) <= EXACT


def test_the_samples_of_a_group_are_drawn_apart(served: Served) -> None:
    async def work(engine: RemoteEngine) -> Any:
        return await asyncio.gather(*(engine.agenerate(r) for r in [ask(seed=3)] * 4))

    responses = served.run(work)
    assert len({tuple(response.output_tokens) for response in responses}) == 4
    assert max(map(served.worst, responses)) <= EXACT


def test_a_sample_ends_with_its_stop_token(served: Served) -> None:
    whole = list(sample(served, greedy=True).output_tokens)
    end = whole[20]
    response = sample(served, greedy=True, stop_token_ids=(end,))
    assert list(response.output_tokens) == whole[: whole.index(end) + 1]
    assert response.stop_reason == "stop"


def test_a_sample_ends_at_the_token_that_completes_a_stop_string(served: Served) -> None:
    whole = list(sample(served, greedy=True).output_tokens)
    ten, eleven = served.decode(whole[10:11]), served.decode(whole[11:12])
    seam = ten[-1] + eleven[0]
    response = sample(served, greedy=True, stop=(seam,))
    assert list(response.output_tokens) == whole[: first_end(whole, (seam,), served.decode)]
    assert response.stop_reason == "stop"


def test_no_stop_token_comes_before_the_least_length(served: Served) -> None:
    if not served.kind.is_uncut:
        pytest.skip("this server's log-probabilities are after the cut: it is not used with one")
    whole = list(sample(served, greedy=True).output_tokens)
    response = sample(served, greedy=True, stop_token_ids=(whole[3],), min_new_tokens=30)
    assert response.output_len >= 30
    assert whole[3] not in response.output_tokens[:30]


def test_a_prompt_that_is_too_long_is_refused_in_the_servers_words(served: Served) -> None:
    with pytest.raises(EngineError, match=r"answered 4\d\d .*: .*(length|long|context)"):
        served.run(lambda engine: engine.agenerate(ask(*PROMPT * 1000)))


def test_an_aborted_sample_goes_on_as_if_nothing_had_happened(served: Served) -> None:
    async def work(engine: RemoteEngine) -> Any:
        task = asyncio.create_task(engine.agenerate(ask(greedy=True, max_new_tokens=LONG)))
        for _ in range(3):
            await served.until_running(is_running=True)
            for path, body in served.kind.abort:
                await asyncio.to_thread(served.process.post, path, body)
        assert not task.done()
        return await task

    response = served.run(work)
    assert (response.output_len, response.stop_reason) == (LONG, "length")
    assert list(response.output_tokens) == served.likeliest(response)
    assert served.worst(response) <= EXACT


def test_a_request_that_nobody_waits_for_is_taken_back(served: Served) -> None:
    async def work(engine: RemoteEngine) -> None:
        task = asyncio.create_task(engine.agenerate(ask(max_new_tokens=LONG)))
        await served.until_running(is_running=True)
        task.cancel()
        await served.until_running(is_running=False)

    served.run(work)
