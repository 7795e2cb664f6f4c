"""The endpoint for agents, asked by OpenAI's own client."""

from __future__ import annotations

import asyncio
from typing import Any

import aiohttp
import openai
import pytest
from agent_support import ADD, CALL, GCONFIG, played, says, serving
from letters import Speaker, learned, text_of

from arealite.engines.scripted import Sample, ScriptedEngine
from arealite.errors import EngineError
from arealite.types import NOT_SAMPLED

ASK = {"role": "user", "content": "ask"}


def client(url: str, key: str) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=url, api_key=key)


async def create(url: str, key: str, **fields: Any) -> Any:
    async with client(url, key) as ours:
        return await ours.chat.completions.create(**{"model": "m", "messages": [ASK]} | fields)


def refusal(**fields: Any) -> str:
    """What such a request is told, with status 400."""

    async def agent(url: str, key: str) -> str:
        with pytest.raises(openai.BadRequestError) as refused:
            await create(url, key, **fields)
        return str(refused.value.message)

    session, sentence = played(says("one$"), agent)
    assert not session.said
    return str(sentence)


def test_a_completion() -> None:
    session, found = played(says("one$"), create)
    [choice] = found.choices
    assert (choice.message.content, choice.finish_reason) == ("one", "stop")
    assert (found.usage.prompt_tokens, found.usage.completion_tokens) == (11, 4)
    assert found.id.startswith("chatcmpl-")
    [made] = session.trajectories(0.5)
    assert text_of(made) == "<u>ask$\n<a>one$"
    assert learned(made) == "one$"
    assert made.logprobs[-4:] == [-0.5, -1.5, -2.5, -3.5]
    assert made.versions == [NOT_SAMPLED] * 11 + [0] * 4
    assert (made.reward, made.text) == (0.5, "one")


async def _two_turns(url: str, key: str) -> None:
    async with client(url, key) as ours:
        messages: list[Any] = [{"role": "developer", "content": "be"}, ASK]
        for told in ("next", ""):
            answer = await ours.chat.completions.create(model="m", messages=messages)
            messages.append(answer.choices[0].message)
            messages.append({"role": "user", "content": [{"type": "text", "text": told}]})


def test_a_conversation_is_one_stream() -> None:
    session, _ = played(says("one$", "two"), _two_turns)
    [made] = session.trajectories({"right": 1.0, "brief": 0.5})
    assert text_of(made) == "<s>be$\n<u>ask$\n<a>one$\n<u>next$\n<a>two"
    assert learned(made) == "one$two"
    assert (made.reward, made.components) == (1.5, {"right": 1.0, "brief": 0.5})
    assert made.text == "one\n[user] next\ntwo"


def test_a_stream_of_events_is_the_same_answer() -> None:
    async def agent(url: str, key: str) -> tuple[str, Any, Any]:
        async with client(url, key) as ours:
            stream = await ours.chat.completions.create(
                model="m", messages=[ASK], stream=True, stream_options={"include_usage": True}
            )
            chunks = [chunk async for chunk in stream]
        deltas = [chunk.choices[0] for chunk in chunks if chunk.choices]
        text = "".join(choice.delta.content or "" for choice in deltas)
        return text, deltas[-1].finish_reason, chunks[-1].usage.total_tokens

    session, found = played(says("one$"), agent)
    assert found == ("one", "stop", 15)
    assert [learned(t) for t in session.trajectories(1.0)] == ["one$"]


@pytest.mark.parametrize("streams", [False, True])
def test_tool_calls_are_read_and_their_history_is_known(streams: bool) -> None:
    async def agent(url: str, key: str) -> list[Any]:
        async with client(url, key) as ours:
            asked = {"model": "m", "messages": [ASK], "tools": [ADD]}
            if streams:
                async with ours.chat.completions.stream(**asked) as stream:
                    answer = await stream.get_final_completion()
            else:
                answer = await ours.chat.completions.create(**asked)
            [choice] = answer.choices
            [call] = choice.message.tool_calls
            tool = {"role": "tool", "tool_call_id": call.id, "content": "3"}
            history = [ASK, choice.message.model_dump(exclude_none=True), tool]
            again = await ours.chat.completions.create(**asked | {"messages": history})
        return [choice.finish_reason, choice.message.content, call.function, again]

    session, (finish, text, function, again) = played(says(f"so {CALL}$", "3$"), agent)
    assert (finish, text) == ("tool_calls", "so")
    assert (function.name, function.arguments) == ("add", '{"a": 1, "b": 2}')
    assert again.choices[0].message.content == "3"
    [made] = session.trajectories(1.0)
    assert text_of(made) == f"[add]<u>ask$\n<a>so {CALL}$\n<t>3$\n<a>3$"
    assert learned(made) == f"so {CALL}$3$"


