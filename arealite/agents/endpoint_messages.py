"""Anthropic's messages: what of them is understood, and how an answer is written."""

from __future__ import annotations

import json
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
from arealite.data.chat import Message

_READ = frozenset(
    [
        *("messages", "model", "system", "tools", "tool_choice", "max_tokens", "stop_sequences"),
        *("temperature", "top_p", "top_k", "stream", "metadata", "service_tier", "cache_control"),
    ]
)
_NEUTRAL: Mapping[str, Any] = {"thinking": {"type": "disabled"}}
_KINDS = {401: "authentication_error", 404: "not_found_error", 413: "request_too_large"}


def read(body: Mapping[str, Any], name: str) -> Asked:
    """Raises Refused."""
    check_fields(body, _READ, _NEUTRAL, "messages")
    messages = list(_messages(mappings(body, "messages")))
    if not messages or messages[-1]["role"] == "assistant":
        raise Refused("messages must end with the user's; the policy begins its answer by itself")
    system = text_of(body.get("system"), "system")
    if system:
        messages.insert(0, {"role": "system", "content": system})
    return Asked(
        messages=messages,
        model=taken(body, "model", str, ""),
        tools=_tools(body),
        max_tokens=length(body, "max_tokens"),
        stop=strings(body, "stop_sequences"),
        wishes=wishes(body, ("temperature", "top_p", "top_k")),
        name=name,
        prefix="msg_",
        is_streamed=taken(body, "stream", bool, False),
    )


def _tools(body: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Those that the model is shown, in OpenAI's form."""
    choice = dict(taken(body, "tool_choice", dict, {"type": "auto"}))
    if not choice.pop("disable_parallel_tool_use", False):
        if choice == {"type": "none"}:
            return []
        if choice == {"type": "auto"}:
            return [_tool(tool) for tool in mappings(body, "tools")]
    raise Refused(
        f"tool_choice is {body['tool_choice']!r:.80}, and this endpoint can only do the types auto "
        "and none: the servers sample freely"
    )


def _tool(tool: Mapping[str, Any]) -> Mapping[str, Any]:
    if tool.get("type") not in (None, "custom") or not isinstance(tool.get("name"), str):
        raise Refused(f"a tool is of type {tool.get('type')!r}; this endpoint takes your own alone")
    function = {"name": tool["name"], "parameters": tool.get("input_schema") or {}}
    if tool.get("description"):
        function["description"] = tool["description"]
    return {"type": "function", "function": function}


def _messages(messages: list[Mapping[str, Any]]) -> Iterator[Message]:
    for i, message in enumerate(messages):
        role, content, where = message.get("role"), message.get("content"), f"messages[{i}]"
        if role not in ("user", "assistant", "system"):
            raise Refused(f"{where}.role is {role!r}; it must be user, assistant or system")
        blocks = [{"type": "text", "text": content}] if isinstance(content, str) else content
        if not isinstance(blocks, list) or not all(isinstance(b, Mapping) for b in blocks):
            raise Refused(f"{where}.content is {content!r:.60}; it must be text or content blocks")
        yield from _assistant(blocks, where) if role == "assistant" else _told(role, blocks, where)


def _assistant(blocks: list[Mapping[str, Any]], where: str) -> Iterator[Message]:
    text = [block for block in blocks if block.get("type") != "tool_use"]
    found: dict[str, Any] = {"role": "assistant", "content": text_of(text, where)}
    calls = [
        {
            "id": block.get("id", ""),
            "type": "function",
            "function": {"name": str(block.get("name")), "arguments": block.get("input") or {}},
        }
        for block in blocks
        if block.get("type") == "tool_use"
    ]
    if calls:
        found["tool_calls"] = calls
    yield found


def _told(role: str, blocks: list[Mapping[str, Any]], where: str) -> Iterator[Message]:
    """Tools' results are messages of their own, before and behind what else is told."""
    text: list[Mapping[str, Any]] = []
    for block in blocks:
        if block.get("type") == "tool_result":
            if text:
                yield {"role": role, "content": text_of(text, where)}
            text = []
            yield {
                "role": "tool",
                "tool_call_id": str(block.get("tool_use_id")),
                "content": text_of(block.get("content"), where),
            }
        else:
            text.append(block)
    if text or not blocks:
        yield {"role": role, "content": text_of(text, where)}


def reply(asked: Asked, answer: Answer) -> dict[str, Any]:
    """A message object."""
    return {
        "id": answer.id,
        "type": "message",
        "role": "assistant",
        "model": asked.model,
        "content": list(_blocks(answer)),
        "stop_reason": _stop_reason(answer),
        "stop_sequence": answer.stopped_by,
        "usage": {
            "input_tokens": answer.response.input_len,
            "output_tokens": answer.response.output_len,
        },
    }


def events(asked: Asked, answer: Answer) -> Iterator[str]:
    """The same as server-sent events. The servers answer whole samples: a block is one piece."""
    whole = reply(asked, answer)
    stop = {"stop_reason": whole["stop_reason"], "stop_sequence": whole["stop_sequence"]}
    usage = whole["usage"]
    begun = {**whole, "content": [], "stop_reason": None, "stop_sequence": None}
    yield _event("message_start", message={**begun, "usage": {**usage, "output_tokens": 0}})
    for i, block in enumerate(whole["content"]):
        if block["type"] == "text":
            start = {**block, "text": ""}
            delta = {"type": "text_delta", "text": block["text"]}
        else:
            start = {**block, "input": {}}
            delta = {"type": "input_json_delta", "partial_json": json.dumps(block["input"])}
        yield _event("content_block_start", index=i, content_block=start)
        yield _event("content_block_delta", index=i, delta=delta)
        yield _event("content_block_stop", index=i)
    yield _event("message_delta", delta=stop, usage=usage)
    yield _event("message_stop")


def error(sentence: str, status: int, code: str | None) -> dict[str, Any]:
    """Anthropic's error object."""
    kind = _KINDS.get(status, "invalid_request_error" if status < 500 else "api_error")
    return {"type": "error", "error": {"type": kind, "message": sentence}}


def _blocks(answer: Answer) -> Iterator[dict[str, Any]]:
    if answer.content:
        yield {"type": "text", "text": answer.content}
    for call in answer.calls:
        arguments = json.loads(call.arguments)
        yield {"type": "tool_use", "id": call.id, "name": call.name, "input": arguments}


def _stop_reason(answer: Answer) -> str:
    if answer.finish == "stop":
        return "end_turn" if answer.stopped_by is None else "stop_sequence"
    return "tool_use" if answer.calls else "max_tokens"


def _event(kind: str, **fields: Any) -> str:
    return f"event: {kind}\ndata: {json.dumps({'type': kind, **fields})}\n\n"
