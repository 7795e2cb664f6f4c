"""The client in front of the servers: coalescing, aborts, weight updates, start and end."""

from __future__ import annotations

import asyncio
import math
import re
import time
from dataclasses import replace
from typing import Any

import pytest
from aiohttp import web
from client_support import (
    PROBE,
    UPDATE,
    FakeServer,
    Handler,
    ask,
    client_of,
    hangs,
    probed,
    refusing,
    run,
    sample,
    says,
)

from arealite.engines import client
from arealite.errors import EngineError, EnginesExhausted

pytest_plugins = ["client_fixtures"]
pytestmark = pytest.mark.usefixtures("short_pauses")


# --- coalescing


def test_one_prompt_in_one_turn_is_one_request() -> None:
    async def test(server: FakeServer, _: FakeServer) -> None:
        shared = ask(1, 2)
        async with client_of(server) as engine:
            responses = await asyncio.gather(*[engine.agenerate(shared) for _ in range(8)])
        (body,) = server.bodies()
        assert body["input_ids"] == [1, 2]
        assert body["sampling_params"]["n"] == 8
        assert [r.output_tokens for r in responses] == [[10 + i] for i in range(8)]
        assert all(r.input_tokens == [1, 2] and r.stop_reason == "stop" for r in responses)
        assert responses[3].output_logprobs == [-1.3]

    run(test)


def test_other_prompts_sampling_and_names_are_not_merged() -> None:
    async def test(server: FakeServer, _: FakeServer) -> None:
        first = ask(1, 2)
        changed = [replace(first, input_ids=(1, 3)), replace(first, gconfig=ask(seed=4).gconfig)]
        async with client_of(server) as engine:
            await asyncio.gather(*map(engine.agenerate, [first, *changed, first, ask(1, 2)]))
            await engine.agenerate(first)  # a later turn is a request of its own
        counts = [body["sampling_params"]["n"] for body in server.bodies()]
        assert sorted(counts) == [1, 1, 1, 1, 2]
        rids = [body["rid"] for body in server.bodies()]
        assert len(set(rids)) == len(rids)

    run(test)


def test_an_error_reaches_every_caller_of_the_group() -> None:
    async def test(server: FakeServer, _: FakeServer) -> None:
        server.always["/generate"] = says({"error": {"message": "no such token"}}, 400)
        async with client_of(server, request_retries=1) as engine:
            shared = ask()
            calls = [engine.agenerate(shared) for _ in range(8)]
            results = await asyncio.gather(*calls, return_exceptions=True)
        assert all(isinstance(r, EngineError) and "no such token" in str(r) for r in results)
        assert len(server.bodies()) == 1, "a request that is wrong is not sent again"

    run(test)


def test_a_caller_that_is_cancelled_disturbs_no_other() -> None:
    async def test(server: FakeServer, _: FakeServer) -> None:
        async with client_of(server) as engine:
            shared = ask()
            calls = [asyncio.create_task(engine.agenerate(shared)) for _ in range(3)]
            await asyncio.sleep(0)
            calls[1].cancel()
            first, second, third = await asyncio.gather(*calls, return_exceptions=True)
        assert isinstance(second, asyncio.CancelledError)
        assert not isinstance(first, BaseException)
        assert not isinstance(third, BaseException)
        assert (first.output_tokens, third.output_tokens) == ([10], [12])

    run(test)


def test_the_server_that_owes_least_is_asked() -> None:
    async def test(first: FakeServer, second: FakeServer) -> None:
        first.next["/generate"].append(hangs)
        async with client_of(first, second) as engine:
            shared = ask(1)
            hanging = [asyncio.create_task(engine.agenerate(shared)) for _ in range(4)]
            while not first.open:
                await asyncio.sleep(0.001)
            for _ in range(3):
                await engine.agenerate(ask(2))
            assert (len(first.bodies()), len(second.bodies())) == (1, 3)
            await engine.aclose()
            ends = await asyncio.gather(*hanging, return_exceptions=True)
        assert all(isinstance(end, asyncio.CancelledError) for end in ends)

    run(test)


def test_agenerate_is_one_sample_and_needs_a_server() -> None:
    async def test(server: FakeServer, _: FakeServer) -> None:
        async with client_of(server) as engine:
            with pytest.raises(EngineError, match="call it n times"):
                await engine.agenerate(ask(n_samples=2))
        assert server.asked == []
        with pytest.raises(EnginesExhausted, match="at least one address"):
            client.RemoteEngine([], None)  # type: ignore[arg-type]

    run(test)


# --- weights


