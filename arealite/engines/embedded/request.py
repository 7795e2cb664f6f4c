"""SGLang's `/generate` in and out: checked requests, samples, replies. No I/O, no torch."""

from __future__ import annotations

import asyncio
import difflib
import math
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from arealite.engines.dialect import MAX_SEED
from arealite.engines.stops import StopWatch
from arealite.types import LEAST_TEMPERATURE

MAX_STOP = 256
"""Characters of a stop string: so many tokens are looked at after each step."""


class RequestError(Exception):
    """The client's request cannot be served; `status` is the HTTP status, the text one sentence."""

    def __init__(self, message: str, status: int = 400) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True, slots=True)
class Limits:
    """What the server allows.

    context: prompt and completion together, in tokens. samples: of one request.
    """

    vocab: int
    context: int
    eos_ids: tuple[int, ...]
    samples: int


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """Checked sampling parameters. temperature 0 is greedy; top_k -1 keeps all tokens.

    stop: strings, looked for from the first token on; min_new_tokens bars stop_ids alone.
    """

    max_new_tokens: int = 128
    min_new_tokens: int = 0
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = -1
    stop_ids: tuple[int, ...] = ()
    stop: tuple[str, ...] = ()
    seed: int | None = None
    n: int = 1


@dataclass(eq=False, slots=True)
class Sample:
    """One completion on its way: n of them make one request.

    key: the prompt as a tuple, shared by the samples of one prompt. offset: the position of the
    token to be fed next, minus the scheduler's step count (both grow together). spans: (version,
    index of its first output token), in order. watch: looks for stop strings, if it has any.
    """

    id: str
    rid: str
    key: tuple[int, ...]
    params: SamplingParams
    seed: int
    wants_prompt_logprobs: bool
    job: Job
    watch: StopWatch | None = None
    slot: int = -1
    offset: int = 0
    stale: bool = False
    cached_tokens: int = 0
    spans: list[tuple[str, int]] = field(default_factory=list)
    prompt_logprobs: list[float] | None = None
    output_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    finish_reason: dict[str, Any] | None = None

    def stamp(self, version: str, start: int) -> None:
        """From output token `start` on, tokens are sampled by `version`."""
        if self.spans and self.spans[-1][1] == start:
            self.spans.pop()
        if not self.spans or self.spans[-1][0] != version:
            self.spans.append((version, start))


@dataclass(eq=False, slots=True)
class Job:
    """One HTTP request: its samples, and the future that is done when all of them are."""

    future: asyncio.Future[None]
    single: bool = True
    samples: list[Sample] = field(default_factory=list)
    pending: int = 0

    def settle(self) -> None:
        """One sample has ended."""
        self.pending -= 1
        if self.pending == 0 and not self.future.done():
            self.future.set_result(None)


def parse_generate(
    body: Any, limits: Limits, new_seed: Callable[[], int], future: asyncio.Future[None]
) -> Job:
    """Checks the body of `/generate`. Raises RequestError with one clear sentence."""
    if not isinstance(body, dict):
        raise RequestError("the body must be a JSON object")
    for name in ("text", "stream", "input_embeds", "image_data", "lora_path"):
        if body.get(name):
            raise RequestError(f"{name} is not supported here: send input_ids, get whole replies")
    given = body.get("input_ids")
    if not isinstance(given, list) or not given:
        raise RequestError("input_ids must be a non-empty list of token ids")
    batch = isinstance(given[0], list)
    prompts = given if batch else [given]
    settings = _spread("sampling_params", body.get("sampling_params") or {}, dict, len(prompts))
    rids = _spread("rid", body.get("rid") or uuid.uuid4().hex, str, len(prompts))
    start = body.get("logprob_start_len", -1)
    if start not in (None, -1, 0) or isinstance(start, bool):
        raise RequestError(f"logprob_start_len is {start!r}, it must be 0 or absent")
    job = Job(future)
    for prompt, setting, rid in zip(prompts, settings, rids, strict=True):
        params = parse_sampling(setting, limits)
        key = _check_prompt(prompt, params, limits)
        if len(job.samples) + params.n > limits.samples:
            raise RequestError(f"one request may ask for at most {limits.samples} samples")
        first = new_seed() if params.seed is None else params.seed
        for i in range(params.n):
            name = rid if params.n == 1 and not batch else f"{rid}-{len(job.samples)}"
            seed = (first + i) & MAX_SEED
            job.samples.append(Sample(name, rid, key, params, seed, start == 0, job))
    job.single = not batch and len(job.samples) == 1
    job.pending = len(job.samples)
    return job


