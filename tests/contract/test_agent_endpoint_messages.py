"""The endpoint for agents, asked by Anthropic's own client."""

from __future__ import annotations

from typing import Any

import anthropic
import pytest
from agent_support import ADD, CALL, GCONFIG, played, says
from letters import learned, text_of

from arealite.engines.scripted import Sample, ScriptedEngine

ASK = {"role": "user", "content": "ask"}
TOOL = {
    "name": "add",
    "description": "the sum",
    "input_schema": ADD["function"]["parameters"],  # type: ignore[index]
}


def client(url: str, key: str) -> anthropic.AsyncAnthropic:
    return anthropic.AsyncAnthropic(base_url=url, api_key=key)


async def create(url: str, key: str, **fields: Any) -> Any:
    async with client(url, key) as ours:
        asked = {"model": "m", "max_tokens": 100, "messages": [ASK]}
        return await ours.messages.create(**asked | fields)


def test_a_message() -> None:
    async def agent(url: str, key: str) -> Any:
        system = [{"type": "text", "text": "be"}]
        return await create(url, key, system=system, stop_sequences=["|"])

    session, found = played(says("one$"), agent)
    [block] = found.content
    assert (block.text, found.stop_reason, found.stop_sequence) == ("one", "end_turn", None)
    assert (found.usage.input_tokens, found.usage.output_tokens) == (18, 4)
    [made] = session.trajectories({found.id: 0.5})
    assert (text_of(made), learned(made)) == ("<s>be$\n<u>ask$\n<a>one$", "one$")
    assert made.reward == 0.5


@pytest.mark.parametrize("streams", [False, True])
def test_tool_use_is_read_and_its_history_is_known(streams: bool) -> None:
    async def agent(url: str, key: str) -> Any:
        async with client(url, key) as ours:
            asked: Any = {"model": "m", "max_tokens": 100, "messages": [ASK], "tools": [TOOL]}
            if streams:
                async with ours.messages.stream(**asked) as stream:
                    first = await stream.get_final_message()
            else:
                first = await ours.messages.create(**asked)
            result = {"type": "tool_result", "tool_use_id": first.content[-1].id, "content": "3"}
            told = {"role": "user", "content": [result, {"type": "text", "text": "so"}]}
            history = [ASK, {"role": "assistant", "content": first.content}, told]
            return first, await ours.messages.create(**asked | {"messages": history})

    session, (first, last) = played(says(f"hm {CALL}$", "3$"), agent)
    text, call = first.content
    assert (text.text, call.name, call.input) == ("hm", "add", {"a": 1, "b": 2})
    assert (first.stop_reason, last.stop_reason) == ("tool_use", "end_turn")
    assert first.usage.output_tokens == len(f"hm {CALL}$")
    [made] = session.trajectories(1.0)
    assert text_of(made) == f"[add]<u>ask$\n<a>hm {CALL}$\n<t>3$\n<u>so$\n<a>3$"
    assert learned(made) == f"hm {CALL}$3$"


def test_an_empty_answer_has_no_blocks_and_is_known() -> None:
    async def agent(url: str, key: str) -> Any:
        first = await create(url, key)
        history = [ASK, {"role": "assistant", "content": first.content}, ASK]
        await create(url, key, messages=history)
        return first.content

    session, content = played(says("$", "two$"), agent)
    assert content == []
    assert [text_of(t) for t in session.trajectories(1.0)] == ["<u>ask$\n<a>$\n<u>ask$\n<a>two$"]


def test_why_it_ended() -> None:
    async def agent(url: str, key: str) -> list[tuple[str, str | None]]:
        found = [
            await create(url, key, stop_sequences=["|"]),
            await create(url, key, max_tokens=2),
        ]
        return [(one.stop_reason, one.stop_sequence) for one in found]

    assert played(says("on|e$", "one$"), agent)[1] == [("stop_sequence", "|"), ("max_tokens", None)]


IMAGE = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": ""}}


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"extra_body": {"temperature": 0.2}}, "temperature is 0.2, but the run samples, and"),
        ({"extra_body": {"top_k": 5}}, "top_k is 5, but the run samples"),
        ({"thinking": {"type": "enabled", "budget_tokens": 1024}}, "thinking is"),
        ({"tools": [TOOL], "tool_choice": {"type": "any"}}, "tool_choice is"),
        (
            {"tool_choice": {"type": "auto", "disable_parallel_tool_use": True}, "tools": [TOOL]},
            "tool_choice is",
        ),
        ({"tools": [{"type": "bash_20250124", "name": "bash"}]}, "a tool is of type 'bash_2025"),
        ({"messages": [{"role": "user", "content": [IMAGE]}]}, "messages[0] holds 'image'"),
        ({"messages": [ASK, {"role": "assistant", "content": "a"}]}, "must end with the user's"),
        ({"messages": []}, "messages must end with the user's"),
        ({"messages": [{"role": "tool", "content": "a"}]}, "messages[0].role is 'tool'"),
        ({"messages": [{"role": "user", "content": 1}]}, "messages[0].content is 1; it must be"),
        ({"extra_body": {"speed": "fast"}}, "speed is not known to this endpoint's messages"),
    ],
)
def test_what_would_be_answered_otherwise_is_refused(fields: Any, sentence: str) -> None:
    async def agent(url: str, key: str) -> Any:
        with pytest.raises(anthropic.BadRequestError) as refused:
            await create(url, key, **fields)
        return refused.value.body

    body = played(says(), agent)[1]
    assert body["error"]["type"] == "invalid_request_error"
    assert sentence in body["error"]["message"]


def test_without_tools_nothing_is_a_call() -> None:
    async def agent(url: str, key: str) -> Any:
        return await create(url, key, tools=[TOOL], tool_choice={"type": "none"})

    session, found = played(says(f"{CALL}$"), agent)
    assert [block.text for block in found.content] == [CALL]
    assert text_of(session.trajectories(1.0)[0]).startswith("<u>ask")


def test_errors_are_anthropics() -> None:
    async def agent(url: str, key: str) -> None:
        with pytest.raises(anthropic.AuthenticationError, match="no run of an agent"):
            await create(url, "sk-wrong")
        with pytest.raises(anthropic.BadRequestError, match="context length is 5"):
            await create(url, key)

    played(says(), agent, context_length=5)

    async def unlucky(url: str, key: str) -> int:
        with pytest.raises(anthropic.InternalServerError, match="the script lets request 0 fail"):
            await create(url, key)
        return engine.requests

    engine = ScriptedEngine(lambda request, serial: Sample(outcome="fail"))
    assert played(engine, unlucky, gconfig=GCONFIG)[1] == 1
