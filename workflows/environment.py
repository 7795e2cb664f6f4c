"""Conversations with an environment of the user's: a game, a simulator, a user who is played."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Mapping, Sequence
from typing import Any

from arealite.agents.chat import Chat
from arealite.agents.conversation import Conversation
from arealite.agents.turns import fitted
from arealite.data.chat import Message
from arealite.errors import ConfigError, WorkflowError
from arealite.loading import load_object
from arealite.protocols import Environment
from arealite.telemetry.waits import together
from arealite.types import GenerationHyperparameters, ModelRequest, Trajectory

SETTING = "rollout.workflow_kwargs.environment"


class EnvironmentWorkflow:
    """Plays gconfig.n_samples conversations with environments of one class, one for each.

    environment: pkg.mod:Class or path/file.py:Class, see arealite.protocols.Environment; it is
    built with environment_kwargs. A conversation ends where the environment says so, after
    max_turns answers, with an answer that was cut off, or where rollout.context_length leaves no
    room for another; its reward is the sum over its answers, the one of the t-th (from 0) times
    turn_discount ** t. All answers are learned, and what the environment says is not.
    gconfig.max_new_tokens is the limit of a single answer.
    """

    def __init__(
        self,
        gconfig: GenerationHyperparameters,
        tokenizer: Any,
        environment: str,
        environment_kwargs: Mapping[str, Any] | None = None,
        max_turns: int = 16,
        turn_discount: float = 1.0,
        context_length: int | None = None,
        chat: bool = True,
    ) -> None:
        if max_turns < 1 or not 0 < turn_discount <= 1:
            raise ValueError(
                f"max_turns is {max_turns} and turn_discount {turn_discount}; they must be at "
                "least 1, and above 0 and at most 1"
            )
        self.gconfig = gconfig.new_with_stop_and_pad_token_ids(tokenizer)
        self.one = self.gconfig.new(n_samples=1)
        self.environment, self.kwargs = _class(environment), dict(environment_kwargs or {})
        try:
            inspect.signature(self.environment).bind(**self.kwargs)
        except TypeError as error:
            raise ConfigError(
                f"{SETTING}: {environment} cannot be built: {error}; give it in environment_kwargs"
            ) from None
        self.max_turns, self.turn_discount = max_turns, turn_discount
        self.context_length = context_length
        self.chat = Chat(tokenizer, template=chat)

    async def arun_episode(self, engine: Any, data: Mapping[str, Any]) -> list[Trajectory]:
        worlds: list[Environment] = []
        try:
            for _ in range(self.gconfig.n_samples):
                worlds.append(self.environment(**self.kwargs))
            begun = await together(world.reset(data) for world in worlds)
            talks = [Conversation(self.chat, _messages(messages)) for messages in begun]
            # Conversations that begin alike are asked, and prefilled, as one.
            first = {tuple(talk.prompt): talk.request(self.one) for talk in talks}
            played = await together(
                self._play(engine, world, talk, first[tuple(talk.prompt)])
                for world, talk in zip(worlds, talks, strict=True)
            )
        finally:
            closing = [world.aclose() for world in worlds if hasattr(world, "aclose")]
            await asyncio.gather(*closing)
        return [trajectory for trajectories in played for trajectory in trajectories]

    async def _play(
        self, engine: Any, world: Environment, talk: Conversation, request: ModelRequest
    ) -> list[Trajectory]:
        reward: dict[str, float] = {}
        for turn in range(self.max_turns):
            response = await engine.agenerate(request)
            told, worth, is_over = _stepped(await world.step(talk.answered(response)))
            for name, part in worth.items():
                reward[name] = reward.get(name, 0.0) + part * self.turn_discount**turn
            if is_over or response.stop_reason == "length" or turn + 1 == self.max_turns:
                break
            talk.tell(*told)
            gconfig = fitted(self.one, len(talk.prompt), self.context_length)
            if gconfig is None:
                break
            request = talk.request(gconfig)
        return talk.trajectories(reward)


def _class(reference: str) -> Any:
    found = load_object(reference)
    for name in ("reset", "step"):
        if not inspect.iscoroutinefunction(getattr(found, name, None)):
            raise ConfigError(
                f"{SETTING}: {reference} has no `async def {name}`; see "
                "arealite.protocols.Environment"
            )
    return found


def _messages(told: Any) -> Sequence[Message]:
    if isinstance(told, str):
        return [{"role": "user", "content": told}]
    if (
        not told
        or not isinstance(told, Sequence)
        or not all(isinstance(one, Mapping) for one in told)
    ):
        raise WorkflowError(
            f"the environment told {told!r:.60}; it must be text, or a list of chat messages"
        )
    return list(told)


def _stepped(result: Any) -> tuple[Sequence[Message], Mapping[str, float], bool]:
    """What step returned, the worth by name."""
    try:
        told, worth, is_over = result
    except (TypeError, ValueError):
        raise WorkflowError(
            f"the environment's step returned {result!r:.60}; it must return what is told next, "
            "what the answer is worth, and whether the conversation is over"
        ) from None
    named = worth if isinstance(worth, Mapping) else {"score": worth}
    return () if is_over else _messages(told), named, bool(is_over)
