"""One question, n answers, one verifiable reward each."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from arealite.errors import Unscorable
from arealite.types import GenerationHyperparameters, ModelRequest, ModelResponse, Trajectory


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
        reward_fn: Callable[[str, Any], Awaitable[Any]],
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
        self.prompt_key, self.answer_key = prompt_key, answer_key
        self.system, self.chat = system, chat

    def check_row(self, data: Mapping[str, Any]) -> None:
        """Raises ValueError where the row cannot be played; see arealite.protocols.ChecksRows."""
        self.prompt_ids(data)
        self.truth(data)

    async def arun_episode(self, engine: Any, data: Mapping[str, Any]) -> list[Trajectory]:
        request = ModelRequest(
            rid=uuid.uuid4().hex,
            input_ids=self.prompt_ids(data),
            gconfig=self.gconfig.new(n_samples=1),
        )
        n = self.gconfig.n_samples
        responses = await asyncio.gather(*[engine.agenerate(request) for _ in range(n)])
        truth = self.truth(data)
        played = await asyncio.gather(*[self._scored(response, truth) for response in responses])
        trajectories = [t for t in played if isinstance(t, Trajectory)]
        # A sample without a score is left out, and so out of the others' baseline: no number is
        # right for it. A group of one has no baseline.
        if len(trajectories) < min(2, n):
            raise next(error for error in played if isinstance(error, Unscorable))
        return trajectories

    async def _scored(self, response: ModelResponse, truth: Any) -> Trajectory | Unscorable:
        text = self.tokenizer.decode(response.output_tokens, skip_special_tokens=True)
        try:
            return Trajectory.from_response(response, await self.reward_fn(text, truth), text)
        except Unscorable as error:
            return error

    def prompt_ids(self, data: Mapping[str, Any]) -> list[int]:
        """The prompt as token ids."""
        prompt = self._column(data, "prompt_key", self.prompt_key)
        if isinstance(prompt, str):
            if not self.chat:
                return list(self.tokenizer.encode(prompt, add_special_tokens=False))
            prompt = [{"role": "user", "content": prompt}]
        if not isinstance(prompt, list):
            raise ValueError(
                f"the column {self.prompt_key!r} holds {prompt!r:.60}; a prompt is text or a list "
                "of chat messages"
            )
        if self.system is not None:
            prompt = [{"role": "system", "content": self.system}, *prompt]
        return list(self.tokenizer.encode(self._rendered(prompt), add_special_tokens=False))

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

    def _rendered(self, messages: list[Any]) -> str:
        if getattr(self.tokenizer, "chat_template", "") is None:
            raise ValueError(
                "the tokenizer has no chat template; give text prompts and "
                "rollout.workflow_kwargs.chat=false, or the tokenizer_path of a chat model"
            )
        try:
            return str(
                self.tokenizer.apply_chat_template(
                    messages, tokenize=False, add_generation_prompt=True
                )
            )
        except Exception as error:  # a template is code, of whoever made the tokenizer
            reason = str(error).strip().split("\n")[0]
            raise ValueError(
                f"the tokenizer's chat template refuses the prompt: {reason}; change the row or "
                "rollout.workflow_kwargs, or give another tokenizer_path"
            ) from error
