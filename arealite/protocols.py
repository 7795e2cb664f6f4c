"""Every extension point, as a structural type: implement the methods, inherit nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from arealite.types import Episode, ModelRequest, ModelResponse, Trajectory, WeightUpdate

if TYPE_CHECKING:  # types only: this floor must start without torch
    from torch import Tensor

    from arealite.data.micro_batch import MicroBatch


@runtime_checkable
class InferenceEngine(Protocol):
    """What a workflow sees."""

    async def agenerate(self, request: ModelRequest) -> ModelResponse:
        """One sample. Raises EngineError when no server can answer it."""
        ...


class ManagedEngine(InferenceEngine, Protocol):
    """What the door sees: an engine whose weights it may change."""

    async def wait_ready(self, deadline_s: float) -> None:
        """Returns when every server answers. Raises EnginesExhausted at the deadline."""
        ...

    async def update_weights(self, update: WeightUpdate) -> float:
        """Loads and verifies; returns the worst difference seen on the probe, in nats.

        What cannot be verified serves nothing. Raises EnginesExhausted when nothing is left.
        """
        ...

    async def redispatch(self) -> int:
        """Sends every request under way once more, elsewhere if it can; returns how many."""
        ...

    async def server_metrics(self) -> Mapping[str, float]:
        """Counters summed over the servers (tokens_generated, running, waiting, ...)."""
        ...

    async def aclose(self) -> None: ...


class Workflow(Protocol):
    """What a user writes for a task."""

    async def arun_episode(
        self, engine: InferenceEngine, data: Mapping[str, Any]
    ) -> Sequence[Trajectory] | Mapping[str, Any] | None:
        """Plays one row; None rejects it. AReaL's dict of [n, T] tensors is accepted too."""
        ...


@runtime_checkable
class ChecksRows(Protocol):
    """What a workflow may offer beside: a look at a row before anything is played."""

    def check_row(self, data: Mapping[str, Any]) -> None:
        """Raises ValueError with a sentence where the row cannot be played.

        It is asked for the first row of each data set, so that a misnamed column or a chat
        template that does not fit is bad input (exit 2) rather than a run of failed episodes. A
        later row that cannot be played is an episode that failed.
        """
        ...


@runtime_checkable
class Closes(Protocol):
    """What a workflow may offer beside: an end, where it holds something open."""

    async def aclose(self) -> None:
        """Called once, on the event loop, when the run ends and no episode runs any more."""
        ...


class Environment(Protocol):
    """A world for one conversation: made anew for each, by its class. See workflows.environment.

    Messages are those of OpenAI's chat format; a text alone is a user's message. What it raises
    costs the episode. It may offer `async def aclose(self)`, which ends the conversation, however
    that ended.
    """

    async def reset(self, data: Mapping[str, Any]) -> Sequence[Mapping[str, Any]] | str:
        """How the conversation about this row begins."""
        ...

    async def step(
        self, text: str
    ) -> tuple[Sequence[Mapping[str, Any]] | str, float | Mapping[str, float], bool]:
        """To the policy's answer: what it is told next, what the answer is worth, by itself or by
        named parts, and whether the conversation is over (then nothing is told)."""
        ...


class Reward(Protocol):
    """A reward file's function: the score, or named components that are summed.

    The forms of AReaL and TRL are accepted, too: see arealite.rewards.signature.
    """

    def __call__(self, solution_str: str, ground_truth: Any) -> float | Mapping[str, float]: ...


class Algorithm(Protocol):
    """A learning rule: what each trajectory is worth, and what to minimise."""

    @property
    def idle_at_zero(self) -> bool:
        """Whether an advantage of 0 means a gradient of 0, so that its passes can be saved."""
        ...

    def credit(self, episodes: Sequence[Episode]) -> list[list[float | None]]:
        """For each episode of the batch one advantage per trajectory.

        0 counts in the mean, also where it has no gradient; None leaves the trajectory out of the
        loss and of its mean.
        """
        ...

    def weigh(self, lengths: Sequence[Sequence[int]]) -> list[list[float]]:
        """What each trained token of a sample counts in the loss: the aggregation.

        lengths: for each episode the number of trained tokens per trajectory. The loss is summed
        with these weights and divided by the number of all trained tokens, so that weights of 1
        are the token mean.
        """
        ...

    def loss(self, logprobs: Tensor, batch: MicroBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """The summed loss over the micro-batch's trained tokens, and summed statistics by name.

        logprobs: [tokens] float32, the policy's log-probabilities of the sampled tokens. The
        caller divides by the number of trained tokens in the whole batch, so that k micro-batches
        on r ranks equal one batch.
        """
        ...
