"""Whatever goes wrong between client and server: another server answers, or one clear error."""

from __future__ import annotations

import asyncio
import time

import pytest
from chaos import ANSWERS, WELCOME, WIRE, names, vanished
from client_support import UPDATE, FakeServer, ask, client_of, refusing, run, sample, says

from arealite import replies
from arealite.engines import http
from arealite.errors import EngineError, EnginesExhausted

pytest_plugins = ["client_fixtures"]

FAULTS = WIRE | ANSWERS
CONTROL = ("/pause_generation", "/update_weights_from_disk", "/continue_generation")


@pytest.fixture(autouse=True)
def _small(short_pauses: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "MAX_REPLY_BYTES", 20_000_000)


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_answered_elsewhere(name: str) -> None:
    async def test(bad: FakeServer, good: FakeServer) -> None:
        bad.always["/generate"] = FAULTS[name].answer
        deadline = 1.0 if FAULTS[name].slow else 20.0
        async with client_of(bad, good, request_timeout_s=deadline) as engine:
            response = await engine.agenerate(ask())
        assert response.output_tokens == [10]
        assert (len(bad.bodies()), len(good.bodies())) == (1, 1)

    run(test)


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_that_stays_is_one_clear_error(name: str) -> None:
    async def test(bad: FakeServer, _: FakeServer) -> None:
        bad.always["/generate"] = FAULTS[name].answer
        deadline = 0.2 if FAULTS[name].slow else 20.0
        async with client_of(bad, request_retries=2, request_timeout_s=deadline) as engine:
            with pytest.raises(EngineError, match=names(bad.address, FAULTS[name].words)) as error:
                await engine.agenerate(ask())
        assert len(bad.bodies()) == 3
        assert len(str(error.value)) < 800
        assert "\n" not in str(error.value)

    run(test)


@pytest.mark.parametrize("path", CONTROL)
@pytest.mark.parametrize("name", WIRE)
def test_a_server_with_a_fault_while_weights_change_is_named_and_serves_nothing(
    name: str, path: str
) -> None:
    async def test(bad: FakeServer, good: FakeServer) -> None:
        bad.always[path] = WIRE[name].answer
        deadline = 0.2 if WIRE[name].slow else 20.0
        async with client_of(bad, request_timeout_s=deadline) as alone:
            with pytest.raises(EnginesExhausted, match=names(bad.address, WIRE[name].words)):
                await alone.update_weights(UPDATE)
        async with client_of(bad, good, request_timeout_s=deadline) as engine:
            await engine.update_weights(UPDATE)
            assert [server.state for server in engine.servers] == ["quarantined", "serving"]

    run(test)


@pytest.mark.parametrize("name", WELCOME)
def test_what_is_only_unusual_is_no_fault(name: str) -> None:
    async def test(server: FakeServer, _: FakeServer) -> None:
        server.always["/generate"] = WELCOME[name]
        async with client_of(server, request_retries=0) as engine:
            assert (await engine.agenerate(ask())).output_tokens == [10]

    run(test)


def test_a_refused_connection() -> None:
    async def test(good: FakeServer, _: FakeServer) -> None:
        async with refusing() as dead:
            async with client_of(dead, good) as engine:
                assert (await engine.agenerate(ask())).output_tokens == [10]
            async with client_of(dead, request_retries=0) as engine:
                with pytest.raises(EngineError, match=f"server {dead}: POST /generate"):
                    await engine.agenerate(ask())
            async with client_of(dead, dead, setup_timeout_s=0.2) as engine:
                words = f"has served for 0.2 s: server {dead} is dead .*Connect.*; server {dead} is"
                with pytest.raises(EnginesExhausted, match=words):
                    await engine.agenerate(ask())

    run(test)


def test_a_server_that_is_gone_while_its_machine_is_not() -> None:
    async def test(good: FakeServer, _: FakeServer) -> None:
        async with vanished() as dead:
            async with client_of(dead, good, request_timeout_s=1.0) as engine:
                assert (await engine.agenerate(ask())).output_tokens == [10]
            async with client_of(dead, request_timeout_s=0.2, request_retries=0) as engine:
                words = names(dead, "did not answer POST /generate within 0.2 s")
                with pytest.raises(EngineError, match=words):
                    await engine.agenerate(ask())
                with pytest.raises(EnginesExhausted, match=names(dead, "did not answer")):
                    await engine.update_weights(UPDATE)

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
    monkeypatch.setattr(replies, "FIRST_PAUSE_S", 0.01)
    monkeypatch.setattr(replies, "LONGEST_PAUSE_S", 0.04)

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
