"""Which of the accepted forms a reward function has, told by its signature, and how it is called.

    compute_score(solution_str, ground_truth)                              this project's
    reward_fn(prompt, completions, prompt_ids, completion_ids, **data)     AReaL's: one sample
    reward_fn(completions, **columns) -> list                              TRL's: a group at once

Each may be an `async def`, and an object of a class whose `__call__` is one of them. `data` and
`columns` are the row's columns, those that the function names or, with `**`, all of them.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

from arealite.config.schema import RewardFunctionConfig
from arealite.errors import ConfigError, WorkflowError
from arealite.loading import executed, load_object
from arealite.types import Completion

Form = Literal["own", "areal", "trl", "tool"]
"""tool: no reward at all, but text -> text, which a model calls; see load_tool."""
Arguments = tuple[list[Any], dict[str, Any]]

ACCEPTED = (
    "a reward function is called as compute_score(solution_str, ground_truth), as AReaL's "
    "reward_fn(prompt, completions, prompt_ids, completion_ids, **data), or as TRL's "
    "reward_fn(completions, **columns), which returns a list; each may be an `async def`"
)
_AREAL = ("prompt", "completions", "prompt_ids", "completion_ids")
_TRL = ("prompts", "completions", "prompt_ids", "completion_ids")
_IN_ANY_CASE = ("prompts", "completions", "completion_ids")
"""What TRL hands to a function with `**`, too."""
_NO_COLUMNS = {*_AREAL, *_TRL, "completion"}


@dataclass(frozen=True)
class Signature:
    """columns: those it names; with takes_all every other one, too. required: without default."""

    form: Form
    is_async: bool = False
    columns: tuple[str, ...] = ()
    required: tuple[str, ...] = ()
    takes_all: bool = False

    @property
    def is_group(self) -> bool:
        """Whether one call scores all samples of a prompt."""
        return self.form == "trl"

    def lacking(self, row: Mapping[str, Any]) -> str:
        """A sentence on the columns that the function needs and the row does not have, or ""."""
        absent = [n for n in self.required if n not in row and n not in _NO_COLUMNS]
        if not absent:
            return ""
        return (
            f"takes {', '.join(absent)}, and the row has no such column; "
            f"its columns are {', '.join(map(str, row)) or 'none'}"
        )

    def arguments(self, completions: Sequence[Completion], label: str) -> Arguments:
        """What one call gets: one completion, or for is_group all of a prompt.

        Raises WorkflowError where the workflow has not handed over what the function takes.
        """
        first = completions[0]
        if self.form == "own":
            return [first.text, first.ground_truth], {}
        row = first.row or {}
        needs = {"prompt": first.prompt_text, "prompts": first.prompt}
        absent = [n for n in self.required if n in needs and needs[n] is None]
        lacking = self.lacking(row) or (f"takes {absent[0]}" if absent else "")
        if lacking:
            hint = (
                ""
                if first.row is not None
                else ("; the workflow must hand over more: reward_fn.group([Completion(...)])")
            )
            raise WorkflowError(f"{label} {lacking}{hint}")
        if self.form == "areal":
            ids = [list(first.prompt_ids), list(first.completion_ids)]
            return [first.prompt_text, first.text, *ids], self._columns(row)
        columns = {
            name: [(c.row or {}).get(name) for c in completions] for name in self._names(row)
        }
        offered = {name: _listed(name, completions) for name in _TRL if self._wants(name)}
        return [], columns | offered

    def _wants(self, name: str) -> bool:
        return name in self.columns or (self.takes_all and name in _IN_ANY_CASE)

    def _names(self, row: Mapping[str, Any]) -> Iterator[str]:
        for name in row:
            if name not in _NO_COLUMNS and (self.takes_all or name in self.columns):
                yield name

    def _columns(self, row: Mapping[str, Any]) -> dict[str, Any]:
        return {name: row[name] for name in self._names(row)}


@dataclass(frozen=True)
class LoadedReward:
    """call: the function or object; None for an async one that was not built (see load_reward)."""

    call: Callable[..., Any] | None
    signature: Signature


def _listed(name: str, completions: Sequence[Completion]) -> list[Any]:
    """One of TRL's lists; to a chat prompt a completion is a message, too."""
    if name == "prompts":
        return [c.prompt for c in completions]
    if name == "prompt_ids":
        return [list(c.prompt_ids) for c in completions]
    if name == "completion_ids":
        return [list(c.completion_ids) for c in completions]
    return [
        [{"role": "assistant", "content": c.text}] if isinstance(c.prompt, list) else c.text
        for c in completions
    ]


