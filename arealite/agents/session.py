"""One run of an agent: what it asks and is answered over HTTP becomes turns, and trajectories.

An agent sends its whole conversation with every request. Its messages are compared with those of
earlier requests and with the answers that were given: behind the longest beginning that is known,
the prompt is the tokens so far and the new ones; a history that is not known, or that the chat
template writes otherwise, is a prompt of its own. So a session is a tree of turns: conversations
that begin alike share their turns, and each sampled token is learned once.
"""

from __future__ import annotations

import asyncio
import contextvars
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Real
from typing import Any, Literal

from arealite.agents.asked import Answer, Asked, Refused, new_id
from arealite.agents.chat import ANSWER, Chat
from arealite.agents.conversation import told
from arealite.agents.tool_calls import arguments_of, as_message, split_calls
from arealite.agents.turns import Turn, fitted, leaves, prompt
from arealite.data.chat import Message
from arealite.errors import WorkflowError
from arealite.protocols import InferenceEngine
from arealite.types import GenerationHyperparameters, ModelRequest, Trajectory

Sampling = Literal["refuse", "ignore"]
"""What becomes of an agent's wish to sample otherwise than the run's configuration says."""


_ANY = ({"role": "user", "content": "?"},)


@dataclass(frozen=True, slots=True, eq=False)
class Said:
    """An answer. messages: the conversation with it, each answer's content as it was sampled.
    start: the messages before the first answer of its line of turns. follows: the answer that it
    came after."""

    turn: Turn
    messages: Sequence[Message]
    start: int
    name: str
    follows: Said | None


@dataclass(slots=True, eq=False)
class _Place:
    """A beginning of conversations. said: the answer that it ends with, where that is ours."""

    ways: dict[str, _Place] = field(default_factory=dict)
    said: Said | None = None