def _spread(name: str, value: Any, kind: type, count: int) -> Sequence[Any]:
    """One value for all prompts, or a list with one for each."""
    values = value if isinstance(value, list) else [value] * count
    if len(values) != count:
        raise RequestError(f"{name} has {len(values)} entries for {count} prompts")
    for one in values:
        if not isinstance(one, kind):
            wanted = {"dict": "an object", "str": "a string"}[kind.__name__]
            raise RequestError(f"{name} must be {wanted}, not {type(one).__name__}")
    return values


def _check_prompt(prompt: Any, params: SamplingParams, limits: Limits) -> tuple[int, ...]:
    if not isinstance(prompt, list) or not prompt:
        raise RequestError("input_ids must be a non-empty list of token ids")
    if not all(type(i) is int for i in prompt):
        raise RequestError("input_ids must hold whole numbers only")
    low, high = min(prompt), max(prompt)
    if low < 0 or high >= limits.vocab:
        wrong = low if low < 0 else high
        raise RequestError(f"token id {wrong} is outside the vocabulary (0 to {limits.vocab - 1})")
    total = len(prompt) + params.max_new_tokens
    if total > limits.context:
        raise RequestError(
            f"the prompt of {len(prompt)} tokens and max_new_tokens {params.max_new_tokens} make "
            f"{total}, over the context length of {limits.context}"
        )
    return tuple(prompt)


_NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    # Parameters of the protocol that change nothing when they have one of these values.
    "skip_special_tokens": (True, False),
    "spaces_between_special_tokens": (True, False),
    "no_stop_trim": (True, False),
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "repetition_penalty": (1,),
    "min_p": (0,),
    "stop_regex": (None, [], ""),
    "json_schema": (None,),
    "regex": (None,),
    "ebnf": (None,),
    "logit_bias": (None, {}),
}


def parse_sampling(given: Mapping[str, Any], limits: Limits) -> SamplingParams:
    """Checks one `sampling_params` object. Raises RequestError."""
    rest = dict(given)
    most = _whole(rest, "max_new_tokens", 128, 0)
    least = _whole(rest, "min_new_tokens", 0, 0)
    if least > most:
        raise RequestError(f"min_new_tokens {least} is more than max_new_tokens {most}")
    temperature = _number(rest, "temperature", 1.0)
    if temperature != 0 and temperature < LEAST_TEMPERATURE:
        raise RequestError(
            f"temperature is {temperature}, it must be 0 (greedy) or at least {LEAST_TEMPERATURE}"
        )
    top_p = _number(rest, "top_p", 1.0)
    if not 0 < top_p <= 1:
        raise RequestError(f"top_p is {top_p}, it must be above 0 and at most 1")
    top_k = _whole(rest, "top_k", -1, -1)
    if top_k == 0:
        raise RequestError("top_k is 0, it must be -1 (all) or at least 1")
    top_k = min(top_k, limits.vocab)  # above it means all, and no tensor holds any number
    seed = rest.pop("sampling_seed", None)
    if seed is not None and (type(seed) is not int or not 0 <= seed <= MAX_SEED):
        raise RequestError(f"sampling_seed is {seed!r}, it must be a whole number from 0 to 2^63-1")
    stop_ids, stop = _stop_ids(rest, limits), _stop_strings(rest)
    if least and len(stop_ids) == limits.vocab:
        raise RequestError(
            f"min_new_tokens is {least}, but every token of the vocabulary is a stop token, which "
            "it bars: nothing is left to sample; give fewer stop_token_ids or min_new_tokens 0"
        )
    n = _whole(rest, "n", 1, 1)
    for name, value in rest.items():
        _refuse_unknown(name, value)
    return SamplingParams(most, least, temperature, top_p, top_k, stop_ids, stop, seed, n)


