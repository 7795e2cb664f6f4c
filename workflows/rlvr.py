"""One question, n answers, one verifiable reward each."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from arealite.agents.chat import Chat
from arealite.data.chat import Message
from arealite.errors import Unscorable
from arealite.rewards.scorer import Scoring, score_group
from arealite.types import (
    Completion,
    GenerationHyperparameters,
    ModelRequest,
    Trajectory,
)


class RLVRWorkflow:
    """Asks for gconfig.n_samples answers to a row's prompt and scores each.

    prompt_key: the row's column with the prompt, text or a list of chat messages. answer_key:
    the column handed to the reward function as ground truth; null hands it the whole row.
    chat: text prompts become a user's turn of the tokenizer's chat template; false takes them as
    they are. A sample that cannot be scored is left out of its group; where fewer than two are
    left, the episode fails.
    """

    def __init__(
        self,
        reward_fn: Scoring | Callable[[str, Any], Awaitable[Any]],
        gconfig: GenerationHyperparameters,
        tokenizer: Any,
        prompt_key: str = "query",
        answer_key: str | None = "answer",
        system: str | None = None,
        chat: bool = True,
    ) -> None:
        self.reward_fn = reward_fn
        self.tokenizer = tokenizer
        self.gconfig = gconfig.new_with_stop_and_pad_token_ids(tokenizer)
        self.one = self.gconfig.new(n_samples=1)
        self.prompt_key, self.answer_key = prompt_key, answer_key
        self.system, self.is_chat, self.chat = system, chat, Chat(tokenizer)

    def check_row(self, data: Mapping[str, Any]) -> None:
        """Raises ValueError where the row cannot be played; see arealite.protocols.ChecksRows."""
        self.prompt_ids(data)
        self.truth(data)
        check = getattr(self.reward_fn, "check_row", None)
        if check is not None:
            check(data)

    async def arun_episode(self, engine: Any, data: Mapping[str, Any]) -> list[Trajectory]:
        text = self.prompt_text(data)
        request = ModelRequest(self.chat.encode(text), self.one, uuid.uuid4().hex)
        n = self.gconfig.n_samples
        responses = await asyncio.gather(*[engine.agenerate(request) for _ in range(n)])
        truth, prompt = self.truth(data), data[self.prompt_key]
        completions = [
            Completion(
                text=self.chat.decode(response.output_tokens),
                ground_truth=truth,
                prompt=prompt,
                prompt_text=text,
                prompt_ids=request.input_ids,
                completion_ids=response.output_tokens,
                row=data,
            )
            for response in responses
        ]
        scores = await score_group(self.reward_fn, completions)
        # A sample without a score is left out, and so out of the others' baseline: no number is
        # right for it. A group of one has no baseline.
        trajectories = [
            Trajectory.from_response(response, score, completion.text)
            for response, score, completion in zip(responses, scores, completions, strict=True)
            if not isinstance(score, Unscorable)
        ]
        if len(trajectories) < min(2, n):
            raise next(score for score in scores if isinstance(score, Unscorable))
        return trajectories

    def prompt_ids(self, data: Mapping[str, Any]) -> list[int]:
        """The prompt as token ids."""
        return self.chat.encode(self.prompt_text(data))

    def prompt_text(self, data: Mapping[str, Any]) -> str:
        """The prompt as the model sees it."""
        chat, messages = self.asked(data)
        return chat.render(messages)

    def asked(self, data: Mapping[str, Any]) -> tuple[Chat, list[Message]]:
        """The prompt as chat messages, and what makes text of them."""
        prompt = self._column(data, "prompt_key", self.prompt_key)
        if isinstance(prompt, str):
            prompt = [{"role": "user", "content": prompt}]
            if not self.is_chat:
                return Chat(self.tokenizer, template=False), prompt
        if not isinstance(prompt, list):
            raise ValueError(
                f"the column {self.prompt_key!r} holds {prompt!r:.60}; a prompt is text or a list "
                "of chat messages"
            )
        if self.system is not None:
            prompt = [{"role": "system", "content": self.system}, *prompt]
        return self.chat, prompt

    def truth(self, data: Mapping[str, Any]) -> Any:
        """What the reward function gets beside the text."""
        if self.answer_key is None:
            return data
        return self._column(data, "answer_key", self.answer_key)

    def _column(self, data: Mapping[str, Any], setting: str, name: str) -> Any:
        if name not in data:
            raise ValueError(
                f"there is no column {name!r}, which {setting} of rollout.workflow_kwargs names; "
                f"its columns are {', '.join(data)}"
            )
        return data[name]
