"""A tokenizer of letters, and engines that say what they are told to: plain conversations."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from arealite.engines.scripted import ScriptedEngine
from arealite.types import ModelRequest, ModelResponse, Trajectory

END = ord("$")


class Letters:
    """One token per character; $ ends an answer, and is special. The template is as told:

    plain: all as it is. trimmed: without white space around contents. forgetful: of old answers
    only what follows their thinking, as Qwen3 does. marked: answers that say so are written
    otherwise than a mark in their place. toolless: no tools are shown. userless: a conversation
    without a user is refused.
    """

    eos_token_id, pad_token_id, chat_template = END, 0, "told"

    def __init__(self, kind: str = "plain") -> None:
        self.kind = kind

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        assert not add_special_tokens
        return [ord(c) for c in text]

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = False) -> str:
        return "".join(map(chr, ids)).replace("$", "" if skip_special_tokens else "$")

    def apply_chat_template(
        self, messages: list[dict[str, Any]], tools: Sequence[Any] = (), **_: Any
    ) -> str:
        asked = max((i for i, m in enumerate(messages) if m["role"] == "user"), default=-1)
        names = ",".join(tool["function"]["name"] for tool in tools)
        if asked < 0 and self.kind == "userless":
            raise RuntimeError("no user query found")
        text = f"[{names}]" if tools and self.kind != "toolless" else ""
        for i, message in enumerate(messages):
            content = message["content"]
            if message["role"] == "refused":
                raise RuntimeError("no such role\nat line 3")
            if self.kind == "trimmed":
                content = content.strip()
            if message["role"] == "assistant":
                if self.kind == "forgetful" and i < asked:
                    content = content.rpartition("/")[2]
                if self.kind == "marked" and "!" in content:
                    content += "[!]"
            for call in message.get("tool_calls", ()):
                content += f"<tool_call>{json.dumps(call['function'])}</tool_call>"
            text += f"<{message['role'][0]}>{content}$\n"
        return text + "<a>"


def response(
    asked: Sequence[int], said: str, version: int = 0, stop: Any = "stop"
) -> ModelResponse:
    tokens = [ord(c) for c in said]
    numbers = [-0.5 - i for i in range(len(tokens))]
    return ModelResponse(list(asked), tokens, numbers, [version] * len(tokens), stop)


def user(text: str) -> Mapping[str, str]:
    return {"role": "user", "content": text}


def text_of(trajectory: Trajectory) -> str:
    return "".join(map(chr, trajectory.tokens))


def learned(trajectory: Trajectory) -> str:
    pairs = zip(trajectory.tokens, trajectory.loss_mask, strict=True)
    return "".join(chr(token) for token, mask in pairs if mask)


class Log(ScriptedEngine):
    """The server's own record of what it was asked and what it sampled."""

    def __init__(self, script: Any) -> None:
        super().__init__(script, vocabulary=127, seed=1)
        self.log: list[tuple[list[int], ModelResponse]] = []

    async def agenerate(self, request: ModelRequest) -> ModelResponse:
        answer = await super().agenerate(request)
        self.log.append((list(request.input_ids), answer))
        return answer


class Speaker:
    """An engine that answers says(prompt as text, how manieth request), up to the first stop string
    and no further than max_new_tokens. log: what it was asked, and sampled."""

    def __init__(self, says: Callable[[str, int], str]) -> None:
        self.says, self.version = says, 0
        self.log: list[ModelResponse] = []
        self.requests: list[ModelRequest] = []

    async def agenerate(self, request: ModelRequest) -> ModelResponse:
        self.requests.append(request)
        asked = "".join(map(chr, request.input_ids))
        said = self.says(asked, len(self.requests) - 1)
        for stop in request.gconfig.stop:
            head, found, _ = said.partition(stop)
            said = head + found
        most = request.gconfig.max_new_tokens
        stop: Any = "length" if len(said) > most else "stop"
        answer = response(request.input_ids, said[:most], self.version, stop)
        self.log.append(answer)
        return answer
