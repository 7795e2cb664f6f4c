"""vLLM's wire format as pure functions: token ids in and out, versions per token. No I/O.

Samples come from /inference/v1/generate (flag --enable-scale-out), weights go in by the routes of
its development mode (VLLM_SERVER_DEV_MODE=1). What its log-probabilities mean is a flag of the
server, --logprobs-mode: before temperature and cuts (raw_logprobs, its default), or after them.
Written against vLLM 0.32.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

from arealite.config.logprobs import VLLM_MODES
from arealite.engines.dialect import (
    MALFORMED,
    NO_KEY,
    Abilities,
    Answer,
    Part,
    Question,
    Step,
    check_prompt,
    check_version,
    checked,
    spread,
)
from arealite.errors import EngineError
from arealite.types import GenerationHyperparameters, VersionsFrom, WeightUpdate

GENERATE, ALIVE, COUNTERS = "/inference/v1/generate", "/weight_info", "/metrics"

SEEDS = 1 << 62
"""Seeds are below this: the server adds a sample's index to one, in 64 bits."""

NO_LOGPROB = -9000.0
"""Below it lies only -9999, which the server sends for what is no finite number."""

_COUNTERS = {
    "vllm:num_requests_running": "running",
    "vllm:num_requests_waiting": "waiting",
    "vllm:generation_tokens_total": "tokens_generated",
    "vllm:prompt_tokens_total": "prompt_tokens",
    "vllm:num_preemptions_total": "preemptions",
}

QUESTIONS = (
    Question("/version"),
    Question("/weight_info"),
    Question(GENERATE, {}),  # it refuses an empty body, in a way that tells whether it is enabled
    Question("/server_info?config_format=json"),
)


def abilities(answers: Sequence[Answer]) -> Abilities:
    """The version, and from the settings: log-probabilities, most samples, weight transfer."""
    version, weights, generate, info = answers
    config = _within(info.value, "vllm_config")
    told = str(_within(config, "model_config").get("logprobs_mode", ""))
    most = _within(config, "scheduler_config").get("max_num_seqs")
    transfer = _within(config, "weight_transfer_config").get("backend")
    return Abilities(
        f"vLLM {_within(version.value).get('version', 'of unknown version')}",
        VLLM_MODES.get(told),
        most if type(most) is int else None,
        loader="file transfer" if transfer == "file" else "reload_weights",
        lacks=_lacks(weights, generate, told),
    )


def _lacks(weights: Answer, generate: Answer, mode: str) -> str:
    if 401 in (weights.status, generate.status):
        return NO_KEY
    if weights.status == 404:
        return "its weights cannot be changed: start it with VLLM_SERVER_DEV_MODE=1"
    if generate.status in (403, 404):
        return "it does not take token ids: start it with --enable-scale-out (vLLM 0.32 or newer)"
    if not mode:
        return "it does not tell what its log-probabilities mean (GET /server_info): use vLLM 0.32"
    if mode not in VLLM_MODES:
        return f"it reports logits (--logprobs-mode {mode}): start it with processed_logprobs"
    return ""


def generate_body(
    input_ids: Sequence[int],
    gconfig: GenerationHyperparameters,
    rid: str,
    n: int,
    done: int = 0,
    index: int = 0,
) -> dict[str, Any]:
    """The body of POST /inference/v1/generate for n samples (see Dialect).

    The server starts the random numbers of a request anew when it is sent again with the tokens
    it has; the seed then depends on how many these are, so that none are used twice.
    """
    params: dict[str, Any] = {
        "n": n,
        "max_tokens": gconfig.max_new_tokens - done,
        "min_tokens": max(0, gconfig.min_new_tokens - done),
        "temperature": 0.0 if gconfig.greedy else gconfig.temperature,
        "top_p": gconfig.top_p,
        "top_k": max(0, gconfig.top_k),
        "stop_token_ids": list(gconfig.stop_token_ids),
        "logprobs": 0,
        "detokenize": bool(gconfig.stop),
    }
    if gconfig.stop:
        # As in our own rule (stops): the text that is searched has its special tokens.
        params |= {"stop": list(gconfig.stop), "skip_special_tokens": False}
    if gconfig.seed is not None:
        params["seed"] = _seed(gconfig.seed + index, done)
    return {"token_ids": list(input_ids), "sampling_params": params, "request_id": rid}


def _seed(seed: int, done: int) -> int:
    if not done:
        return seed % SEEDS
    text = f"{seed}:{done}".encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big") % SEEDS


def parse_generate(
    reply: Any, asked: Mapping[str, Any], mark: str, known: int | None
) -> list[Part]:
    """The samples of a reply to the body `asked` (see Dialect). Raises EngineError."""
    try:
        _check_addressee(reply, asked)
        choices, n = reply["choices"], asked["sampling_params"]["n"]
        if len(choices) != n:
            raise EngineError(f"the server answered {len(choices)} samples, {n} were asked for")
        if (indices := sorted(choice["index"] for choice in choices)) != list(range(n)):
            raise EngineError(f"the server numbered its {n} samples {indices}")
        ordered = sorted(choices, key=lambda choice: int(choice["index"]))
        return [_parse_one(choice, asked, known) for choice in ordered]
    except MALFORMED as error:
        raise EngineError(f"the server's reply is malformed: {error!r}") from None


