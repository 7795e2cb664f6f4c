"""The scheduler over a runner that only keeps books: who is in the cache, and who is asked for."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from arealite.engines.embedded.request import Job, Limits, RequestError, parse_generate, reply
from arealite.engines.embedded.scheduler import Scheduler
from arealite.engines.embedded.slots import SlotTable

VOCAB, CONTEXT = 32, 40
LIMITS = Limits(VOCAB, CONTEXT, (), 48)


class Books:
    """A runner whose cache holds (token, version) instead of keys and values.

    The model it pretends to be always says token + 1. Each decode step checks that every slot
    holds exactly its own prefix, and the versions under which it was computed.
    """

    deterministic = False

    def __init__(self, slots: int) -> None:
        self.slots = slots
        self.table = SlotTable(slots, CONTEXT, torch.device("cpu"))
        self.held: list[list[tuple[int, str]]] = [[] for _ in range(slots)]
        self.version = "0"
        self.prefills: list[list[int]] = []
        self.copies = 0
        self.mixed = False  # whether a prefix may come from several versions

    def prefill(self, sequences: Sequence[Sequence[int]], slots: Sequence[int]) -> None:
        self.prefills.append([len(s) for s in sequences])
        for tokens, slot in zip(sequences, slots, strict=True):
            self.held[slot] = [(t, self.version) for t in tokens]

    def see(self, slots: Sequence[int], lengths: Sequence[int]) -> None:
        for slot, length in zip(slots, lengths, strict=True):
            del self.held[slot][length:]

    def copy(self, source: int, targets: Sequence[int], length: int) -> None:
        for target in targets:
            self.copies += 1
            self.held[target] = self.held[source][:length]

    def move(self, source: int, target: int, length: int) -> None:
        assert len(self.held[source]) == length
        self.held[target] = self.held[source]

    def clear(self, slot: int) -> None:
        self.held[slot] = []

    def score(self, tokens: Sequence[int]) -> list[float]:
        return [-1.0] * (len(tokens) - 1)

    def decode(self, tokens: Tensor, positions: Tensor, n: int, longest: int) -> Tensor:
        assert longest == int(positions[:n].max()) + 1
        logits = torch.full((n, VOCAB), -50.0)
        for slot in range(n):
            position, token = int(positions[slot]), int(tokens[slot])
            self.held[slot].append((token, self.version))
            assert [t for t, _ in self.held[slot]] == self.table.tokens[
                slot, : position + 1
            ].tolist()
            if not self.mixed:
                assert {v for _, v in self.held[slot]} == {self.version}
            logits[slot, (token + 1) % VOCAB] = 50.0
        return logits


def make(slots: int = 3, max_waiting: int = 100, prefill_tokens: int = 24) -> Any:
    runner = Books(slots)
    return runner, Scheduler(runner, runner.table, max_waiting, prefill_tokens)


def job(prompt: list[int], loop: asyncio.AbstractEventLoop, **params: Any) -> Job:
    body = {"input_ids": prompt, "sampling_params": params}
    return parse_generate(body, LIMITS, lambda: 1, loop.create_future())


@pytest.fixture
def loop() -> Any:
    made = asyncio.new_event_loop()
    yield made
    made.close()


def samples(done: Job) -> list[dict[str, Any]]:
    value = reply(done, "?")
    return value if isinstance(value, list) else [value]


ACTIONS = st.one_of(
    st.tuples(
        st.just("submit"),
        st.lists(st.integers(0, 2), min_size=1, max_size=3),
        st.integers(1, 12),
        st.integers(1, 4),
    ),
    st.tuples(st.just("turn"), st.integers(1, 6)),
    st.tuples(st.just("abort"), st.integers(0, 5)),
    st.tuples(st.just("update"), st.booleans()),
)


@settings(max_examples=150, deadline=None)
@given(actions=st.lists(ACTIONS, max_size=25), slots=st.integers(1, 4))
def test_whatever_happens_every_slot_holds_its_own_prefix(actions: list[Any], slots: int) -> None:
    loop = asyncio.new_event_loop()
    runner, scheduler = make(slots)
    jobs: list[Job] = []
    updates = 0
    for action, *values in actions:
        if action == "submit":
            prompt, most, n = values
            jobs.append(job(prompt, loop, max_new_tokens=most, n=n))
            scheduler.submit(jobs[-1])
        elif action == "turn":
            for _ in range(values[0]):
                scheduler.turn()
        elif action == "abort" and jobs:
            gone = jobs[values[0] % len(jobs)]
            scheduler.abort(lambda sample, gone=gone: sample.job is gone)
        elif action == "update":
            updates += 1
            scheduler.pause("retract")
            runner.version = str(updates)
            scheduler.stamp(str(updates))
            scheduler.turn()  # a paused scheduler does nothing
            scheduler.resume()
    for _ in range(2000):
        if all(j.future.done() for j in jobs):
            break
        scheduler.turn()
    for done in jobs:
        assert done.future.done()
        for value in samples(done):
            check(done, value)
    scheduler.turn()
    assert (scheduler.running, scheduler.waiting) == (0, 0)
    loop.close()


def check(done: Job, value: dict[str, Any]) -> None:
    """The output counts on from the prompt, has its length, and its spans tile it."""
    prompt, meta = done.samples[0].key, value["meta_info"]
    output, spans = value["output_ids"], meta["weight_versions"]
    assert output == [(prompt[-1] + 1 + i) % VOCAB for i in range(len(output))]
    assert len(meta["output_token_logprobs"]) == len(output)
    if meta["finish_reason"]["type"] == "length":
        assert len(output) == done.samples[0].params.max_new_tokens
    edges = [0, *[span["end"] for span in spans]]
    assert edges[:-1] == [span["start"] for span in spans]
    assert edges[-1] == len(output)
    versions = [int(span["version"]) for span in spans]
    assert versions == sorted(set(versions))


def test_equal_prompts_are_computed_once(loop: Any) -> None:
    runner, scheduler = make(slots=8)
    scheduler.submit(job([1, 2, 3, 4], loop, max_new_tokens=9, n=3))
    scheduler.submit(job([1, 2, 3, 4], loop, max_new_tokens=9))
    scheduler.turn()
    assert runner.prefills == [[3]]
    assert runner.copies == 3
    late = job([1, 2, 3, 4], loop, max_new_tokens=2)
    scheduler.submit(late)  # one that runs still has the prompt
    scheduler.turn()
    scheduler.turn()
    assert len(runner.prefills) == 1
    assert samples(late)[0]["meta_info"]["cached_tokens"] == 3


def test_prefill_is_bounded_and_decoding_goes_on_between(loop: Any) -> None:
    runner, scheduler = make(slots=8, prefill_tokens=24)
    running = job([1], loop, max_new_tokens=30)
    scheduler.submit(running)
    scheduler.turn()
    for i in range(6):
        scheduler.submit(job([i] * 11, loop, max_new_tokens=2))
    steps = scheduler.counters.steps
    for _ in range(3):
        scheduler.turn()
    assert runner.prefills == [[10, 10], [10, 10], [10, 10]]
    assert scheduler.counters.steps == steps + 3


def test_in_place_keeps_the_prefix_and_stops_sharing_it(loop: Any) -> None:
    runner, scheduler = make(slots=4)
    runner.mixed = True
    first = job([1, 2, 3], loop, max_new_tokens=10)
    scheduler.submit(first)
    for _ in range(3):
        scheduler.turn()
    runner.version = "1"
    scheduler.stamp("1")
    scheduler.submit(job([1, 2, 3], loop, max_new_tokens=4))
    for _ in range(8):
        scheduler.turn()
    assert len(runner.prefills) == 2  # the second was not copied from the old weights' prefix
    spans = samples(first)[0]["meta_info"]["weight_versions"]
    assert [(s["version"], s["start"], s["end"]) for s in spans] == [("0", 0, 3), ("1", 3, 10)]


def test_a_full_queue_refuses_and_free_slots_count_as_room(loop: Any) -> None:
    _, scheduler = make(slots=2, max_waiting=3)
    scheduler.submit(job([1], loop, max_new_tokens=1, n=5))
    with pytest.raises(RequestError) as refused:
        scheduler.submit(job([1], loop, max_new_tokens=1))
    assert refused.value.status == 429


def test_it_sleeps_while_there_is_nothing_to_do() -> None:
    async def work() -> None:
        _, scheduler = make()
        turns = 0

        def count(turn: Any = scheduler.turn) -> None:
            nonlocal turns
            turns += 1
            turn()

        scheduler.turn = count
        task = asyncio.create_task(scheduler.run())
        await asyncio.sleep(0.05)
        assert turns == 0
        running = asyncio.get_running_loop()
        scheduler.submit(job([1], running, max_new_tokens=5))
        await asyncio.sleep(0.1)
        assert turns == 5
        scheduler.pause("in_place")
        scheduler.submit(job([1], running, max_new_tokens=5))
        await asyncio.sleep(0.05)
        assert turns <= 6
        task.cancel()

    asyncio.run(work())


def test_new_weights_find_no_slot_that_the_old_ones_broke(loop: Any) -> None:
    runner, scheduler = make(slots=3)
    broken = job([1, 2], loop, max_new_tokens=5)
    cleared: list[int] = []
    scheduler.submit(broken)
    decode, runner.clear = runner.decode, cleared.append
    runner.decode = lambda *args: torch.full_like(decode(*args), torch.nan)
    scheduler.turn()
    assert broken.samples[0].finish_reason == {
        "type": "error",
        "message": "the logits are not finite",
    }
    scheduler.stamp("1")
    assert cleared == [0, 0, 1, 2]
    scheduler.stamp("2")
    assert len(cleared) == 4  # nothing broke since
