"""A conversation with the policy: messages on one side, turns of tokens on the other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from arealite.agents.chat import ANSWER, Chat
from arealite.agents.turns import Turn, leaves, prompt
from arealite.data.chat import Message
from arealite.types import GenerationHyperparameters, ModelRequest, ModelResponse, Trajectory


class Conversation:
    """Grows by ``answered``, what the policy said, and ``tell``, what it is told next.

    messages: all of it, each answer's content as it was sampled. The tokens are one line of turns
    for as long as the chat template leaves the history as it was; where it does not, ``tell``
    begins another line, for which the history is context. Raises ValueError where the template
    refuses a message.
    """

    def __init__(self, chat: Chat, messages: Sequence[Message]) -> None:
        self._chat = chat
        self.messages: list[Message] = list(messages)
        self.turns: list[Turn] = []
        self._asked = len(self.messages)
        self._last: Turn | None
        self._text: str
        self._given: list[int]
        self._begin()

    @property
    def prompt(self) -> list[int]:
        """What the policy answers next: all tokens so far."""
        return prompt(self._last, self._given)

    def request(self, gconfig: GenerationHyperparameters) -> ModelRequest:
        """For the next answer."""
        return ModelRequest(self.prompt, gconfig)

    def answered(self, response: ModelResponse) -> str:
        """The text of the answer to this prompt."""
        text = self._chat.decode(response.output_tokens)
        self._last = Turn(self._last, self._given, response, self._text, text)
        self.turns.append(self._last)
        self.messages.append({"role": ANSWER, "content": text})
        return text

    def tell(self, *messages: Message) -> None:
        """What comes after the last answer."""
        assert self._last is not None
        self.messages += messages
        found = self._chat.behind(self.messages, self._last)
        if found is None:
            self._begin()
        else:
            self._text, self._given = found

    def _begin(self) -> None:
        self._last = None
        self._text = self._chat.render(self.messages)
        self._given = self._chat.encode(self._text)

    def trajectories(self, reward: float | Mapping[str, float]) -> list[Trajectory]:
        """One for each line of turns, all with the same reward."""
        text = told(self.messages[self._asked :])
        return [turn.trajectory(reward, text) for turn in leaves(self.turns)]


def told(messages: Sequence[Message]) -> str:
    """For people. The answers of the policy stand as they are; others after their role."""
    return "\n".join(
        str(m["content"]) if m["role"] == ANSWER else f"[{m['role']}] {m['content']}"
        for m in messages
    )