def _parse_one(choice: Any, asked: Mapping[str, Any], known: int | None) -> Part:
    tokens = choice["token_ids"] or []
    content = (choice["logprobs"] or {}).get("content") or []
    logprobs = [float(entry["logprob"]) for entry in content]
    if min(logprobs, default=0.0) < NO_LOGPROB:
        raise EngineError("the server answered a log-probability that is not finite")
    versions, versions_from = _versions(choice.get("weight_versions"), len(tokens), known)
    part = Part(tokens, logprobs, versions, str(choice["finish_reason"]), versions_from)
    most = asked["sampling_params"]["max_tokens"]
    return checked(part, [entry["token_id"] for entry in content], most)


def _versions(spans: Any, n_tokens: int, known: int | None) -> tuple[list[int], VersionsFrom]:
    """One version per token, and who says so."""
    if spans:
        return spread(spans, n_tokens), "server"
    return [known or 0] * n_tokens, "client" if n_tokens else "server"


def _check_addressee(reply: Any, asked: Mapping[str, Any]) -> None:
    """The reply must be to this request; the server puts a word of its own before the name."""
    name, rid = str(reply["request_id"]), asked["request_id"]
    if name != rid and not name.endswith(f"-{rid}"):
        raise EngineError(f"the server answered the request {name}, asked was {rid}")
    check_prompt((reply.get("usage") or {}).get("prompt_tokens"), len(asked["token_ids"]))


def probe_body(input_ids: Sequence[int], rid: str) -> dict[str, Any]:
    """Asks for the log-probabilities of known tokens.

    These are of softmax(logits) in every mode of the server, and it computes them without its
    prefix cache. It cannot sample nothing: one token is thrown away.
    """
    params = {"n": 1, "max_tokens": 1, "temperature": 0.0, "prompt_logprobs": 0, "logprobs": 0}
    return {
        "token_ids": list(input_ids),
        "sampling_params": {**params, "detokenize": False},
        "request_id": rid,
    }


def parse_probe(reply: Any, asked: Mapping[str, Any], mark: str, version: int) -> list[float]:
    """log pi(token i + 1 | tokens up to i), one fewer than tokens. Raises EngineError."""
    try:
        _check_addressee(reply, asked)
        entries = reply["prompt_logprobs"][1:]
        tokens = asked["token_ids"][1:]
        if len(entries) == len(tokens) and not all(
            str(token) in entry for token, entry in zip(tokens, entries, strict=True)
        ):
            raise EngineError("the probe's reply is about other tokens than were sent")
        logprobs = [
            float(entry[str(token)]["logprob"])
            for token, entry in zip(tokens, entries, strict=False)
        ]
        spans = reply["choices"][0].get("weight_versions")
        reported = spread(spans, 1)[0] if spans else version
    except MALFORMED as error:
        raise EngineError(f"the probe's reply is malformed: {error!r}") from None
    check_version(reported, version)
    return logprobs if len(entries) == len(tokens) else []


def parse_counters(reply: Any) -> Mapping[str, float]:
    """Prometheus' text: `name{labels} value`, one line for each engine of the server."""
    total: dict[str, float] = {}
    for line in reply.splitlines() if isinstance(reply, str) else ():
        name, _, value = line.rpartition(" ")
        ours = _COUNTERS.get(name.partition("{")[0])
        if ours is not None:
            try:
                total[ours] = total.get(ours, 0.0) + float(value)
            except ValueError:
                continue
    return total


def update_steps(update: WeightUpdate, mode: str, abilities: Abilities) -> list[Step]:
    """Nothing is drained: what runs is frozen, and goes on with the new weights.

    A server that has the transfer backend "file" is told to load by it, within a session of its
    own; any other reloads the folder, which is right where its weights are not packed.
    """
    cache = str(mode == "retract").lower()
    version = str(update.version)
    if abilities.loader == "file transfer":
        load = [
            Step("/start_weight_update"),
            Step("/update_weights", {"update_info": {"path": update.path}}),
            Step("/finish_weight_update", {"weight_version": version}),
        ]
    else:
        reload = {"method": "reload_weights", "kwargs": {"weights_path": update.path}}
        load = [
            Step("/collective_rpc", reload),
            Step("/update_weight_version", {"new_version": version}),
        ]
    return [Step(f"/pause?mode=keep&clear_cache={cache}"), *load, Step("/resume")]


def recovery_steps(abilities: Abilities) -> list[Step]:
    """A session that was broken off would refuse the next one."""
    return [Step("/finish_weight_update")] if abilities.loader == "file transfer" else []


def _within(value: Any, key: str | None = None) -> Mapping[str, Any]:
    """The object under this key, or an empty one."""
    found = value if key is None else value.get(key) if isinstance(value, Mapping) else None
    return found if isinstance(found, Mapping) else {}
