"""One question, n answers, one verifiable reward each."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from arealite.types import GenerationHyperparameters, ModelRequest, Trajectory


class RLVRWorkflow:
    """Asks for gconfig.n_samples answers to a row's prompt and scores each.

    prompt_key: the row's column with the prompt, text or a list of chat messages. answer_key:
    the column handed to the reward function as ground truth; null hands it the whole row.
    chat: text prompts become a user's turn of the tokenizer's chat template; false takes them as
    they are.
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

    async def arun_episode(self, engine: Any, data: Mapping[str, Any]) -> list[Trajectory]:
        request = ModelRequest(
            rid=uuid.uuid4().hex,
            input_ids=self.prompt_ids(data),
            gconfig=self.gconfig.new(n_samples=1),
        )
        n = self.gconfig.n_samples
        responses = await asyncio.gather(*[engine.agenerate(request) for _ in range(n)])
        truth = data if self.answer_key is None else data[self.answer_key]
        trajectories = []
        for response in responses:
            text = self.tokenizer.decode(response.output_tokens, skip_special_tokens=True)
            reward = await self.reward_fn(text, truth)
            trajectories.append(Trajectory.from_response(response, reward, text))
        return trajectories

    def prompt_ids(self, data: Mapping[str, Any]) -> list[int]:
        """The prompt as token ids."""
        prompt = data[self.prompt_key]
        if isinstance(prompt, str):
            if not self.chat:
                return list(self.tokenizer.encode(prompt, add_special_tokens=False))
            prompt = [{"role": "user", "content": prompt}]
        if self.system is not None:
            prompt = [{"role": "system", "content": self.system}, *prompt]
        text = self.tokenizer.apply_chat_template(
            prompt, tokenize=False, add_generation_prompt=True
        )
        return list(self.tokenizer.encode(text, add_special_tokens=False))
