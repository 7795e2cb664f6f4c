"""Tool calls in a sampled text, as Hermes and Qwen models write them:

    <tool_call>
    {"name": "add", "arguments": {"a": 1, "b": 2}}
    </tool_call>

What is not exactly that stays text: the model sees what it wrote, and learns from it.
"""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

_CALL = re.compile(r"<tool_call>(.*?)</tool_call>", re.DOTALL)


@dataclass(frozen=True, slots=True)
class ToolCall:
    """arguments: a JSON object, as text."""

    name: str
    arguments: str
    id: str = field(default_factory=lambda: f"call_{uuid.uuid4().hex[:24]}")


def split_calls(text: str) -> tuple[str, list[ToolCall]]:
    """The text without its calls, and the calls in their order; the text as it is without any."""
    calls: list[ToolCall] = []
    rest, end = "", 0
    for match in _CALL.finditer(text):
        call = _call(match[1])
        if call is not None:
            calls.append(call)
            rest, end = rest + text[end : match.start()], match.end()
    return ((rest + text[end:]).strip(), calls) if calls else (text, [])


def _call(text: str) -> ToolCall | None:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(found, dict) or found.keys() != {"name", "arguments"}:
        return None
    name, arguments = found["name"], found["arguments"]
    if not isinstance(name, str) or not name or not isinstance(arguments, dict):
        return None
    return ToolCall(name, json.dumps(arguments, ensure_ascii=False))


def as_message(calls: Sequence[ToolCall]) -> list[dict[str, Any]]:
    """tool_calls of a chat message, as chat templates take them: arguments are an object where
    they are one, or else the text."""
    return [
        {
            "id": call.id,
            "type": "function",
            "function": {"name": call.name, "arguments": arguments_of(call.arguments)},
        }
        for call in calls
    ]


def arguments_of(text: str) -> Any:
    """The object that this JSON text is; the text itself where it is none."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return text
    return found if isinstance(found, Mapping) else text
