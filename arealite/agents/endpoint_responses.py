"""OpenAI's responses: what of them is understood, and how an answer is written."""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Iterator, Mapping
from typing import Any

from arealite.agents import endpoint_chat
from arealite.agents.asked import (
    Answer,
    Asked,
    Refused,
    check_fields,
    length,
    mappings,
    new_id,
    taken,
    text_of,
    wishes,
)
from arealite.agents.endpoint_chat import ROLES, chosen_tools
from arealite.agents.tool_calls import arguments_of
from arealite.data.chat import Message

error = endpoint_chat.error

_READ = frozenset(
    [
        *("input", "model", "instructions", "tools", "tool_choice", "max_output_tokens"),
        *("temperature", "top_p", "stream", "stream_options", "user", "metadata", "store"),
        *("service_tier", "safety_identifier", "prompt_cache_key", "prompt_cache_retention"),
    ]
)
_NEUTRAL: Mapping[str, Any] = {
    "background": False,
    "include": [],
    "parallel_tool_calls": True,
    "text": {"format": {"type": "text"}},
    "top_logprobs": 0,
    "truncation": "disabled",
}


def read(body: Mapping[str, Any], name: str) -> Asked:
    """Raises Refused."""
    check_fields(body, _READ, _NEUTRAL, "responses")
    given = body.get("input")
    if isinstance(given, str):
        given = [{"role": "user", "content": given}]
    messages = list(_messages(mappings({"input": given}, "input")))
    if not messages:
        raise Refused("input is empty; there is nothing to answer")
    instructions = taken(body, "instructions", str, "")
    if instructions:
        messages.insert(0, {"role": "system", "content": instructions})
    metadata = taken(body, "metadata", dict, {})
    return Asked(
        messages=messages,
        model=taken(body, "model", str, ""),
        tools=chosen_tools(body.get("tool_choice"), [_tool(t) for t in mappings(body, "tools")]),
        max_tokens=length(body, "max_output_tokens"),
        wishes=wishes(body, ("temperature", "top_p")),
        name=name or str(metadata.get("name", "")),
        prefix="resp_",
        is_streamed=taken(body, "stream", bool, False),
    )


def _tool(tool: Mapping[str, Any]) -> Mapping[str, Any]:
    if tool.get("type") != "function":
        raise Refused(f"a tool is of type {tool.get('type')!r}; this endpoint takes functions")
    function = {key: tool[key] for key in ("name", "description", "parameters") if tool.get(key)}
    return {"type": "function", "function": function}


def _messages(items: list[Mapping[str, Any]]) -> Iterator[Message]:
    """An answer's text and calls are items of their own, and one message."""
    answer: dict[str, Any] | None = None
    for i, item in enumerate(items):
        kind, where = item.get("type", "message"), f"input[{i}]"
        role = item.get("role") if kind == "message" else None
        if answer is not None and kind != "function_call":
            yield answer
            answer = None
        if kind == "message" and role in ROLES:
            message = {"role": ROLES[role], "content": text_of(item.get("content"), where)}
            if role == "assistant":
                answer = message
            else:
                yield message
        elif kind == "function_call":
            answer = answer or {"role": "assistant", "content": ""}
            answer.setdefault("tool_calls", []).append(_call(item))
        elif kind == "function_call_output":
            content = text_of(item.get("output"), where)
            yield {"role": "tool", "content": content, "tool_call_id": str(item.get("call_id"))}
        else:
            raise Refused(
                f"{where} is of type {kind!r} and role {role!r}, unknown to this endpoint"
            )
    if answer is not None:
        yield answer


def _call(item: Mapping[str, Any]) -> dict[str, Any]:
    arguments = arguments_of(str(item.get("arguments") or "{}"))
    function = {"name": str(item.get("name")), "arguments": arguments}
    return {"id": str(item.get("call_id")), "type": "function", "function": function}


def reply(asked: Asked, answer: Answer) -> dict[str, Any]:
    """A response object."""
    n, m = answer.response.input_len, answer.response.output_len
    is_cut = answer.finish == "length"
    return {
        **_head(asked, answer),
        "status": "incomplete" if is_cut else "completed",
        "incomplete_details": {"reason": "max_output_tokens"} if is_cut else None,
        "output": list(_items(answer)),
        "usage": {
            "input_tokens": n,
            "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
            "output_tokens": m,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": n + m,
        },
    }


def events(asked: Asked, answer: Answer) -> Iterator[str]:
    """The same as server-sent events. The servers answer whole samples: an item is one piece."""
    whole, numbers = reply(asked, answer), itertools.count()

    def event(kind: str, **fields: Any) -> str:
        data = {"type": kind, "sequence_number": next(numbers), **fields}
        return f"event: {kind}\ndata: {json.dumps(data)}\n\n"

    begun = {**whole, "status": "in_progress", "output": [], "usage": None}
    yield event("response.created", response={**begun, "incomplete_details": None})
    for i, item in enumerate(whole["output"]):
        at = {"output_index": i, "item_id": item["id"]}
        if item["type"] == "message":
            [part] = item["content"]
            yield event("response.output_item.added", output_index=i, item={**item, "content": []})
            spot = {**at, "content_index": 0}
            yield event("response.content_part.added", **spot, part={**part, "text": ""})
            text = {**spot, "logprobs": []}
            yield event("response.output_text.delta", **text, delta=part["text"])
            yield event("response.output_text.done", **text, text=part["text"])
            yield event("response.content_part.done", **spot, part=part)
        else:
            said = item["arguments"]
            yield event(
                "response.output_item.added", output_index=i, item={**item, "arguments": ""}
            )
            yield event("response.function_call_arguments.delta", **at, delta=said)
            done = {"name": item["name"], "arguments": said}
            yield event("response.function_call_arguments.done", **at, **done)
        yield event("response.output_item.done", output_index=i, item=item)
    yield event(f"response.{whole['status']}", response=whole)


def _head(asked: Asked, answer: Answer) -> dict[str, Any]:
    return {
        "id": answer.id,
        "object": "response",
        "created_at": int(time.time()),
        "model": asked.model,
        "error": None,
        "instructions": None,
        "metadata": {},
        "parallel_tool_calls": True,
        "tool_choice": "auto",
        "tools": [],
    }


def _items(answer: Answer) -> Iterator[dict[str, Any]]:
    status = "incomplete" if answer.finish == "length" else "completed"
    if answer.content or not answer.calls:
        part = {"type": "output_text", "text": answer.content, "annotations": [], "logprobs": []}
        message = {"id": new_id("msg_"), "type": "message", "role": "assistant"}
        yield {**message, "status": status, "content": [part]}
    for call in answer.calls:
        named = {"call_id": call.id, "name": call.name, "arguments": call.arguments}
        yield {"id": new_id("fc_"), "type": "function_call", "status": status, **named}