def _stop_ids(rest: dict[str, Any], limits: Limits) -> tuple[int, ...]:
    """The request's stop tokens and, unless ignore_eos, the model's own."""
    stops = rest.pop("stop_token_ids", None) or []
    if not isinstance(stops, list) or not all(type(i) is int for i in stops):
        raise RequestError("stop_token_ids must be a list of whole numbers")
    ignore_eos = rest.pop("ignore_eos", False)
    if not isinstance(ignore_eos, bool):
        raise RequestError("ignore_eos must be true or false")
    ids = {*stops, *(() if ignore_eos else limits.eos_ids)}
    return tuple(sorted(i for i in ids if 0 <= i < limits.vocab))


def _stop_strings(rest: dict[str, Any]) -> tuple[str, ...]:
    """One string or several; none is the same as nothing to stop at."""
    given = rest.pop("stop", None) or []
    strings = [given] if isinstance(given, str) else given
    if not isinstance(strings, list) or not all(isinstance(s, str) and s for s in strings):
        raise RequestError("stop must be a string or a list of strings, none of them empty")
    if any(len(string) > MAX_STOP for string in strings):
        raise RequestError(f"a stop string may have at most {MAX_STOP} characters")
    return tuple(strings)


def _refuse_unknown(name: str, value: Any) -> None:
    if name not in _NEUTRAL:
        known = ["max_new_tokens", "min_new_tokens", "temperature", "top_p", "top_k",
                 "stop_token_ids", "stop", "ignore_eos", "sampling_seed", "n"]  # fmt: skip
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise RequestError(f"the sampling parameter {name!r} is not known here{hint}")
    if value not in _NEUTRAL[name]:
        raise RequestError(f"the sampling parameter {name!r} is not supported by this server")


def _whole(rest: dict[str, Any], name: str, default: int, least: int) -> int:
    value = rest.pop(name, None)
    if value is None:
        return default
    if type(value) is not int or value < least:
        raise RequestError(f"{name} is {value!r}, it must be a whole number of at least {least}")
    return value


def _number(rest: dict[str, Any], name: str, default: float) -> float:
    value = rest.pop(name, None)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise RequestError(f"{name} is {value!r}, it must be a finite number")
    return float(value)


def reply(job: Job, version: str) -> Any:
    """The JSON value that answers a job whose samples have all ended."""
    replies = [_reply(sample, version) for sample in job.samples]
    return replies[0] if job.single else replies


def _reply(sample: Sample, version: str) -> dict[str, Any]:
    spans: list[dict[str, Any]] = []
    end = len(sample.output_ids)
    for span_version, start in reversed(sample.spans):
        if start < end:
            spans.insert(0, {"version": span_version, "start": start, "end": end})
        end = start
    meta: dict[str, Any] = {
        "id": sample.id,
        "finish_reason": sample.finish_reason,
        "prompt_tokens": len(sample.key),
        "completion_tokens": len(sample.output_ids),
        "cached_tokens": sample.cached_tokens,
        "weight_version": spans[-1]["version"] if spans else version,
        "weight_versions": spans,
        "output_token_logprobs": [
            (logprob, token, None)
            for logprob, token in zip(sample.logprobs, sample.output_ids, strict=True)
        ],
    }
    if sample.prompt_logprobs is not None:
        values = [None, *sample.prompt_logprobs]
        meta["input_token_logprobs"] = [
            (logprob, token, None) for logprob, token in zip(values, sample.key, strict=True)
        ]
    return {"text": "", "output_ids": sample.output_ids, "meta_info": meta}
