"""Agents in front of an endpoint over an engine that says what it is told to."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

from letters import Letters, Speaker

from arealite.agents.endpoint import Endpoint
from arealite.agents.session import Session
from arealite.types import GenerationHyperparameters

GCONFIG = GenerationHyperparameters(max_new_tokens=200)
ADD = {
    "type": "function",
    "function": {
        "name": "add",
        "description": "the sum",
        "parameters": {
            "type": "object",
            "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}},
            "required": ["a", "b"],
        },
    },
}
CALL = '<tool_call>\n{"name": "add", "arguments": {"a": 1, "b": 2}}\n</tool_call>'


def says(*texts: str) -> Speaker:
    """An engine that says these one after another; "$" ends an answer."""
    return Speaker(lambda prompt, serial: texts[serial])


@asynccontextmanager
async def serving(
    engine: Any, kind: str = "plain", gconfig: GenerationHyperparameters = GCONFIG, **options: Any
) -> AsyncIterator[tuple[Endpoint, Session]]:
    """An endpoint, and a session that is not open yet."""
    endpoint = Endpoint()
    await endpoint.start()
    try:
        yield endpoint, Session(engine, Letters(kind), gconfig, **options)
    finally:
        await endpoint.aclose()


def played(
    engine: Any, agent: Callable[[str, str], Awaitable[Any]], **options: Any
) -> tuple[Session, Any]:
    """The session of agent(base_url, api_key), and what that returned."""

    async def play() -> tuple[Session, Any]:
        async with serving(engine, **options) as (endpoint, session):
            with endpoint.opened(session) as key:
                return session, await agent(endpoint.url, key)

    return asyncio.run(play())
