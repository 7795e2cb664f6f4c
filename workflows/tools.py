"""Tools that a model may call, by name: text -> text.

calculator                 exact arithmetic with + - * / and brackets
python                     runs the model's code, in a process that is shut in as by
                           reward.isolation strict; says what the code prints
path/file.py:function      one of your own, or pkg.mod:function: an `async def` on the event loop,
                           any other in processes like those of reward.isolation standard

Its name is the tag's: the function's own, or another one that {name: path/file.py:function} gives.
A tool that fails, or takes too long, says so to the model: that is a part of its world. What is not
the tool's doing costs the episode.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

from arealite.config.schema import RewardFunctionConfig
from arealite.errors import ArealiteError, ConfigError, Unscorable, WorkflowError, words
from arealite.loading import split_reference
from arealite.rewards.arithmetic import ExpressionError, evaluate
from arealite.rewards.pool import Pool
from arealite.rewards.signature import load_tool
from arealite.rewards.template import Limits

SETTING = "rollout.workflow_kwargs.tools"
PYTHON = "arealite.rewards.interpreter:run"


@dataclass(frozen=True)
class ToolLimits:
    """timeout_s, memory_mb: of one call. workers: calls of one tool that run at once."""

    timeout_s: float = 5.0
    memory_mb: int = 512
    workers: int = 2

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value <= 0:
                raise ConfigError(
                    f"rollout.workflow_kwargs.tool_limits.{name} is {value}, it must be above 0"
                )


class Tools:
    """given: names, or names with what each stands for.

    Made outside the event loop, which loads them: ConfigError where one cannot be used.
    """

    def __init__(
        self, given: Sequence[str] | Mapping[str, str], limits: ToolLimits | None = None
    ) -> None:
        named = given if isinstance(given, Mapping) else {_name(tool): tool for tool in given}
        if len(named) < len(given):
            raise ConfigError(f"{SETTING}: two tools have one name; name them: {{name: tool}}")
        for name in named:
            if not re.fullmatch(r"\w[\w-]*", name) or name == "output":
                raise ConfigError(f"{SETTING}: {name!r} is no name for a tag; take letters")
        self.names = tuple(named)
        self._limits, self._pools = limits or ToolLimits(), list[Pool]()
        self._tools: dict[str, Callable[[str], Awaitable[str]]] = {}
        try:
            for name, tool in named.items():
                self._tools[name] = self._opened(name, tool)
        except BaseException:
            self.close()
            raise

    async def run(self, name: str, text: str) -> str:
        """What the tool says, or `error: ...`. Raises EpisodeError where that is not its doing."""
        return await self._tools[name](text)

    def close(self) -> None:
        """No process is left."""
        for pool in self._pools:
            pool.close()

    def _opened(self, name: str, tool: str) -> Callable[[str], Awaitable[str]]:
        if tool == "calculator":
            return calculator
        if tool == "python":
            return self._in_processes(PYTHON, is_models_code=True)
        if ":" not in tool:
            raise ConfigError(
                f"{SETTING}: there is no {tool!r}; calculator and python are there, and your own "
                "functions as path/file.py:function"
            )
        split_reference(tool)
        function = load_tool(RewardFunctionConfig(path=tool))
        if not function.signature.is_async:
            return self._in_processes(tool)
        assert function.call is not None
        return partial(_on_the_loop, function.call, name, self._limits.timeout_s)

    def _in_processes(
        self, path: str, is_models_code: bool = False
    ) -> Callable[[str], Awaitable[str]]:
        ours = self._limits
        limits = Limits(ours.workers, ours.timeout_s, ours.memory_mb, are_tools=True)
        if is_models_code:
            limits = replace(limits, isolation="strict", reads_path=False)
        pool = Pool(path, limits)
        self._pools.append(pool)
        if is_models_code and not pool.is_as_asked:
            raise ConfigError(
                f"{SETTING}: python runs what the model writes, which must be shut in; "
                f"{pool.isolation}; leave it out, or take a Linux kernel with Landlock and seccomp"
            )
        return partial(_in_a_process, pool, ours.timeout_s)


def _name(tool: str) -> str:
    return tool.rpartition(":")[2]


async def _in_a_process(pool: Pool, timeout_s: float, text: str) -> str:
    said = await pool.text(text)
    if not isinstance(said, Unscorable):
        return said
    match said.reason:
        case "timeout":
            return _late(timeout_s)
        case "memory":
            return "error: out of memory"
        case "killed":
            return "error: it ended its process"
    return f"error: {said}"


async def _on_the_loop(
    function: Callable[[str], Awaitable[object]], name: str, timeout_s: float, text: str
) -> str:
    limit = asyncio.timeout(timeout_s)
    try:
        async with limit:
            said = await function(text)
    except ArealiteError:
        raise
    except TimeoutError as error:
        return _late(timeout_s) if limit.expired() else f"error: {words(error)}"
    except Exception as error:  # a user's code may raise anything
        return f"error: {words(error)}"
    if not isinstance(said, str):
        kind = type(said).__name__
        raise WorkflowError(f"{SETTING}: {name} returned a {kind}; a tool returns text")
    return said


def _late(timeout_s: float) -> str:
    return f"error: no result within {timeout_s:g} s"


async def calculator(text: str) -> str:
    """The exact value, 8/3 where it is not whole."""
    try:
        return str(evaluate(text))
    except ExpressionError as error:
        return f"error: {error}"
