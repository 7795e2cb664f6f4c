"""OpenAI's chat completions: what of them is understood, and how an answer is written."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from typing import Any

from arealite.agents.asked import (
    Answer,
    Asked,
    Refused,
    check_fields,
    length,
    mappings,
    strings,
    taken,
    text_of,
    wishes,
)
from arealite.agents.tool_calls import ToolCall, arguments_of
from arealite.data.chat import Message

ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
_READ = frozenset(
    [
        *("messages", "model", "tools", "tool_choice", "max_tokens", "max_completion_tokens"),
        *("temperature", "top_p", "seed", "stop", "stream", "stream_options", "logprobs"),
        *("user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key"),
        *("prompt_cache_options", "prompt_cache_retention"),
    ]
)
_NEUTRAL: Mapping[str, Any] = {
    "n": 1,
    "top_logprobs": 0,
    "frequency_penalty": 0,
    "presence_penalty": 0,
    "logit_bias": {},
    "modalities": ["text"],
    "response_format": {"type": "text"},
    "parallel_tool_calls": True,
}


def read(body: Mapping[str, Any], name: str) -> Asked:
    """Raises Refused."""
    check_fields(body, _READ, _NEUTRAL, "chat completions")
    messages = mappings(body, "messages")
    if not messages:
        raise Refused("messages is empty; there is nothing to answer")
    metadata = taken(body, "metadata", dict, {})
    return Asked(
        messages=[_message(m, f"messages[{i}]") for i, m in enumerate(messages)],
        model=taken(body, "model", str, ""),
        tools=chosen_tools(body.get("tool_choice"), [_tool(t) for t in mappings(body, "tools")]),
        max_tokens=length(body, "max_completion_tokens") or length(body, "max_tokens"),
        stop=strings(body, "stop"),
        wishes=wishes(body, ("temperature", "top_p", "seed")),
        name=name or str(metadata.get("name", "")),
        prefix="chatcmpl-",
        is_streamed=taken(body, "stream", bool, False),
        shows_logprobs=taken(body, "logprobs", bool, False),
        shows_usage=bool(taken(body, "stream_options", dict, {}).get("include_usage")),
    )


def chosen_tools(choice: Any, tools: list[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Those that the model is shown. Raises Refused where it would have to be forced."""
    if choice not in (None, "auto", "none"):
        raise Refused(
            f"tool_choice is {choice!r:.60}, and this endpoint can only do 'auto' and 'none': the "
            "servers sample freely"
        )
    return [] if choice == "none" else tools


def _tool(tool: Mapping[str, Any]) -> Mapping[str, Any]:
    function = tool.get("function")
    if tool.get("type") != "function" or not isinstance(function, Mapping):
        raise Refused(
            f"a tool is of type {tool.get('type')!r}; this endpoint takes functions alone"
        )
    return {"type": "function", "function": dict(function)}


def _message(message: Mapping[str, Any], where: str) -> Message:
    role = message.get("role")
    if role not in ROLES and role != "tool":
        raise Refused(f"{where}.role is {role!r}; it must be one of {', '.join(ROLES)}, tool")
    found: dict[str, Any] = {
        "role": ROLES.get(role, role),
        "content": text_of(message.get("content"), f"{where}.content"),
    }
    if role == "tool" and message.get("tool_call_id"):
        found["tool_call_id"] = message["tool_call_id"]
    calls = mappings(message, "tool_calls")
    if calls:
        found["tool_calls"] = [_call(call, where) for call in calls]
    for name in ("audio", "function_call"):
        if message.get(name):
            raise Refused(f"{where}.{name} is not known to this endpoint; leave it out")
    return found


def _call(call: Mapping[str, Any], where: str) -> dict[str, Any]:
    function = call.get("function")
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise Refused(f"{where}.tool_calls holds what is no call of a function")
    arguments = arguments_of(str(function.get("arguments") or "{}"))
    return {
        "id": call.get("id", ""),
        "type": "function",
        "function": {"name": function["name"], "arguments": arguments},
    }


def reply(asked: Asked, answer: Answer) -> dict[str, Any]:
    """A chat.completion object."""
    message: dict[str, Any] = {"role": "assistant", "content": answer.content, "refusal": None}
    if answer.calls:
        message["content"] = answer.content or None
        message["tool_calls"] = [_called(call) for call in answer.calls]
    choice = {"index": 0, "message": message, "finish_reason": answer.finish}
    choice["logprobs"] = _logprobs(asked, answer)
    return {
        **_head(asked, answer, "chat.completion"),
        "choices": [choice],
        "usage": _usage(answer),
    }


def events(asked: Asked, answer: Answer) -> Iterator[str]:
    """The same as server-sent events. The servers answer whole samples: the text is one piece."""
    head = _head(asked, answer, "chat.completion.chunk")
    deltas: list[dict[str, Any]] = [{"role": "assistant", "content": ""}]
    if answer.content:
        deltas.append({"content": answer.content})
    for i, call in enumerate(answer.calls):
        deltas.append({"tool_calls": [{"index": i, **_called(call)}]})
    deltas.append({})
    for i, delta in enumerate(deltas):
        last = i == len(deltas) - 1
        choice = {
            "index": 0,
            "delta": delta,
            "finish_reason": answer.finish if last else None,
            "logprobs": _logprobs(asked, answer) if last else None,
        }
        yield _event({**head, "choices": [choice]})
    if asked.shows_usage:
        yield _event({**head, "choices": [], "usage": _usage(answer)})
    yield "data: [DONE]\n\n"


def error(sentence: str, status: int, code: str | None) -> dict[str, Any]:
    """OpenAI's error object."""
    kind = "invalid_request_error" if status < 500 else "server_error"
    return {"error": {"message": sentence, "type": kind, "param": None, "code": code}}


def _head(asked: Asked, answer: Answer, kind: str) -> dict[str, Any]:
    return {"id": answer.id, "object": kind, "created": int(time.time()), "model": asked.model}


def _called(call: ToolCall) -> dict[str, Any]:
    function = {"name": call.name, "arguments": call.arguments}
    return {"id": call.id, "type": "function", "function": function}


def _usage(answer: Answer) -> dict[str, int]:
    n, m = answer.response.input_len, answer.response.output_len
    return {"prompt_tokens": n, "completion_tokens": m, "total_tokens": n + m}


def _logprobs(asked: Asked, answer: Answer) -> dict[str, Any] | None:
    if not asked.shows_logprobs:
        return None
    pairs = zip(answer.words, answer.response.output_logprobs, strict=True)
    content = [
        {"token": word, "logprob": p, "bytes": list(word.encode()), "top_logprobs": []}
        for word, p in pairs
    ]
    return {"content": content, "refusal": None}


def _event(data: Mapping[str, Any]) -> str:
    return f"data: {json.dumps(data)}\n\n"