def test_new_weights_are_loaded_without_draining_and_verified_everywhere() -> None:
    async def test(first: FakeServer, second: FakeServer) -> None:
        second.next["/generate"].append(says(probed(-0.5, -1.506)))
        async with client_of(first, second) as engine:
            assert await engine.update_weights(UPDATE) == pytest.approx(0.006)
        for server in (first, second):
            assert [path for path, _ in server.asked] == [
                "/pause_generation", "/update_weights_from_disk", "/continue_generation",
                "/generate",
            ]  # fmt: skip
            assert server.bodies("/pause_generation") == [{"mode": "retract"}]
            assert server.bodies("/update_weights_from_disk") == [
                {
                    "model_path": "/weights/v3",
                    "weight_version": "3",
                    "abort_all_requests": False,
                    "flush_cache": True,
                }
            ]
            (probe,) = server.bodies()
            assert probe["input_ids"] == list(PROBE.input_ids)

    run(test)


def test_cached_keys_are_kept_where_the_user_wants_it() -> None:
    async def test(server: FakeServer, _: FakeServer) -> None:
        async with client_of(server, update_mode="in_place") as engine:
            await engine.update_weights(UPDATE)
        assert server.bodies("/pause_generation") == [{"mode": "in_place"}]
        assert server.bodies("/update_weights_from_disk")[0]["flush_cache"] is False

    run(test)


LOAD, PAUSE, GENERATE = "/update_weights_from_disk", "/pause_generation", "/generate"


WRONG = [
    (LOAD, says({"success": False, "message": "no such folder"}), "no such folder"),
    (LOAD, says({"success": False, "message": "wrong shape"}, 400), "400 .*wrong shape"),
    (LOAD, says([]), "gave no reason"),
    (PAUSE, says("<html>down</html>", 502), "502 .*down"),
    (GENERATE, says(probed(-0.5, -1.6)), r"differ by 0\.1, at most 0\.01"),
    (GENERATE, says(probed(-0.5, math.nan)), "differ by nan"),
    (GENERATE, says(probed(-0.5)), "differ by inf"),
    (GENERATE, says({"meta_info": {}}), "probe's reply is malformed"),
]


@pytest.mark.parametrize(("path", "answer", "words"), WRONG)
def test_a_server_without_the_trainers_weights_serves_nothing(
    path: str, answer: Handler, words: str
) -> None:
    async def test(good: FakeServer, bad: FakeServer) -> None:
        bad.always[path] = answer
        alarms: list[str] = []
        async with client_of(good, bad, request_retries=1, alarm=alarms.append) as engine:
            assert await engine.update_weights(UPDATE) == 0.0
            assert [server.state for server in engine.servers] == ["serving", "quarantined"]
            await asyncio.gather(*[engine.agenerate(ask(i)) for i in range(4)])
            assert (await engine.server_metrics())["serving"] == 1.0
        assert len(good.bodies()) == 1 + 4, "the probe, and all requests"
        assert len(bad.bodies(PAUSE)) == 2, "it was told to load once more"
        assert len(alarms) == 2, alarms
        said = f"server {bad.address} .*version 3: .*{words}.*; "
        assert re.match(f"{said}it is told once more$", alarms[0])
        assert re.match(f"{said}it serves nothing until the next version$", alarms[1])

    run(test)


@pytest.mark.parametrize(("path", "answer", "words"), WRONG)
def test_when_no_server_has_the_trainers_weights_the_run_ends(
    path: str, answer: Handler, words: str
) -> None:
    async def test(first: FakeServer, second: FakeServer) -> None:
        first.always[path] = second.always[path] = answer
        async with client_of(first, second, request_retries=1) as engine:
            with pytest.raises(
                EnginesExhausted, match=f"server {first.address} .*{words}"
            ) as error:
                await engine.update_weights(UPDATE)
        assert "version 3" in str(error.value)
        assert f"; server {second.address} " in str(error.value)
        assert error.value.exit_code == 5

    run(test)


def test_a_quarantined_server_serves_again_once_it_is_verified() -> None:
    async def test(good: FakeServer, bad: FakeServer) -> None:
        bad.next[GENERATE] += [says(probed(-0.5, -1.6))] * 2
        async with client_of(good, bad) as engine:
            await engine.update_weights(UPDATE)
            assert engine.servers[1].state == "quarantined"
            await engine.update_weights(replace(UPDATE, version=4))
            assert [server.state for server in engine.servers] == ["serving", "serving"]
            bad.next[GENERATE] += [says(probed(-0.5, -1.6))]
            await engine.update_weights(replace(UPDATE, version=5))
            assert engine.servers[1].state == "serving", "the second load was good"

    run(test)