@pytest.mark.parametrize(
    "text",
    [
        "<tool_call>add(1, 2)</tool_call>",
        '<tool_call>{"name": "add"}</tool_call>',
        '<tool_call>{"name": "add", "arguments": "1"}</tool_call>',
        '<tool_call>{"name": "", "arguments": {}}</tool_call>',
        "<tool_call>" + "[" * 10000 + "</tool_call>",
        CALL.removesuffix("</tool_call>"),
    ],
)
def test_a_malformed_call_stays_text(text: str) -> None:
    async def agent(url: str, key: str) -> Any:
        return await create(url, key, tools=[ADD])

    gconfig = GCONFIG.new(max_new_tokens=20000)
    _, found = played(says(f"{text}$"), agent, gconfig=gconfig)
    assert (found.choices[0].message.content, found.choices[0].message.tool_calls) == (text, None)


def test_without_tools_nothing_is_a_call() -> None:
    async def agent(url: str, key: str) -> Any:
        return await create(url, key, tools=[ADD], tool_choice="none")

    session, found = played(says(f"{CALL}$"), agent)
    assert (found.choices[0].message.content, found.choices[0].finish_reason) == (CALL, "stop")
    assert text_of(session.trajectories(1.0)[0]).startswith("<u>ask")


def test_tools_that_the_template_does_not_show_are_refused() -> None:
    async def agent(url: str, key: str) -> None:
        with pytest.raises(openai.BadRequestError, match="chat template shows no tools, so the"):
            await create(url, key, tools=[ADD])

    played(says(), agent, kind="toolless")


def test_a_template_that_refuses_a_message_is_a_sentence() -> None:
    async def agent(url: str, key: str) -> None:
        with pytest.raises(openai.BadRequestError, match="the tokenizer's chat template refuses"):
            await create(url, key, messages=[{"role": "system", "content": "be"}])

    played(says(), agent, kind="userless")


def test_a_stop_string_is_sampled_and_not_shown() -> None:
    async def agent(url: str, key: str) -> list[str]:
        async with client(url, key) as ours:
            first = await ours.chat.completions.create(model="m", messages=[ASK], stop=["|", "#"])
            messages = [ASK, first.choices[0].message, {"role": "user", "content": "next"}]
            await ours.chat.completions.create(model="m", messages=messages)
        return [first.choices[0].message.content, first.choices[0].finish_reason]

    session, found = played(says("on#e|$", "two$"), agent)
    assert found == ["on", "stop"]
    [made] = session.trajectories(1.0)
    assert text_of(made) == "<u>ask$\n<a>on#$\n<u>next$\n<a>two$"
    assert learned(made) == "on#two$"


def test_the_shorter_limit_counts() -> None:
    async def agent(url: str, key: str) -> list[str]:
        limits: list[Any] = [
            {"max_tokens": 3},
            {"max_completion_tokens": 2, "max_tokens": 9},
            {"max_tokens": 9},
        ]
        found = [await create(url, key, **limit) for limit in limits]
        assert {one.choices[0].finish_reason for one in found} == {"length"}
        return [one.choices[0].message.content for one in found]

    session, found = played(
        says(*["answer"] * 3), agent, gconfig=GCONFIG.new(max_new_tokens=5, min_new_tokens=4)
    )
    assert found == ["ans", "an", "answe"]
    assert all(made.truncated for made in session.trajectories(1.0))


def test_a_conversation_that_is_too_long_is_told_in_openais_word() -> None:
    async def agent(url: str, key: str) -> tuple[str, str]:
        found = await create(url, key)
        with pytest.raises(openai.BadRequestError) as refused:
            await create(url, key, messages=[ASK, {"role": "user", "content": "x" * 20}])
        return found.choices[0].message.content, str(refused.value.code)

    _, found = played(says("answer"), agent, context_length=14)
    assert found == ("ans", "context_length_exceeded")


def test_log_probabilities_are_those_of_the_sampled_tokens() -> None:
    async def agent(url: str, key: str) -> Any:
        return await create(url, key, logprobs=True)

    _, found = played(says("on$"), agent)
    shown = [(one.token, one.logprob) for one in found.choices[0].logprobs.content]
    assert shown == [("o", -0.5), ("n", -1.5), ("", -2.5)]


def test_what_it_asks_for_as_the_run_does_it_is_fine() -> None:
    async def agent(url: str, key: str) -> Any:
        return await create(
            url, key, temperature=0.7, top_p=1, n=1, seed=None, parallel_tool_calls=True,
            frequency_penalty=0, tool_choice="auto", response_format={"type": "text"}, user="me",
        )  # fmt: skip

    _, found = played(says("one$"), agent, gconfig=GCONFIG.new(temperature=0.7))
    assert found.choices[0].message.content == "one"


IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,"}}


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"temperature": 0.2}, "temperature is 0.2, but the run samples, and computes"),
        ({"top_p": 0.9}, "top_p is 0.9, but the run samples"),
        ({"seed": 1}, "seed is 1, but one seed for all would make the samples of a group equal"),
        ({"n": 2}, "n is 2, and this endpoint can only do 1"),
        ({"frequency_penalty": 0.5}, "frequency_penalty is 0.5, and this endpoint can only do 0"),
        ({"response_format": {"type": "json_object"}}, "response_format is"),
        ({"tools": [ADD], "tool_choice": "required"}, "tool_choice is 'required'"),
        ({"tools": [ADD], "parallel_tool_calls": False}, "parallel_tool_calls is False"),
        ({"tools": [{"type": "custom", "custom": {"name": "x"}}]}, "a tool is of type 'custom'"),
        ({"top_logprobs": 3}, "top_logprobs is 3"),
        ({"max_tokens": 0}, "max_tokens is 0, it must be at least 1"),
        ({"messages": []}, "messages is empty"),
        ({"messages": [{"role": "user", "content": [IMAGE]}]}, "messages[0].content holds 'image"),
        ({"messages": [{"role": "refused", "content": ""}]}, "messages[0].role is 'refused'"),
        ({"messages": ["ask"]}, "messages[0] is 'ask', it must be an object"),
        ({"messages": [{"role": "user", "content": [1]}]}, "messages[0].content holds 'int'"),
        ({"stop": [1]}, "stop is [1], it must be text or a list of texts"),
        ({"extra_body": {"best_of": 2}}, "best_of is not known to this endpoint's chat compl"),
    ],
)
def test_what_would_be_answered_otherwise_is_refused(fields: Any, sentence: str) -> None:
    assert sentence in refusal(**fields)


def test_wishes_can_be_ignored() -> None:
    async def agent(url: str, key: str) -> Any:
        return await create(url, key, temperature=0.2, top_p=0.5, seed=1)

    engine = says("one$")
    played(engine, agent, sampling="ignore")
    [request] = engine.requests
    assert request.gconfig == GCONFIG


def test_another_key_is_unknown() -> None:
    async def agent(url: str, key: str) -> None:
        with pytest.raises(openai.AuthenticationError, match="no run of an agent"):
            await create(url, "sk-wrong")

    session, _ = played(says(), agent)
    assert not session.said


def test_what_is_not_served_says_what_is() -> None:
    async def agent(url: str, key: str) -> Any:
        async with client(url, key) as ours:
            with pytest.raises(openai.NotFoundError, match="POST /v1/embeddings is not served"):
                await ours.embeddings.create(model="m", input="x")
            return [model.id async for model in ours.models.list()]

    assert played(says(), agent)[1] == ["policy"]


@pytest.mark.parametrize(
    ("data", "sentence"),
    [(b"{", "the request is no JSON"), (b"[1]", "it must be an object"), (b"[" * 9999, "no JSON")],
)
def test_a_body_that_is_no_request(data: bytes, sentence: str) -> None:
    async def agent(url: str, key: str) -> tuple[int, str]:
        headers = {"Authorization": f"Bearer {key}"}
        async with (
            aiohttp.ClientSession(headers=headers) as session,
            session.post(f"{url}/chat/completions", data=data) as reply,
        ):
            return reply.status, (await reply.json())["error"]["message"]

    status, message = played(says(), agent)[1]
    assert status == 400
    assert sentence in message


def test_an_engine_that_fails_is_asked_once_and_ends_the_session() -> None:
    async def agent(url: str, key: str) -> int:
        with pytest.raises(openai.InternalServerError, match="the script lets request 0 fail"):
            await create(url, key)
        return engine.requests

    engine = ScriptedEngine(lambda request, serial: Sample(outcome="fail"))
    session, requests = played(engine, agent)
    assert requests == 1
    assert isinstance(session.error, EngineError)


def test_nothing_runs_on_for_an_agent_that_has_gone() -> None:
    async def hangs_up(url: str, key: str) -> int:
        with pytest.raises(openai.APITimeoutError):
            async with openai.AsyncOpenAI(base_url=url, api_key=key, max_retries=0) as ours:
                await ours.chat.completions.create(model="m", messages=[ASK], timeout=0.2)
        while engine.running:
            await asyncio.sleep(0.01)
        return engine.requests

    engine = ScriptedEngine(lambda request, serial: Sample(outcome="hang"))
    assert played(engine, hangs_up)[1] == 1


def test_nothing_runs_on_after_an_agent_that_has_ended() -> None:
    async def play() -> None:
        async with serving(engine) as (endpoint, session):
            with endpoint.opened(session) as key:
                asking = asyncio.create_task(create(endpoint.url, key))
                while not engine.running:
                    await asyncio.sleep(0.01)
            with pytest.raises(openai.AuthenticationError, match="run has ended meanwhile"):
                await asking
            assert engine.running == 0
            with pytest.raises(openai.AuthenticationError, match="no run of an agent"):
                await create(endpoint.url, key)

    engine = ScriptedEngine(lambda request, serial: Sample(outcome="hang"))
    asyncio.run(play())


def test_a_name_is_given_by_a_header_or_in_the_metadata() -> None:
    async def agent(url: str, key: str) -> None:
        await create(url, key, extra_headers={"X-Agent-Name": "judge"})
        await create(url, key, metadata={"name": "player"})
        await create(url, key)

    session, _ = played(Speaker(lambda prompt, serial: f"{serial}$"), agent)
    assert [(t.name, learned(t)) for t in session.trajectories(1.0)] == [
        ("judge", "0$"),
        ("player", "1$"),
        ("", "2$"),
    ]
