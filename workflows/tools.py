"""Tools that a model may call, by name: text -> text.

calculator                 exact arithmetic with + - * / and brackets
path/file.py:function      an `async def` of your own, pkg.mod:function too; its name is the tag's,
                           or another one that a mapping {name: path/file.py:function} gives

A tool that fails, or takes too long, says so to the model: that is a part of its world. What ends a
whole run is not told to it.
"""

from __future__ import annotations

import asyncio
import inspect
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from arealite.errors import ArealiteError, ConfigError, WorkflowError, words
from arealite.loading import load_object, split_reference
from arealite.rewards.arithmetic import ExpressionError, evaluate

Tool = Callable[[str], Awaitable[Any]]

SETTING = "rollout.workflow_kwargs.tools"


class Tools:
    """given: names, or names with what each stands for. timeout_s: of one call.

    Made outside the event loop, which loads them: ConfigError where one cannot be used.
    """

    def __init__(self, given: Sequence[str] | Mapping[str, str], timeout_s: float) -> None:
        named = given if isinstance(given, Mapping) else {_name(tool): tool for tool in given}
        if len(named) < len(given):
            raise ConfigError(f"{SETTING}: two tools have one name; name them: {{name: tool}}")
        for name in named:
            if not re.fullmatch(r"\w[\w-]*", name) or name == "output":
                raise ConfigError(f"{SETTING}: {name!r} is no name for a tag; take letters")
        self.names = tuple(named)
        self._timeout_s = timeout_s
        self._tools: dict[str, Tool] = {name: _tool(tool) for name, tool in named.items()}

    async def run(self, name: str, text: str) -> str:
        """What the tool says, or `error: ...`. Raises ArealiteError where it is not the tool's."""
        limit = asyncio.timeout(self._timeout_s)
        try:
            async with limit:
                said = await self._tools[name](text)
        except ArealiteError:
            raise
        except TimeoutError as error:
            late = f"no result within {self._timeout_s:g} s"
            return f"error: {late if limit.expired() else words(error)}"
        except Exception as error:  # a user's code may raise anything
            return f"error: {words(error)}"
        if not isinstance(said, str):
            kind = type(said).__name__
            raise WorkflowError(f"{SETTING}: {name} returned a {kind}; a tool returns text")
        return said

    def close(self) -> None:
        """No process is left."""


def _name(tool: str) -> str:
    return tool.rpartition(":")[2]


def _tool(tool: str) -> Tool:
    if tool == "calculator":
        return calculator
    if ":" not in tool:
        raise ConfigError(f"{SETTING}: there is no {tool!r}; calculator is one, and {_OWN}")
    split_reference(tool)
    function = load_object(tool)
    call = getattr(function, "__call__", None)  # noqa: B004 - an object may be a tool, too
    if not (inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(call)):
        raise ConfigError(f"{SETTING}: {tool} is not async; {_OWN}")
    try:
        inspect.signature(function).bind("")
    except TypeError as error:
        raise ConfigError(f"{SETTING}: {tool} does not fit: {error}; {_OWN}") from None
    return function  # type: ignore[no-any-return]


_OWN = "your own is `async def function(text: str) -> str`, given as path/file.py:function"


async def calculator(text: str) -> str:
    """The exact value, 8/3 where it is not whole."""
    try:
        return str(evaluate(text))
    except ExpressionError as error:
        return f"error: {error}"