def test_what_was_sampled_with_weights_that_fail_their_probe_is_made_elsewhere() -> None:
    async def test(bad: FakeServer, good: FakeServer) -> None:
        answered, release = asyncio.Event(), asyncio.Event()

        async def late(request: web.Request, body: Any) -> web.StreamResponse:
            await release.wait()
            answered.set()
            return await says(sample([66], version=3))(request, body)

        async def probe(request: web.Request, body: Any) -> web.StreamResponse:
            release.set()
            await answered.wait()
            await asyncio.sleep(0.05)  # loopback: the sample has been there for long
            return await says(probed(-0.5, -1.6))(request, body)

        bad.next[GENERATE] += [late, probe, probe]
        good.next[GENERATE] += [says(probed(-0.5, -1.5)), says(sample([10], version=3))]
        async with client_of(bad, good) as engine:
            asked = asyncio.create_task(engine.agenerate(ask()))
            while not bad.open:
                await asyncio.sleep(0.001)
            await engine.update_weights(UPDATE)
            assert (await asked).output_tokens == [10]

    run(test)


def test_an_update_that_nobody_waits_for_any_more_ends_everywhere() -> None:
    async def test(first: FakeServer, second: FakeServer) -> None:
        first.always[LOAD] = second.always[LOAD] = hangs
        async with client_of(first, second) as engine:
            updating = asyncio.create_task(engine.update_weights(UPDATE))
            while not (first.open and second.open and first.bodies(LOAD) and second.bodies(LOAD)):
                await asyncio.sleep(0.001)
            updating.cancel()
            with pytest.raises(asyncio.CancelledError):
                await updating
            while first.open or second.open:
                await asyncio.sleep(0.001)

    run(test)


def test_a_full_queue_or_one_lost_answer_is_no_failed_update() -> None:
    async def test(server: FakeServer, _: FakeServer) -> None:
        server.next["/generate"] += [says("full", 429)] * 5 + [says("oops", 500)]
        async with client_of(server, request_retries=1) as engine:
            assert await engine.update_weights(UPDATE) == 0.0
        assert len(server.bodies()) == 7

    run(test)


# --- start and end


def test_wait_ready_waits_for_each_server() -> None:
    async def test(first: FakeServer, second: FakeServer) -> None:
        first.next["/get_model_info"].append(says("starting", 503))
        async with client_of(first, second) as engine:
            await engine.wait_ready(20.0)
        assert len(first.bodies("/get_model_info")) == 2
        assert len(second.bodies("/get_model_info")) == 1

    run(test)


def test_wait_ready_has_one_deadline_for_all() -> None:
    async def test(server: FakeServer, _: FakeServer) -> None:
        async with refusing() as dead, client_of(dead, server, dead) as engine:
            started = time.monotonic()
            with pytest.raises(EnginesExhausted, match=f"server {dead} did not deliver start-up"):
                await engine.wait_ready(0.3)
            assert 0.3 <= time.monotonic() - started < 20.0

    run(test)


def test_the_metrics_of_servers_are_summed_and_a_dead_one_is_left_out() -> None:
    async def test(first: FakeServer, second: FakeServer) -> None:
        info: dict[str, Any] = {"tokens_generated": 5, "running": 1, "model": "m", "ok": True}
        first.always["/get_server_info"] = says(info)
        second.always["/get_server_info"] = says({"tokens_generated": 7.5})
        async with refusing() as dead, client_of(first, dead, second) as engine:
            assert await engine.server_metrics() == {
                "tokens_generated": 12.5,
                "running": 1,
                "refused": 0.0,
                "servers": 2.0,
                "serving": 3.0,
                "moved": 0.0,
            }

    run(test)


def test_closing_leaves_nothing() -> None:
    async def test(server: FakeServer, _: FakeServer) -> None:
        server.next["/generate"] += [says(sample([4], "abort")), hangs, hangs]
        async with client_of(server) as engine:
            calls = [asyncio.create_task(engine.agenerate(ask(i))) for i in (1, 2)]
            while len(server.bodies()) < 3:  # one of them waits for the rest of its sample
                await asyncio.sleep(0.001)
            calls.append(asyncio.create_task(engine.agenerate(ask(3))))
            await asyncio.sleep(0)  # it is asked for, but not yet sent
            await engine.aclose()
            results = await asyncio.gather(*calls, return_exceptions=True)
            assert all(isinstance(r, asyncio.CancelledError | EngineError) for r in results)
            with pytest.raises(EngineError, match="closed"):
                await engine.agenerate(ask(4))
            assert not [t for t in asyncio.all_tasks() if "_watch" in repr(t)]
        while server.open:  # the server sees its clients leave
            await asyncio.sleep(0.001)
        assert len(server.bodies()) == 3

    run(test)


