"""The client against servers that abort, fail and lie: one right answer, or one named error."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from fake_sglang import PROBE, FakeServer, answers, client, hangs, resets, sample, says, serving

from arealite.engines import client as client_module
from arealite.errors import EngineError, EnginesExhausted
from arealite.types import GenerationHyperparameters, ModelRequest, WeightUpdate

GCONFIG = GenerationHyperparameters(max_new_tokens=8, min_new_tokens=3, temperature=0.7)
UPDATE = WeightUpdate(5, "/weights/v5", PROBE)


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_module, "FIRST_PAUSE_S", 0.002)
    monkeypatch.setattr(client_module, "LONGEST_PAUSE_S", 0.02)


def _run(work: Callable[[list[FakeServer]], Awaitable[Any]], servers: int = 1) -> Any:
    async def main() -> Any:
        async with serving(servers) as fakes:
            return await asyncio.wait_for(work(fakes), 30)

    return asyncio.run(main())


def _request(*prompt: int, **changes: Any) -> ModelRequest:
    return ModelRequest(input_ids=prompt or (1, 2), gconfig=GCONFIG.new(**changes))


# --- coalescing


def test_one_prompt_asked_eight_times_is_one_exchange() -> None:
    async def work(fakes: list[FakeServer]) -> None:
        async with client(fakes[0]) as engine:
            found = await asyncio.gather(*(engine.agenerate(_request()) for _ in range(8)))
        (body,) = fakes[0].seen
        assert body["sampling_params"]["n"] == 8
        assert body["input_ids"] == [1, 2]
        assert sorted(list(r.output_tokens) for r in found) == [[11, 12, 13 + i] for i in range(8)]
        assert all(list(r.input_tokens) == [1, 2] for r in found)

    _run(work)


def test_different_prompts_and_settings_are_not_merged() -> None:
    async def work(fakes: list[FakeServer]) -> None:
        async with client(fakes[0]) as engine:
            await asyncio.gather(
                engine.agenerate(_request(1, 2)),
                engine.agenerate(_request(1, 3)),
                engine.agenerate(_request(1, 2, temperature=0.5)),
                engine.agenerate(_request(1, 2)),
            )
        sizes = sorted(body["sampling_params"]["n"] for body in fakes[0].seen)
        assert sizes == [1, 1, 2]

    _run(work)


def test_a_failure_reaches_all_who_share_the_exchange() -> None:
    async def work(fakes: list[FakeServer]) -> None:
        fakes[0].always = answers(500, "out of memory")
        async with client(fakes[0], request_retries=0) as engine:
            found = await asyncio.gather(
                *(engine.agenerate(_request()) for _ in range(4)), return_exceptions=True
            )
        assert len(fakes[0].seen) == 1
        assert all(isinstance(e, EngineError) and "out of memory" in str(e) for e in found)

    _run(work)


def test_one_cancelled_sample_does_not_harm_its_siblings() -> None:
    async def work(fakes: list[FakeServer]) -> None:
        async with client(fakes[0]) as engine:
            tasks = [asyncio.create_task(engine.agenerate(_request())) for _ in range(3)]
            await asyncio.sleep(0)
            tasks[1].cancel()
            found = await asyncio.gather(*tasks, return_exceptions=True)
        assert isinstance(found[1], asyncio.CancelledError)
        assert [r.output_len for r in (found[0], found[2])] == [3, 3]  # type: ignore[union-attr]

    _run(work)


def test_a_group_in_one_call_is_refused_with_the_way_to_do_it() -> None:
    async def work(fakes: list[FakeServer]) -> None:
        async with client(fakes[0]) as engine:
            with pytest.raises(EngineError, match=r"n_samples=1"):
                await engine.agenerate(_request(n_samples=4))

    _run(work)


# --- aborts


def test_an_aborted_sample_goes_on_from_the_tokens_it_has() -> None:
    async def work(fakes: list[FakeServer]) -> Any:
        fakes[0].replies = [
            sample([21, 22], "abort", version=3, logprob=-0.5),
            sample([23], "abort", version=4, logprob=-0.6),
            sample([24, 25], "stop", version=5, logprob=-0.7),
        ]
        async with client(fakes[0]) as engine:
            found = await engine.agenerate(_request())
        assert [b["input_ids"] for b in fakes[0].seen] == [
            [1, 2], [1, 2, 21, 22], [1, 2, 21, 22, 23]
        ]  # fmt: skip
        params = [b["sampling_params"] for b in fakes[0].seen]
        assert [p["max_new_tokens"] for p in params] == [8, 6, 5]
        assert [p["min_new_tokens"] for p in params] == [3, 1, 0]
        assert len({b["rid"] for b in fakes[0].seen}) == 3
        return found

    found = _run(work)
    assert list(found.input_tokens) == [1, 2]
    assert list(found.output_tokens) == [21, 22, 23, 24, 25]
    assert list(found.output_versions) == [3, 3, 4, 5, 5]
    assert list(found.output_logprobs) == [-0.5, -0.5, -0.6, -0.7, -0.7]
    assert found.stop_reason == "stop"


def test_an_abort_at_the_last_token_is_the_end() -> None:
    async def work(fakes: list[FakeServer]) -> Any:
        fakes[0].replies = [sample([2] * 8, "abort")]
        async with client(fakes[0]) as engine:
            return await engine.agenerate(_request())

    assert _run(work).stop_reason == "length"


def test_empty_aborts_back_off_and_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_module, "MAX_ABORTS", 4)
    pauses: list[float] = []
    sleep = asyncio.sleep

    async def noted(seconds: float) -> None:
        if seconds > 0:
            pauses.append(seconds)
        await sleep(seconds)

    monkeypatch.setattr(client_module.asyncio, "sleep", noted)

    async def work(fakes: list[FakeServer]) -> None:
        fakes[0].always = says(sample([], "abort"))
        async with client(fakes[0]) as engine:
            with pytest.raises(EngineError, match="aborted 4 times"):
                await engine.agenerate(_request())
            assert len(fakes[0].seen) == 5
            assert len(pauses) >= 4  # one for every abort that gained nothing
            assert pauses[:4] == sorted(pauses[:4])
            assert pauses[3] > pauses[0]

    _run(work)


def test_version_spans_reach_their_tokens() -> None:
    async def work(fakes: list[FakeServer]) -> Any:
        reply = sample([1, 2, 3, 4])
        reply["meta_info"]["weight_versions"] = [
            {"version": "default", "start": 0, "end": 1},
            {"version": "7", "start": 1, "end": 4},
        ]
        fakes[0].replies = [reply]
        async with client(fakes[0]) as engine:
            return await engine.agenerate(_request())

    assert list(_run(work).output_versions) == [0, 7, 7, 7]


# --- faults: each is retried on the other server, and named when there is none


def _lie(**meta: Any) -> Any:
    reply = sample([1, 2, 3])
    reply["meta_info"] |= meta
    return says(reply)


FAULTS: dict[str, tuple[Any, str]] = {
    "500": (answers(500, '{"error": {"message": "kernel panic"}}'), "500 .*kernel panic"),
    "503": (answers(503, "warming up"), "503 .*warming up"),
    "reset": (resets, "generate"),
    "html": (answers(200, "<html>proxy error</html>"), "generate"),
    "truncated": (answers(200, '{"output_ids": [1, 2'), "generate"),
    "nothing": (answers(200, ""), "generate"),
    "null": (says(None), "malformed"),
    "number": (says(3), "malformed"),
    "fewer logprobs": (_lie(output_token_logprobs=[[-1.0, 1, None]]), "3 tokens, 1 log-prob"),
    "nan": (says(sample([1], logprob=math.nan)), "not finite"),
    "null logprob": (says(sample([1], logprob=None)), "malformed"),
    "above zero": (says(sample([1], logprob=0.1)), "above 0"),
    "two for one": (says([sample([1]), sample([2])]), "2 samples, 1 were asked"),
    "version": (says(sample([1], version="latest")), "malformed"),
    "gap": (_lie(weight_versions=[{"version": 1, "start": 1, "end": 3}]), "gap at token 0"),
    "short": (_lie(weight_versions=[{"version": 1, "start": 0, "end": 2}]), "2 versions"),
    "finish": (says(sample([1], finish="tired")), "tired"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_retried_on_the_other_server(name: str) -> None:
    async def work(fakes: list[FakeServer]) -> None:
        bad, good = fakes
        bad.always = FAULTS[name][0]
        async with client(bad, good) as engine:
            found = await engine.agenerate(_request())
            assert list(found.output_tokens) == [11, 12, 13]
            assert (len(bad.seen), len(good.seen)) == (1, 1)
            assert [s.running for s in engine.servers] == [0, 0]

    _run(work, servers=2)


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_without_end_is_an_error_in_the_servers_words(name: str) -> None:
    fault, words = FAULTS[name]

    async def work(fakes: list[FakeServer]) -> None:
        fakes[0].always = fault
        async with client(fakes[0], request_retries=2) as engine:
            with pytest.raises(EngineError, match=words):
                await engine.agenerate(_request())
        assert len(fakes[0].seen) == 3

    _run(work)


def test_refused_connections_and_timeouts_move_on_too() -> None:
    async def work(fakes: list[FakeServer]) -> None:
        slow, good = fakes
        slow.always = hangs
        async with client("127.0.0.1:1", slow, good, request_timeout_s=0.5) as engine:
            # the time limit is the whole exchange's: the one that hangs may use it up
            good_first = client_module.RemoteEngine(
                ["127.0.0.1:1", good.address], engine._waits, request_timeout_s=5.0
            )
            assert (await good_first.agenerate(_request())).output_len == 3
            await good_first.aclose()
            assert (await engine.agenerate(_request())).output_len == 3

    _run(work, servers=2)


def test_a_server_that_hangs_is_named_with_the_deadline() -> None:
    async def work(fakes: list[FakeServer]) -> None:
        fakes[0].always = hangs
        async with client(fakes[0], request_timeout_s=0.2, request_retries=0) as engine:
            with pytest.raises(EngineError, match=f"{fakes[0].address} did not answer .* 0.2 s"):
                await engine.agenerate(_request())

    _run(work)


# --- weights


def test_an_update_is_loaded_and_verified_everywhere() -> None:
    async def work(fakes: list[FakeServer]) -> None:
        fakes[1].probe = [None, -0.5005, -1.5]
        async with client(*fakes) as engine:
            assert await engine.update_weights(UPDATE) == pytest.approx(5e-4, rel=1e-3)
        for fake in fakes:
            (body,) = fake.updates
            assert (body["model_path"], body["weight_version"]) == ("/weights/v5", "5")
            assert body["abort_all_requests"] is False
            assert fake.calls["/pause_generation"] == fake.calls["/continue_generation"] == 1

    _run(work, servers=2)


@pytest.mark.parametrize(
    ("probe", "words"),
    [
        ([None, -0.5, -1.9], r"differ by 0.4, at most 0.001"),
        ([None, -0.5, math.nan], "nan"),
        ([None, math.nan, -1.5], "nan"),
        ([None, -0.5], "inf"),
        ([None, -0.5, None], "malformed"),
    ],
)
def test_weights_that_are_not_the_trainers_end_the_run(probe: list[Any], words: str) -> None:
    async def work(fakes: list[FakeServer]) -> None:
        fakes[1].probe = probe
        async with client(*fakes, request_retries=0) as engine:
            with pytest.raises(EnginesExhausted, match=f"{fakes[1].address} .*version 5.*{words}"):
                await engine.update_weights(UPDATE)

    _run(work, servers=2)


@pytest.mark.parametrize(
    ("status", "reply", "words"),
    [
        (200, {"success": False, "message": "no such folder"}, "no such folder"),
        (400, {"success": False, "message": "shape mismatch"}, "400 .*shape mismatch"),
        (200, {}, "no reason"),
        (200, None, "no reason"),
        (200, ["ok"], "no reason"),
    ],
)
def test_a_failed_update_names_the_server_and_its_reason(
    status: int, reply: Any, words: str
) -> None:
    async def work(fakes: list[FakeServer]) -> None:
        fakes[0].update_status, fakes[0].update_reply = status, reply
        async with client(fakes[0]) as engine:
            with pytest.raises(EnginesExhausted, match=f"{fakes[0].address} .*version 5.*{words}"):
                await engine.update_weights(UPDATE)

    _run(work)


# --- the rest


def test_wait_ready_ends_at_its_deadline_and_names_the_server() -> None:
    async def work(fakes: list[FakeServer]) -> None:
        async with client(fakes[0]) as engine:
            await engine.wait_ready(5.0)
        async with client(fakes[0], "127.0.0.1:1") as engine:
            started = time.monotonic()
            with pytest.raises(EnginesExhausted, match=r"server 127.0.0.1:1 .*start-up"):
                await engine.wait_ready(0.3)
            assert time.monotonic() - started < 5.0

    _run(work)


def test_counters_are_summed_over_the_servers_that_have_them() -> None:
    async def work(fakes: list[FakeServer]) -> None:
        async with client(*fakes, "127.0.0.1:1") as engine:
            assert await engine.server_metrics() == {"tokens_generated": 14.0}

    _run(work, servers=2)


def test_closing_ends_whoever_waits() -> None:
    async def work(fakes: list[FakeServer]) -> None:
        fakes[0].always = hangs
        async with client(fakes[0]) as engine:
            waiting = [asyncio.create_task(engine.agenerate(_request())) for _ in range(3)]
            while not fakes[0].seen:
                await asyncio.sleep(0.005)
            await engine.aclose()
            found = await asyncio.wait_for(asyncio.gather(*waiting, return_exceptions=True), 5)
            assert all(isinstance(e, asyncio.CancelledError | EngineError) for e in found)

    _run(work)


def test_no_address_is_no_engine() -> None:
    with pytest.raises(EnginesExhausted, match="at least one address"):
        client_module.RemoteEngine([], None)  # type: ignore[arg-type]
