"""Messages -> token ids by a tokenizer's chat template, and how a conversation goes on in tokens.

A template writes whole conversations, but an engine is asked to go on behind tokens that it has
sampled. So only what the template puts behind the last answer is appended. Templates that write
earlier turns otherwise than they were (Qwen3's leaves out old thinking) allow no going on: the
model would be trained behind a history that it will never see. Then the conversation is forked.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from arealite.agents.turns import Turn
from arealite.data.chat import Message, render

ANSWER = "assistant"
"""The role of what the policy says."""


class Chat:
    """A tokenizer's template. tools: descriptions that the template shows to the model.

    template: False joins the messages' contents as they are, for a model without a template.
    """

    def __init__(
        self,
        tokenizer: Any,
        tools: Sequence[Mapping[str, Any]] = (),
        template: bool = True,
        template_kwargs: Mapping[str, Any] | None = None,
    ) -> None:
        self._tokenizer, self._tools, self.template = tokenizer, list(tools), template
        self._kwargs = dict(template_kwargs or {})

    def encode(self, text: str) -> list[int]:
        """The template has written the special tokens already."""
        return list(self._tokenizer.encode(text, add_special_tokens=False))

    def decode(self, tokens: Sequence[int]) -> str:
        """An answer's text, without the token that ended it."""
        return str(self._tokenizer.decode(tokens, skip_special_tokens=True))

    def render(self, messages: Sequence[Message]) -> str:
        """All of it, up to where the model's next answer begins. Raises ValueError."""
        if not self.template:
            return "".join(str(message["content"]) for message in messages)
        if getattr(self._tokenizer, "chat_template", "") is None:
            raise ValueError(
                "the tokenizer has no chat template; give text prompts and "
                "rollout.workflow_kwargs.chat=false, or the tokenizer_path of a chat model"
            )
        given = {"tools": self._tools} if self._tools else {}
        try:
            return render(self._tokenizer, messages, **given, **self._kwargs)
        except ValueError as error:
            raise ValueError(
                f"{error}; change the row or rollout.workflow_kwargs, or give another "
                "tokenizer_path"
            ) from error

    def behind(
        self,
        messages: Sequence[Message],
        last: Turn,
        place: int | None = None,
        whole: str | None = None,
    ) -> tuple[str, list[int]] | None:
        """What stands behind a turn's answer, as text and as ids; None where the template does not
        leave what is before it as it was.

        messages: the whole conversation, each answer's content as it was sampled. last: the turn
        with that answer. place: where among the messages it is; None: the last answer. whole: the
        messages as text, where it is known. An id that ended the answer, and that the template
        writes too, is not repeated.
        """
        if place is None:
            place = max(i for i, message in enumerate(messages) if message["role"] == ANSWER)
        whole, marked = self.render(messages) if whole is None else whole, list(messages)
        if not whole.startswith(_forms(last.parts)):
            return None
        mark = _mark(whole)
        marked[place] = {"role": ANSWER, "content": mark}
        _, found, text = self.render(marked).rpartition(mark)
        if not found or whole not in _forms([*last.parts, text]):
            return None
        ids = self.encode(text)
        is_written = ids and ids[0] == last.response.output_tokens[-1]
        return text, ids[1:] if is_written else ids


def _mark(text: str) -> str:
    """A word that stands nowhere else."""
    words = (f"answer-{number}-here" for number in itertools.count())
    return next(word for word in words if word not in text)


def _forms(parts: Sequence[str]) -> tuple[str, str]:
    """White space at an answer's ends is no content, and templates often trim it."""
    trimmed = [part.strip() if i % 2 else part for i, part in enumerate(parts)]
    return "".join(parts), "".join(trimmed)
