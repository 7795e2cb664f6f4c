"""deterministic: the seeds follow from the workflow's code, whatever time anything takes."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from arealite.rollout.seeds import SeededEngine
from arealite.simulate.clock import run_virtually
from arealite.types import GenerationHyperparameters, ModelRequest, ModelResponse


class Draws:
    """Answers as servers do: sample i of a group is drawn by seed + i; when, is drawn by jitter."""

    def __init__(self, jitter: int) -> None:
        self.times = random.Random(jitter)
        self.groups: dict[Any, int] = {}
        self.sent: list[int | None] = []

    async def agenerate(self, request: ModelRequest) -> ModelResponse:
        self.sent.append(request.gconfig.seed)
        group = (request.rid, tuple(request.input_ids), request.gconfig)
        if group not in self.groups:
            asyncio.get_running_loop().call_soon(self.groups.pop, group)
        index = self.groups[group] = self.groups.get(group, -1) + 1
        assert request.gconfig.seed is not None
        sample = random.Random(request.gconfig.seed + index).randrange(2**40)
        await asyncio.sleep(self.times.random())
        return ModelResponse(list(request.input_ids), [sample], [-1.0], [0], "stop")


Play = Callable[[SeededEngine, random.Random], Awaitable[list[int]]]


async def one(engine: SeededEngine, *prompt: int) -> int:
    """One sample for the prompt: its only token."""
    return (await engine.agenerate(ModelRequest(prompt))).output_tokens[0]


async def gathers(engine: SeededEngine, times: random.Random) -> list[int]:
    request = ModelRequest([7])
    return [
        answer.output_tokens[0]
        for _ in range(2)
        for answer in await asyncio.gather(*[engine.agenerate(request) for _ in range(4)])
    ]


async def loops(engine: SeededEngine, times: random.Random) -> list[int]:
    samples = []
    for _ in range(4):
        samples.append(await one(engine, 7))
        await asyncio.sleep(times.random())
    return samples


async def branches_of_one_prompt(engine: SeededEngine, times: random.Random) -> list[int]:
    """Two turns each; the second prompt is the same for all, and comes when it comes."""

    async def branch() -> list[int]:
        first = await one(engine, 7)
        await asyncio.sleep(times.random())
        return [first, await one(engine, 8), await one(engine, 8)]

    return [s for of in await asyncio.gather(*[branch() for _ in range(4)]) for s in of]


async def branches_of_one_request(engine: SeededEngine, times: random.Random) -> list[int]:
    """The group's samples come together; each of them is asked again, at its own time."""
    request, again = ModelRequest([7]), ModelRequest([8])

    async def branch() -> list[int]:
        first = (await engine.agenerate(request)).output_tokens[0]
        return [first, (await engine.agenerate(again)).output_tokens[0]]

    return [s for of in await asyncio.gather(*[branch() for _ in range(4)]) for s in of]


async def branches_of_gathers(engine: SeededEngine, times: random.Random) -> list[int]:
    async def branch() -> list[int]:
        samples = [await one(engine, 7)]
        for _ in range(2):
            await asyncio.sleep(times.random())
            request = ModelRequest([8])
            answers = await asyncio.gather(*[engine.agenerate(request) for _ in range(3)])
            samples += [answer.output_tokens[0] for answer in answers]
        return samples

    return [s for of in await asyncio.gather(*[branch() for _ in range(3)]) for s in of]


async def branches_with_seeds(engine: SeededEngine, times: random.Random) -> list[int]:
    """What tells the branches apart is the seed that each gives itself."""

    async def branch(number: int) -> int:
        await asyncio.sleep(times.random())
        own = ModelRequest([7], GenerationHyperparameters(seed=number))
        await engine.agenerate(own)
        return await one(engine, 8)

    return await asyncio.gather(*[branch(i) for i in range(4)])