def test_what_hangs_is_sent_again_elsewhere_at_once() -> None:
    """Also with no retries left: it is no failure of the request."""

    async def test(first: FakeServer, second: FakeServer) -> None:
        first.always["/generate"] = hangs
        async with client_of(first, second, request_retries=0) as engine:
            asked = asyncio.create_task(engine.agenerate(ask()))
            while not first.open:
                await asyncio.sleep(0.001)
            assert await engine.redispatch() == 1
            assert (await asked).output_tokens == [10]
            assert await engine.redispatch() == 0

    run(test)


def test_only_what_the_lost_server_owes_is_taken_back_and_it_may_return() -> None:
    async def test(first: FakeServer, second: FakeServer) -> None:
        alarms: list[str] = []
        async with client_of(first, second, server_timeout_s=4.0, alarm=alarms.append) as engine:
            await engine.update_weights(UPDATE)
            first.always[GENERATE] = first.always["/get_model_info"] = hangs
            second.next[GENERATE].append(hangs)
            lost, held = (asyncio.create_task(engine.agenerate(ask(i))) for i in (1, 2))
            assert (await lost).output_tokens == [10]
            assert engine.servers[0].state == "dead"
            assert not held.done()
            assert len(second.bodies()) == 1 + 2, "the probe, what hangs there, what was lost"
            assert (await engine.server_metrics())["serving"] == 1.0
            first.always.clear()
            while engine.servers[0].state != "serving":
                await asyncio.sleep(0.01)
            assert len(first.bodies(LOAD)) == 2
            held.cancel()
        (alarm,) = [told for told in alarms if first.address in told]  # a slow machine tells more
        assert "is lost: " in alarm
        assert "did not answer GET /get_model_info within 4 s" in alarm

    run(test)


def test_a_server_that_hangs_while_it_loads_holds_up_nobody() -> None:
    async def test(good: FakeServer, bad: FakeServer) -> None:
        bad.always[LOAD] = bad.always["/get_model_info"] = hangs
        async with client_of(good, bad, server_timeout_s=1.0) as engine:
            await engine.update_weights(UPDATE)
            assert [server.state for server in engine.servers] == ["serving", "dead"]
            bad.always.clear()
            while engine.servers[1].state != "serving":
                await asyncio.sleep(0.01)
            assert [body["weight_version"] for body in bad.bodies(LOAD)] == ["3", "3"]

    run(test)


def test_a_publication_waits_for_a_server_that_may_come_back() -> None:
    async def test(server: FakeServer, _: FakeServer) -> None:
        server.always["/get_model_info"] = hangs
        async with client_of(server, server_timeout_s=1.0) as engine:
            server.next[GENERATE].append(hangs)
            asked = asyncio.create_task(engine.agenerate(ask()))
            while engine.servers[0].state != "dead":
                await asyncio.sleep(0.01)
            updating = asyncio.create_task(engine.update_weights(UPDATE))
            await asyncio.sleep(0)
            server.always.clear()
            assert await updating == 0.0
            assert (await asked).output_versions == [3]

    run(test)


def test_nobody_waits_for_a_server_of_a_client_that_is_closed() -> None:
    async def test(server: FakeServer, _: FakeServer) -> None:
        server.always["/get_model_info"] = says("down", 503)
        server.always[GENERATE] = says("down", 503)
        server.next[GENERATE].append(says(sample([4], "abort")))
        async with client_of(server) as engine:
            asked = asyncio.create_task(engine.agenerate(ask()))
            while engine.servers[0].state != "dead":
                await asyncio.sleep(0.001)
            await engine.aclose()
            with pytest.raises(EngineError, match="closed"):
                await asked

    run(test)


def test_who_is_cancelled_while_the_request_is_sent_again_stays_cancelled() -> None:
    async def test(first: FakeServer, second: FakeServer) -> None:
        first.always["/generate"] = second.always["/generate"] = hangs
        first.next["/generate"].append(says(sample([4], "abort")))
        async with client_of(first, second, request_timeout_s=1.0) as engine:
            # The rest of an aborted sample: its caller waits for the attempt itself.
            asked = asyncio.create_task(engine.agenerate(ask()))
            while not first.open or len(first.bodies()) < 2:
                await asyncio.sleep(0.001)
            assert await engine.redispatch() == 1
            asked.cancel()
            with pytest.raises(asyncio.CancelledError):
                await asked
        assert not second.bodies()

    run(test)


def test_a_workflow_that_is_cancelled_stays_cancelled() -> None:
    async def test(first: FakeServer, second: FakeServer) -> None:
        first.always["/generate"] = second.always["/generate"] = hangs
        async with client_of(first, second) as engine:
            asked = asyncio.create_task(engine.agenerate(ask()))
            while not first.open:
                await asyncio.sleep(0.001)
            asked.cancel()
            with pytest.raises(asyncio.CancelledError):
                await asked
            while first.open:
                await asyncio.sleep(0.001)
        assert not second.bodies()

    run(test)
