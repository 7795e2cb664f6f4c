"""The endpoint for agents, asked for responses by OpenAI's own client."""

from __future__ import annotations

from typing import Any

import openai
import pytest
from agent_support import ADD, CALL, played, says
from letters import learned, text_of

FUNCTION: dict[str, Any] = {"type": "function", **ADD["function"]}  # type: ignore[dict-item]


async def create(url: str, key: str, **fields: Any) -> Any:
    async with openai.AsyncOpenAI(base_url=url, api_key=key) as client:
        return await client.responses.create(**{"model": "m", "input": "ask"} | fields)


def test_a_response() -> None:
    async def agent(url: str, key: str) -> Any:
        return await create(url, key, instructions="be", metadata={"name": "judge"})

    session, found = played(says("one$"), agent)
    assert (found.output_text, found.status) == ("one", "completed")
    assert (found.usage.input_tokens, found.usage.output_tokens) == (18, 4)
    [made] = session.trajectories({found.id: 0.5})
    assert (text_of(made), learned(made)) == ("<s>be$\n<u>ask$\n<a>one$", "one$")
    assert (made.reward, made.name) == (0.5, "judge")


@pytest.mark.parametrize("streams", [False, True])
@pytest.mark.parametrize("head", ["hm ", ""])
def test_calls_are_read_and_their_history_is_known(streams: bool, head: str) -> None:
    async def agent(url: str, key: str) -> Any:
        async with openai.AsyncOpenAI(base_url=url, api_key=key) as client:
            asked: Any = {"model": "m", "tools": [FUNCTION]}
            history: list[Any] = [{"role": "user", "content": "ask"}]
            if streams:
                async with client.responses.stream(input=history, **asked) as stream:
                    first: Any = await stream.get_final_response()
            else:
                first = await client.responses.create(input=history, **asked)
            call = first.output[-1]
            history += first.output
            history.append({"type": "function_call_output", "call_id": call.call_id, "output": "3"})
            return first, await client.responses.create(input=history, **asked)

    session, (first, last) = played(says(f"{head}{CALL}$", "3$"), agent)
    call = first.output[-1]
    assert (first.output_text, call.name, call.arguments) == (
        head.strip(), "add", '{"a": 1, "b": 2}',
    )  # fmt: skip
    assert last.output_text == "3"
    [made] = session.trajectories(1.0)
    assert text_of(made) == f"[add]<u>ask$\n<a>{head}{CALL}$\n<t>3$\n<a>3$"
    assert learned(made) == f"{head}{CALL}$3$"


@pytest.mark.parametrize("streams", [False, True])
def test_an_answer_that_is_cut_off_is_incomplete(streams: bool) -> None:
    async def agent(url: str, key: str) -> Any:
        if not streams:
            return await create(url, key, max_output_tokens=2)
        async with openai.AsyncOpenAI(base_url=url, api_key=key) as client:
            asked: Any = {"model": "m", "input": "ask", "max_output_tokens": 2}
            return [e async for e in await client.responses.create(stream=True, **asked)][
                -1
            ].response

    found = played(says("one$"), agent)[1]
    assert (found.output_text, found.status) == ("on", "incomplete")
    assert found.incomplete_details.reason == "max_output_tokens"


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"temperature": 0.2}, "temperature is 0.2, but the run samples"),
        ({"previous_response_id": "resp_1"}, "previous_response_id is not known to this endpoint"),
        ({"input": []}, "input is empty"),
        ({"input": [{"type": "reasoning", "summary": []}]}, "input[0] is of type 'reasoning'"),
        ({"tools": [{"type": "web_search"}]}, "a tool is of type 'web_search'"),
        ({"reasoning": {"effort": "low"}}, "reasoning is not known"),
        ({"text": {"format": {"type": "json_object"}}}, "text is"),
    ],
)
def test_what_would_be_answered_otherwise_is_refused(fields: Any, sentence: str) -> None:
    async def agent(url: str, key: str) -> str:
        with pytest.raises(openai.BadRequestError) as refused:
            await create(url, key, **fields)
        return str(refused.value.message)

    assert sentence in played(says(), agent)[1]
