"""The engine without a model does exactly as its script says."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from arealite.engines.scripted import Sample, ScriptedEngine
from arealite.errors import EngineError, EnginesExhausted
from arealite.types import (
    GenerationHyperparameters,
    ModelRequest,
    ModelResponse,
    Probe,
    WeightUpdate,
)


class VirtualLoop(asyncio.SelectorEventLoop):
    """Time jumps to the next timer: no test waits, and none depends on the machine's speed."""

    now = 0.0

    def time(self) -> float:
        return self.now

    def _run_once(self) -> None:
        ready, timers = self._ready, self._scheduled  # type: ignore[attr-defined]
        if not ready and timers:
            self.now = max(self.now, timers[0].when())
        super()._run_once()  # type: ignore[misc]


def _run(test: Callable[[], Coroutine[Any, Any, None]]) -> None:
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        runner.run(test())


def _update(version: int, tolerance: float = 0.1) -> WeightUpdate:
    return WeightUpdate(version, "", Probe((1, 2), (-1.0,), tolerance))


def _ask(engine: ScriptedEngine, max_new_tokens: int = 64) -> Coroutine[Any, Any, ModelResponse]:
    gconfig = GenerationHyperparameters(max_new_tokens=max_new_tokens)
    return engine.agenerate(ModelRequest([1, 2, 3], gconfig))


def test_the_same_seed_and_order_give_the_same_samples() -> None:
    async def test() -> None:
        script = lambda request, serial: Sample(length=3 + serial)  # noqa: E731
        first, second = ScriptedEngine(script, seed=5), ScriptedEngine(script, seed=5)
        other = ScriptedEngine(script, seed=6)
        found = [[await _ask(engine) for _ in range(3)] for engine in (first, second, other)]
        assert found[0] == found[1]
        assert [len(r.output_tokens) for r in found[0]] == [3, 4, 5]
        assert [r.output_tokens for r in found[0]] != [r.output_tokens for r in found[2]]
        assert all(0 <= t < 100 for r in found[0] for t in r.output_tokens)
        assert all(logprob <= 0 for r in found[0] for logprob in r.output_logprobs)
        assert await first.server_metrics() == {"tokens_generated": 12.0, "running": 0.0}

    _run(test)


def test_the_request_cuts_what_the_script_makes_too_long() -> None:
    async def test() -> None:
        engine = ScriptedEngine(lambda request, serial: Sample(length=9))
        cut, whole = await _ask(engine, 4), await _ask(engine, 9)
        assert (cut.output_len, cut.stop_reason) == (4, "length")
        assert (whole.output_len, whole.stop_reason) == (9, "stop")

    _run(test)


def test_each_token_has_the_version_of_its_time() -> None:
    async def test() -> None:
        engine = ScriptedEngine(lambda r, serial: Sample(length=6, first_s=1.0, token_s=1.0))
        running = asyncio.create_task(_ask(engine))
        await asyncio.sleep(3.5)  # tokens come at 2, 3, 4, ... 7 s
        await engine.update_weights(_update(1))
        await asyncio.sleep(2.0)
        await engine.update_weights(_update(2))
        assert (await running).output_versions == [0, 0, 1, 1, 2, 2]
        assert asyncio.get_running_loop().time() == pytest.approx(7.0)
        assert (await _ask(engine)).output_versions == [2] * 6

    _run(test)


def test_an_abort_shows_only_in_versions_and_time() -> None:
    async def test() -> None:
        sample = Sample(length=4, token_s=1.0, abort_at=2, resume_s=10.0)
        engine = ScriptedEngine(lambda request, serial: sample)
        running = asyncio.create_task(_ask(engine))
        await asyncio.sleep(5.0)
        await engine.update_weights(_update(1))
        response = await running
        assert (response.output_versions, response.stop_reason) == ([0, 0, 1, 1], "stop")
        assert asyncio.get_running_loop().time() == pytest.approx(14.0)

    _run(test)


def test_failures_and_hanging_on_demand() -> None:
    async def test() -> None:
        outcomes = [Sample(outcome="fail", token_s=1.0), Sample(outcome="hang"), Sample()]
        engine = ScriptedEngine(lambda request, serial: outcomes[serial])
        with pytest.raises(EngineError, match="request 0 fail"):
            await _ask(engine)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(1e6):
                await _ask(engine)
        assert engine.running == 0
        assert (await _ask(engine)).output_len == 8

    _run(test)


def test_weights_are_refused_and_servers_absent_on_demand() -> None:
    async def test() -> None:
        engine = ScriptedEngine(update_s=2.0, difference=0.2)
        assert await engine.update_weights(_update(1, tolerance=0.3)) == 0.2
        with pytest.raises(EnginesExhausted, match=r"differs by 0\.2"):
            await engine.update_weights(_update(2))
        assert engine.version == 1
        await engine.wait_ready(60.0)
        engine.ready = False
        with pytest.raises(EnginesExhausted, match="not ready in 60 s"):
            await engine.wait_ready(60.0)
        await engine.aclose()
        assert engine.closed

    _run(test)
