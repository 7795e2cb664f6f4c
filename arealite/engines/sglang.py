"""SGLang's wire format as pure functions: requests are built and replies parsed here, no I/O.

The embedded server speaks the same. Log-probabilities mean: of the sampled token, under the
sampling temperature, not renormalised for top-p or top-k. A reply is believed only where it
answers the request that was sent: the name, the prompt's length and the tokens must agree.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from arealite.engines.dialect import (
    MALFORMED,
    MAX_SEED,
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
    version_of,
)
from arealite.errors import EngineError
from arealite.types import GenerationHyperparameters, VersionsFrom, WeightUpdate

GENERATE, ALIVE, COUNTERS = "/generate", "/get_model_info", "/get_server_info"

QUESTIONS = (Question("/get_server_info"),)


def abilities(answers: Sequence[Answer]) -> Abilities:
    """SGLang tells its version and every setting; the embedded server only its name."""
    [info] = answers
    if info.status == 401:
        return Abilities("SGLang", lacks=NO_KEY)
    told = info.value if info.status == 200 else None
    if not isinstance(told, Mapping):
        return Abilities()
    if told.get("server") == "embedded":
        return Abilities("the embedded server", "temperature", loader="folder")
    return Abilities(
        f"SGLang {told.get('version', 'of unknown version')}",
        "raw" if _returns_original(told) else "barred",
        obeys_seeds=bool(told.get("enable_deterministic_inference")),
        # Its n samples of one request all get the request's seed (0.5.23, tokenizer_manager).
        seeds_group=False,
        loader="folder",
        counters="/v1/loads",
    )


def _returns_original(told: Mapping[str, Any]) -> bool:
    """SGLANG_RETURN_ORIGINAL_LOGPROB, where the server tells its environment variables."""
    try:
        value = told["internal_states"][0]["env_vars"]["SGLANG_RETURN_ORIGINAL_LOGPROB"]
    except MALFORMED:
        return False
    return str(value).lower() in ("1", "true")


def generate_body(
    input_ids: Sequence[int],
    gconfig: GenerationHyperparameters,
    rid: str,
    n: int,
    done: int = 0,
    index: int = 0,
) -> dict[str, Any]:
    """The body of POST /generate for n samples (see Dialect).

    It draws by seed and position: a sample that is sent again goes on with its own random numbers.
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
    """The samples of a reply to the body `asked` (see Dialect). Raises EngineError."""
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
    """log pi(token i + 1 | tokens up to i), one fewer than tokens. Raises EngineError."""
    try:
        meta = reply["meta_info"]
        _check_addressee(meta, asked, mark)
        entries = meta["input_token_logprobs"]
        tokens = [entry[1] for entry in entries]
        logprobs = [float(entry[0]) for entry in entries[1:]]
        told = meta.get("weight_version")
        reported = version if told is None else version_of(told)
    except MALFORMED as error:
        raise EngineError(f"the probe's reply is malformed: {error!r}") from None
    if len(tokens) == len(asked["input_ids"]) and tokens != asked["input_ids"]:
        raise EngineError("the probe's reply is about other tokens than were sent")
    check_version(reported, version)
    return logprobs


def parse_counters(reply: Any) -> Mapping[str, float]:
    """The embedded server's are told by name; SGLang's are one load for each of its ranks."""
    if not isinstance(reply, Mapping):
        return {}
    if isinstance(loads := reply.get("loads"), list):
        keys = {"running": "num_running_reqs", "waiting": "num_waiting_reqs"}
        keys["used_tokens"] = "num_used_tokens"
        return {ours: sum(_number(load, key) for load in loads) for ours, key in keys.items()}
    if "internal_states" in reply:  # SGLang's settings: many numbers, none of them a counter
        return {}
    return {key: value for key, value in reply.items() if _is_number(value)}


def update_steps(update: WeightUpdate, mode: str, abilities: Abilities) -> list[Step]:
    """Nothing is drained: what runs is frozen, and goes on with the new weights."""
    load = {
        "model_path": update.path,
        "weight_version": str(update.version),
        "abort_all_requests": False,
        "flush_cache": mode == "retract",
    }
    return [
        Step("/pause_generation", {"mode": mode}),
        Step("/update_weights_from_disk", load, confirmed="success"),
        Step("/continue_generation"),
    ]


def recovery_steps(abilities: Abilities) -> list[Step]:
    """None: a pause within a pause changes nothing, and a load is all or nothing."""
    return []


def _number(load: Any, key: str) -> float:
    value = load.get(key) if isinstance(load, Mapping) else None
    return float(value) if isinstance(value, int | float) else 0.0


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _parse_one(item: Any, asked: Mapping[str, Any], mark: str, known: int | None) -> Part:
    meta, tokens = item["meta_info"], item["output_ids"]
    _check_addressee(meta, asked, mark)
    entries = meta["output_token_logprobs"]
    logprobs = [float(entry[0]) for entry in entries]
    finish = str(meta["finish_reason"]["type"])
    versions, versions_from = _versions(meta, len(tokens), known)
    part = Part(tokens, logprobs, versions, finish, versions_from)
    most = asked["sampling_params"]["max_new_tokens"]
    return checked(part, [entry[1] for entry in entries], most)


def _check_addressee(meta: Mapping[str, Any], asked: Mapping[str, Any], mark: str) -> None:
    """The reply must be to this request and not to another one, where it says."""
    rid, name = asked["rid"], meta.get("id")
    if name is not None and name != rid:
        # SGLang gives the samples of a group names of its own; the embedded server numbers them.
        single = asked["sampling_params"]["n"] == 1
        if single or (str(name).startswith(mark) and not str(name).startswith(f"{rid}-")):
            raise EngineError(f"the server answered the request {name}, asked was {rid}")
    check_prompt(meta.get("prompt_tokens"), len(asked["input_ids"]))


def _versions(
    meta: Mapping[str, Any], n_tokens: int, known: int | None
) -> tuple[list[int], VersionsFrom]:
    """One version per token, and who says so."""
    if meta.get("weight_versions"):
        return spread(meta["weight_versions"], n_tokens), "server"
    if meta.get("weight_version") is None:
        return [known or 0] * n_tokens, "client"
    last = version_of(meta["weight_version"])
    if known is not None and last > known:  # it changed under way, and we are not told where
        return [known] * n_tokens, "client"
    return [last] * n_tokens, "server"