def label_of(function: RewardFunctionConfig) -> str:
    """How sentences call it: by its component's name, where it has one."""
    return f"{function.name} ({function.path})" if function.name else function.path


def time_limit(function: RewardFunctionConfig, default_s: float) -> tuple[float, str]:
    """Seconds that one call may take, and the setting that says so."""
    if function.timeout_s is None:
        return default_s, "reward.timeout_s"
    return function.timeout_s, "its timeout_s"


def load_reward(
    function: RewardFunctionConfig | str, where: Literal["here", "worker"] = "here"
) -> LoadedReward:
    """Loads `path` with its kwargs. Raises ConfigError where it has none of the accepted forms.

    where: a worker builds no object of an async class; that one belongs to the event loop, and its
    settings may name a secret that workers do not see.
    """
    if isinstance(function, str):
        function = RewardFunctionConfig(path=function)
    label, kwargs = label_of(function), function.kwargs
    found = load_object(function.path)
    if inspect.isclass(found):
        call = next((vars(c)["__call__"] for c in found.__mro__ if "__call__" in vars(c)), None)
        if call is None:
            raise ConfigError(f"{label} is a class without `def __call__`; {ACCEPTED}")
        _check_kwargs(found, kwargs, label)
        signature = signature_of(partial(call, None), label)
        if signature.is_async and where == "worker":
            return LoadedReward(None, signature)
        return LoadedReward(executed(lambda: found(**kwargs), function.path, "built"), signature)
    if not callable(found):
        raise ConfigError(f"{label} is a {type(found).__name__}, not a function; {ACCEPTED}")
    if kwargs:
        _check_kwargs(found, kwargs, label)
        found = partial(found, **kwargs)
    return LoadedReward(found, signature_of(found, label))


def load_tool(function: RewardFunctionConfig) -> LoadedReward:
    """Loads a function that is called with a text and returns one. Raises ConfigError."""
    found = load_object(function.path)
    rule = "a tool is a function that is called with a text and returns one"
    if not callable(found):
        raise ConfigError(f"{function.path} is a {type(found).__name__}, not a function; {rule}")
    try:
        inspect.signature(found).bind("")
    except TypeError as error:
        raise ConfigError(f"{function.path} does not fit: {error}; {rule}") from None
    call = getattr(found, "__call__", None)  # noqa: B004 - an object may be a tool, too
    is_async = inspect.iscoroutinefunction(found) or inspect.iscoroutinefunction(call)
    return LoadedReward(found, Signature("tool", is_async))


def signature_of(function: Any, label: str) -> Signature:
    """The form of a function or object. Raises ConfigError where it has none."""
    is_async = inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(
        getattr(function, "__call__", None)  # noqa: B004 - an object may be a reward function
    )
    try:
        signature = inspect.signature(function)
    except ValueError:  # some functions written in C do not tell theirs
        return Signature("own", is_async)
    parameters = signature.parameters.values()
    named = [p for p in parameters if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)]
    names = [p.name for p in named]
    form: Form
    if names[2:4] == list(_AREAL[2:]) and names[0] != "prompts":
        form = "areal"
    elif "completions" in names and all(p.kind is not p.POSITIONAL_ONLY for p in named):
        form = "trl"
    else:
        for place, name in enumerate(("solution_str", "ground_truth")):
            if name in names and names.index(name) != place:
                raise ConfigError(
                    f"{label}{signature} does not fit: {name} is argument {place + 1} of "
                    f"compute_score, not {names.index(name) + 1}; {ACCEPTED}"
                )
        try:
            signature.bind("", {})
        except TypeError as error:
            raise ConfigError(f"{label}{signature} does not fit: {error}; {ACCEPTED}") from None
        return Signature("own", is_async)
    return Signature(
        form,
        is_async,
        columns=tuple(names),
        required=tuple(p.name for p in named if p.default is p.empty),
        takes_all=any(p.kind is p.VAR_KEYWORD for p in parameters),
    )


def _check_kwargs(function: Any, kwargs: Mapping[str, Any], label: str) -> None:
    """Raises ConfigError where a class cannot be built, or a function be called, with these."""
    signature = inspect.signature(function)
    parameters = signature.parameters
    if not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        for name in kwargs:
            if name not in parameters:
                known = ", ".join(parameters) or "none"
                raise ConfigError(
                    f"{label}: kwargs.{name}: it takes no such argument; it takes {known}"
                )
    if inspect.isclass(function):
        try:
            signature.bind(**kwargs)
        except TypeError as error:
            raise ConfigError(f"{label}: it cannot be built: {error}; give it in kwargs") from None
