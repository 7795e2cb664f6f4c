"""What keeps thousands of episodes cheap, counted and not timed; benchmarks/ has the times."""

from __future__ import annotations

import asyncio
import gc
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiohttp import web

from arealite.engines import http
from arealite.engines.fleet import Server
from arealite.engines.scripted import ScriptedEngine
from arealite.rollout import buffer as module
from arealite.rollout.buffer import Buffer
from arealite.rollout.collector import OLD, YOUNG, rare_collections
from arealite.rollout.limits import Limits
from arealite.rollout.runner import STARTS, Runner
from arealite.rollout.staleness import is_usable
from arealite.telemetry.waits import Waits
from arealite.types import Episode, Trajectory

MANY = 200


def _episode(index: int, version: int = 0) -> Episode:
    trajectory = Trajectory([1, 2], [0, 1], [0.0, -1.0], [-1, version], 1.0)
    return Episode(f"0:{index}", version, (trajectory,))


def test_a_waiting_batch_looks_at_each_episode_once_per_version(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    looks = 0

    def counted(*arguments: Any) -> bool:
        nonlocal looks
        looks += 1
        return is_usable(*arguments)

    monkeypatch.setattr(module, "is_usable", counted)

    async def main() -> None:
        nonlocal looks
        buffer = Buffer(MANY, eta=2)
        taking = asyncio.create_task(buffer.take())
        for version in (0, 1):
            for index in range(MANY // 2):
                index += version * MANY
                await buffer.admit(f"0:{index}")
                buffer.accept(_episode(index))
                await asyncio.sleep(0)  # every end wakes the waiting take
            if version == 0:
                assert looks == MANY // 2
                buffer.advance(1)
                await asyncio.sleep(0)
                assert looks == MANY  # what was ready is looked at again
        assert len(await taking) == MANY
        assert looks == MANY + MANY // 2

    asyncio.run(main())


def test_what_take_left_is_looked_at_again_at_a_new_version() -> None:
    async def main() -> None:
        buffer = Buffer(2, eta=1)
        for index in range(3):
            await buffer.admit(f"0:{index}")
            buffer.accept(_episode(index))
        await buffer.take()
        buffer.advance(2)
        for index in range(3, 5):
            await buffer.admit(f"0:{index}")
            buffer.accept(_episode(index, version=2))
        assert [e.sample_id for e in await buffer.take()] == ["0:3", "0:4"]
        assert buffer.counts["dropped_stale"] == 1

    asyncio.run(main())


def test_an_old_episode_that_ends_between_two_batches_of_one_version_is_dropped() -> None:
    async def main() -> None:
        buffer = Buffer(2, eta=1)
        await buffer.admit("0:0")
        buffer.advance(2)
        for batch in (["0:1", "0:2"], ["0:3", "0:4"]):
            for sample_id in batch:
                await buffer.admit(sample_id)
                buffer.accept(_episode(int(sample_id[2:]), version=2))
            assert [e.sample_id for e in await buffer.take()] == batch
            if batch[0] == "0:1":
                buffer.accept(_episode(0))
        assert buffer.counts["dropped_stale"] == 1

    asyncio.run(main())


def test_other_work_gets_its_turn_while_thousands_start() -> None:
    turns, began = 0, [0]

    class Begins:
        async def arun_episode(self, engine: Any, data: Any) -> Any:
            began.append(turns)
            await asyncio.Event().wait()

    async def main() -> None:
        nonlocal turns
        rows = ((f"0:{i}", {}) for i in itertools.count())
        buffer = Buffer(10 * MANY, eta=0)
        runner = Runner(
            buffer,
            ScriptedEngine(),
            Begins(),
            rows,
            lambda episode: True,
            lambda *_, **__: None,
            Limits(10 * MANY, eta=0),
            Waits(),
        )
        running = asyncio.create_task(runner.run())
        while len(began) <= 10 * MANY:
            await asyncio.sleep(0)
            turns += 1
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)

    asyncio.run(main())
    most = max(began.count(turn) for turn in set(began))
    assert most <= STARTS + 1


def test_other_work_gets_its_turn_while_hundreds_of_replies_are_decoded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    turns, decoded = 0, []
    decode = http._json

    def counted(body: bytes) -> Any:
        decoded.append(turns)
        return decode(body)

    async def answer(request: web.Request) -> web.Response:
        arrived.release()
        await everyone.wait()
        return web.json_response(list(range(http.LONG_REPLY_BYTES)))

    async def main() -> None:
        nonlocal turns, arrived, everyone
        arrived, everyone = asyncio.Semaphore(0), asyncio.Event()
        async with serving(answer) as server:
            transport = http.Transport(Waits(), 60.0, 0, lambda *_: None)
            asked = [asyncio.create_task(transport.post(server, "/", {})) for _ in range(MANY)]
            for _ in asked:
                await arrived.acquire()
            everyone.set()
            while len(decoded) < MANY:
                await asyncio.sleep(0)
                turns += 1
            assert len(await asyncio.gather(*asked)) == MANY
            await transport.aclose()

    arrived, everyone = asyncio.Semaphore(0), asyncio.Event()
    monkeypatch.setattr(http, "_json", counted)
    asyncio.run(main())
    assert max(decoded.count(turn) for turn in set(decoded)) == 1


@asynccontextmanager
async def serving(
    answer: Callable[[web.Request], Awaitable[web.Response]],
) -> AsyncIterator[Server]:
    app = web.Application()
    app.router.add_post("/", answer)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield Server(f"127.0.0.1:{runner.addresses[0][1]}")
    finally:
        await runner.cleanup()


@pytest.mark.parametrize("before", [(700, 10, 10), (10 * YOUNG, 5, 2 * OLD), (0, 10, 10)])
def test_the_garbage_collector_is_as_before_afterwards(before: tuple[int, int, int]) -> None:
    kept = gc.get_threshold()
    try:
        gc.set_threshold(*before)
        with rare_collections():
            inside = gc.get_threshold()
        assert gc.get_threshold() == before
        # One who switched it off, or set it higher, is left alone.
        young = before[0] and max(YOUNG, before[0])
        assert inside == (young, before[1], max(OLD, before[2]))
    finally:
        gc.set_threshold(*kept)
