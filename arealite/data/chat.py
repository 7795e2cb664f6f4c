"""Chat messages as the text that a model was trained on: a tokenizer's chat template."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

Message = Mapping[str, Any]
"""As in OpenAI's chat format: role, content, and what a template knows beside."""


def render(tokenizer: Any, messages: Sequence[Message], **more: Any) -> str:
    """Up to where the model's next answer begins; all special tokens are in it.

    more: what the template takes beside, such as tools. Raises ValueError where it refuses them.
    """
    try:
        text = tokenizer.apply_chat_template(
            [dict(message) for message in messages],
            tokenize=False,
            add_generation_prompt=True,
            **more,
        )
    except Exception as error:  # a template is code, of whoever made the tokenizer
        reason = str(error).strip().split("\n")[0]
        raise ValueError(f"the tokenizer's chat template refuses the prompt: {reason}") from error
    return str(text)