async def branches_that_begin_late(engine: SeededEngine, times: random.Random) -> list[int]:
    """Each prompt is a branch's own, so it does not matter who comes first."""

    async def branch(number: int) -> list[int]:
        await asyncio.sleep(times.random())
        return [await one(engine, 7, number), await one(engine, 8)]

    return [s for of in await asyncio.gather(*[branch(i) for i in range(4)]) for s in of]


async def late_branches_of_one_prompt(engine: SeededEngine, times: random.Random) -> list[int]:
    """Time decides who gets which sample; the samples are the same, alone or in one turn."""
    request = ModelRequest([7])

    async def branch() -> int:
        await asyncio.sleep(times.randrange(2))
        return (await engine.agenerate(request)).output_tokens[0]

    return sorted(await asyncio.gather(*[branch() for _ in range(6)]))


async def coroutines_awaited_one_by_one(engine: SeededEngine, times: random.Random) -> list[int]:
    request = ModelRequest([7])
    return [(await a).output_tokens[0] for a in [engine.agenerate(request) for _ in range(3)]]


def samples(play: Play, jitter: int, seed: int = 1, row: str = "0:0") -> list[int]:
    async def run() -> list[int]:
        return await play(SeededEngine(Draws(jitter), seed, row), random.Random(-jitter))

    return run_virtually(run())


@pytest.mark.parametrize(
    "play",
    [
        gathers,
        loops,
        branches_of_one_prompt,
        branches_of_one_request,
        branches_of_gathers,
        branches_with_seeds,
        branches_that_begin_late,
        late_branches_of_one_prompt,
        coroutines_awaited_one_by_one,
    ],
)
def test_the_same_samples_whatever_time_they_take(play: Play) -> None:
    first = samples(play, 1)
    assert len(set(first)) == len(first), "every sample is one of its own"
    for jitter in range(2, 12):
        assert samples(play, jitter) == first
    assert not set(samples(play, 1, row="0:1")) & set(first)
    assert not set(samples(play, 1, seed=2)) & set(first)


def sent(play: Callable[[SeededEngine], Awaitable[Any]]) -> list[int | None]:
    async def run() -> list[int | None]:
        await play(SeededEngine(draws := Draws(1), 1, "0:0"))
        return draws.sent

    return run_virtually(run())


def test_a_group_carries_one_seed_and_the_next_group_another() -> None:
    seeds = sent(lambda engine: gathers(engine, random.Random()))
    assert len(set(seeds[:4])) == len(set(seeds[4:])) == 1
    assert seeds[0] != seeds[4]
    assert all(seed is not None and 0 <= seed < 2**62 for seed in seeds)


def test_equal_prompts_with_names_of_their_own_are_no_group() -> None:
    """The client sends them apart, so one seed would make them one sample."""

    async def play(engine: SeededEngine) -> None:
        await asyncio.gather(*[engine.agenerate(ModelRequest([7])) for _ in range(4)])

    assert len(set(sent(play))) == 4


def test_a_group_that_another_request_interrupts_is_two() -> None:
    shared, other = ModelRequest([7]), ModelRequest([7])

    async def play(engine: SeededEngine, times: random.Random) -> list[int]:
        requests = (shared, other, shared)
        answers = await asyncio.gather(*[engine.agenerate(request) for request in requests])
        return [answer.output_tokens[0] for answer in answers]

    assert len(set(samples(play, 1))) == 3


def test_a_seed_of_the_requests_own_is_kept() -> None:
    own = ModelRequest([7], GenerationHyperparameters(seed=5))

    async def play(engine: SeededEngine) -> None:
        await asyncio.gather(engine.agenerate(own), engine.agenerate(own))
        await engine.agenerate(own)

    assert sent(play) == [5, 5, 5]


def test_rows_played_in_one_task_do_not_see_each_other() -> None:
    """As tests/e2e/sequential.py plays them."""

    async def after(before: str | None) -> int:
        if before is not None:
            await one(SeededEngine(Draws(1), 1, before), 7)
        return await one(SeededEngine(Draws(1), 1, "0:1"), 7)

    assert run_virtually(after("0:0")) == run_virtually(after(None))
