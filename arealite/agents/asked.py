"""What an agent asks and is answered, in one form for all the APIs that agents speak."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from arealite.agents.tool_calls import ToolCall
from arealite.data.chat import Message
from arealite.types import ModelResponse

Finish = Literal["stop", "length", "tool_calls"]


class Refused(Exception):
    """A request that cannot be answered as it is meant; a sentence for whoever wrote the agent.

    status: of HTTP. code: the API's own word, for a reason that agents know.
    """

    def __init__(self, sentence: str, status: int = 400, code: str | None = None) -> None:
        super().__init__(sentence)
        self.status, self.code = status, code


@dataclass(frozen=True, slots=True)
class Asked:
    """A request. messages: the whole conversation, contents as text. tools: as templates take them,
    in OpenAI's form. max_tokens: None is as many as the run's configuration says. wishes: how the
    agent wants it sampled, by the names of GenerationHyperparameters. name: whose trajectory it is.
    prefix: how the answer's id begins. shows_logprobs, shows_usage: what a reply holds beside, the
    latter of a stream's.
    """

    messages: Sequence[Message]
    model: str = ""
    tools: Sequence[Mapping[str, Any]] = ()
    max_tokens: int | None = None
    stop: tuple[str, ...] = ()
    wishes: Mapping[str, float] = field(default_factory=dict)
    name: str = ""
    prefix: str = ""
    is_streamed: bool = False
    shows_logprobs: bool = False
    shows_usage: bool = False


@dataclass(frozen=True, slots=True)
class Answer:
    """content: the text without tool calls and stop string. stopped_by: which of the request's stop
    strings ended it. words: each sampled token as text."""

    id: str
    content: str
    calls: Sequence[ToolCall]
    finish: Finish
    stopped_by: str | None
    response: ModelResponse
    words: Sequence[str] = ()


def new_id(prefix: str) -> str:
    return f"{prefix}{uuid.uuid4().hex}"


def text_of(content: Any, where: str) -> str:
    """A message's content, text or a list of text parts. Raises Refused."""
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list) else [content]
    for part in parts:
        kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
        if kind not in ("text", "input_text", "output_text") or not isinstance(part["text"], str):
            raise Refused(f"{where} holds {kind!r}; this endpoint takes text alone")
    return "".join(part["text"] for part in parts)


def check_fields(
    body: Mapping[str, Any], read: frozenset[str], neutral: Mapping[str, Any], api: str
) -> None:
    """Raises Refused for a field that would change the answer and is not obeyed here.

    read: fields that are obeyed, or that change nothing. neutral: fields that are refused unless
    they have this value. null always stands for a field that is left out.
    """
    for name, value in body.items():
        if value is None or name in read:
            continue
        if name not in neutral:
            raise Refused(f"{name} is not known to this endpoint's {api}; leave it out")
        if value != neutral[name]:
            raise Refused(
                f"{name} is {value!r:.60}, and this endpoint can only do {neutral[name]!r}: the "
                "servers sample freely; leave it out"
            )


def taken(body: Mapping[str, Any], name: str, kind: type | tuple[type, ...], else_: Any) -> Any:
    """A field's value, or else_ where it is left out or null. Raises Refused for another kind."""
    value = body.get(name)
    if value is None:
        return else_
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        wanted = kind.__name__ if isinstance(kind, type) else " or ".join(k.__name__ for k in kind)
        raise Refused(f"{name} is {value!r:.60}, it must be of type {wanted}")
    return value


def mappings(body: Mapping[str, Any], name: str) -> list[Mapping[str, Any]]:
    """A field that is a list of objects. Raises Refused."""
    found = taken(body, name, list, [])
    for i, one in enumerate(found):
        if not isinstance(one, Mapping):
            raise Refused(f"{name}[{i}] is {one!r:.60}, it must be an object")
    return list(found)


def length(body: Mapping[str, Any], name: str) -> int | None:
    """A field that is a number of tokens. Raises Refused."""
    found: int | None = taken(body, name, int, None)
    if found is not None and found < 1:
        raise Refused(f"{name} is {found}, it must be at least 1")
    return found


def strings(body: Mapping[str, Any], name: str) -> tuple[str, ...]:
    """A field that is text or a list of texts. Raises Refused."""
    found = taken(body, name, (str, list), [])
    found = [found] if isinstance(found, str) else found
    if not all(isinstance(one, str) for one in found):
        raise Refused(f"{name} is {found!r:.60}, it must be text or a list of texts")
    return tuple(one for one in found if one)


def wishes(body: Mapping[str, Any], names: Sequence[str]) -> dict[str, float]:
    """How the agent wants it sampled: the fields that it gives."""
    return {n: taken(body, n, (int, float), 0) for n in names if body.get(n) is not None}
