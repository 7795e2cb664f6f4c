"""SGLang's wire format as pure functions: requests are built and replies parsed here, no I/O.

The embedded server speaks the same. Log-probabilities mean: of the sampled token, under the
sampling temperature, not renormalised for top-p or top-k. A reply is believed only where it
answers the request that was sent: the name, the prompt's length and the tokens must agree.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from arealite.errors import EngineError
from arealite.types import ROUNDING, GenerationHyperparameters, VersionsFrom

MAX_SEED = (1 << 63) - 1

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


def generate_body(
    input_ids: Sequence[int],
    gconfig: GenerationHyperparameters,
    rid: str,
    n: int,
    done: int = 0,
    index: int = 0,
) -> dict[str, Any]:
    """The body of POST /generate for n samples.

    done: tokens of the sample that input_ids already hold. index: which sample of its group the
    first one is. Sample i of a group has the seed + i, and draws by seed and position: one that
    is sent again goes on with its own random numbers and not with another's.
    """
    params: dict[str, Any] = {
        "max_new_tokens": gconfig.max_new_tokens - done,
        "min_new_tokens": max(0, gconfig.min_new_tokens - done),
        "temperature": 0.0 if gconfig.greedy else gconfig.temperature,
        "top_p": gconfig.top_p,
        "top_k": gconfig.top_k,
        "stop_token_ids": list(gconfig.stop_token_ids),
        "n": n,
    }
    if gconfig.stop:
        params["stop"] = list(gconfig.stop)
    if gconfig.seed is not None:
        params["sampling_seed"] = (gconfig.seed + index) & MAX_SEED
    return {
        "input_ids": list(input_ids),
        "sampling_params": params,
        "return_logprob": True,
        "rid": rid,
    }


def parse_generate(
    reply: Any, asked: Mapping[str, Any], mark: str, known: int | None
) -> list[Part]:
    """The samples of a reply to the body `asked`. Raises EngineError naming what is wrong.

    mark: how the names of all our requests begin. known: the version that was verified on this
    server before the request, if one was: what a server does not tell counts as that old.
    """
    n = asked["sampling_params"]["n"]
    items = reply if isinstance(reply, list) else [reply]
    if len(items) != n:
        raise EngineError(f"the server answered {len(items)} samples, {n} were asked for")
    try:
        return [_parse_one(item, asked, mark, known) for item in items]
    except MALFORMED as error:
        raise EngineError(f"the server's reply is malformed: {error!r}") from None


def probe_body(input_ids: Sequence[int], rid: str) -> dict[str, Any]:
    """Asks for the log-probabilities of known tokens."""
    return {
        "input_ids": list(input_ids),
        "sampling_params": {"max_new_tokens": 0, "temperature": 1.0, "n": 1},
        "return_logprob": True,
        "logprob_start_len": 0,
        "rid": rid,
    }


def parse_probe(reply: Any, asked: Mapping[str, Any], mark: str, version: int) -> list[float]:
    """log pi(token i + 1 | tokens up to i), one fewer than tokens.

    version: what the server was told that its weights are. Raises EngineError.
    """
    try:
        meta = reply["meta_info"]
        _check_addressee(meta, asked, mark)
        entries = meta["input_token_logprobs"]
        tokens = [entry[1] for entry in entries]
        logprobs = [float(entry[0]) for entry in entries[1:]]
        told = meta.get("weight_version")
        reported = version if told is None else _version(told)
    except MALFORMED as error:
        raise EngineError(f"the probe's reply is malformed: {error!r}") from None
    if len(tokens) == len(asked["input_ids"]) and tokens != asked["input_ids"]:
        raise EngineError("the probe's reply is about other tokens than were sent")
    if reported != version:
        raise EngineError(f"it answers the probe as version {reported}")
    return logprobs


def parse_model_info(reply: Any) -> int | None:
    """The version that the server says it serves; None when it says nothing that can be read."""
    try:
        return _version(reply["weight_version"])
    except MALFORMED:
        return None


def _parse_one(item: Any, asked: Mapping[str, Any], mark: str, known: int | None) -> Part:
    meta, tokens = item["meta_info"], item["output_ids"]
    _check_addressee(meta, asked, mark)
    entries = meta["output_token_logprobs"]
    logprobs = [float(entry[0]) for entry in entries]
    finish = str(meta["finish_reason"]["type"])
    versions, versions_from = _versions(meta, len(tokens), known)
    if not len(tokens) == len(logprobs) == len(versions):
        raise EngineError(
            f"the server answered {len(tokens)} tokens, {len(logprobs)} log-probabilities and "
            f"{len(versions)} versions; they must be as many"
        )
    if not all(type(token) is int and token >= 0 for token in tokens):
        raise EngineError("the server answered a token that is no whole number from 0 on")
    if any(entry[1] != token for entry, token in zip(entries, tokens, strict=True)):
        raise EngineError("the server's log-probabilities are of other tokens than its sample")
    if len(tokens) > (most := asked["sampling_params"]["max_new_tokens"]):
        raise EngineError(f"the server sampled {len(tokens)} tokens, at most {most} were asked for")
    if not all(map(math.isfinite, logprobs)):
        raise EngineError("the server answered a log-probability that is not finite")
    if max(logprobs, default=0.0) > ROUNDING:
        raise EngineError(f"the server answered a log-probability above 0: {max(logprobs):.3g}")
    if finish not in ("stop", "length", "abort"):
        raise EngineError(f"the server ended a sample for an unknown reason: {finish}")
    return Part(tokens, logprobs, versions, finish, versions_from)


def _check_addressee(meta: Mapping[str, Any], asked: Mapping[str, Any], mark: str) -> None:
    """The reply must be to this request and not to another one, where it says."""
    rid, name = asked["rid"], meta.get("id")
    if name is not None and name != rid:
        # SGLang gives the samples of a group names of its own; the embedded server numbers them.
        single = asked["sampling_params"]["n"] == 1
        if single or (str(name).startswith(mark) and not str(name).startswith(f"{rid}-")):
            raise EngineError(f"the server answered the request {name}, asked was {rid}")
    length, told = len(asked["input_ids"]), meta.get("prompt_tokens")
    if told is not None and told != length:
        raise EngineError(f"the server answered a prompt of {told} tokens, sent were {length}")


def _versions(
    meta: Mapping[str, Any], n_tokens: int, known: int | None
) -> tuple[list[int], VersionsFrom]:
    """One version per token, and who says so."""
    if meta.get("weight_versions"):
        return _spread(meta["weight_versions"], n_tokens), "server"
    if meta.get("weight_version") is None:
        return [known or 0] * n_tokens, "client"
    last = _version(meta["weight_version"])
    if known is not None and last > known:  # it changed under way, and we are not told where
        return [known] * n_tokens, "client"
    return [last] * n_tokens, "server"


def _spread(spans: Any, n_tokens: int) -> list[int]:
    """One version per token from the spans [{version, start, end}], end exclusive."""
    versions: list[int] = []
    for span in spans:
        if span["start"] != len(versions):
            raise ValueError(f"version spans leave a gap at token {len(versions)}")
        if span["end"] > n_tokens:
            raise ValueError(f"version spans end at token {span['end']} of {n_tokens}")
        version = _version(span["version"])
        if versions and version < versions[-1]:
            raise ValueError(f"versions go backwards, from {versions[-1]} to {version}")
        versions.extend([version] * (span["end"] - span["start"]))
    return versions


def _version(name: Any) -> int:
    """SGLang names its first weights "default" until it is told a version."""
    return 0 if name == "default" else int(name)
