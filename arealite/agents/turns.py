"""Turns: what the engine was given and what it sampled behind that. They form a tree.

Nothing is ever tokenised twice: an answer stays the ids that were sampled, and what comes next, a
user's words or a tool's output, is appended as ids of its own. A turn knows the one before it, so
that conversations with the same beginning share its turns; a token is learned once.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from arealite.errors import WorkflowError
from arealite.types import (
    NOT_SAMPLED,
    GenerationHyperparameters,
    ModelResponse,
    Trajectory,
)


@dataclass(frozen=True, slots=True, eq=False)
class Turn:
    """given: the ids behind the turn before. text, answer: both as text.

    Raises WorkflowError where the response answers other tokens.
    """

    before: Turn | None
    given: Sequence[int]
    response: ModelResponse
    text: str = ""
    answer: str = ""

    def __post_init__(self) -> None:
        if list(self.response.input_tokens) != prompt(self.before, self.given):
            raise WorkflowError(
                f"a response to {self.response.input_len} tokens is none to this turn's prompt; "
                "ask for tokens(turn before) + given, and keep what was asked"
            )

    def line(self) -> list[Turn]:
        """From the first turn to this one."""
        found, turn = [self], self.before
        while turn is not None:
            found.append(turn)
            turn = turn.before
        return found[::-1]

    @property
    def parts(self) -> list[str]:
        """The conversation's text: given, answered, given, ..., answered."""
        return [part for turn in self.line() for part in (turn.text, turn.answer)]

    def trajectory(
        self,
        reward: float | Mapping[str, float],
        text: str | None = None,
        known: Collection[Turn] = (),
        name: str = "",
    ) -> Trajectory:
        """The line up to here with its reward; only sampled tokens are learned.

        known: turns whose tokens are learned elsewhere, and context here. name: Trajectory's.
        """
        tokens: list[int] = []
        mask: list[int] = []
        logprobs: list[float] = []
        versions: list[int] = []
        for turn in self.line():
            given, said = turn.given, turn.response
            n, m, learned = len(given), said.output_len, turn not in known
            tokens += [*given, *said.output_tokens]
            mask += [0] * n + [int(learned)] * m
            logprobs += [0.0] * n + (list(said.output_logprobs) if learned else [0.0] * m)
            versions += [NOT_SAMPLED] * n
            versions += said.output_versions if learned else [NOT_SAMPLED] * m
        parts = dict(reward) if isinstance(reward, Mapping) else {}
        return Trajectory(
            tokens=tokens,
            loss_mask=mask,
            logprobs=logprobs,
            versions=versions,
            reward=sum(parts.values()) if isinstance(reward, Mapping) else reward,
            components=parts,
            truncated=self.response.stop_reason == "length",
            text=text,
            name=name,
        )


def prompt(before: Turn | None, given: Sequence[int]) -> list[int]:
    """What the engine is asked to go on from."""
    turns = [] if before is None else before.line()
    tokens = [
        t for turn in turns for part in (turn.given, turn.response.output_tokens) for t in part
    ]
    return [*tokens, *given]


def fitted(
    gconfig: GenerationHyperparameters, taken: int, most: int | None
) -> GenerationHyperparameters | None:
    """For an answer behind so many tokens, where all may have `most` (None: no limit).

    None where no token fits any more.
    """
    room = gconfig.max_new_tokens if most is None else min(most - taken, gconfig.max_new_tokens)
    if room == gconfig.max_new_tokens:
        return gconfig
    least = min(gconfig.min_new_tokens, room)
    return gconfig.new(max_new_tokens=room, min_new_tokens=least) if room > 0 else None


def leaves(turns: Iterable[Turn]) -> list[Turn]:
    """Those that no other turn goes on from, in their order."""
    found = list(turns)
    inner = {turn.before for turn in found}
    return [turn for turn in found if turn not in inner]
