"""An agent of a framework from the package index (Pydantic AI), as its users write it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
from agent_support import CALL, played, says
from letters import learned, text_of
from pydantic_ai import Agent
from pydantic_ai.models.anthropic import AnthropicModel
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
from pydantic_ai.providers.anthropic import AnthropicProvider
from pydantic_ai.providers.openai import OpenAIProvider

APIS: Mapping[str, tuple[Any, Any]] = {
    "chat completions": (OpenAIChatModel, OpenAIProvider),
    "responses": (OpenAIResponsesModel, OpenAIProvider),
    "messages": (AnthropicModel, AnthropicProvider),
}


def adding(api: str, url: str, key: str) -> Agent[None, str]:
    model, provider = APIS[api]
    agent: Agent[None, str] = Agent(
        model("policy", provider=provider(base_url=url, api_key=key)), system_prompt="use the tool"
    )

    @agent.tool_plain
    def add(a: int, b: int) -> int:
        """The sum."""
        return a + b

    return agent


@pytest.mark.parametrize("api", APIS)
@pytest.mark.parametrize("streams", [False, True])
def test_a_run_with_tools_and_one_that_goes_on_are_one_stream(api: str, streams: bool) -> None:
    async def run(url: str, key: str) -> str:
        agent = adding(api, url, key)
        first = await agent.run("1 + 2?")
        history = first.all_messages()
        if not streams:
            return (await agent.run("sure?", message_history=history)).output
        async with agent.run_stream("sure?", message_history=history) as result:
            return await result.get_output()

    session, output = played(says(f"{CALL}$", "It is 3.$", "Yes.$"), run)
    assert output == "Yes."
    [made] = session.trajectories(1.0)
    assert text_of(made) == (
        f"[add]<s>use the tool$\n<u>1 + 2?$\n<a>{CALL}$\n<t>3$\n<a>It is 3.$\n<u>sure?$\n<a>Yes.$"
    )
    assert learned(made) == f"{CALL}$It is 3.$Yes.$"