class Session:
    """gconfig: n_samples has no meaning here. context_length: the most tokens of a conversation;
    None: what the servers hold. template_kwargs: for the tokenizer's chat template."""

    def __init__(
        self,
        engine: InferenceEngine,
        tokenizer: Any,
        gconfig: GenerationHyperparameters,
        context_length: int | None = None,
        sampling: Sampling = "refuse",
        template_kwargs: Mapping[str, Any] | None = None,
    ) -> None:
        self._engine, self._tokenizer = engine, tokenizer
        self._gconfig = gconfig.new(n_samples=1)
        self._context_length, self._sampling = context_length, sampling
        self._template_kwargs = template_kwargs
        self._chats: dict[str, Chat] = {}
        self._beginnings: dict[tuple[str, str], _Place] = {}
        self.said: dict[str, Said] = {}
        """Answers by the ids that the agent knows them by, in their order."""
        self.refusals: list[str] = []
        self.error: Exception | None = None
        """What is no fault of the agent: the session is lost, whatever the agent makes of it."""
        self._context = contextvars.copy_context()
        self._asking: set[asyncio.Task[Answer]] = set()

    def ask(self, asked: Asked) -> asyncio.Task[Answer]:
        """The answer, under way. Its own context is the session's, whichever connection asks."""
        task = asyncio.get_running_loop().create_task(self._ask(asked), context=self._context)
        self._asking.add(task)
        task.add_done_callback(self._asking.discard)
        return task

    def close(self) -> None:
        """Nobody waits any more for what is under way."""
        for task in self._asking:
            task.cancel()

    async def _ask(self, asked: Asked) -> Answer:
        """Raises Refused, or what the engine raises."""
        try:
            return await self._answer(asked)
        except Refused as refused:
            self.refusals.append(str(refused))
            raise
        except Exception as error:  # no reward can stand for an answer that was never given
            self.error = self.error or error
            raise

    async def _answer(self, asked: Asked) -> Answer:
        self._check_wishes(asked.wishes)
        place, known = self._find(asked)
        follows = known[-1][1] if known else None
        messages = list(asked.messages)
        if follows is not None:  # our answers as they were sampled
            messages[: len(follows.messages)] = follows.messages
        chat = self._chat(asked.tools)
        before, text, given = self._prompt(chat, messages, known)
        turn = before.turn if before else None
        request = self._request(asked, prompt(turn, given))
        if follows is None:
            follows = next((s for s in reversed(self.said.values()) if s.name == asked.name), None)
        response = await self._engine.agenerate(request)
        sampled = chat.decode(response.output_tokens)
        said = Said(
            Turn(turn, given, response, text, sampled),
            [*messages, {"role": ANSWER, "content": sampled}],
            before.start if before else len(messages),
            asked.name,
            follows,
        )
        answer = self._read(chat, asked, said)
        self.said[answer.id] = said
        place.ways.setdefault(_key(_returned(answer)), _Place()).said = said
        return answer

    def _chat(self, tools: Sequence[Mapping[str, Any]]) -> Chat:
        """With a template that shows these tools. Raises Refused where it does not."""
        key = json.dumps(list(tools), sort_keys=True)
        if key not in self._chats:
            chat, bare = (
                Chat(self._tokenizer, shown, template_kwargs=self._template_kwargs)
                for shown in (tools, ())
            )
            if tools and _rendered(chat, _ANY) == _rendered(bare, _ANY):
                raise Refused(
                    "the tokenizer's chat template shows no tools, so the policy would not know of "
                    "them; leave tools out and describe them in a message, or give another "
                    "template as rollout.workflow_kwargs.template_kwargs.chat_template"
                )
            self._chats[key] = chat
        return self._chats[key]

    def _find(self, asked: Asked) -> tuple[_Place, list[tuple[int, Said]]]:
        """Where these messages lead, and our answers on the way with their places."""
        tools = json.dumps(list(asked.tools), sort_keys=True)
        place = self._beginnings.setdefault((asked.name, tools), _Place())
        known: list[tuple[int, Said]] = []
        for i, message in enumerate(asked.messages):
            place = place.ways.setdefault(_key(message), _Place())
            if place.said is not None:
                known.append((i, place.said))
        return place, known

    def _prompt(
        self, chat: Chat, messages: Sequence[Message], known: Sequence[tuple[int, Said]]
    ) -> tuple[Said | None, str, list[int]]:
        """The answer whose tokens are gone on from, and what stands behind it."""
        whole = _rendered(chat, messages)
        for place, said in reversed(known):
            found = chat.behind(messages, said.turn, place, whole)
            if found is not None:
                return (said, *found)
        return None, whole, chat.encode(whole)

    def _request(self, asked: Asked, ids: list[int]) -> ModelRequest:
        most = min(asked.max_tokens or self._gconfig.max_new_tokens, self._gconfig.max_new_tokens)
        asked_for = self._gconfig.new(
            max_new_tokens=most,
            min_new_tokens=min(self._gconfig.min_new_tokens, most),
            stop=(*self._gconfig.stop, *asked.stop),
        )
        gconfig = fitted(asked_for, len(ids), self._context_length)
        if gconfig is None:
            raise Refused(
                f"the conversation has {len(ids)} tokens, and this model's context length is "
                f"{self._context_length} (rollout.context_length); make it shorter",
                code="context_length_exceeded",
            )
        return ModelRequest(ids, gconfig)

    def _check_wishes(self, wishes: Mapping[str, float]) -> None:
        """The trainer computes log-probabilities at the run's own settings."""
        if self._sampling == "ignore":
            return
        mine = self._gconfig
        for name, value in wishes.items():
            ours = 0.0 if name == "temperature" and mine.greedy else getattr(mine, name)
            if value != ours:
                why = (
                    "one seed for all would make the samples of a group equal"
                    if name == "seed"
                    else f"the run samples, and computes log-probabilities, at {ours}"
                )
                raise Refused(
                    f"{name} is {value}, but {why}; leave it out of the request, or set "
                    "rollout.workflow_kwargs.sampling=ignore to have it ignored"
                )

    def _read(self, chat: Chat, asked: Asked, said: Said) -> Answer:
        """The answer as the agent is told it."""
        text, response = said.turn.answer, said.turn.response
        found = [(text.find(stop), stop) for stop in asked.stop if stop in text]
        end, stopped_by = min(found, default=(len(text), None))
        text = text[:end]
        content, calls = split_calls(text) if asked.tools else (text, [])
        return Answer(
            id=new_id(asked.prefix),
            content=content,
            calls=calls,
            finish="tool_calls" if calls else response.stop_reason,
            stopped_by=stopped_by,
            response=response,
            words=[chat.decode([t]) for t in response.output_tokens]
            if asked.shows_logprobs
            else (),
        )

    # --- what is learned

    def trajectories(self, earned: Any, turn_discount: float = 1.0) -> list[Trajectory]:
        """One for each conversation, all with what the agent says it earned; tokens that several
        share are learned in the first. earned: a number, or a mapping of names to the parts of it.

        A mapping of answers' ids to rewards makes a trajectory of each answer instead, with its
        return: its reward (0 where it has none) + turn_discount x the mean return of the answers
        that follow it. An answer follows the one that its conversation goes on from, or, where
        that is not known, the last one before it of the same name (as in AReaL's client).

        Raises WorkflowError where nothing was answered, or for what is no reward.
        """
        if not self.said:
            why = f"; the first of its {len(self.refusals)} requests was refused: "
            refused = why + self.refusals[0] if self.refusals else ""
            raise WorkflowError(
                "the agent was never answered, so there is nothing to learn; it must ask at the "
                f"base_url and with the api_key that it is given{refused}"
            )
        if isinstance(earned, Mapping) and any(key in self.said for key in earned):
            return self._of_each(_rewards(earned, self.said), turn_discount)
        if not isinstance(earned, Mapping | Real) or earned == {}:
            raise WorkflowError(
                f"the agent returned {earned!r:.60}; it must return a number, a mapping of names "
                "to the parts of a reward, or one of completions' ids to rewards"
            )
        reward = float(earned) if isinstance(earned, Real) else earned
        of = {said.turn: said for said in self.said.values()}
        known: set[Turn] = set()
        made = []
        for leaf in leaves(of):
            made.append(_trajectory(of[leaf], reward, known))
            known.update(leaf.line())
        return made

    def _of_each(self, rewards: Mapping[str, float], discount: float) -> list[Trajectory]:
        returns: dict[Said | None, list[float]] = {}
        found: dict[Said, float] = {}
        for id_, said in reversed(self.said.items()):  # what follows an answer came later
            later = returns.get(said, [])
            found[said] = rewards.get(id_, 0.0) + (
                discount * sum(later) / len(later) if later else 0.0
            )
            returns.setdefault(said.follows, []).append(found[said])
        return [
            _trajectory(said, found[said], set(said.turn.line()[:-1]))
            for said in self.said.values()
        ]


