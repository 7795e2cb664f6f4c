"""What the client has to know of a server's protocol, and what all of them have in common. No I/O.

A dialect is a module of pure functions (sglang, vllm). It builds the bodies of requests and reads
replies; who is asked, how often, and what is done when it fails is the same for all of them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from arealite.errors import EngineError
from arealite.types import (
    ROUNDING,
    GenerationHyperparameters,
    LogprobMeaning,
    VersionsFrom,
    WeightUpdate,
)

MAX_SEED = (1 << 63) - 1

NO_KEY = "it wants an API key: give it as AREALITE_SERVER_KEY"

MALFORMED = (KeyError, TypeError, ValueError, IndexError, OverflowError, AttributeError)
"""What reading a reply of the wrong shape raises."""


@dataclass(frozen=True, slots=True)
class Part:
    """What one reply adds to a sample. `finish` is stop, length or abort."""

    tokens: list[int]
    logprobs: list[float]
    versions: list[int]
    finish: str
    versions_from: VersionsFrom = "server"

    def then(self, more: Part) -> Part:
        """Both, one after the other."""
        return Part(
            self.tokens + more.tokens,
            self.logprobs + more.logprobs,
            self.versions + more.versions,
            more.finish,
            "client" if "client" in (self.versions_from, more.versions_from) else "server",
        )

    def cut(self, end: int) -> Part:
        """The first `end` tokens, as a sample that stopped there."""
        return replace(
            self,
            tokens=self.tokens[:end],
            logprobs=self.logprobs[:end],
            versions=self.versions[:end],
            finish="stop",
        )


@dataclass(frozen=True, slots=True)
class Step:
    """One POST of a weight update. confirmed: the key that must be true in the reply, if any."""

    path: str
    body: Mapping[str, Any] = field(default_factory=dict)
    confirmed: str = ""


@dataclass(frozen=True, slots=True)
class Question:
    """What a server is asked to learn what it can do; without a body it is a GET."""

    path: str
    body: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Answer:
    """status: HTTP's; value: the JSON that came, or the text where it is none."""

    status: int
    value: Any = None


@dataclass(frozen=True, slots=True)
class Abilities:
    """What one server can do; the defaults hold for one that was not asked.

    name: the program and its version. meaning: what its log-probabilities are; None: it does not
    say. most_samples: of one request; None: any number. obeys_seeds: equal seeds give equal
    samples. seeds_group: sample i of a request with a seed draws by the seed + i; else all of them
    would be the same. loader: how it takes weights,
    in the dialect's own words. counters: where it keeps them, if not at COUNTERS. lacks: what it
    cannot do and a run needs, with the remedy.
    """

    name: str = ""
    meaning: LogprobMeaning | None = None
    most_samples: int | None = None
    obeys_seeds: bool = True
    seeds_group: bool = True
    loader: str = ""
    counters: str = ""
    lacks: str = ""

    def samples_of(self, n: int, is_seeded: bool) -> int:
        """How many of n samples one request may ask for."""
        if is_seeded and self.obeys_seeds and not self.seeds_group:
            return 1
        return n if self.most_samples is None else max(1, min(n, self.most_samples))

    def __str__(self) -> str:
        means = self.meaning or "of unknown meaning"
        words = [self.name or "an unknown server", f"log-probabilities {means}"]
        if self.loader:
            words.append(f"weights by {self.loader}")
        if self.most_samples is not None:
            words.append(f"at most {self.most_samples} samples a request")
        if not self.obeys_seeds:
            words.append("seeds are not obeyed")
        elif not self.seeds_group:
            words.append("samples with a seed are asked for one by one")
        return ", ".join(words)


