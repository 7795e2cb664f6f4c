"""One question, and another try after each answer that is not right."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from arealite.agents.conversation import Conversation
from arealite.agents.turns import fitted
from arealite.errors import Unscorable
from arealite.rewards.scorer import Scoring, score_group
from arealite.types import (
    Completion,
    GenerationHyperparameters,
    ModelRequest,
    Trajectory,
)
from workflows.rlvr import RLVRWorkflow

FEEDBACK = "Your answer is not right. Look at it again, and give another one."


class MultiTurnWorkflow(RLVRWorkflow):
    """As RLVRWorkflow, in up to max_turns turns: where an answer earns less than `solved`, the
    model is told `feedback` and tries again.

    The reward is the last answer's, times turn_discount for each turn after the first. All answers
    of a conversation are learned, its feedback is not; gconfig.max_new_tokens is the limit of a
    single answer, and rollout.context_length that of all. A conversation whose answer was cut off,
    or which has no room for another, ends there.
    """

    def __init__(
        self,
        reward_fn: Scoring | Callable[[str, Any], Awaitable[Any]],
        gconfig: GenerationHyperparameters,
        tokenizer: Any,
        max_turns: int = 3,
        turn_discount: float = 0.9,
        solved: float = 1.0,
        feedback: str = FEEDBACK,
        context_length: int | None = None,
        prompt_key: str = "query",
        answer_key: str | None = "answer",
        system: str | None = None,
        chat: bool = True,
    ) -> None:
        if max_turns < 1 or not 0 < turn_discount <= 1:
            raise ValueError(
                f"max_turns is {max_turns} and turn_discount {turn_discount}; they must be at "
                "least 1, and above 0 and at most 1"
            )
        super().__init__(reward_fn, gconfig, tokenizer, prompt_key, answer_key, system, chat)
        self.max_turns, self.turn_discount = max_turns, turn_discount
        self.solved, self.feedback = solved, feedback
        self.context_length = context_length

    async def arun_episode(self, engine: Any, data: Mapping[str, Any]) -> list[Trajectory]:
        first = ModelRequest(self.prompt_ids(data), self.one)
        played = await asyncio.gather(
            *[self._play(engine, data, first) for _ in range(self.gconfig.n_samples)]
        )
        # A sample without a score is left out, and so out of the others' baseline.
        scored = [one for one in played if not isinstance(one, Unscorable)]
        if len(scored) < min(2, len(played)):
            raise next(one for one in played if isinstance(one, Unscorable))
        return [trajectory for trajectories in scored for trajectory in trajectories]

    async def _play(
        self, engine: Any, data: Mapping[str, Any], request: ModelRequest
    ) -> list[Trajectory] | Unscorable:
        """One sample. The first request is the group's: it travels, and is prefilled, once."""
        talk = Conversation(*self.asked(data))
        for turn in range(self.max_turns):
            response = await engine.agenerate(request)
            text = talk.answered(response)
            score = await self._score(data, talk, text)
            if isinstance(score, Unscorable):
                return score
            reward = sum(score.values()) if isinstance(score, Mapping) else score
            if reward >= self.solved or response.stop_reason == "length":
                break
            if turn + 1 < self.max_turns:
                talk.tell({"role": "user", "content": self.feedback})
                gconfig = fitted(self.one, len(talk.prompt), self.context_length)
                if gconfig is None:
                    break
                request = talk.request(gconfig)
        parts = score if isinstance(score, Mapping) else {"score": score}
        share = self.turn_discount**turn
        return talk.trajectories({name: share * part for name, part in parts.items()})

    async def _score(self, data: Mapping[str, Any], talk: Conversation, text: str) -> Any:
        said = talk.turns[-1].response
        completion = Completion(
            text=text,
            ground_truth=self.truth(data),
            prompt=talk.messages[:-1],
            prompt_text=talk.turns[-1].text,
            prompt_ids=said.input_tokens,
            completion_ids=said.output_tokens,
            row=data,
        )
        [outcome] = await score_group(self.reward_fn, [completion])
        return outcome