def _rendered(chat: Chat, messages: Sequence[Message]) -> str:
    try:
        return chat.render(messages)
    except ValueError as error:
        raise Refused(str(error)) from error


def _rewards(earned: Mapping[Any, Any], said: Mapping[str, Said]) -> dict[str, float]:
    for key, value in earned.items():
        if key not in said:
            raise WorkflowError(
                f"the agent returned a reward for {key!r:.60}, which is no completion of its run, "
                "beside rewards for some that are"
            )
        if not isinstance(value, Real):
            raise WorkflowError(f"the agent returned {value!r:.60} as the reward of {key}")
    return {key: float(value) for key, value in earned.items()}


def _trajectory(said: Said, reward: float | Mapping[str, float], known: set[Turn]) -> Trajectory:
    text = told(said.messages[said.start :])
    return said.turn.trajectory(reward, text, known, said.name)


def _returned(answer: Answer) -> Message:
    """The answer as the agent's next request has it."""
    return {
        "role": ANSWER,
        "content": answer.content,
        "tool_calls": as_message(answer.calls),
    }


def _key(message: Message) -> str:
    """What two messages must share to be the same. Ids of calls are the client's to choose, and so
    is white space around an answer; the template's text is compared beside (Chat.behind)."""
    calls = [
        (call["function"]["name"], _arguments(call["function"]["arguments"]))
        for call in message.get("tool_calls") or ()
    ]
    content = message["content"]
    if message["role"] == ANSWER:
        content = content.strip()
    return json.dumps([message["role"], content, calls], sort_keys=True)


def _arguments(arguments: Any) -> Any:
    return arguments_of(arguments) if isinstance(arguments, str) else arguments
