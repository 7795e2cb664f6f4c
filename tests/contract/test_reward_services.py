"""A judge and a scorer over real HTTP: what goes wrong there costs a sample, or is tried again."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from threading import Event, Thread
from typing import Any

import pytest
import uvloop
from aiohttp import web

from arealite import replies
from arealite.config.schema import RewardFunctionConfig
from arealite.errors import ConfigError, Unscorable
from arealite.rewards import services
from arealite.rewards.check import main
from arealite.rewards.opening import in_pool
from arealite.rewards.scorer import Outcome
from arealite.rewards.services import Judge, RemoteScorer
from arealite.rewards.template import Limits
from arealite.types import Completion

Reply = Callable[[Any, int], Awaitable[web.Response] | web.Response]
ROW = {"answer": "4", "query": "2+2?"}


class Server:
    """Answers on the loopback with what `reply(body, number of the request)` gives."""

    def __init__(self, reply: Reply) -> None:
        self._reply = reply
        self.bodies: list[Any] = []
        self.headers: list[Any] = []
        self.running = self.most = 0

    async def __aenter__(self) -> Server:
        app = web.Application()
        app.router.add_post("/{path:.*}", self._answer)
        self._runner = web.AppRunner(app, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        self.url = f"http://127.0.0.1:{self._runner.addresses[0][1]}"
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._runner.cleanup()

    async def _answer(self, request: web.Request) -> web.Response:
        self.bodies.append(await request.json())
        self.headers.append((request.path, request.headers.get("Authorization")))
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            made = self._reply(self.bodies[-1], len(self.bodies))
            return made if isinstance(made, web.Response) else await made
        finally:
            self.running -= 1


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replies, "FIRST_PAUSE_S", 0.001)
    monkeypatch.setenv("OPENAI_API_KEY", "sk-quite-secret")


def run(play: Awaitable[Any]) -> Any:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(play)  # type: ignore[arg-type]


def says(text: Any) -> web.Response:
    return web.json_response({"choices": [{"message": {"role": "assistant", "content": text}}]})


def group_of(*texts: str) -> list[Completion]:
    return [Completion(text, "4", "2+2?", "<user>2+2?", (), (), ROW) for text in texts]


async def outcomes_of(
    path: str, kwargs: dict[str, Any], completions: list[Completion], **settings: Any
) -> list[Outcome]:
    """As a run asks them, with deadline and back-pressure."""
    function = RewardFunctionConfig(path, name="judge", kwargs=kwargs, **settings)
    with in_pool([function], Limits(1, timeout_s=60.0)) as ([component], isolation, _):
        assert isolation == (
            f"in the trainer, where nothing is refused, because async: judge ({path})"
        )
        return await component.group(completions)


async def judged(reply: Reply, *texts: str, retries: int = 2, **settings: Any) -> Any:
    """(outcomes, the server that was asked)"""
    kwargs = {"model": "m", "retries": retries, **settings.pop("kwargs", {})}
    async with Server(reply) as server:
        outcomes = await outcomes_of(
            "arealite.rewards.services:Judge",
            {"base_url": f"{server.url}/v1", **kwargs},
            group_of(*texts),
            **settings,
        )
        return outcomes, server


def test_a_judges_grade_is_the_reward() -> None:
    def reply(body: Any, number: int) -> web.Response:
        text = body["messages"][0]["content"]
        quoted = "It claims Grade: 10, but.\n"
        return says(f"{quoted}Grade: {'7.5' if 'four' in text else '**0**'}")

    outcomes, server = run(judged(reply, "four", "five"))
    assert outcomes == [0.75, 0.0]
    assert server.headers == [("/v1/chat/completions", "Bearer sk-quite-secret")] * 2
    assert {body["model"] for body in server.bodies} == {"m"}
    assert {body["temperature"] for body in server.bodies} == {0}
    asked = sorted(body["messages"][0]["content"] for body in server.bodies)
    assert all("<user>2+2?" in text for text in asked)
    assert "==========\nfive\n==========" in asked[0]
    assert "==========\nfour\n==========" in asked[1]


def test_a_judge_of_ones_own_words_scale_and_fields() -> None:
    kwargs = {
        "prompt": "{{}} {query} {answer} {completion}",
        "pattern": r"\[\[(\d)\]\]",
        "lowest": 1,
        "highest": 5,
        "request": {"max_tokens": 9},
        "api_key_env": None,
    }
    outcomes, server = run(judged(lambda body, n: says("[[4]]"), "{x}", kwargs=kwargs))
    assert outcomes == [0.75]
    assert server.headers == [("/v1/chat/completions", None)]
    content = [{"role": "user", "content": "{} 2+2? 4 {x}"}]
    assert server.bodies == [{"max_tokens": 9, "model": "m", "messages": content}]


async def hang(body: Any, number: int) -> web.Response:
    await asyncio.sleep(600)
    return says("Grade: 10")


FAULTS: dict[str, tuple[Reply, str]] = {
    "500": (lambda b, n: web.Response(status=500, text="sk-quite-secret is bad"), "answered 500"),
    "garbage": (lambda b, n: web.Response(text="<html>"), "it answered no JSON but '<html>'"),
    "no grade": (lambda b, n: says("Fine."), "there is no grade in it"),
    "11 of 10": (lambda b, n: says("Grade: 11"), "its grade is not from 0 to 10"),
    "nothing": (lambda b, n: says(None), "there is no grade in it"),
    "other JSON": (lambda b, n: web.json_response([]), "it answered '[]' (TypeError"),
    "no choice": (lambda b, n: web.json_response({"choices": []}), "IndexError"),
    "long": (lambda b, n: web.Response(body=bytes(3 << 20)), "more than 1048576 bytes"),
    "hang": (hang, "no answer within 1 s"),
    "busy": (lambda b, n: web.Response(status=429), "answered 429"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_tried_again_and_may_pass(fault: str) -> None:
    reply = FAULTS[fault][0]
    kwargs = {"attempt_timeout_s": 1.0 if fault == "hang" else 60.0}

    def third(body: Any, number: int) -> Any:
        return reply(body, number) if number < 3 else says("Grade: 10")

    outcomes, server = run(judged(third, "four", kwargs=kwargs))
    assert (outcomes, len(server.bodies)) == ([1.0], 3)


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_that_stays_is_a_sample_without_a_score(fault: str) -> None:
    reply, why = FAULTS[fault]
    kwargs = {"attempt_timeout_s": 1.0 if fault == "hang" else 60.0}
    [[outcome], server] = run(judged(reply, "four", retries=1, kwargs=kwargs))
    assert isinstance(outcome, Unscorable)
    assert outcome.reason == "service"
    assert str(outcome).startswith(
        f"judge (arealite.rewards.services:Judge): {server.url}/v1/chat/completions: "
    )
    assert why in str(outcome)
    assert str(outcome).endswith(", at attempt 2 of 2")
    assert "sk-quite-secret" not in str(outcome)
    assert len(server.bodies) == 2


def test_a_wrong_request_is_not_repeated() -> None:
    reply: Reply = lambda body, number: web.Response(status=401, text="no such key")  # noqa: E731
    [[outcome], server] = run(judged(reply, "four"))
    assert str(outcome).endswith("it answered 401: 'no such key', at attempt 1 of 3")
    assert len(server.bodies) == 1


def test_a_redirect_is_not_followed_with_the_key() -> None:
    def reply(body: Any, number: int) -> web.Response:
        return web.Response(status=307, headers={"Location": "/elsewhere"})

    [[outcome], server] = run(judged(reply, "four"))
    assert "it answered 307" in str(outcome)
    assert [path for path, _ in server.headers] == ["/v1/chat/completions"]


def test_a_service_that_is_not_there_is_told() -> None:
    kwargs = {"base_url": "http://127.0.0.1:9/v1", "model": "m", "retries": 1}
    [outcome] = run(outcomes_of("arealite.rewards.services:Judge", kwargs, group_of("four")))
    assert "127.0.0.1:9" in str(outcome)
    assert str(outcome).endswith("at attempt 2 of 2")


def test_the_deadline_is_over_all_attempts_and_one_hang_costs_one_sample() -> None:
    async def reply(body: Any, number: int) -> web.Response:
        if "hang" in body["messages"][0]["content"].split("=" * 10)[1]:
            await asyncio.sleep(600)
        return says("Grade: 5")

    outcomes, _ = run(judged(reply, "four", "hang", "five", timeout_s=4.0))
    assert [outcomes[0], outcomes[2]] == [0.5, 0.5]
    assert (outcomes[1].reason, "its timeout_s = 4 s" in str(outcomes[1])) == ("timeout", True)


def test_no_more_requests_are_under_way_than_allowed() -> None:
    async def reply(body: Any, number: int) -> web.Response:
        await asyncio.sleep(0.01)
        return says("Grade: 5")

    outcomes, server = run(judged(reply, *["four"] * 20, max_concurrent=3))
    assert (outcomes, server.most) == ([0.5] * 20, 3)


def test_a_busy_service_is_left_alone_for_as_long_as_it_asks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pauses: list[float] = []
    sleep = asyncio.sleep

    async def noted(seconds: float) -> None:
        pauses.append(seconds)
        await sleep(0)

    def reply(body: Any, number: int) -> web.Response:
        after = {"Retry-After": ["7", "soon", "-1"][number - 1]} if number < 4 else None
        return web.Response(status=503, headers=after) if after else says("Grade: 10")

    monkeypatch.setattr(services.asyncio, "sleep", noted)
    outcomes, _ = run(judged(reply, "four", retries=3))
    assert outcomes == [1.0]
    assert [p for p in pauses if p] == [7.0, 0.002, 0.004]


def scored(reply: Reply, *texts: str, **kwargs: Any) -> Any:
    async def play() -> Any:
        async with Server(reply) as server:
            path = "arealite.rewards.services:RemoteScorer"
            settings = {"url": f"{server.url}/score", "retries": 1, **kwargs}
            return await outcomes_of(path, settings, group_of(*texts)), server

    return run(play())


def test_a_scorer_gets_the_group_in_one_request() -> None:
    def reply(body: Any, number: int) -> web.Response:
        return web.json_response({"scores": [len(text) for text in body["completions"]]})

    outcomes, server = scored(reply, "four", "\ud800 5", columns=["answer"], api_key_env=None)
    assert outcomes == [4.0, 3.0]
    assert server.bodies == [
        {
            "prompts": ["2+2?", "2+2?"],
            "completions": ["four", "\ud800 5"],
            "columns": {"answer": ["4", "4"]},
        }
    ]


@pytest.mark.parametrize(
    ("answer", "second"),
    [
        ('{"scores": [1.0, null]}', "returned None; it must return a finite number"),
        ('{"scores": [1.0, NaN]}', "returned nan; it must return a finite number"),
        ('{"scores": [1.0, "2"]}', "returned '2'; it must return a finite number"),
        ('{"scores": [1.0]}', "`scores` must be a list of 2"),
        ('{"scores": 1.0}', "`scores` must be a list of 2"),
        ("[1.0, 2.0]", "it answered '[1.0, 2.0]'"),
    ],
)
def test_what_a_scorer_does_not_score_has_no_score(answer: str, second: str) -> None:
    outcomes, server = scored(lambda b, n: web.Response(text=answer), "a", "b")
    assert second in str(outcomes[1])
    assert isinstance(outcomes[1], Unscorable)
    one_is_scored = "must return" in second
    assert (outcomes[0] == 1.0) == one_is_scored
    assert len(server.bodies) == (1 if one_is_scored else 2)


@pytest.mark.parametrize(
    ("service", "kwargs", "told"),
    [
        (Judge, {"base_url": "localhost:1", "model": "m"}, "'localhost:1/chat/completions' is no"),
        (RemoteScorer, {"url": "ftp://x"}, "'ftp://x' is no URL"),
        (RemoteScorer, {"url": "http://x", "retries": -1}, "retries is -1"),
        (RemoteScorer, {"url": "http://x", "attempt_timeout_s": 0}, "attempt_timeout_s 0"),
        (RemoteScorer, {"url": "http://x", "api_key_env": "NO_SUCH"}, "NO_SUCH is not set; set it"),
        (Judge, {"base_url": "http://x", "model": "m", "pattern": "("}, "is no regular expr"),
        (Judge, {"base_url": "http://x", "model": "m", "pattern": "x"}, "must have one group"),
        (Judge, {"base_url": "http://x", "model": "m", "prompt": "{a"}, "prompt: expected '}'"),
        (Judge, {"base_url": "http://x", "model": "m", "prompt": "{a.b}"}, "names no column"),
        (Judge, {"base_url": "http://x", "model": "m", "lowest": 3, "highest": 3}, "lowest is 3"),
    ],
)
def test_settings_that_cannot_be_used_are_bad_input(
    service: Any, kwargs: dict[str, Any], told: str
) -> None:
    with pytest.raises(ConfigError) as error:
        service(**kwargs)
    assert told in str(error.value)


def test_a_column_that_is_not_there_is_found_at_the_first_row() -> None:
    judge = Judge("http://x", "m", prompt="{query} {solution} {completion}")
    with pytest.raises(ValueError, match=r"names \{solution\}, which is neither prompt nor"):
        judge.check_row(ROW)
    with pytest.raises(ValueError, match="the column 'target'; the columns are answer, query"):
        RemoteScorer("http://x", columns=["target"]).check_row(ROW)


def test_one_session_serves_a_loop_and_is_closed_with_it() -> None:
    async def play(judge: Judge) -> Any:
        reply = {"choices": [{"message": {"content": "Grade: 10"}}]}
        async with Server(lambda b, n: web.json_response(reply)) as server:
            judge._url = server.url
            for _ in range(2):
                assert await judge("p", "c", [], []) == 1.0
                session = judge._session
            assert session is not None
            assert not session.closed
            return session

    judge = Judge("http://127.0.0.1:9", "m")
    first, second = run(play(judge)), run(play(judge))
    assert first is not second
    assert first.closed
    assert second.closed


def test_a_judge_is_checked_from_the_command_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    listening = Event()
    started: Any = asyncio.new_event_loop()
    served: list[Server] = []

    async def serve() -> None:
        async with Server(lambda b, n: says("Grade: 10")) as server:
            served.append(server)
            listening.set()
            await asyncio.Event().wait()

    task = started.create_task(serve())
    thread = Thread(target=_turn, args=(started, task))
    thread.start()
    listening.wait()
    (tmp_path / "rows.jsonl").write_text(json.dumps(ROW) + "\n")
    kwargs = json.dumps({"base_url": served[0].url, "model": "m"})
    options = ["--rows", str(tmp_path / "rows.jsonl"), "--kwargs", kwargs, "--timeout", "60"]
    try:
        assert main(["check", "arealite.rewards.services:Judge", *options]) == 1
    finally:
        started.call_soon_threadsafe(task.cancel)
        thread.join()
    text = capsys.readouterr().out
    assert "in the trainer, where nothing is refused, because async" in text
    assert "wrong: it pays for what is no answer" in text


def _turn(loop: asyncio.AbstractEventLoop, task: asyncio.Task[None]) -> None:
    try:
        loop.run_until_complete(task)
    except asyncio.CancelledError:
        pass
    finally:
        loop.close()
