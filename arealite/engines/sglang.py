"""SGLang's wire format as pure functions: requests are built and replies parsed here, no I/O.

The embedded server speaks the same. Log-probabilities mean: of the sampled token, under the
sampling temperature, not renormalised for top-p or top-k.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from arealite.errors import EngineError
from arealite.types import GenerationHyperparameters

ROUNDING = 1e-3
"""How far above 0 rounding may lift a log-probability."""


@dataclass(frozen=True, slots=True)
class Part:
    """What one reply adds to a sample. `finish` is stop, length or abort."""

    tokens: list[int]
    logprobs: list[float]
    versions: list[int]
    finish: str


def generate_body(
    input_ids: Sequence[int], gconfig: GenerationHyperparameters, rid: str, n: int, done: int = 0
) -> dict[str, Any]:
    """The body of POST /generate for n samples; `done` tokens were already sampled before."""
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
        params["sampling_seed"] = gconfig.seed
    return {
        "input_ids": list(input_ids),
        "sampling_params": params,
        "return_logprob": True,
        "rid": rid,
    }


def parse_generate(reply: Any, n: int) -> list[Part]:
    """The n samples of a reply. Raises EngineError naming what is wrong with it."""
    items = reply if isinstance(reply, list) else [reply]
    if len(items) != n:
        raise EngineError(f"the server answered {len(items)} samples, {n} were asked for")
    return [_parse_one(item) for item in items]


def probe_body(input_ids: Sequence[int]) -> dict[str, Any]:
    """Asks for the log-probabilities of known tokens."""
    return {
        "input_ids": list(input_ids),
        "sampling_params": {"max_new_tokens": 0, "temperature": 1.0},
        "return_logprob": True,
        "logprob_start_len": 0,
    }


def parse_probe(reply: Any) -> list[float]:
    """log pi(token i + 1 | tokens up to i), one fewer than tokens. Raises EngineError."""
    try:
        entries = reply["meta_info"]["input_token_logprobs"][1:]
        return [float(entry[0]) for entry in entries]
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise EngineError(f"the probe's reply is malformed: {error!r}") from None


def _parse_one(item: Mapping[str, Any]) -> Part:
    try:
        meta = item["meta_info"]
        tokens = [int(t) for t in item["output_ids"]]
        logprobs = [float(entry[0]) for entry in meta["output_token_logprobs"]]
        finish = str(meta["finish_reason"]["type"])
        versions = _spread(meta, len(tokens))
    except (KeyError, TypeError, ValueError, IndexError, OverflowError) as error:
        raise EngineError(f"the server's reply is malformed: {error!r}") from None
    if not len(tokens) == len(logprobs) == len(versions):
        raise EngineError(
            f"the server answered {len(tokens)} tokens, {len(logprobs)} log-probabilities and "
            f"{len(versions)} versions; they must be as many"
        )
    if not all(map(math.isfinite, logprobs)):
        raise EngineError("the server answered a log-probability that is not finite")
    if max(logprobs, default=0.0) > ROUNDING:
        raise EngineError(f"the server answered a log-probability above 0: {max(logprobs):.3g}")
    if finish not in ("stop", "length", "abort"):
        raise EngineError(f"the server ended a sample for an unknown reason: {finish}")
    return Part(tokens, logprobs, versions, finish)


def _spread(meta: Mapping[str, Any], n_tokens: int) -> list[int]:
    """One version per token from the spans [{version, start, end}], end exclusive."""
    spans = meta.get("weight_versions")
    if not spans:
        return [_version(meta["weight_version"])] * n_tokens
    versions: list[int] = []
    for span in spans:
        if span["start"] != len(versions):
            raise ValueError(f"version spans leave a gap at token {len(versions)}")
        if span["end"] > n_tokens:
            raise ValueError(f"version spans end at token {span['end']} of {n_tokens}")
        versions.extend([_version(span["version"])] * (span["end"] - span["start"]))
    return versions


def _version(name: Any) -> int:
    """Servers name their first weights "default" until they are told a version."""
    return 0 if name in ("default", None) else int(name)