class Dialect(Protocol):
    """A module that speaks one server's protocol. What reads a reply raises EngineError."""

    @property
    def GENERATE(self) -> str:
        """The path to which samples and probes are posted."""

    @property
    def ALIVE(self) -> str:
        """The path that a server answers as long as it can work, paused or not."""

    @property
    def COUNTERS(self) -> str:
        """The path of its counters."""

    @property
    def QUESTIONS(self) -> Sequence[Question]:
        """What it is asked once it answers."""

    def abilities(self, answers: Sequence[Answer]) -> Abilities:
        """What the answers to the questions say, in their order."""

    def generate_body(
        self,
        input_ids: Sequence[int],
        gconfig: GenerationHyperparameters,
        rid: str,
        n: int,
        done: int = 0,
        index: int = 0,
    ) -> dict[str, Any]:
        """Asks for n samples.

        done: tokens of the sample that input_ids already hold. index: which sample of its group
        the first one is: sample i of a group draws by the seed + i.
        """

    def parse_generate(
        self, reply: Any, asked: Mapping[str, Any], mark: str, known: int | None
    ) -> list[Part]:
        """The samples of a reply to the body `asked`.

        mark: how the names of all our requests begin. known: the version that was verified on
        this server before the request, if one was: what a server does not tell counts as that old.
        """

    def probe_body(self, input_ids: Sequence[int], rid: str) -> dict[str, Any]:
        """Asks for the log-probabilities of known tokens."""

    def parse_probe(
        self, reply: Any, asked: Mapping[str, Any], mark: str, version: int
    ) -> list[float]:
        """log pi(token i + 1 | tokens up to i) at temperature 1, one fewer than tokens.

        version: what the server was told that its weights are.
        """

    def parse_counters(self, reply: Any) -> Mapping[str, float]:
        """tokens_generated, or where it is not counted used_tokens (those in the cache); running,
        waiting and what else the server counts."""

    def update_steps(self, update: WeightUpdate, mode: str, abilities: Abilities) -> list[Step]:
        """Pause, load, resume. mode: running samples recompute their cache (retract) or keep it."""

    def recovery_steps(self, abilities: Abilities) -> list[Step]:
        """What ends an update that was broken off; each may fail."""


def checked(part: Part, logprobs_of: Sequence[int], most: int) -> Part:
    """The part, if it can be what was asked for. Raises EngineError.

    logprobs_of: the tokens that the log-probabilities are of. most: tokens that were asked for.
    """
    tokens, logprobs = part.tokens, part.logprobs
    if not len(tokens) == len(logprobs) == len(part.versions):
        raise EngineError(
            f"the server answered {len(tokens)} tokens, {len(logprobs)} log-probabilities and "
            f"{len(part.versions)} versions; they must be as many"
        )
    if not all(type(token) is int and token >= 0 for token in tokens):
        raise EngineError("the server answered a token that is no whole number from 0 on")
    if any(of != token for of, token in zip(logprobs_of, tokens, strict=True)):
        raise EngineError("the server's log-probabilities are of other tokens than its sample")
    if len(tokens) > most:
        raise EngineError(f"the server sampled {len(tokens)} tokens, at most {most} were asked for")
    if not all(map(math.isfinite, logprobs)):
        raise EngineError("the server answered a log-probability that is not finite")
    if max(logprobs, default=0.0) > ROUNDING:
        raise EngineError(f"the server answered a log-probability above 0: {max(logprobs):.3g}")
    if part.finish not in ("stop", "length", "abort"):
        raise EngineError(f"the server ended a sample for an unknown reason: {part.finish}")
    return part


def spread(spans: Any, n_tokens: int) -> list[int]:
    """One version per token from the spans [{version, start, end}], end exclusive."""
    versions: list[int] = []
    for span in spans:
        if span["start"] != len(versions):
            raise ValueError(f"version spans leave a gap at token {len(versions)}")
        if span["end"] > n_tokens:
            raise ValueError(f"version spans end at token {span['end']} of {n_tokens}")
        version = version_of(span["version"])
        if versions and version < versions[-1]:
            raise ValueError(f"versions go backwards, from {versions[-1]} to {version}")
        versions.extend([version] * (span["end"] - span["start"]))
    return versions


def check_prompt(told: Any, length: int) -> None:
    """told: how many tokens the prompt of a reply has, where it says. Raises EngineError."""
    if told is not None and told != length:
        raise EngineError(f"the server answered a prompt of {told} tokens, sent were {length}")


def check_version(reported: int, version: int) -> None:
    """reported: what a probe was answered as. Raises EngineError."""
    if reported != version:
        raise EngineError(f"it answers the probe as version {reported}")


def told_version(reply: Any) -> int | None:
    """The version that a reply to ALIVE tells; None when it tells none that can be read."""
    try:
        return version_of(reply["weight_version"])
    except MALFORMED:
        return None


def version_of(name: Any) -> int:
    """Servers name their first weights "default" until they are told a version."""
    return 0 if name == "default" else int(name)
