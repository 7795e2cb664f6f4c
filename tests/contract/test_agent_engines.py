"""An agent with OpenAI's client in front of each kind of server: are its log-probabilities those
that the trainer computes for the tokens of its conversations?"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from agent_support import ADD
from embedded_support import make_model
from engine_kinds import KINDS, Bench, bench_of, end_processes, logprobs_of, run
from letters import Letters

from arealite.agents.endpoint import Endpoint
from arealite.agents.session import Session
from arealite.types import GenerationHyperparameters, Trajectory

EXACT = 1e-4
GCONFIG = GenerationHyperparameters(max_new_tokens=12, temperature=0.8)
TURNS = 3


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    root = tmp_path_factory.mktemp("models")
    return {version: root / str(version) for version in range(2)}


@pytest.fixture(scope="module")
def trainers(folders: dict[int, Path]) -> Iterator[dict[int, Any]]:
    yield {v: make_model(folder, "qwen2", seed=v + 1) for v, folder in folders.items()}
    end_processes()


async def agent(url: str, key: str, bench: Bench) -> None:
    """A conversation over new weights, half of it as a stream; and a fork of it."""
    async with openai.AsyncOpenAI(base_url=url, api_key=key) as client:
        messages: list[Any] = [{"role": "user", "content": "ask"}]
        asked: dict[str, Any] = {"model": "m", "tools": [ADD]}
        for turn in range(TURNS):
            answer = await client.chat.completions.create(
                messages=messages, stream=bool(turn % 2), **asked
            )
            if turn % 2:
                text = "".join([c.choices[0].delta.content or "" async for c in answer])
                messages.append({"role": "assistant", "content": text})
            else:
                messages.append(answer.choices[0].message)
            messages.append({"role": "user", "content": f"turn {turn}"})
            if turn == 0:
                await bench.engine.update_weights(bench.update(1))
        messages[-1] = {"role": "user", "content": "fork"}
        await client.chat.completions.create(messages=messages[:2] + messages[-1:], **asked)


def worst(bench: Bench, made: Trajectory) -> float:
    """The largest difference, over all tokens that are learned, each by its version's weights."""
    found = 0.0
    for version, trainer in bench.trainers.items():
        wanted = logprobs_of(trainer, made.tokens[:1], made.tokens[1:], GCONFIG.temperature)
        for i, theirs in enumerate(wanted, 1):
            if made.loss_mask[i] and made.versions[i] == version:
                found = max(found, abs(made.logprobs[i] - theirs))
    return found


@pytest.mark.parametrize("name", KINDS)
def test_log_probabilities_are_the_trainers(
    name: str, folders: dict[int, Path], trainers: dict[int, Any]
) -> None:
    async def test() -> None:
        async with bench_of(*KINDS[name], folders, trainers) as bench:
            endpoint, session = Endpoint(), Session(bench.engine, Letters(), GCONFIG)
            await endpoint.start()
            try:
                with endpoint.opened(session) as key:
                    await agent(endpoint.url, key, bench)
            finally:
                await endpoint.aclose()
            made = session.trajectories(1.0)
            assert {version for t in made for version in t.versions} == {-1, 0, 1}
            assert [t.sampled for t in made] == [12 * TURNS, 12]
            assert max(worst(bench, t) for t in made) < EXACT

    run(test)
