"""The vocabulary: plain frozen data that every floor speaks. Standard library only.

A row becomes requests, a request a response, a response a trajectory, the trajectories of one
row an episode, the episodes a batch. A *version* counts published policies; version 0 is the
model that the run starts from.
"""

from __future__ import annotations

import math
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import compress
from operator import index
from typing import Any, Literal

StopReason = Literal["stop", "length"]
VersionsFrom = Literal["server", "client"]

LogprobMeaning = Literal["raw", "temperature", "barred", "processed"]
"""Of which distribution a server reports a sampled token's log-probability.

raw: softmax(logits). temperature: softmax(logits / temperature). barred: of that without the stop
tokens that min_new_tokens bars. processed: of what top_p and top_k leave of that.
"""

NOT_SAMPLED = -1
"""The version of a token that no policy sampled: the prompt, a tool's output."""

ROUNDING = 1e-3
"""So far above 0 may a log-probability be that an engine computed in few bits, in nats."""

LEAST_TEMPERATURE = 1e-4
"""Below it a float32 logit divided by the temperature may overflow."""


@dataclass(frozen=True)
class GenerationHyperparameters:
    """How to sample. The names are AReaL's; the meaning of each is the engines' common one."""

    n_samples: int = field(default=1, metadata={"help": "samples per row: the size of the group"})
    max_new_tokens: int = field(default=256, metadata={"help": "longest completion, in tokens"})
    min_new_tokens: int = field(default=0, metadata={"help": "stop tokens are barred before this"})
    greedy: bool = field(default=False, metadata={"help": "take the likeliest token"})
    temperature: float = field(default=1.0, metadata={"help": "sampling temperature, > 0"})
    top_p: float = field(default=1.0, metadata={"help": "nucleus: smallest mass kept, 1 is all"})
    top_k: int = field(default=-1, metadata={"help": "how many tokens are kept, -1 is all"})
    stop_token_ids: tuple[int, ...] = field(default=(), metadata={"help": "ids that end it"})
    stop: tuple[str, ...] = field(
        default=(), metadata={"help": "strings that end it, at the token that completes one"}
    )
    seed: int | None = field(default=None, metadata={"help": "fixes the samples of one request"})

    def __post_init__(self) -> None:
        for name in ("stop_token_ids", "stop"):  # lists are welcome; a frozen value must hash
            object.__setattr__(self, name, tuple(getattr(self, name)))
        for name, ok, rule in (
            ("n_samples", self.n_samples >= 1, "at least 1"),
            ("max_new_tokens", self.max_new_tokens >= 1, "at least 1"),
            ("min_new_tokens", 0 <= self.min_new_tokens <= self.max_new_tokens,
             "between 0 and max_new_tokens"),
            ("temperature", self.temperature > 0, "above 0 (for the likeliest token: greedy=true)"),
            ("top_p", 0 < self.top_p <= 1, "above 0 and at most 1"),
            ("top_k", self.top_k == -1 or self.top_k >= 1, "-1 (all) or at least 1"),
        ):  # fmt: skip
            if not ok:
                raise ValueError(f"{name} is {getattr(self, name)}, it must be {rule}")

    def new(self, **changes: Any) -> GenerationHyperparameters:
        """A copy with some fields changed."""
        return replace(self, **changes)

    def new_with_stop_and_pad_token_ids(self, tokenizer: Any) -> GenerationHyperparameters:
        """A copy that also stops at the tokenizer's end and padding tokens."""
        ids = {*self.stop_token_ids, tokenizer.eos_token_id, tokenizer.pad_token_id} - {None}
        return replace(self, stop_token_ids=tuple(sorted(ids)))


