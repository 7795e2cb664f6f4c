"""Whatever goes wrong between client and server: another server answers, or one clear error."""

from __future__ import annotations

import asyncio
import time

import pytest
from client_support import (
    FakeServer,
    Handler,
    ask,
    client_of,
    hangs,
    refusing,
    resets,
    resets_within,
    run,
    sample,
    says,
)

from arealite.engines import http
from arealite.errors import EngineError

SHORT = sample([3, 4])
SHORT["meta_info"]["output_token_logprobs"].pop()


def _span(start: int, end: int) -> Handler:
    spans = [{"version": "0", "start": start, "end": end}]
    return says(sample([3, 4], weight_versions=spans))


FAULTS: dict[str, tuple[Handler, str]] = {
    "500": (says("it broke", 500), "answered 500 to POST /generate: it broke"),
    "503": (says({"error": {"message": "loading"}}, 503), "answered 503 .*: loading"),
    "reset": (resets, "POST /generate: "),
    "reset within the body": (resets_within, "POST /generate: "),
    "HTML": (says("<html>proxy</html>"), "<html>proxy</html>"),
    "truncated JSON": (says('[{"output_ids": [1'), "POST /generate: .*output_ids"),
    "nothing": (says(""), "POST /generate: "),
    "null": (says("null"), "malformed"),
    "text": (says('"ok"'), "malformed"),
    "no meta": (says({"output_ids": [1]}), "malformed: KeyError"),
    "too few logprobs": (says(SHORT), "2 tokens, 1 log-probabilities"),
    "NaN": (says(sample([3], output_token_logprobs=[[float("nan"), 3, None]])), "not finite"),
    "null logprob": (says(sample([3], output_token_logprobs=[[None, 3, None]])), "malformed"),
    "positive logprob": (says(sample([3], output_token_logprobs=[[0.1, 3, 0]])), "above 0: 0.1"),
    "too many samples": (says([sample([3]), sample([4])]), "2 samples, 1 were asked for"),
    "no sample": (says([]), "0 samples, 1 were asked for"),
    "unknown end": (says(sample([3], "explosion")), "unknown reason: explosion"),
    "unknown version": (says(sample([3], version="latest")), "malformed.*latest"),
    "spans with a gap": (_span(1, 2), "leave a gap at token 0"),
    "spans too short": (_span(0, 1), "2 tokens, 2 log-probabilities and 1 versions"),
    "spans without end": (_span(0, 10**15), "spans end at token"),
}


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "FIRST_PAUSE_S", 0.005)
    monkeypatch.setattr(http, "LONGEST_PAUSE_S", 0.02)


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_retried_elsewhere_and_then_told(name: str) -> None:
    fault, words = FAULTS[name]

    async def test(bad: FakeServer, good: FakeServer) -> None:
        bad.always["/generate"] = fault
        async with client_of(bad, good) as engine:
            response = await engine.agenerate(ask())
        assert response.output_tokens == [10]
        assert (len(bad.bodies()), len(good.bodies())) == (1, 1)
        async with client_of(bad, request_retries=2) as engine:
            with pytest.raises(EngineError, match=f"server {bad.address}.*{words}"):
                await engine.agenerate(ask())
        assert len(bad.bodies()) == 1 + 3

    run(test)


def test_a_refused_connection() -> None:
    async def test(good: FakeServer, _: FakeServer) -> None:
        async with refusing() as dead:
            async with client_of(dead, good) as engine:
                assert (await engine.agenerate(ask())).output_tokens == [10]
            async with client_of(dead, request_retries=1) as engine:
                with pytest.raises(EngineError, match=f"server {dead}: POST /generate"):
                    await engine.agenerate(ask())

    run(test)


def test_a_server_that_never_answers() -> None:
    async def test(bad: FakeServer, good: FakeServer) -> None:
        bad.always["/generate"] = hangs
        async with client_of(bad, good, request_timeout_s=0.5) as engine:
            assert (await engine.agenerate(ask())).output_tokens == [10]
        async with client_of(bad, request_timeout_s=0.2, request_retries=0) as engine:
            words = f"server {bad.address} did not answer POST /generate within 0.2 s"
            with pytest.raises(EngineError, match=words):
                await engine.agenerate(ask())

    run(test)


def test_an_empty_sample_is_an_error_not_a_number() -> None:
    async def test(server: FakeServer, _: FakeServer) -> None:
        server.always["/generate"] = says(sample([]))
        async with client_of(server) as engine:
            with pytest.raises(EngineError, match="empty sample"):
                await engine.agenerate(ask())

    run(test)


# --- busy servers


def test_busy_answers_use_up_no_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "FIRST_PAUSE_S", 0.01)
    monkeypatch.setattr(http, "LONGEST_PAUSE_S", 0.04)

    async def test(server: FakeServer, _: FakeServer) -> None:
        server.next["/generate"] += [says("full", 429)] * 6
        async with client_of(server, request_retries=0) as engine:
            started = time.monotonic()
            assert (await engine.agenerate(ask())).output_tokens == [10]
            assert time.monotonic() - started >= 0.01 + 0.02 + 4 * 0.04
        assert len(server.bodies()) == 7

    run(test)


@pytest.mark.parametrize(("header", "wait"), [("0.3", 0.3), ("Wed, 21 Oct 2026 07:28:00 GMT", 0.0)])
def test_retry_after_is_obeyed(header: str, wait: float) -> None:
    async def test(server: FakeServer, _: FakeServer) -> None:
        server.next["/generate"].append(says("full", 429, Retry_After=header))
        async with client_of(server, request_retries=0) as engine:
            started = time.monotonic()
            await engine.agenerate(ask())
            assert time.monotonic() - started >= wait
        assert len(server.bodies()) == 2

    run(test)


def test_a_free_server_takes_what_a_busy_one_refused() -> None:
    async def test(busy: FakeServer, free: FakeServer) -> None:
        busy.always["/generate"] = says("full", 429, Retry_After="3600")
        async with client_of(busy, free, request_timeout_s=10_000.0) as engine:
            async with asyncio.timeout(20.0):
                assert (await engine.agenerate(ask())).output_tokens == [10]
        assert (len(busy.bodies()), len(free.bodies())) == (1, 1)

    run(test)


def test_servers_that_stay_busy_are_an_error_at_the_deadline() -> None:
    async def test(server: FakeServer, _: FakeServer) -> None:
        server.always["/generate"] = says({"error": {"message": "the queue is full"}}, 429)
        async with client_of(server, request_timeout_s=0.3) as engine:
            started = time.monotonic()
            words = f"no server was free within 0.3 s: .*{server.address} .*the queue is full"
            with pytest.raises(EngineError, match=words):
                await engine.agenerate(ask())
            assert time.monotonic() - started >= 0.2
        assert 3 <= len(server.bodies()) <= 40  # pauses, never a hot loop

    run(test)