@dataclass(frozen=True, slots=True)
class ModelRequest:
    """One prompt for the engine, as token ids; text never crosses this line."""

    input_ids: Sequence[int]
    gconfig: GenerationHyperparameters = GenerationHyperparameters()
    rid: str = field(default_factory=lambda: uuid.uuid4().hex)
    metadata: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ModelResponse:
    """One sample. The three output lists have one entry per sampled token.

    output_logprobs: log pi_v(token | prefix) under the sampling temperature actually used, in
        nats, before any top-p or top-k cut.
    output_versions: v, the policy version that sampled the token.
    versions_from: the server stamped them; or it told too little, and the client stamped the
        version that was verified before the tokens' request: they are no older than that.
    """

    input_tokens: Sequence[int]
    output_tokens: Sequence[int]
    output_logprobs: Sequence[float]
    output_versions: Sequence[int]
    stop_reason: StopReason
    versions_from: VersionsFrom = "server"

    @property
    def input_len(self) -> int:
        return len(self.input_tokens)

    @property
    def output_len(self) -> int:
        return len(self.output_tokens)


@dataclass(frozen=True, slots=True)
class Completion:
    """One sample as a reward function may ask about it.

    ground_truth: what compute_score gets beside the text. prompt: as the row has it, text or chat
    messages. prompt_text: as the model saw it. row: its columns. What a workflow does not give is
    None or empty, and a reward function that takes it cannot be used with that workflow.
    """

    text: str
    ground_truth: Any = None
    prompt: Any = None
    prompt_text: str | None = None
    prompt_ids: Sequence[int] = ()
    completion_ids: Sequence[int] = ()
    row: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Trajectory:
    """A token stream with its reward. The four lists have one length T; checked here, once.

    loss_mask: 1 where the policy sampled the token, else 0. logprobs: as in ModelResponse, 0
    where the mask is 0. versions: NOT_SAMPLED where the mask is 0. truncated: the sample ended
    by its length. components: the reward's named parts. text: the sampled text, for people.
    name: whose it is, where several roles play an episode ("player", "judge"); a reward is compared
    with those of its own name.

    Raises ValueError with the first rule that does not hold.
    """

    tokens: Sequence[int]
    loss_mask: Sequence[int]
    logprobs: Sequence[float]
    versions: Sequence[int]
    reward: float
    components: Mapping[str, float] = field(default_factory=dict)
    truncated: bool = False
    text: str | None = None
    name: str = ""

    def __post_init__(self) -> None:
        total = self._check_kinds()
        lengths = {len(self.tokens), len(self.loss_mask), len(self.logprobs), len(self.versions)}
        if len(lengths) != 1:
            raise ValueError(
                f"tokens, loss_mask, logprobs and versions have {len(self.tokens)}, "
                f"{len(self.loss_mask)}, {len(self.logprobs)} and {len(self.versions)} entries; "
                "they must have one length"
            )
        sampled = self.loss_mask.count(1)
        if sampled + self.loss_mask.count(0) != len(self.loss_mask):
            raise ValueError("loss_mask may hold only 0 and 1")
        if not sampled:
            raise ValueError("no token is marked as sampled (loss_mask is all 0)")
        if self.loss_mask[0]:
            raise ValueError("the first token cannot be a sampled one: it has no prefix")
        # The sum, a fourth of the time, is finite only where all of them are.
        if not (math.isfinite(total) or all(map(math.isfinite, self.logprobs))):
            raise ValueError("a log-probability is not finite")
        if max(self.logprobs) > ROUNDING:
            raise ValueError(f"a log-probability is {max(self.logprobs)}, it must be at most 0")
        if min(self.tokens) < 0:
            raise ValueError(f"a token id is {min(self.tokens)}, it must not be negative")
        if self.oldest_version < 0:
            raise ValueError("a sampled token has no version")
        for name, value in (("the reward", self.reward), *self.components.items()):
            if not isinstance(name, str):
                raise ValueError(f"components are named by text, not by {name!r}")
            if name in ("mean", "std"):
                raise ValueError(f"a component is named {name}, as a metric of the whole reward is")
            if not isinstance(value, int | float) or not math.isfinite(value):
                raise ValueError(f"{name} is {value!r}, it must be a finite number")

    def _check_kinds(self) -> float:
        """Sums tell in a microsecond what a look at every entry tells in ten. That of logprobs."""
        total = 0.0
        for name in ("tokens", "loss_mask", "logprobs", "versions"):
            value = getattr(self, name)
            if type(value) is not list and not _is_sequence(value):
                kind = type(value).__name__
                raise ValueError(f"{name} is a {kind}, it must be a list; give its .tolist()")
            try:
                if name == "logprobs":
                    total = float(sum(value))
                else:
                    index(sum(value))
            except TypeError:
                rule = "" if name == "logprobs" else "whole "
                raise ValueError(f"{name} must hold {rule}numbers alone") from None
        if type(self.components) is not dict and not isinstance(self.components, Mapping):
            raise ValueError("components must be a mapping of names to numbers")
        if not isinstance(self.truncated, bool):
            raise ValueError(f"truncated is {self.truncated!r}, it must be True or False")
        if self.text is not None and not isinstance(self.text, str):
            raise ValueError(f"text is a {type(self.text).__name__}, it must be a str or None")
        if not isinstance(self.name, str):
            raise ValueError(f"name is a {type(self.name).__name__}, it must be a str")
        return total

    @classmethod
    def from_response(
        cls,
        response: ModelResponse,
        reward: float | Mapping[str, float],
        text: str | None = None,
    ) -> Trajectory:
        """The single-turn case: the prompt is context, every output token is trained.

        A mapping of named rewards is summed, and its parts are kept as components.
        """
        components = dict(reward) if isinstance(reward, Mapping) else {}
        total = sum(components.values()) if isinstance(reward, Mapping) else reward
        n, m = response.input_len, response.output_len
        return cls(
            tokens=[*response.input_tokens, *response.output_tokens],
            loss_mask=[0] * n + [1] * m,
            logprobs=[0.0] * n + list(response.output_logprobs),
            versions=[NOT_SAMPLED] * n + list(response.output_versions),
            reward=total,
            components=components,
            truncated=response.stop_reason == "length",
            text=text,
        )

    @property
    def sampled(self) -> int:
        """How many tokens the policy sampled."""
        return self.loss_mask.count(1)

    @property
    def oldest_version(self) -> int:
        """The version of the oldest sampled token."""
        first = self.loss_mask.index(1)
        if self.loss_mask.count(1) == len(self.loss_mask) - first:  # one turn: many times faster
            versions = self.versions[first:]
            one = versions[0]  # and mostly one version: a third of min's time
            return one if versions.count(one) == len(versions) else min(versions)
        return min(compress(self.versions, self.loss_mask))


def _is_sequence(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str | bytes)


@dataclass(frozen=True, slots=True)
class Episode:
    """All trajectories of one row: the group, carried by identity and never by a stride.

    sample_id: "epoch:index" of the row. version: the published version when it was admitted.
    row: the data that was played.
    """

    sample_id: str
    version: int
    trajectories: tuple[Trajectory, ...]
    row: Mapping[str, Any] = field(default_factory=dict)

    @property
    def reward(self) -> float:
        """Mean reward over the trajectories."""
        return sum(t.reward for t in self.trajectories) / len(self.trajectories)


@dataclass(frozen=True, slots=True)
class Probe:
    """Known tokens with the trainer's own log-probabilities: what a right engine must answer.

    logprobs[i] is log pi(input_ids[i + 1] | input_ids[: i + 1]) at temperature 1, in nats.
    """

    input_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    tolerance: float


@dataclass(frozen=True, slots=True)
class WeightUpdate:
    """A policy on its way to the engines: a complete Hugging Face folder and its probe.

    vocabulary: how many token ids the model has; an engine that samples another serves another
    model. None where it is not known.
    """

    version: int
    path: str
    probe: Probe
    vocabulary: int | None = None
